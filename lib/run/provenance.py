"""What made a result: the project's code and commit, the packages, the device, and the memory that it held."""

import ast
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lib.run import progress
from lib.run.disk import sha256
from lib.run.paths import ROOT

PACKAGES = (
    "accelerate", "bitsandbytes", "datasets", "numpy", "papermill", "peft", "safetensors", "tokenizers", "torch",
    "transformers", "trl", "unsloth", "unsloth_zoo",
)
SETTLED = {  # modules whose effect is the settings, which a manifest holds
    f"lib/run/{name}.py" for name in ("parameters", "paths", "presets", "published", "rules", "settings", "stages")
}


def code() -> dict[str, str]:
    """{file: SHA-256} of every module of `lib` loaded by now, but for `SETTLED`."""
    modules = [module for name, module in sys.modules.items() if name.startswith("lib.")]
    return _hashes(Path(module.__file__).resolve() for module in modules if getattr(module, "__file__", None))


def code_of(module: str) -> dict[str, str]:
    """The same of a module that another process runs, with all that it imports."""
    return _hashes(loaded_with(module))


def code_changes(recorded: dict[str, str]) -> list[str]:
    """Which of the files recorded are others now, or gone."""
    return [name for name, then in recorded.items() if not (ROOT / name).exists() or sha256(ROOT / name) != then]


def loaded_with(module: str) -> set[Path]:
    """The files of lib that a module loads when it is imported, its own included, as their sources say."""
    files, names = set(), {module}
    while names:
        paths = {ROOT / f"{name.replace('.', '/')}.py" for name in names}
        new = {path for path in paths if path.exists()} - files
        files |= new
        names = {name for path in new for name in _imported(path)}
    return files


def _imported(path: Path) -> Iterable[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lib."):
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def _hashes(paths: Iterable[Path]) -> dict[str, str]:
    """Of modules, but for `SETTLED`, and of the data file `x.json` that stands beside a module `x.py`."""
    modules = [path for path in paths if relative(path) not in SETTLED]
    data = [path.with_suffix(".json") for path in modules]
    return {relative(path): sha256(path) for path in [*modules, *data] if path.exists()}


def relative(path: Path) -> str:
    """A path in the project as it lies there, any other as it is."""
    if path.is_relative_to(ROOT):
        return path.relative_to(ROOT).as_posix()
    return str(path)


def git() -> dict[str, Any]:
    """The project's commit, and whether files differ from it; both None outside a git clone."""

    def ask(*arguments: str) -> str | None:
        try:
            asked = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if asked.returncode == 0:
            return asked.stdout.strip()

    status = ask("status", "--porcelain")
    dirty = None
    if status is not None:
        dirty = status != ""
    return {"commit": ask("rev-parse", "HEAD"), "dirty": dirty}


def versions() -> dict[str, str | None]:
    """Versions of python and of the packages that results depend on."""
    installed: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = None
    return installed


def device() -> dict[str, Any]:
    """What computed: a GPU's name where torch used one, else the CPU's; and its threads."""
    torch = sys.modules.get("torch")
    about = {"kind": "cpu", "name": _cpu(), "count": 1, "cpu_threads": os.cpu_count()}
    if torch:
        about["cpu_threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            about |= {"kind": "cuda", "name": torch.cuda.get_device_name(0), "count": torch.cuda.device_count()}
    return about | {"platform": platform.platform()}


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # Linux only
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def peak_memory_bytes() -> dict[str, int]:
    """The most memory that this process held so far: resident, and on each GPU that torch allocated on."""
    peak = {"resident": progress.resident_bytes()}
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available() and torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            peak[f"cuda:{index}"] = torch.cuda.max_memory_allocated(index)
    return peak
