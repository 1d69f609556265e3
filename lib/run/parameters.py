"""A notebook's parameters, read strictly before anything heavy is imported: which stage of which run it asks for."""

import ast
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.run import untrusted
from lib.run.paths import default_run, in_project, run_name_problems
from lib.run.presets import Resolved, resolve
from lib.run.rules import not_of, unknown
from lib.run.settings import Settings, SettingsError, short
from lib.run.stages import STAGES


@dataclass(frozen=True)
class Request:
    """What a notebook asks for: one stage of one run under `outputs`."""

    stage: str
    run: str
    outputs: Path
    resolved: Resolved


def from_notebook(stage: str, namespace: dict[str, Any]) -> Request:
    """The request in a notebook's `globals()`: preset, run, outputs (None: the project's), rehearse, and settings.

    A setting that is None keeps the preset's value; the text 'none' sets it to none. Names that this stage does not
    read are refused here, in the first cell, because papermill itself only warns of them.
    """
    own, run_parameters = STAGES[stage].settings, ("preset", "run", "outputs", "rehearse")
    given = _parameters(namespace, {*own, *run_parameters})
    overrides = {name: value for name, value in given.items() if name in own and value is not None}
    made_up = {name: value for name, value in given.items() if name not in Settings.model_fields}
    problems = not_of(stage, given) + unknown(made_up, (*own, *run_parameters))
    preset, rehearse = namespace.get("preset"), namespace.get("rehearse", False)
    run, outputs = (None if isinstance(value, str) and value.lower() == "none" else value
                    for value in (namespace.get("run"), namespace.get("outputs")))  # fmt: skip
    if isinstance(rehearse, str) and rehearse.lower() in ("true", "false"):  # papermill -p rehearse true
        rehearse = rehearse.lower() == "true"
    run = default_run(preset if isinstance(preset, str) else "demo", rehearse) if run is None else run
    if not isinstance(rehearse, bool):
        problems.append(f"rehearse = {short(rehearse)}: must be True or False")
    folder = str(outputs) if isinstance(outputs, str | Path) else ""
    if outputs is not None and (not folder or untrusted.STEERING.search(folder)):
        problems.append(f"outputs = {short(outputs)}: must be a folder, or None for the project's outputs/")
    problems += run_name_problems(run)
    try:
        resolved = resolve(preset, overrides, rehearse is True, stage)
    except SettingsError as error:
        raise SettingsError(problems + list(error.problems)) from None
    if problems:
        raise SettingsError(problems)
    return Request(stage, run, Path(os.path.realpath(in_project(outputs or "outputs"))), resolved)


def _parameters(namespace: dict[str, Any], known: set[str]) -> dict[str, Any]:
    """What a user named in `namespace`: the `known` names, whatever their values are, and plain literals.

    Under IPython (`In` holds the cells run so far) an unknown name counts only where a parameters cell, ours or
    papermill's, set it: else running the first cell again, after the rest of the notebook, would refuse every variable
    that the notebook itself made.
    """
    told = set().union(*(_told(source) for source in namespace.get("In", ())))
    plain = (str, int, float, bool, type(None), list, tuple, dict)
    return {
        name: value
        for name, value in namespace.items()
        if name in known or not name.startswith("_") and (name in told if "In" in namespace else type(value) in plain)
    }


def _told(source: str) -> set[str]:
    """The names that a cell sets, if it sets `preset`, or sets names to literals and does nothing else."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return set()
    assigned = [node for node in body if isinstance(node, ast.Assign | ast.AnnAssign)]
    targets = {target for node in assigned for target in getattr(node, "targets", [getattr(node, "target", None)])}
    names = {target.id for target in targets if isinstance(target, ast.Name)}
    literal = all(node in assigned and _is_literal(node.value) for node in body)
    return names if literal or "preset" in names else set()


def _is_literal(node: ast.expr | None) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "float":
        return True  # papermill writes float('nan') and float('inf')
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError):
        return False
    return True
