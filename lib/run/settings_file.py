"""A settings file: preset, run, settings and data as YAML, read strictly, and written with what each setting means."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.run import untrusted
from lib.run.paths import from_folder, run_name_problems
from lib.run.presets import PRESETS, resolve
from lib.run.rules import unknown
from lib.run.settings import FIELDS, MEANT, SettingsError, full_name, nearest

KEYS = ("preset", "run", "settings", "data", "rehearse")
ENDINGS = (".yaml", ".yml")
LARGEST = 1 << 20  # bytes; the file of a preset has some thousand


@dataclass(frozen=True)
class SettingsFile:
    """What a settings file asks for, with what the command line changed."""

    preset: str
    run: str | None
    overrides: dict[str, Any]
    rehearse: bool


def read(path: Path, changes: Mapping[str, Any], rehearse: bool = False) -> SettingsFile:
    """The file's settings, and `changes` over them; relative paths in it start at its folder.

    SettingsError names every problem that is the file's with its line."""
    problems: list[tuple[int, str]] = []

    def tell(node: Any, problem: str) -> None:
        problems.append((_line(node), problem))

    top = _mapping(_composed(path), "a settings file", tell)
    if not problems and "preset" not in top:
        problems.append((1, f"the key `preset` is missing; choose from {', '.join(PRESETS)}"))
    for name in top.keys() - set(KEYS):
        hint = nearest(name, KEYS) or f"; choose from {', '.join(KEYS)}"
        if (meant := MEANT.get(name.lower(), full_name(name))) in FIELDS:
            hint = f"; the setting {meant!r} is written under `settings:`"
        tell(top[name], f"unknown key {name!r}{hint}")
    nodes: dict[str, Any] = {}
    given = []
    if "settings" in top:
        given = _settings(top["settings"], tell)
    if "data" in top:
        given.append(("data_dir", top["data"]))
    for name, node in given:
        if full_name(name) in nodes:
            tell(node, f"the setting {full_name(name)!r} is given twice")
        nodes[full_name(name)] = node
    values = {name: _value(node, name, tell) for name, node in nodes.items()}
    for name in values.keys() - FIELDS.keys():
        tell(nodes[name], *unknown({name: values.pop(name)}))
    preset, run = (_text(top[name], name, tell) if name in top else None for name in ("preset", "run"))
    if run and (wrong := run_name_problems(run)):
        tell(top["run"], *wrong)
    if "rehearse" in top:
        rehearse = _truth(top["rehearse"], "rehearse", tell) or rehearse
    overrides = {name: from_folder(name, value, path.parent) for name, value in values.items()} | dict(changes)
    if preset:
        problems += _contradicted(preset, overrides, rehearse, nodes | {"unknown preset": top["preset"]})
    if problems:
        raise SettingsError([f"{path}:{line}: {problem}" for line, problem in sorted(problems)])
    return SettingsFile(preset, run, overrides, rehearse)


def _line(node: Any) -> int:
    """The line that a node begins on, from 1; 1 where there is none, as in an empty file."""
    return node.start_mark.line + 1 if node else 1


def _contradicted(preset: str, overrides: dict, rehearse: bool, nodes: dict) -> list[tuple[int, str]]:
    """What is wrong with values, alone or together: (line of the setting that it begins with, what)."""
    try:
        resolve(preset, overrides, rehearse)
    except SettingsError as error:
        problems = []
        for problem in error.problems:
            named = [node for name, node in nodes.items() if problem.startswith(f"{name} ")]
            problems.append((_line(named[-1] if named else None), problem))
        return problems
    return []


def _composed(path: Path) -> Any:
    """The file as YAML's nodes, which know their lines; nothing is built from them."""
    import yaml

    text = untrusted.read_text(path)
    if len(text) > LARGEST:
        raise SettingsError([f"{path}: has more than {LARGEST:,} characters: this is no settings file"])
    try:
        return yaml.compose(text.removeprefix("\ufeff"), Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise SettingsError([f"{place}: no YAML: {getattr(error, 'problem', None) or error}"]) from None
    except RecursionError:
        raise SettingsError([f"{path}: is nested too deeply"]) from None


def _mapping(node: Any, what: str, tell: Callable[[Any, str], None]) -> dict[str, Any]:
    """{key: its node}; a key is given once."""
    pairs: dict[str, Any] = {}
    if node is None or node.id != "mapping":
        tell(node, f"{what} must hold lines of `name: value`")
        return pairs
    for key, value in node.value:
        name = _text(key, "a key", tell)
        if name in pairs:
            tell(key, f"{name!r} is given twice")
        pairs[name] = value
    return pairs


def _settings(node: Any, tell: Callable[[Any, str], None]) -> list[tuple[str, Any]]:
    """(setting, its node) of each; those of one trainer may stand in a mapping of its name: `dpo: {beta: 0.1}`."""
    pairs = []
    for name, value in _mapping(node, "`settings`", tell).items():
        if value.id == "mapping":
            pairs += [(f"{name}.{inner}", one) for inner, one in _mapping(value, name, tell).items()]
        else:
            pairs.append((name, value))
    return pairs


def _value(node: Any, name: str, tell: Callable[[Any, str], None]) -> Any:
    """A setting's value as text, or several: its type says what they mean (to YAML `1e-4` is a text, `on` a truth)."""
    if node.id == "sequence":
        return tuple(_text(item, name, tell) for item in node.value)
    text = _text(node, name, tell)
    if node.tag.endswith(":null"):
        return "none"
    field = FIELDS.get(name)
    if field is not None and field.annotation is bool and node.tag.endswith(":bool"):
        return _truth(node, name, tell)  # yes and on too; elsewhere `on` is a word
    return text


def _text(node: Any, name: str, tell: Callable[[Any, str], None]) -> str:
    if node.id == "scalar":
        return node.value
    tell(node, f"{name} must be a text or a number (a setting may be a list of them)")
    return ""


def _truth(node: Any, name: str, tell: Callable[[Any, str], None]) -> bool:
    text = _text(node, name, tell).lower()
    if text not in ("true", "yes", "on", "false", "no", "off"):
        tell(node, f"{name} must be true or false")
    return text in ("true", "yes", "on")


def text(preset: str, settings: Mapping[str, Any], run: str | None = None, rehearse: bool = False) -> str:
    """A settings file: every setting given, in the order of the declarations, with what it means."""
    settings = dict(settings)
    lines = [f"preset: {preset}"]
    if run:
        lines.append(f"run: {run}  # a folder under outputs/")
    if rehearse:
        lines.append("rehearse: true  # the whole path, small, on the embedded base")
    if data := settings.pop("data_dir", None):
        lines.append(f"data: {json.dumps(data)}")
    lines.append("settings:")
    for name, field in FIELDS.items():
        if name in settings:
            about = " ".join((field.description or "").split())
            lines.append(f"  {name}: {json.dumps(settings[name], ensure_ascii=False)}  # {about}".removesuffix("  # "))
    return "\n".join(lines) + "\n"
