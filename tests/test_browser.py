"""A reader's first minute: JupyterLab in a real browser runs all cells of notebook 10 and shows its pictures."""

import base64
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import requests
import websocket

from lib.run import runs
from lib.run.paths import ROOT

pytestmark = [pytest.mark.browser, pytest.mark.notebooks, pytest.mark.slow]
TIME_OUT_SECONDS = 120
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
NOTEBOOK = "10_prepare_data.ipynb"
# Nothing but JupyterLab here is asked for anything, not even the Colab badge; /dev/shm is small in containers.
BROWSER_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1400,1000",
    "--remote-debugging-port=0", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
# What a reader sees, asked of the page. JupyterLab keeps every cell in it, also those that are scrolled away.
CELL_STATES = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(prompt => prompt.textContent.trim())"
# Errors and whatever was written to stderr, warnings too: JupyterLab shows both in red.
ERRORS = """[...document.querySelectorAll('[data-mime-type$="jupyter.stderr"], [data-mime-type$="jupyter.error"]')]
    .map(output => output.innerText)"""
PICTURES = """(async () => {
    const found = [];
    for (const image of document.querySelectorAll('.jp-OutputArea-output img')) {
        await image.decode();
        let box, seen = false;
        for (let look = 0; look < 33 && !seen; look++) {  // 10 s: JupyterLab may still be rendering or scrolling
            image.scrollIntoView({block: 'center'});
            await new Promise(done => setTimeout(done, 300));
            box = image.getBoundingClientRect();
            seen = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2) === image;
        }
        const canvas = Object.assign(document.createElement('canvas'), {width: image.naturalWidth,
                                                                        height: image.naturalHeight});
        const context = canvas.getContext('2d');
        context.drawImage(image, 0, 0);
        const pixels = new Uint32Array(context.getImageData(0, 0, canvas.width, canvas.height).data.buffer);
        found.push({type: image.src.slice(0, 15), width: box.width, height: box.height,
                    colours: new Set(pixels).size, seen: seen});
    }
    return found;
})()"""


class Page:
    """One page of a headless browser, driven over the DevTools protocol."""

    def __init__(self, port: int, deadline: float):
        self.deadline, self.last_id = deadline, 0
        pages = _http().get(f"http://127.0.0.1:{port}/json/list", timeout=10).json()
        address = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
        self.socket = websocket.create_connection(
            address, timeout=30, suppress_origin=True, http_no_proxy=["127.0.0.1"]
        )

    def send(self, method: str, **parameters):
        """The result of a DevTools command; an error past the deadline, also where the page hangs."""
        self.last_id += 1
        self.socket.send(json.dumps({"id": self.last_id, "method": method, "params": parameters}))
        while True:
            self.socket.settimeout(max(1.0, self.deadline - time.monotonic()))
            answer = json.loads(self.socket.recv())
            if answer.get("id") == self.last_id:
                assert "error" not in answer, f"{method}: {answer.get('error')}"
                return answer["result"]

    def ask(self, script: str):
        answer = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def click(self, selector: str, text: str) -> None:
        """A mouse click in the middle of the visible element with this text, as soon as there is one."""
        middle = f"""(() => {{
            const found = [...document.querySelectorAll({json.dumps(selector)})]
                .find(e => e.textContent.trim() === {json.dumps(text)} && e.offsetParent);
            const box = found && found.getBoundingClientRect();
            return box && [box.x + box.width / 2, box.y + box.height / 2];
        }})()"""
        x, y = wait(lambda: self.ask(middle), f"{text!r} to click on", self.deadline)
        for kind, buttons in (("mouseMoved", 0), ("mousePressed", 1), ("mouseReleased", 0)):
            button = "left" if kind != "mouseMoved" else "none"
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=buttons, clickCount=1)

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))


def wait(condition, what: str, deadline: float):
    """The first true value of `condition()`."""
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.2)
    raise TimeoutError(f"waited in vain for {what}; the test's limit is {TIME_OUT_SECONDS} s")


