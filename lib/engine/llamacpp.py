"""Find or build llama.cpp (converter, llama-quantize, llama-server), and run its server for as long as we need it."""

import hashlib
import json
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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib import SharpenError
from lib.run import processes

# The source distribution of llama-cpp-python holds the whole source of llama.cpp, converter included, and every package
# index has it; the wheel that is made from it has neither the converter nor the programs.
VERSION = "0.3.36"
ARCHIVE = f"llama_cpp_python-{VERSION}.tar.gz"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
SOURCE = f"llama_cpp_python-{VERSION}/vendor/llama.cpp/"  # inside the archive
CONVERTER, PROGRAMS = "convert_hf_to_gguf.py", ("llama-quantize", "llama-server")
OPTIONS = (  # static, so that the folder can be renamed; no web page, TLS or tests, which nobody here asks for
    "CMAKE_BUILD_TYPE=Release", "BUILD_SHARED_LIBS=OFF", "LLAMA_BUILD_TESTS=OFF", "LLAMA_BUILD_EXAMPLES=OFF",
    "LLAMA_BUILD_APP=OFF", "LLAMA_BUILD_UI=OFF", "LLAMA_USE_PREBUILT_UI=OFF", "LLAMA_OPENSSL=OFF",
    "LLAMA_ALL_WARNINGS=OFF", "GGML_ALL_WARNINGS=OFF",
)  # fmt: skip
# Linux ends the child when we end, however that comes about (prctl 1 is PR_SET_PDEATHSIG); elsewhere only `with` does.
# A program between us and it, because code that runs between fork and exec is unsafe beside torch's threads.
LAUNCHER = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the process that wanted this is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class LlamaCppError(SharpenError):
    """llama.cpp is not there, does not build, or does not do what it should; the message says what to do."""


@dataclass(frozen=True)
class LlamaCpp:
    """Where llama.cpp's converter and programs lie."""

    folder: Path
    converter: Path
    quantize: Path
    server: Path


def find(llama_cpp_path: str | Path | None = None, echo: Callable[[str], Any] = print) -> LlamaCpp:
    """llama.cpp at `llama_cpp_path` (or $LLAMA_CPP_PATH), checked; without one ours from the cache, built at first use.

    LlamaCppError lists the paths tried and how to build."""
    return named(llama_cpp_path) or cached() or build(echo)


def named(llama_cpp_path: str | Path | None = None) -> LlamaCpp | None:
    """llama.cpp at `llama_cpp_path` (or $LLAMA_CPP_PATH), checked; None where neither names one."""
    given = llama_cpp_path or os.environ.get("LLAMA_CPP_PATH")
    return check(Path(given).expanduser()) if given else None


def check(folder: Path) -> LlamaCpp:
    """The converter and programs of a checkout, wherever its build put them."""
    tried, found = [], {}
    for name in (CONVERTER, *PROGRAMS):
        places = [folder / name] if name == CONVERTER else [folder / p / name for p in ("build/bin", "bin", ".")]
        found[name] = next((p for p in places if p.is_file() and (name == CONVERTER or os.access(p, os.X_OK))), None)
        tried += places if found[name] is None else []
    if tried:
        raise LlamaCppError(
            f"llama_cpp_path = {str(folder)!r} lacks {', '.join(n for n, place in found.items() if place is None)}; "
            f"tried {', '.join(map(str, tried))}. To build, in a checkout of llama.cpp: cmake -B build && "
            f"cmake --build build --target {' '.join(PROGRAMS)}; or leave llama_cpp_path out, and ours is built"
        )
    return LlamaCpp(folder, *(place.resolve() for place in found.values()))


def cache() -> Path:
    """Where what is built once is kept: $SHARPEN_CACHE, else ~/.cache/sharpen."""
    return Path(os.environ.get("SHARPEN_CACHE") or Path.home() / ".cache" / "sharpen").expanduser()


def cached() -> LlamaCpp | None:
    """Our own build, if it is there already."""
    folder = _target()
    return check(folder) if folder.is_dir() else None


