"""The presets (`lib.run.published`), and a preset's settings with what was changed in them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from lib.run.paths import default_run
from lib.run.published import PUBLISHED
from lib.run.references import Reference
from lib.run.rules import contradictions, read, refusal, unknown
from lib.run.settings import (
    FIELDS,
    GUARDS,
    REWARDED,
    Block,
    Settings,
    SettingsError,
    flat,
    full_name,
    nearest,
    nested,
    short,
)
from lib.run.stages import STAGES, names_of


@dataclass(frozen=True)
class Preset:
    """A published setup: what it is, the result it is set beside, and its settings."""

    name: str
    description: str
    reference: Reference
    settings: Settings


def _published(name: str) -> dict[str, Any]:
    """The settings that a preset's row gives."""
    return {full_name(field): value for field, value in PUBLISHED[name]["settings"].items()}


PRESETS: dict[str, Preset] = {
    name: Preset(name, row["description"], row["reference"], Settings.model_validate(nested(_published(name))))
    for name, row in PUBLISHED.items()
}


def preset_of(name: str) -> tuple[Preset, dict[str, Any]]:
    """A preset and the settings that it gives, in JSON's types; SettingsError where there is none of this name."""
    if name not in PRESETS:
        raise SettingsError([_no_preset(name)])
    given = _published(name)
    own = {field: value for field, value in flat(PRESETS[name].settings, "json").items() if field in given}
    return PRESETS[name], own


def _no_preset(name: Any) -> str:
    return f"unknown preset {short(name)}; choose from {', '.join(PRESETS)}{nearest(name, PRESETS)}"


# A rehearsal walks a preset's whole path with its own training rows and settings, but small and offline.
REHEARSAL = {
    "base_model": "data/base", "chat_template": None, "max_steps": 6, "torch_compile": False, "ablation_runs": 1,
}  # fmt: skip
REHEARSAL_AT_MOST = {
    "validation_rows": 24, "test_rows": 60, "eval_rows": 24, "probe_rows": 12, "max_new_tokens": 64,
    "per_device_train_batch_size": 8, "save_steps": 3, "logging_steps": 1, "eval_steps": 3, "accuracy_steps": 4,
    "rollouts.num_generations": 4, "rollouts.max_completion_length": 64, "rft.rounds": 2, "devices": 2,
    "pretrain_tokens": 40_960, "pretrain_batch_size": 4, "ablation_steps": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Resolved:
    """Settings that passed every check, and where each came from: preset, default, rehearsal or override."""

    preset: str
    settings: Settings
    origins: dict[str, str]
    rehearse: bool = False

    def for_stage(self, stage: str) -> Block:
        """The settings that one stage reads, as its own class of them."""
        own = STAGES[stage].settings
        return own.model_validate({name: getattr(self.settings, name) for name in own.model_fields})

    def of_stage(self, stage: str) -> dict[str, Any]:
        """The same by their names, in JSON's types."""
        return flat(self.for_stage(stage), "json")


def resolve(
    name: str, overrides: Mapping[str, Any] | None = None, rehearse: bool = False, stage: str | None = None
) -> Resolved:
    """The settings of preset `name`, then the rehearsal's, then `overrides`; SettingsError names all that is wrong.

    With `stage` only its settings are held against each other: what the others were set to is not known in it."""
    problems, preset = [], name
    known = isinstance(name, str) and name in PRESETS
    if not known:
        problems.append(_no_preset(name))
        preset = "demo"  # so that an unknown preset does not hide the other problems
    base = PRESETS[preset].settings
    values = flat(base)
    origins = dict.fromkeys(values, "default") | dict.fromkeys(_published(preset), "preset")
    if rehearse:
        for field, value in _rehearsal(values).items():
            values[field], origins[field] = value, "rehearsal"
    given = {full_name(field): value for field, value in (overrides or {}).items()}
    problems += unknown(given)
    for field in given.keys() & values.keys():
        values[field], origins[field] = read(field, given[field]), "override"
    settings, suspect = _validated(values, base)
    problems += [refusal(field, given.get(field, values[field])) for field in FIELDS if field in suspect]
    if known:
        if stage:
            suspect |= FIELDS.keys() - names_of(stage)
        problems += contradictions(settings, suspect, stage)
    if problems:
        raise SettingsError(problems)
    return Resolved(name, settings, origins, rehearse)


def _rehearsal(values: dict[str, Any]) -> dict[str, Any]:
    """What a rehearsal changes in a preset's values."""
    changes = dict(REHEARSAL)
    if values["continue_from"] is not None:
        changes["continue_from"] = default_run(values["continue_from"], True)
    if values["trainer"] in REWARDED:  # so short a training has seldom anything to pay for
        changes["guard_warnings"] = GUARDS
    for field, most in REHEARSAL_AT_MOST.items():
        if values[field] is None or values[field] > most:
            changes[field] = most
    return changes


def _validated(values: dict[str, Any], base: Settings) -> tuple[Settings, set[str]]:
    """(settings, names of those that are refused, which have `base`'s value in them)."""
    try:
        return Settings.model_validate(nested(values)), set()
    except ValidationError as error:
        places = (".".join(map(str, problem["loc"][:2])) for problem in error.errors())
        suspect = {place if place in FIELDS else place.partition(".")[0] for place in places}
    kept = flat(base)
    return Settings.model_validate(nested(values | {field: kept[field] for field in suspect})), suspect
