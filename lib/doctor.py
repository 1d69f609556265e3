"""Checks of the machine and the installation, each with its remedy."""

import importlib.metadata
import os
import platform
import shutil
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lib.engine import llamacpp, vllm_client
from lib.engine.client import EngineError

REPOSITORY = Path(__file__).resolve().parents[1]
GIB = 2**30
HUB_TIMEOUT_SECONDS = 3
WORD = {True: "yes", False: "no"}


@dataclass(frozen=True)
class Check:
    """One finding; `remedy` is empty where there is nothing to do."""

    name: str
    state: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str = ""


def checks() -> list[Check]:
    """Look at everything that a run depends on; the few seconds are torch's import."""
    return [python(), versions(), device(), memory(), disk(), hub(), llama_cpp(), vllm(), git()]


def report(found: list[Check]) -> str:
    """A line for each check: state, name, detail and remedy."""
    width = max(len(check.name) for check in found)
    lines = [f"{check.state:<4}  {check.name:<{width}}  {check.detail} -> {check.remedy}"
             for check in found]  # fmt: skip
    return "\n".join(line.removesuffix(" -> ") for line in lines)


def python() -> Check:
    detail = f"{platform.python_version()} at {sys.prefix}"
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Check("python", "ok", detail)
    return Check("python", "fail", detail, "Sharpen needs 3.11 to 3.13: make clean && make setup PYTHON=python3.12")


def pins() -> dict[str, str]:
    """Package name to version, from the pip section of environment.yml, which comes last; its last line is us."""
    import yaml

    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    *pinned, _ = environment["dependencies"][-1]["pip"]
    return dict(line.split("==") for line in pinned)


def installed(package: str) -> str | None:
    """The installed version without its local part ('2.13.0' for '2.13.0+cpu'), or None."""
    try:
        return importlib.metadata.version(package).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(pinned: dict[str, str] | None = None) -> Check:
    pinned = pinned or pins()
    missing, differing = [], []
    for name, pin in pinned.items():
        version = installed(name)
        if version is None:
            missing.append(name)
        elif version != pin:
            differing.append(f"{name} {version} (pinned {pin})")
    parts = []
    if missing:
        parts.append("missing: " + ", ".join(missing))
    if differing:
        parts.append("differ: " + ", ".join(differing))
    if not parts:
        return Check("versions", "ok", f"all {len(pinned)} packages as pinned in environment.yml")
    # `touch`: the set-up looks at the file's time only, and the file may not have changed.
    state = "fail" if missing else "warn"
    return Check("versions", state, "; ".join(parts), "touch environment.yml && make setup")


def device() -> Check:
    try:
        import torch
    except ImportError as error:
        return Check("device", "fail", f"torch cannot be imported: {error}", "make setup")
    if torch.cuda.is_available():
        gpu, count = torch.cuda.get_device_properties(0), torch.cuda.device_count()
        bf16 = WORD[torch.cuda.is_bf16_supported()]
        detail = f"{count} x {gpu.name}, {gpu.total_memory / GIB:.0f} GiB each, bf16 {bf16}"
        return Check("device", "ok", detail)
    flags = llamacpp.cpu_flags()
    fast = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags]
    detail = f"CPU, {os.cpu_count()} cores, fast bf16: {', '.join(fast) or 'no'}"
    if not shutil.which("nvidia-smi") or torch.version.cuda:
        return Check("device", "ok", detail)
    return Check("device", "warn", f"{detail}; a GPU is here, but torch is a CPU build",
                 "make clean && make setup")  # fmt: skip


def memory() -> Check:
    import psutil

    free = psutil.virtual_memory()
    detail = f"{free.available / GIB:.1f} of {free.total / GIB:.1f} GiB available"
    if free.available >= 4 * GIB:
        return Check("memory", "ok", detail)
    return Check("memory", "warn", detail, "close other programs: training needs a few GiB")


def disk() -> Check:
    outputs = REPOSITORY / "outputs"
    free = shutil.disk_usage(outputs if outputs.exists() else REPOSITORY).free
    detail = f"{free / GIB:.1f} GiB free at {outputs}"
    if free >= 5 * GIB:
        return Check("disk", "ok", detail)
    state = "warn" if free >= GIB else "fail"
    return Check("disk", state, detail, "delete old runs: rm -r outputs/<run>")


def hub() -> Check:
    """Whether the hub answers, asked with the client that downloads use; a token is never shown."""
    from huggingface_hub import constants, get_session, get_token

    token = f"token: {WORD[bool(get_token())]}"
    if constants.HF_HUB_OFFLINE:
        return Check("hub", "ok", f"HF_HUB_OFFLINE is set: only what is already downloaded; {token}")
    reason = f"no answer in {HUB_TIMEOUT_SECONDS} s"

    def ask():
        nonlocal reason
        try:
            get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_SECONDS)
            reason = ""
        except Exception as error:  # whatever the network does, the answer is "no" and its reason
            reason = type(error).__name__

    # A thread, because the client's timeout does not cover a name look-up that hangs.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_TIMEOUT_SECONDS)
    if not reason:
        if not get_token():
            token += " (gated models need one: hf auth login)"
        return Check("hub", "ok", f"{constants.ENDPOINT} answers; {token}")
    remedy = "the demo needs none; else check the network, or set HF_HUB_OFFLINE=1 to use what is downloaded"
    return Check("hub", "warn", f"{constants.ENDPOINT} cannot be reached ({reason}); {token}", remedy)


def llama_cpp() -> Check:
    if given := os.environ.get("LLAMA_CPP_PATH"):
        try:
            return Check("llama.cpp", "ok", f"{llamacpp.check(Path(given)).folder} (LLAMA_CPP_PATH)")
        except llamacpp.LlamaCppError as error:
            return Check("llama.cpp", "warn", str(error), "build it there, or unset LLAMA_CPP_PATH")
    if built := llamacpp.cached():
        return Check("llama.cpp", "ok", f"built: {built.folder}")
    return Check("llama.cpp", "ok", "not built yet; only an export needs it, and builds it once in a few minutes")


def vllm() -> Check:
    try:
        python = vllm_client.python()
    except EngineError as error:
        return Check("vllm", "warn", str(error), f"correct {vllm_client.PYTHON}, or unset it")
    if python:
        return Check("vllm", "ok", f"in {python}")
    return Check("vllm", "ok", "not installed; only eval_engine = vllm needs it")


def git() -> Check:
    if shutil.which("git") is None:
        return Check("git", "warn", "not found, so manifests cannot record the commit", "install git")
    if not (REPOSITORY / ".git").exists():
        return Check("git", "warn", f"{REPOSITORY} is no clone, so manifests cannot record the commit", "git clone")
    return Check("git", "ok", "manifests record the commit")