def _target() -> Path:
    """The folder of our build; a cache on a shared disk keeps one for each kind of processor."""
    processor = " ".join([platform.system(), platform.machine(), *sorted(cpu_flags())])
    return cache() / f"llama.cpp-{VERSION}-{hashlib.sha256(processor.encode()).hexdigest()[:8]}"


def cpu_flags() -> set[str]:
    cpuinfo = Path("/proc/cpuinfo")  # Linux only; elsewhere we claim no special instructions
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def build(echo: Callable[[str], Any] = print) -> LlamaCpp:
    """Fetch the pinned source by pip, check its hash, build the two programs; an interrupted build is gone on with."""
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
        options = [f"-D{option}" for option in OPTIONS]
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}"]
        _run([_tool("cmake"), "-S", part, "-B", part / "build", *generator, *options], part / "build.log", "configure")
        _compile(part, echo)
        for leftover in (part / "build").iterdir():  # 200 MB of objects
            if leftover.name != "bin":
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        check(part)
        os.replace(part, target)
        (cache() / ARCHIVE).unlink(missing_ok=True)
    echo(f"llama.cpp is built, in {time.monotonic() - began:.0f} s: {target}")
    return check(target)


def _archive(echo: Callable[[str], Any]) -> Path:
    """The source distribution, fetched through whatever index pip knows, and its hash checked."""
    path = cache() / ARCHIVE
    if not path.exists():
        echo(f"fetching llama.cpp's source (77 MB) by: pip download llama-cpp-python=={VERSION}")
        with tempfile.TemporaryDirectory(dir=cache(), prefix=".download-") as folder:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python"]
            remedy = (f"check the network and pip's index, put {ARCHIVE} into {cache()} yourself, "
                      f"or set llama_cpp_path to a checkout that is built")  # fmt: skip
            log = cache() / "download.log"
            _run([*command, "--dest", folder, f"llama-cpp-python=={VERSION}"], log, "pip download", remedy)
            os.replace(Path(folder) / ARCHIVE, path)
            log.unlink()
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        path.unlink()
        raise LlamaCppError(f"{path} has SHA-256 {found}, not {SHA256}: it was removed; run again to fetch another")
    return path


def _unpack(archive: Path, part: Path) -> None:
    shutil.rmtree(part, ignore_errors=True)
    with tarfile.open(archive) as tar:
        members = [member for member in tar.getmembers() if member.name.startswith(SOURCE) and member.isreg()]
        for member in members:
            member.name = member.name.removeprefix(SOURCE)
        tar.extractall(part, members, filter="data")
    (part / ".unpacked").touch()


def _compile(part: Path, echo: Callable[[str], Any]) -> None:
    """ninja, with a line for each tenth of the way."""
    command = [_tool("ninja"), "-C", part / "build", *PROGRAMS]
    said, began, log = 0, time.monotonic(), part / "build.log"
    with open(log, "a") as file, _start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as ninja:
        try:
            for line in ninja.stdout:
                file.write(line)
                if (step := re.match(r"\[(\d+)/(\d+)\]", line)) and int(step[1]) * 10 // int(step[2]) > said:
                    said = int(step[1]) * 10 // int(step[2])
                    echo(f"  {step[1]} of {step[2]} files, {time.monotonic() - began:.0f} s")
        except BaseException:
            ninja.kill()
            raise
    if ninja.returncode:
        raise LlamaCppError(f"llama.cpp does not build: {_last(log)}; all of it: {log}")


def _tool(name: str) -> str:
    """cmake or ninja of this Python's environment, else of the PATH."""
    scripts = sysconfig.get_path("scripts")
    if found := shutil.which(name, path=os.pathsep.join([scripts, os.environ.get("PATH", "")])):
        return found
    raise LlamaCppError(f"{name} is not installed: make setup, or pip install {name}")


def _start(command: Sequence[Any], **options: Any) -> subprocess.Popen:
    """A process that ends with us."""
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(os.getpid())]
    return subprocess.Popen([*launcher, *map(str, command)], stdin=subprocess.DEVNULL, **options)


