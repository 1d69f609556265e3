"""A run's best artefact on this machine, with its calculator: an engine that is kept alive, and the front before it."""

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from lib import SharpenError
from lib.engine import llamacpp
from lib.engine.llamacpp import Program
from lib.run import runs
from lib.run.paths import ROOT, locate
from lib.run.settings import ServeSettings
from lib.ship import deploy
from lib.ship.deploy import KEY, Choice

LOOPBACK = ("127.0.0.1", "localhost", "::1")
GRACE_SECONDS = 30  # in which running requests may end when the server is stopped
START_SECONDS = 600  # that an engine may take to load
MOST_STARTS, IN_SECONDS = 5, 60  # an engine that ends more often is not started again
LOG = logging.getLogger("sharpen.serve")


class Kept:
    """An engine on the loopback, started again at the same port when it ends by itself."""

    def __init__(self, make: Callable[[int], Program]):
        self.make, self.port, self.starts = make, llamacpp.free_port(), []
        self.failure: Exception | None = None  # why it was given up

    def __enter__(self) -> "Kept":
        self._start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.close()

    def _start(self) -> None:
        self.starts.append(time.monotonic())
        self.program, self.stack = self.make(self.port), contextlib.ExitStack()
        self.stack.enter_context(self.program)

    async def keep(self, tell: Callable[[bool], None]) -> None:
        """For as long as it can be kept; `tell` hears when it does not answer, and when it does again."""
        while True:
            while self.program.process.poll() is None:
                await asyncio.sleep(0.1)
            said = self.program.said()
            tell(False)
            LOG.error(json.dumps({"engine": "ended", "said": said}))
            self.stack.close()
            recent = [start for start in self.starts if start > time.monotonic() - IN_SECONDS]
            if len(recent) >= MOST_STARTS:
                self.failure = deploy.DeployError(f"the engine ended {len(recent)} times in a minute: {said}")
                return
            try:
                await asyncio.to_thread(self._start)
            except asyncio.CancelledError:
                self.program.given_up = True
                raise
            except (SharpenError, OSError) as error:
                self.failure = error
                return
            tell(True)


def run(run_folder: Path, settings: ServeSettings, host: str = "127.0.0.1", log_prompts: bool = False) -> None:
    """Serve until SIGINT or SIGTERM; running requests may end. SharpenError where it cannot, or cannot any more."""
    key = os.environ.get(KEY)
    if host not in LOOPBACK and not key:
        raise deploy.DeployError(f"--host {host}: whoever reaches this machine could ask: set {KEY} to a key of your "
                                 f"choice, or leave --host out")  # fmt: skip
    choice = deploy.choose(run_folder, settings)
    print(f"{choice.path.name} by {choice.engine} ({choice.why})", flush=True)
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(_listen(host, settings.port))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sharpen-serve-")))
        make = deploy.engine(choice, run_folder, settings, folder)
        kept = stack.enter_context(Kept(make))
        server = _server(run_folder, choice, settings, folder, kept, host, key, log_prompts)
        from lib.front.app import in_url

        url = f"http://{in_url(host)}:{listening.getsockname()[1]}"
        calculator = "with its calculator" if settings.calculator != "off" else "without a calculator"
        example = deploy.curl(url, run_folder.name, "What is 5 % of $200?")
        print(f"listening on {url}/v1, model {run_folder.name!r}, {calculator}; Ctrl-C stops it. For example:\n"
              f"  {example}", flush=True)  # fmt: skip
        server.run(sockets=[listening])
        if kept.failure:
            raise kept.failure


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=256)
        # a token goes out at once; asyncio does so only for sockets that say their protocol
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        raise deploy.DeployError(f"host = {host!r}, port = {port}: {error.strerror}; choose another, or 0 for a port "
                                 f"that is free") from None  # fmt: skip


def _server(run_folder: Path, choice: Choice, settings: ServeSettings, folder: Path, kept: Kept, host: str,
            key: str | None, log_prompts: bool) -> Any:  # fmt: skip
    """uvicorn's server of the front; `folder`: where the engine's files lie."""
    import httpx
    import uvicorn

    from lib.data import chat
    from lib.engine import streaming
    from lib.engine.marks import Marks
    from lib.front import app as front
    from lib.front.writing import Model

    tokenizer = _tokenizer(run_folder, settings)
    # no time limit and no proxy; a new connection each time: llama-server drops some that it has streamed on
    client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{kept.port}", timeout=None, trust_env=False,
                               limits=httpx.Limits(max_keepalive_connections=0))  # fmt: skip
    ends, name = chat.end_ids(tokenizer), run_folder.name
    engines = {
        "llama-server": streaming.Llama(client, tokenizer),
        "vllm": streaming.Vllm(client, name, ends),
        "transformers": streaming.Transformers(client, name, tokenizer, ends),
    }
    marks = None if settings.calculator == "off" else Marks(tokenizer)
    if isinstance(kept.program, llamacpp.Server):
        longest = kept.program.context()
    else:
        longest = deploy.context(settings, folder / name / "config.json")
    model = Model(name, tokenizer, engines[choice.engine], longest, settings.max_new_tokens, settings.parallel,
                  settings.queue, settings.request_seconds, marks)  # fmt: skip

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        def tell(up: bool) -> None:
            app.state.up = up
            app.state.counts.restarts.inc(up)

        async def keep() -> None:
            await kept.keep(tell)
            app.state.queue.closed = server.should_exit = True

        keeping = asyncio.create_task(keep())
        async with client:
            yield
        keeping.cancel()

    hosts = ("*",) if key else LOOPBACK
    app = front.app(model, key, hosts, log_prompts, lifespan)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    LOG.setLevel(logging.INFO)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="warning", access_log=False,
                                           server_header=False, timeout_graceful_shutdown=GRACE_SECONDS))  # fmt: skip
    return server


def _tokenizer(run_folder: Path, settings: ServeSettings) -> Any:
    """The exported model's, with which its file was made; else the base's."""
    from transformers import AutoTokenizer

    from lib.data import chat

    merged = run_folder / "export" / "merged"
    if runs.is_complete(run_folder, "export") and (merged / "tokenizer.json").is_file():
        return AutoTokenizer.from_pretrained(locate(str(merged)), trust_remote_code=False)
    return chat.load_tokenizer(settings)


@contextlib.contextmanager
def serving(run_folder: Path, settings: ServeSettings) -> Iterator[Program]:
    """`run` in a process of its own on the loopback while the block runs, healthy at its start."""
    if deploy.choose(run_folder, settings).engine == "llama-server":
        llamacpp.find(settings.llama_cpp_path)  # which may be built first
    own = settings.model_dump(mode="json", include=set(ServeSettings.model_fields))
    command = [sys.executable, "-m", "lib.ship.serve", json.dumps({"run_folder": str(run_folder), "settings": own})]
    with tempfile.TemporaryDirectory(prefix="sharpen-serve-") as folder:  # it is ended without time to tidy up
        program = Program("the server", command, settings.parallel, settings.port, START_SECONDS + 60, ROOT,
                          {"TMPDIR": folder})  # fmt: skip
        with program:
            yield program


def main() -> None:
    asked = json.loads(sys.argv[1])
    settings = ServeSettings(**asked["settings"] | {"port": int(sys.argv[sys.argv.index("--port") + 1])})
    try:
        run(Path(asked["run_folder"]), settings)
    except SharpenError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
