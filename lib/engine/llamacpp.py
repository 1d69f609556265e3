"""Find or build llama.cpp (converter, llama-quantize, llama-server), and run its server while we need it."""

import hashlib
import json
import math
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from lib import SharpenError
from lib.run import packages, processes
from lib.run.packages import cache

# The source distribution of llama-cpp-python holds the whole source of llama.cpp, and every package index has it;
# the wheel that is made from it has neither the converter nor the programs.
VERSION = "0.3.36"
ARCHIVE = f"llama_cpp_python-{VERSION}.tar.gz"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
SOURCE = f"llama_cpp_python-{VERSION}/vendor/llama.cpp/"  # inside the archive
CONVERTER, PROGRAMS = "convert_hf_to_gguf.py", ("llama-quantize", "llama-server")
OPTIONS = (  # static, so that the folder can be renamed; without web page, TLS and tests
    "CMAKE_BUILD_TYPE=Release", "BUILD_SHARED_LIBS=OFF", "LLAMA_BUILD_TESTS=OFF", "LLAMA_BUILD_EXAMPLES=OFF",
    "LLAMA_BUILD_APP=OFF", "LLAMA_BUILD_UI=OFF", "LLAMA_USE_PREBUILT_UI=OFF", "LLAMA_OPENSSL=OFF",
    "LLAMA_ALL_WARNINGS=OFF", "GGML_ALL_WARNINGS=OFF",
)  # fmt: skip
# Linux ends the child when we end, however we do (prctl 1 is PR_SET_PDEATHSIG); elsewhere only `with` does.
# A program between us and it: code that runs between fork and exec is unsafe beside torch's threads.
LAUNCHER = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the process that wanted this is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class LlamaCppError(SharpenError):
    """llama.cpp is missing, does not build, or fails; the message says what to do."""


@dataclass(frozen=True)
class LlamaCpp:
    """Where llama.cpp's converter and programs lie."""

    folder: Path
    converter: Path
    quantize: Path
    server: Path


def find(llama_cpp_path: str | Path | None = None, echo: Callable[[str], Any] = print) -> LlamaCpp:
    """llama.cpp at `llama_cpp_path` (or $LLAMA_CPP_PATH), checked; else ours from the cache, built at first use.

    LlamaCppError lists the paths tried and how to build."""
    return named(llama_cpp_path) or cached() or build(echo)


def named(llama_cpp_path: str | Path | None = None) -> LlamaCpp | None:
    """llama.cpp at `llama_cpp_path` (or $LLAMA_CPP_PATH), checked; None where neither names one."""
    given = llama_cpp_path or os.environ.get("LLAMA_CPP_PATH")
    if not given:
        return None
    return check(Path(given).expanduser())


def check(folder: Path) -> LlamaCpp:
    """The converter and programs of a checkout, wherever its build put them."""
    places = [folder / "build/bin", folder / "bin", folder]
    path = os.pathsep.join(map(str, places))
    found = {CONVERTER: shutil.which(CONVERTER, os.F_OK, path)}
    for program in PROGRAMS:
        found[program] = shutil.which(program, path=path)
    missing = [name for name, place in found.items() if place is None]
    if missing:
        tried = [str(place / name) for name in missing for place in places]
        raise LlamaCppError(
            f"llama_cpp_path = {str(folder)!r} lacks {', '.join(missing)}; tried {', '.join(tried)}. "
            f"To build, in a checkout of llama.cpp: cmake -B build && cmake --build build --target "
            f"{' '.join(PROGRAMS)}; or leave llama_cpp_path out, and ours is built"
        )
    return LlamaCpp(folder, *(Path(place).resolve() for place in found.values()))


def cached() -> LlamaCpp | None:
    """Our own build, if it is there already."""
    folder = _target()
    return check(folder) if folder.is_dir() else None


def _target() -> Path:
    """The folder of our build; a cache on a shared disk keeps one for each kind of processor."""
    processor = " ".join([platform.system(), platform.machine(), *sorted(cpu_flags())])
    return cache() / f"llama.cpp-{VERSION}-{hashlib.sha256(processor.encode()).hexdigest()[:8]}"


