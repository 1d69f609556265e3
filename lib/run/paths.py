"""Where things lie: the project, a base model, a run's name."""

import os
import re
from pathlib import Path
from typing import Any

from lib.run import packages, untrusted
from lib.run.settings import SettingsError, as_text, short

ROOT = Path(__file__).resolve().parents[2]
HUB_ID = r"(?a)(?!.*(--|\.\.))(\b[\w.-]{1,96}\b/)?\b[\w.-]{1,96}\b"  # the hub's own rule, without its slow import


def default_run(preset: str, rehearse: bool) -> str:
    """The run's name where none is given; a rehearsal never takes the place of the real run."""
    if rehearse:
        return f"{preset}-rehearsal"
    return preset


def run_name_problems(run: Any) -> list[str]:
    """Why `run` cannot name a folder under outputs/ (an empty list: it can)."""
    if isinstance(run, str) and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", run) and ".." not in run:
        return []
    rule = "must be a name of letters, digits, '.', '_' and '-', without '..'"
    return [f"run = {short(run)}: {rule}{as_text('run', run)}"]


def locate(name: str) -> str:
    """A base model's folder as an absolute path where the project or the disk holds it, else the hub id unchanged.

    A GGUF file, or the package that holds one, is dequantised first, if it is not yet. SettingsError where the
    folder holds what must not be loaded (pickles, code, links out of it), or the file cannot be read."""
    problems = base_model_problems(name)
    if is_gguf(name) and is_nowhere(name):
        problems = [f"base_model = {short(name)}: no such file"]
    if problems:
        raise SettingsError(problems)
    if is_gguf(name):
        from lib.run import gguf_base

        return str(gguf_base.folder(name, Path(in_project(name))))
    if is_local(name):
        return in_project(name)
    return name


def base_model_problems(name: str) -> list[str]:
    """Why a base model's folder or file must not be loaded, a phrase each; of a hub id nothing is known here."""
    problems = []
    if is_gguf(name) and not is_nowhere(name):
        from lib.run import gguf_base

        problems = gguf_base.problems(name, Path(in_project(name)))
    elif is_local(name):
        problems = untrusted.model_problems(Path(in_project(name)))
    return [f"base_model = {short(name)}: {problem}" for problem in problems]


def is_local(name: str) -> bool:
    """Is this base model a folder here, or made of a GGUF file, and so no hub id?"""
    return is_gguf(name) or os.path.isdir(in_project(name))


def is_gguf(name: str) -> bool:
    """Is this base model a GGUF file, or a package that holds one?"""
    return packages.is_name(name) or name.lower().endswith(".gguf") and not os.path.isdir(in_project(name))


def is_nowhere(name: str) -> bool:
    """Is this base model neither here nor what an index or the hub may have?"""
    if is_gguf(name):
        return not packages.is_name(name) and not os.path.isfile(in_project(name))
    return not is_local(name) and not re.fullmatch(HUB_ID, name)


def made_from(name: str) -> dict[str, Any] | None:
    """What a base model's folder was dequantised from; None of one that was published as a folder."""
    if not is_gguf(name):
        return None
    from lib.run import gguf_base

    return untrusted.read_json(Path(locate(name)) / gguf_base.ABOUT)


def in_project(path: str | Path) -> str:
    """A path as an absolute one; a relative one lies in the project, wherever the notebook runs."""
    return os.path.join(ROOT, os.path.expanduser(path))


def from_folder(name: str, value: Any, folder: Path) -> Any:
    """A setting's value; a relative path in it starts at `folder`, where the one who wrote it is."""
    if isinstance(value, tuple):
        return tuple(from_folder(name, part, folder) for part in value)
    if not isinstance(value, str) or value.lower() in ("", "none", "null"):
        return value
    if name == "benchmarks":
        return ",".join(absolute(path.strip(), folder) for path in value.split(","))
    if name in ("data_dir", "also_ask_dir", "general_text", "llama_cpp_path"):
        return absolute(value, folder)
    if name == "base_model" and not os.path.exists(in_project(value)):
        if os.path.isdir(folder / value) or is_gguf(value) and os.path.isfile(folder / value):
            return absolute(value, folder)  # else it lies in the project, or on the hub
    return value


def absolute(path: str | Path, folder: Path) -> str:
    """Where a path leads that was written in `folder`, through links and `~`."""
    return os.path.realpath(folder / os.path.expanduser(path))  # of any text: no error here
