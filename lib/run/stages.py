"""The stages there are: each with its notebook, its folder, the settings that it reads, what its memory depends on."""

from dataclasses import dataclass

from lib.run import settings
from lib.run.settings import REWARDED, Block, Settings, fields_of


@dataclass(frozen=True)
class Row:
    """One stage."""

    notebook: str
    folder: str  # in outputs/<run>/
    settings: type[Block]  # that it reads
    in_every_run: bool = False  # the others run only where they are asked for
    notebook_of_devices: str | None = None  # in place of `notebook` where the settings ask for more than one device
    notebook_of_rewards: str | None = None  # in its place where rewards are learnt from
    memory: tuple[str, str] | None = None  # settings that its memory depends on: rows at once, tokens of a row
    accumulation: str | None = None  # the setting that makes up for fewer rows at once: the step stays the same


STAGES: dict[str, Row] = {
    "prepare": Row("10_prepare_data", "data", settings.PrepareSettings, in_every_run=True),
    "pretrain": Row(
        "20_pretrain_gpt", "base", settings.PretrainSettings,
        memory=("pretrain_batch_size", "block_size"), accumulation="pretrain_accumulation",
    ),
    "train": Row(
        "21_train_qlora", "adapter", settings.TrainSettings, in_every_run=True, notebook_of_devices="22_train_fsdp",
        notebook_of_rewards="23_train_rewards",
        memory=("per_device_train_batch_size", "max_length"), accumulation="gradient_accumulation_steps",
    ),
    "evaluate": Row(
        "30_evaluate", "eval", settings.EvaluateSettings, in_every_run=True,
        memory=("eval_batch_size", "max_new_tokens"),
    ),
    "compare": Row("31_compare", "figures", settings.CompareSettings, in_every_run=True),
    "probe": Row("32_probe", "probe", settings.ProbeSettings, memory=("eval_batch_size", "max_new_tokens")),
    "export": Row("40_export", "export", settings.ExportSettings, memory=("eval_batch_size", "max_new_tokens")),
    "deploy": Row("41_serve", "deploy", settings.ServeSettings),
    "cloud": Row("42_cloud", "requests", settings.CloudSettings),
}  # fmt: skip
ON_REQUEST = ("probe", "export")  # options of `sharpen run`
IN_EVERY_RUN = tuple(name for name, row in STAGES.items() if row.in_every_run)
CLOUD = tuple(settings.CloudSettings.model_fields)
RUN_FIELDS = tuple(settings.Sharing.model_fields)  # what `sharpen run` does after the stages, and no notebook reads
# Programs that are started, places that are written to, what costs money: never taken from a run (maybe another's)
YOURS = ("llama_cpp_path", *RUN_FIELDS, *CLOUD)


def notebooks_of(row: Row) -> list[str]:
    """All notebooks that may do a stage."""
    return [name for name in (row.notebook, row.notebook_of_devices, row.notebook_of_rewards) if name]


def names_of(stage: str) -> tuple[str, ...]:
    """The settings that a stage reads."""
    return tuple(fields_of(STAGES[stage].settings))


def notebook_of(stage: str, settings: Settings) -> str:
    """The name of the notebook that does a stage with these settings."""
    row = STAGES[stage]
    if row.notebook_of_devices and settings.devices > 1:
        return row.notebook_of_devices
    if row.notebook_of_rewards and settings.trainer in REWARDED:
        return row.notebook_of_rewards
    return row.notebook