def _run(command: Sequence[Any], log: Path | None, what: str, remedy: str = "") -> None:
    """Run to the end, its output into `log` if there is one; LlamaCppError with its last lines where it fails.

    The lines come from memory: a disk that the command has filled would hold a torn log."""
    with _start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as process:
        try:
            said, _ = process.communicate()
        except BaseException:
            process.kill()
            raise
    if log is not None:
        log.write_text(said)
    if process.returncode:
        killed = f" (killed by {signal.Signals(-process.returncode).name})" if process.returncode < 0 else ""
        raise LlamaCppError(f"{what} failed{killed}: {_last(said)}" + (f"; {remedy}" if remedy else f"; see {log}"))


def _last(said: Path | str, lines: int = 6) -> str:
    """The end of a log or of its text, in one line, without tqdm's progress bars."""
    said = said.read_text(errors="replace") if isinstance(said, Path) else said
    text = [line.strip() for line in said.splitlines() if line.strip() and "%|" not in line]
    return " | ".join(text[-lines:])[-1500:] or "it said nothing"


def convert(llama: LlamaCpp, model: Path, path: Path, outtype: str, name: str) -> None:
    """A Hugging Face folder as one GGUF file (`outtype`: f32, f16, bf16 or q8_0), by llama.cpp's own converter."""
    command = [sys.executable, llama.converter, model, "--outfile", path, "--outtype", outtype, "--model-name", name]
    _run(command, None, f"converting {model} to GGUF", "is the disk full, or the tokenizer unknown to it?")


def quantize(llama: LlamaCpp, source: Path, path: Path, quantization: str) -> None:
    """A 16- or 32-bit GGUF file quantised by llama.cpp's own program."""
    command = [llama.quantize, source, path, quantization]
    _run(command, None, f"quantising {source.name} to {quantization}", "is the disk full?")


def free_port(port: int = 0) -> int:
    """`port` of the loopback (0: any) if it is free, else LlamaCppError; should another take it then, a server says so
    and ends."""
    try:
        with socket.create_server(("127.0.0.1", port)) as probe:
            return probe.getsockname()[1]
    except OSError as error:
        raise LlamaCppError(f"port = {port}: {error.strerror}; choose another, or 0 for one that is free") from error


class Program:
    """A program that answers HTTP on the loopback; a context manager, and no process is left behind when it ends.

    `words`: its command without host and port; `parallel`: requests at once; `port`: 0 takes a free one."""

    def __init__(self, name: str, words: Sequence[Any], parallel: int = 1, port: int = 0, start_seconds: float = 120,
                 cwd: Path | None = None, environment: Mapping[str, str] | None = None):  # fmt: skip
        self.name, self.words, self.parallel, self.port = name, words, parallel, port
        self.start_seconds, self.cwd, self.environment = start_seconds, cwd, environment or {}
        self.process = self.client = self.log = None

    def __enter__(self) -> "Program":
        import httpx

        self.port = free_port(self.port)
        handle, log = tempfile.mkstemp(prefix="sharpen-server-", suffix=".log")
        self.log = Path(log)
        # no proxy: a request to ourselves must not leave; no time limit: a long answer takes as long as it takes
        limits = httpx.Limits(max_connections=self.parallel + 2, max_keepalive_connections=self.parallel + 2)
        self.client = httpx.Client(base_url=self.url, timeout=None, trust_env=False, limits=limits)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_ARG_")}
        environment |= self.environment
        try:
            command = [*self.words, "--host", "127.0.0.1", "--port", self.port]
            self.process = _start(command, stdout=handle, stderr=handle, env=environment, cwd=self.cwd)
            os.close(handle)
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _wait(self) -> None:
        """Until the model is loaded: /health answers 503 before, or nothing, and 200 from then on."""
        import httpx

        until = time.monotonic() + self.start_seconds
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise LlamaCppError(f"{self.name} ended while loading: {_last(self.log)}")
            with suppress(httpx.TransportError):
                if self.client.get("/health", timeout=2).status_code == 200:
                    return
            time.sleep(0.05)
        raise LlamaCppError(f"{self.name} did not load in {self.start_seconds:g} s: {_last(self.log)}")

    def wait(self) -> None:
        """For as long as the program runs; LlamaCppError, as nobody but us should end it."""
        self.process.wait()
        raise LlamaCppError(f"{self.name} has ended: {_last(self.log)}")

    def __exit__(self, *error: Any) -> None:
        if self.process is not None:
            if self.process.poll() is None:
                processes.kill(processes.family(self.process.pid))  # they hold nothing that must be saved
            self.process.wait()
        if self.client is not None:
            self.client.close()
        if self.log is not None:
            self.log.unlink(missing_ok=True)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """A request's answer; LlamaCppError with the program's own words where it refuses or has died."""
        import httpx

        try:
            answer = self.client.post(path, json=body)
        except httpx.TransportError as error:
            raise LlamaCppError(f"{self.name} does not answer ({type(error).__name__}): {_last(self.log)}") from error
        if answer.status_code != 200:
            raise LlamaCppError(f"{self.name} refuses {path}: {answer.text[:500]}")
        return json.loads(answer.content)