@contextlib.contextmanager
def process(command: list, log: Path, **options):
    """A process in its own group, which is ended as a whole: asked (JupyterLab then ends its kernels), then killed."""
    with log.open("w") as output:
        started = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, **options)
    try:
        yield started
    finally:
        started.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(timeout=10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait(timeout=10)


@contextlib.contextmanager
def jupyterlab(folder: Path, home: Path, deadline: float):
    """JupyterLab's address and token, as long as it runs."""
    token, runtime = secrets.token_hex(16), home / "runtime"
    # Its news are not asked for and nobody is asked whether they should be; the user's own set-up is left alone.
    news = home / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    folders = {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "runtime"}
    environment = os.environ | {f"JUPYTER_{name}": str(home / folder) for name, folder in folders.items()}
    environment |= {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "PYTHONPATH": str(ROOT)}
    environment |= {"JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"), "IPYTHONDIR": str(home / "ipython")}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1",
        "--ServerApp.port=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}",
        "--LabApp.extension_manager=readonly",
    ]  # fmt: skip
    with process(command, home / "jupyterlab.log", env=environment) as server:

        def running():
            assert server.poll() is None, (home / "jupyterlab.log").read_text()[-3000:]
            return _read_json(runtime / f"jpserver-{server.pid}.json")

        address = f"http://127.0.0.1:{wait(running, 'JupyterLab', deadline)['port']}"
        yield address, token


@contextlib.contextmanager
def browser(program: str, home: Path, deadline: float):
    command = [program, *BROWSER_FLAGS, f"--user-data-dir={home / 'profile'}", "about:blank"]
    with process(command, home / "browser.log") as started:

        def port():
            assert started.poll() is None, (home / "browser.log").read_text()[-3000:]
            file = home / "profile" / "DevToolsActivePort"
            return file.exists() and file.read_text().split("\n")[0]

        yield Page(int(wait(port, "the browser", deadline)), deadline)


def kernel_states(address: str, token: str) -> list[str]:
    kernels = _http(token).get(f"{address}/api/kernels", timeout=10).json()
    return [kernel["execution_state"] for kernel in kernels]


def _http(token: str = "") -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # no proxy between this machine and itself
    session.headers["Authorization"] = f"token {token}"
    return session


def _read_json(file: Path):
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # not written yet, or not whole
        return None


def copy_for(outputs: Path, folder: Path) -> Path:
    """A copy of notebook 10 whose run lies in `outputs`, edited where a reader would: in the parameters cell."""
    notebook = nbformat.read(ROOT / "notebooks" / NOTEBOOK, as_version=4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    assert cell.source.count("outputs = None ") == 1
    cell.source = cell.source.replace("outputs = None ", f"outputs = {str(outputs)!r} ")
    folder.mkdir()
    nbformat.write(notebook, folder / NOTEBOOK)
    return folder / NOTEBOOK


def test_jupyterlab_runs_notebook_10_and_shows_its_pictures(tmp_path):
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser on the PATH ({', '.join(BROWSERS)}); on Debian or Ubuntu: apt install chromium")
    deadline = time.monotonic() + TIME_OUT_SECONDS
    copy = copy_for(tmp_path / "outputs", tmp_path / "notebooks")
    cells = sum(cell.cell_type == "code" for cell in nbformat.read(copy, as_version=4).cells)
    with jupyterlab(copy.parent, tmp_path, deadline) as (address, token), browser(program, tmp_path, deadline) as page:
        try:
            page.send("Page.navigate", url=f"{address}/lab/tree/{NOTEBOOK}?token={token}")
            wait(lambda: len(page.ask(CELL_STATES)) == cells, "the notebook's cells", deadline)
            wait(lambda: kernel_states(address, token) == ["idle"], "an idle kernel", deadline)
            page.click(".lm-MenuBar-itemLabel", "Run")
            page.click(".lm-Menu-itemLabel", "Run All Cells")
            numbered = [f"[{number}]:" for number in range(1, cells + 1)]
            wait(lambda: page.ask(CELL_STATES) == numbered or page.ask(ERRORS), "the last cell to end", deadline)
            assert page.ask(ERRORS) == []
            pictures = page.ask(PICTURES)
            page.screenshot(tmp_path / "screenshot.png")
            assert len(pictures) >= 2, pictures  # row lengths, answer magnitudes
            for picture in pictures:
                assert picture["type"] == "data:image/png;" and picture["seen"], picture
                assert picture["width"] > 300 and picture["height"] > 150 and picture["colours"] > 10, picture
            assert runs.read(tmp_path / "outputs" / "demo", "prepare")["metrics"]["rows"]["train"] == 900
        except BaseException as error:
            with contextlib.suppress(Exception):  # the first error is the one to report
                page.screenshot(tmp_path / "screenshot.png")
            error.add_note(f"what the page showed: {tmp_path / 'screenshot.png'}; logs: {tmp_path}/*.log")
            raise