def cpu_flags() -> set[str]:
    """The processor's special instructions, as Linux lists them; none elsewhere."""
    with suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("flags"):
                return set(line.split())
    return set()


def build(echo: Callable[[str], Any] = print) -> LlamaCpp:
    """Fetch the pinned source by pip, check its hash, build the programs; an interrupted build goes on."""
    from filelock import FileLock, Timeout

    target, began = _target(), time.monotonic()
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LlamaCppError(f"cannot write to {target.parent}: {error.strerror}; set SHARPEN_CACHE") from error
    lock = FileLock(cache() / ".llama.cpp.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        echo("llama.cpp is being built by another process: waiting for it")
        lock.acquire()
    with lock:
        if done := cached():
            return done
        if not (part / ".unpacked").exists():
            _unpack(_archive(echo), part)
        echo("building llama.cpp, once (minutes)")
        _compile(part, echo)
        for folder in (part / "build").glob("*/"):  # 200 MB of objects
            if folder.name != "bin":
                shutil.rmtree(folder)
        check(part)
        os.replace(part, target)
        (cache() / ARCHIVE).unlink(missing_ok=True)
    echo(f"llama.cpp is built, in {time.monotonic() - began:.0f} s: {target}")
    return check(target)


def _archive(echo: Callable[[str], Any]) -> Path:
    """The source distribution, fetched through whatever index pip knows, and its hash checked."""
    or_else = ", or set llama_cpp_path to a checkout that is built"
    return packages.fetched(f"llama-cpp-python=={VERSION}", ARCHIVE, SHA256, "--no-binary", echo, or_else)


def _unpack(archive: Path, part: Path) -> None:
    shutil.rmtree(part, ignore_errors=True)
    with tarfile.open(archive) as tar:
        members = [member for member in tar.getmembers() if member.name.startswith(SOURCE) and member.isreg()]
        for member in members:
            member.name = member.name.removeprefix(SOURCE)
        tar.extractall(part, members, filter="data")
    (part / ".unpacked").touch()


def _compile(part: Path, echo: Callable[[str], Any]) -> None:
    """cmake and ninja, with a line for each tenth of the way."""
    began, log = time.monotonic(), part / "build.log"
    cmake, ninja = _tool("cmake"), _tool("ninja")
    configure = [cmake, "-S", part, "-B", part / "build", "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    options = [f"-D{option}" for option in OPTIONS]
    with open(log, "w") as file:

        def hear(line: str) -> None:
            file.write(line)
            step = re.match(r"\[(\d+)/(\d+)\]", line)
            if step and int(step[1]) % max(1, int(step[2]) // 10) == 0:
                echo(f"  {step[1]} of {step[2]} files, {time.monotonic() - began:.0f} s")

        _run([*configure, *options], "configuring llama.cpp", f"see {log}", file.write)
        _run([ninja, "-C", part / "build", *PROGRAMS], "building llama.cpp", f"see {log}", hear)


def _tool(name: str) -> str:
    """cmake or ninja of this Python's environment, else of the PATH."""
    scripts = sysconfig.get_path("scripts")
    if found := shutil.which(name, path=os.pathsep.join([scripts, os.environ.get("PATH", "")])):
        return found
    raise LlamaCppError(f"{name} is not installed: make setup, or pip install {name}")


def start(command: Sequence[Any], stdin: int = subprocess.DEVNULL, **options: Any) -> subprocess.Popen:
    """A process that ends with us."""
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(os.getpid())]
    return subprocess.Popen([*launcher, *map(str, command)], stdin=stdin, **options)


def _run(command: Sequence[Any], what: str, remedy: str, hear: Callable[[str], Any] | None = None) -> None:
    """Run to the end, and let `hear` have each line; LlamaCppError with the last lines where it fails."""
    lines = []
    with start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as process:
        try:
            for line in process.stdout:
                lines.append(line)
                if hear:
                    hear(line)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        if process.returncode < 0:
            what += f" (killed by {signal.Signals(-process.returncode).name})"
        raise LlamaCppError(f"{what} failed: {last_words(lines)}; {remedy}")


def last_words(lines: Sequence[str]) -> str:
    """The end of what a program said, in one line, without tqdm's progress bars."""
    said = [line.strip() for line in lines if line.strip() and "%|" not in line]
    return " | ".join(said[-6:])[-1500:] or "it said nothing"


def convert(llama: LlamaCpp, model: Path, path: Path, outtype: str, name: str) -> None:
    """A Hugging Face folder as one GGUF file (`outtype`: f32, f16, bf16 or q8_0), by llama.cpp's own converter."""
    command = [sys.executable, llama.converter, model, "--outfile", path, "--outtype", outtype, "--model-name", name]
    _run(command, f"converting {model} to GGUF", "is the disk full, or the tokenizer unknown to it?")


def quantize(llama: LlamaCpp, source: Path, path: Path, quantization: str) -> None:
    """A 16- or 32-bit GGUF file quantised by llama.cpp's own program."""
    command = [llama.quantize, source, path, quantization]
    _run(command, f"quantising {source.name} to {quantization}", "is the disk full?")


def free_port(port: int = 0) -> int:
    """`port` of the loopback (0: any) if it is free, else LlamaCppError."""
    try:
        with socket.create_server(("127.0.0.1", port)) as probe:
            return probe.getsockname()[1]
    except OSError as error:
        raise LlamaCppError(f"port = {port}: {error.strerror}; choose another, or 0 for one that is free") from error


@dataclass(eq=False)
class Program:
    """A program that answers HTTP on the loopback, while a `with` block runs.

    `words`: its command without host and port; `parallel`: requests at once; `port`: 0 takes a free one."""

    name: str
    words: list[Any]
    parallel: int = 1
    port: int = 0
    start_seconds: float = 120
    cwd: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    given_up: bool = False  # it is not waited for any more

    def __enter__(self) -> "Program":
        import httpx  # here, as it takes a tenth of a second that `sharpen --help` need not wait

        self.port = free_port(self.port)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_ARG_")}
        # no proxy: a request to ourselves must not leave; no time limit: a long answer takes as long as it takes
        limits = httpx.Limits(max_connections=self.parallel + 2, max_keepalive_connections=self.parallel + 2)
        with ExitStack() as stack:
            log = stack.enter_context(tempfile.NamedTemporaryFile(prefix="sharpen-server-", suffix=".log"))
            self.log = Path(log.name)
            client = httpx.Client(base_url=self.url, timeout=None, trust_env=False, limits=limits)
            self.client = stack.enter_context(client)
            command = [*self.words, "--host", "127.0.0.1", "--port", self.port]
            # a session of its own: Ctrl-C is for us, who let it finish what runs
            self.process = start(command, stdout=log, stderr=log, env=environment | self.environment, cwd=self.cwd,
                                 start_new_session=True)  # fmt: skip
            stack.callback(self._end)
            self._wait()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def _end(self) -> None:
        if self.process.poll() is None:
            processes.kill(processes.family(self.process.pid))  # they hold nothing that must be saved
        self.process.wait()

    def said(self) -> str:
        """Its last words."""
        return last_words(self.log.read_text(errors="replace").splitlines())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _wait(self) -> None:
        """Until the model is loaded: /health answers 503 before, or nothing, and 200 from then on."""
        import httpx

        until = time.monotonic() + self.start_seconds
        while time.monotonic() < until and not self.given_up:
            if self.process.poll() is not None:
                raise LlamaCppError(f"{self.name} ended while loading: {self.said()}")
            with suppress(httpx.TransportError):
                if self.client.get("/health", timeout=2).status_code == 200:
                    return
            time.sleep(0.05)
        raise LlamaCppError(f"{self.name} did not load in {self.start_seconds:g} s: {self.said()}")

    def wait(self) -> None:
        """For as long as the program runs; LlamaCppError, as nobody but us should end it."""
        self.process.wait()
        raise LlamaCppError(f"{self.name} has ended: {self.said()}")

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """A request's answer; LlamaCppError with the program's own words where it refuses or has died."""
        import httpx

        try:
            answer = self.client.post(path, json=body)
        except httpx.TransportError as error:
            raise LlamaCppError(f"{self.name} does not answer ({type(error).__name__}): {self.said()}") from error
        if answer.status_code != 200:
            raise LlamaCppError(f"{self.name} refuses {path}: {answer.text[:500]}")
        return json.loads(answer.content)


class Server(Program):
    """llama-server with one model, known as `alias` to those who ask.

    `context`: tokens of the longest prompt and answer together; `slots`: requests answered at once; `exact`: all of the
    computation in 32 bit, to compare with transformers."""

    def __init__(self, llama: LlamaCpp, model: Path, context: int, slots: int = 1, exact: bool = False, port: int = 0,
                 alias: str = "model", start_seconds: float = 120):  # fmt: skip
        self.model, self.slots = Path(model), slots
        words = [llama.server, "--model", self.model, "--alias", alias, "--ctx-size", slots * context, "--parallel",
                 slots, "--no-kv-unified", "--cache-ram", 0, "--threads-http", slots + 2, "--no-ui", "--no-slots",
                 "--offline", "--threads", _cores(),
                 "--cors-origins", "localhost"]  # no other site's page may read answers  # fmt: skip
        if exact:
            words += ["--flash-attn", "off", "--cache-type-k", "f32", "--cache-type-v", "f32"]
        super().__init__(f"llama-server ({self.model.name})", words, slots, port, start_seconds)

    def context(self) -> int:
        """Tokens of a slot: as many as were asked for, or as the model was trained for."""
        return self.client.get("/props").json()["default_generation_settings"]["n_ctx"]

    def complete(self, ids: list[int], count: int, stop: Sequence[str] = (), slot: int = -1) -> list[int]:
        """Up to `count` greedy tokens after the prompt `ids`, through its end or a text in `stop`, inclusive.

        A slot that is asked again with a longer prompt computes only what is new."""
        body = {"prompt": ids, "n_predict": count, "temperature": 0, "top_k": 1, "stop": list(stop),
                "id_slot": slot, "cache_prompt": True, "return_tokens": True,
                "response_fields": ["tokens", "truncated"]}  # fmt: skip
        answer = self.post("/completion", body)
        if answer.get("truncated"):
            raise LlamaCppError(f"an answer to a prompt of {len(ids)} tokens outgrew the context: raise max_length")
        return answer["tokens"]

    def logprob(self, ids: list[int], token: int, slot: int = -1) -> float:
        """Natural logarithm of the probability that `token` follows `ids`.

        A bias chooses the token, and its logarithm leaves that out; for half a character the server sends none,
        and all tokens are asked for."""
        chosen = self._probabilities(ids, 1, token, slot)
        if not chosen:
            return self.next_logprobs(ids, 1_000_000)[token]
        assert chosen[0]["id"] == token, "the bias did not choose the token"
        return chosen[0]["logprob"]

    def next_logprobs(self, ids: list[int], count: int) -> dict[int, float]:
        """Natural logarithms of the probabilities of the `count` likeliest next tokens after `ids`.

        They are of the model's logits, before the bias that chooses an `a`: for half a character the server would
        send none."""
        likeliest = self._probabilities(ids, count, "a")[0]["top_logprobs"]
        return {token["id"]: token["logprob"] for token in likeliest}

    def _probabilities(self, ids: list[int], count: int, chosen: int | str, slot: int = -1) -> list[dict]:
        """Of the one next token, which a bias chooses."""
        body = {"prompt": ids, "n_predict": 1, "temperature": 0, "n_probs": count, "cache_prompt": True,
                "id_slot": slot, "logit_bias": [[chosen, 1e6]],
                "response_fields": ["completion_probabilities"]}  # fmt: skip
        return self.post("/completion", body).get("completion_probabilities")

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text; marks such as <|user|> are the tokens that they name, and no BOS is added."""
        body = {"content": text, "add_special": False, "parse_special": True}
        return self.post("/tokenize", body)["tokens"]


def server_for(llama: LlamaCpp, model: Path, longest: int, rows: int) -> Server:
    """A server for `rows` questions, 16 at once at most, none longer than `longest` tokens with its answer."""
    return Server(llama, model, 64 * math.ceil((longest + 8) / 64), slots=min(rows, 16))


def _cores() -> int:
    """Physical cores that this process may use: a second thread on a core slows it down."""
    usable = os.cpu_count()
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        usable = len(os.sched_getaffinity(0))
    return min(usable, psutil.cpu_count(logical=False) or usable)