class Server(Program):
    """llama-server with one model, known as `alias` to those who ask.

    `context`: tokens of the longest prompt and answer together; `slots`: requests answered at once; `exact`: all of the
    computation in 32 bit, to compare with transformers."""

    def __init__(self, llama: LlamaCpp, model: Path, context: int, slots: int = 1, exact: bool = False, port: int = 0,
                 alias: str = "model", start_seconds: float = 120):  # fmt: skip
        self.llama, self.model, self.slots = llama, Path(model), slots
        words = [llama.server, "--model", self.model, "--alias", alias, "--ctx-size", slots * context, "--parallel",
                 slots, "--no-kv-unified", "--cache-ram", 0, "--threads-http", slots + 2, "--no-ui", "--no-slots",
                 "--offline", "--threads", _cores()]  # fmt: skip
        if exact:
            words += ["--flash-attn", "off", "--cache-type-k", "f32", "--cache-type-v", "f32"]
        super().__init__(f"llama-server ({self.model.name})", words, slots, port, start_seconds)

    def complete(self, ids: list[int], count: int, stop: Sequence[str] = (), slot: int = -1) -> list[int]:
        """Up to `count` greedy tokens after the prompt `ids`, through its end token or a text in `stop`, inclusive.

        A slot that is asked again with a longer prompt computes only what is new."""
        body = {"prompt": ids, "n_predict": count, "temperature": 0, "top_k": 1, "stop": list(stop), "id_slot": slot,
                "cache_prompt": True, "return_tokens": True, "response_fields": ["tokens", "truncated"]}  # fmt: skip
        answer = self.post("/completion", body)
        if answer.get("truncated"):
            raise LlamaCppError(f"an answer to a prompt of {len(ids)} tokens outgrew the context: raise max_length")
        return answer["tokens"]

    def logprob(self, ids: list[int], token: int, slot: int = -1) -> float:
        """Natural logarithm of the probability that `token` follows `ids`.

        The token is chosen by a bias, which its logarithm leaves out; for half a character the server sends none, and
        then all tokens are asked for."""
        body = {"prompt": ids, "n_predict": 1, "temperature": 0, "n_probs": 1, "cache_prompt": True, "id_slot": slot,
                "logit_bias": [[token, 1e6]], "response_fields": ["completion_probabilities"]}  # fmt: skip
        found = self.post("/completion", body).get("completion_probabilities")
        assert not found or found[0]["id"] == token, "the bias did not choose the token"
        return found[0]["logprob"] if found else self.next_logprobs(ids, 1_000_000)[token]

    def next_logprobs(self, ids: list[int], count: int) -> dict[int, float]:
        """Natural logarithms of the probabilities of the `count` likeliest next tokens after `ids`.

        They are of the model's logits, before the bias by which an `a` is chosen: for a token that is half a character
        the server would send none."""
        body = {"prompt": ids, "n_predict": 1, "temperature": 0, "n_probs": count, "cache_prompt": True,
                "logit_bias": [["a", 1e6]], "response_fields": ["completion_probabilities"]}  # fmt: skip
        found = self.post("/completion", body)["completion_probabilities"][0]["top_logprobs"]
        return {token["id"]: token["logprob"] for token in found}

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, marks such as <|user|> read as the tokens that they name; no BOS is added."""
        return self.post("/tokenize", {"content": text, "add_special": False, "parse_special": True})["tokens"]


def _cores() -> int:
    """Physical cores that this process may use: a second thread on a core slows matrix products down."""
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))
