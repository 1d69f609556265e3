"""The presets (`lib.run.published`), and a preset's settings with what was changed in them."""

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from lib.run.published import PUBLISHED
from lib.run.rules import contradictions, read, refusal, unknown
from lib.run.settings import Settings, SettingsError, nearest, short
from lib.run.stages import STAGES


@dataclass(frozen=True)
class Preset:
    """A published setup: what it is, the result it is set beside, and its settings."""

    name: str
    description: str
    reference: str
    settings: Settings


PRESETS: dict[str, Preset] = {
    name: Preset(name, row["description"], row["reference"], Settings(**row["settings"]))
    for name, row in PUBLISHED.items()
}

# A rehearsal walks a preset's whole path with its own training rows and settings, but small and offline.
REHEARSAL = {
    "base_model": "data/base", "chat_template": None, "max_steps": 6, "torch_compile": False, "ablation_runs": 1,
}
REHEARSAL_AT_MOST = {
    "validation_rows": 24, "test_rows": 60, "eval_rows": 24, "max_new_tokens": 64,
    "per_device_train_batch_size": 8, "save_steps": 3, "logging_steps": 1, "eval_steps": 3, "accuracy_steps": 4,
    "devices": 2, "pretrain_tokens": 40_960, "pretrain_batch_size": 4, "ablation_steps": 2,
}


@dataclass(frozen=True)
class Resolved:
    """Settings that passed every check, and where each came from: preset, default, rehearsal or override."""

    preset: str
    settings: Settings
    origins: dict[str, str]
    rehearse: bool = False

    def of_stage(self, stage: str) -> dict[str, Any]:
        """The settings that one stage reads, in JSON's types."""
        return self.settings.model_dump(mode="json", include=set(STAGES[stage].settings))


def resolve(
    name: str, overrides: dict[str, Any] | None = None, rehearse: bool = False, stage: str | None = None
) -> Resolved:
    """The settings of preset `name`, then the rehearsal's, then `overrides`; SettingsError names all that is wrong.

    With `stage` only its settings are held against each other: what the others were set to is not known in it."""
    problems, suspect, overrides = [], set(), overrides or {}
    known = isinstance(name, str) and name in PRESETS
    if not known:
        problems.append(f"unknown preset {short(name)}; choose from {', '.join(PRESETS)}{nearest(name, PRESETS)}")
    base = PRESETS[name if known else "demo"].settings  # an unknown preset must not hide the other problems
    values = base.model_dump()
    origins = {field: "preset" if field in base.model_fields_set else "default" for field in values}
    if rehearse:
        capped = {f: most for f, most in REHEARSAL_AT_MOST.items() if values[f] is None or values[f] > most}
        for field, value in (REHEARSAL | capped).items():
            values[field], origins[field] = value, "rehearsal"
    problems += unknown(overrides)
    for field in overrides.keys() & values.keys():
        values[field], origins[field] = read(field, overrides[field]), "override"
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        suspect = {str(found["loc"][0]) for found in error.errors()}
        problems += [refusal(field, overrides.get(field, values[field])) for field in values if field in suspect]
        settings = Settings.model_construct(**values | {field: getattr(base, field) for field in suspect})
    if known:
        suspect |= values.keys() - set(STAGES[stage].settings) if stage else set()
        problems += contradictions(settings, suspect, stage)
    if problems:
        raise SettingsError(problems)
    return Resolved(name, settings, origins, rehearse)
