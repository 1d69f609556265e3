"""A notebook's parameters, read strictly before anything heavy is imported: which stage of which run it asks for."""

import ast
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.run import untrusted
from lib.run.paths import default_run, in_project, run_name_problems
from lib.run.presets import Resolved, resolve
from lib.run.rules import not_of, unknown
from lib.run.settings import FIELDS, SettingsError, as_text, full_name, short
from lib.run.stages import names_of

RUN_PARAMETERS = ("preset", "run", "outputs", "rehearse", "changes")
PLAIN = (str, int, float, bool, type(None), list, tuple, dict)  # types of what a parameters cell may set


@dataclass(frozen=True)
class Request:
    """What a notebook asks for: one stage of one run under `outputs`."""

    stage: str
    run: str
    outputs: Path
    resolved: Resolved


def from_notebook(stage: str, namespace: Mapping[str, Any]) -> Request:
    """The request in a notebook's `globals()`: preset, run, outputs (None: the project's), rehearse, and settings.

    Settings are variables by their names, where None keeps the preset's value (and the text 'none' sets none), and the
    dictionary `changes`, where None is a value. Names that this stage does not read are refused here, in the first
    cell, because papermill itself only warns of them."""
    own, problems = names_of(stage), []
    variables = {full_name(name): value for name, value in _given(namespace, own).items()}
    changes = namespace.get("changes") or {}
    if isinstance(changes, dict):
        changes = {full_name(name): value for name, value in changes.items()}
    else:
        problems.append(f"changes = {short(changes)}: must be a dictionary of settings, such as {{'use_dora': True}}")
        changes = {}
    problems += not_of(stage, variables | changes)
    made_up = {name: value for name, value in (variables | changes).items() if name not in FIELDS}
    problems += unknown(made_up, (*own, *RUN_PARAMETERS))
    dials = {name: value for name, value in variables.items() if value is not None}
    problems += [f"{name} is given as a variable and in `changes`: give it once" for name in dials if name in changes]
    overrides = {name: value for name, value in (dials | changes).items() if name in own}
    preset, rehearse = namespace.get("preset"), _truth(namespace.get("rehearse", False))
    run, outputs = _or_none(namespace.get("run")), _or_none(namespace.get("outputs"))
    if run is None:
        run = default_run(preset if isinstance(preset, str) else "demo", rehearse)
    if not isinstance(rehearse, bool):
        problems.append(f"rehearse = {short(rehearse)}: must be True or False")
    if outputs is not None and not _is_path(outputs):
        problems.append(f"outputs = {short(outputs)}: must be a folder, or None for the project's outputs/"
                        f"{as_text('outputs', outputs)}")  # fmt: skip
    problems += run_name_problems(run)
    try:
        resolved = resolve(preset, overrides, rehearse is True, stage)
    except SettingsError as error:
        problems += error.problems
    if problems:
        raise SettingsError(problems)
    return Request(stage, run, Path(os.path.realpath(in_project(outputs or "outputs"))), resolved)


def _truth(value: Any) -> Any:
    """papermill's -p gives `true` as text."""
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    return value


def _or_none(value: Any) -> Any:
    return None if isinstance(value, str) and value.lower() == "none" else value


def _is_path(value: Any) -> bool:
    return isinstance(value, str | Path) and str(value) != "" and not untrusted.STEERING.search(str(value))


def _given(namespace: Mapping[str, Any], own: tuple[str, ...]) -> dict[str, Any]:
    """The settings that a user named as variables: the stage's `own`, whatever their values are, and plain literals.

    Under IPython (`In` holds the cells run so far) another name counts only where a parameters cell, ours or
    papermill's, set it: else running the first cell again, after the rest of the notebook, would refuse every variable
    that the notebook itself made."""
    in_ipython = "In" in namespace
    set_in_cells = {name for source in namespace.get("In", ()) for name in _set_by(source)}
    given = {}
    for name, value in namespace.items():
        if name in RUN_PARAMETERS or name.startswith("_"):
            continue
        literal = name in set_in_cells if in_ipython else type(value) in PLAIN
        if full_name(name) in own or literal:
            given[name] = value
    return given


def _set_by(source: str) -> Iterator[str]:
    """The names that a cell sets, if it sets `preset`, or sets names to literals and does nothing else."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return
    names, only_literals = [], True
    for node in body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                names.append(name)
                only_literals = only_literals and _is_literal(node.value)
            case _:
                only_literals = False
    if only_literals or "preset" in names:
        yield from names


def _is_literal(node: ast.expr | None) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "float":
        return True  # papermill writes float('nan') and float('inf')
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError):
        return False
    return True
