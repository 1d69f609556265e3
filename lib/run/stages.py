"""The stages there are: each with its notebook, its folder, the settings that it reads, what its memory depends on."""

from dataclasses import dataclass

from lib.run.settings import Settings


@dataclass(frozen=True)
class Row:
    """One stage."""

    notebook: str
    folder: str  # in outputs/<run>/
    settings: tuple[str, ...]  # that it reads
    in_every_run: bool = False  # the others run only where they are asked for
    notebook_of_devices: str | None = None  # in place of `notebook` where the settings ask for more than one device
    memory: tuple[str, str] | None = None  # settings that its memory depends on: rows at once, tokens of a row
    accumulation: str | None = None  # the setting that makes up for fewer rows at once: the step stays the same


_MODEL = ("base_model", "chat_template", "max_length")
_BITS = ("load_in_4bit", "load_in_8bit")
CLOUD = (  # what `lib.ship.cloud` reads, from notebook 42 or the command line
    "bucket", "role_arn", "image_uri", "instance_type", "instance_count", "cost_per_hour", "max_hours", "use_spot",
    "volume_gib", "accelerators", "endpoint_artefact", "endpoint_image_uri", "endpoint_environment",
    "endpoint_instance_type", "endpoint_cost_per_hour", "endpoint_max_instances", "endpoint_invocations",
    "endpoint_latency_seconds",
)  # fmt: skip
STAGES: dict[str, Row] = {
    "prepare": Row(
        "10_prepare_data", "data", in_every_run=True,
        settings=(
            "source", "mixture", "columns", "data_dir", "train_rows", "validation_rows", "test_rows",
            "held_out_percent", "kinds", "data_seed", "dataset_revision", "gate", "benchmarks", "trainer", *_MODEL,
        ),
    ),
    "pretrain": Row(
        "20_pretrain_gpt", "base",
        memory=("pretrain_batch_size", "block_size"), accumulation="pretrain_accumulation",
        settings=(
            "model_size", "corpus", "tokenizer", "held_out_percent", "pretrain_tokens", "pretrain_batch_size",
            "pretrain_accumulation", "block_size", "muon_learning_rate", "adamw_learning_rate", "schedule",
            "decay_share", "torch_compile", "checkpoint_activations", "ablation_steps", "ablation_runs",
            "pretrain_seed", "devices", "nodes", "rdzv_endpoint",
        ),
    ),
    "train": Row(
        "21_train_qlora", "adapter", in_every_run=True, notebook_of_devices="22_train_fsdp",
        memory=("per_device_train_batch_size", "max_length"), accumulation="gradient_accumulation_steps",
        settings=(
            "trainer", "beta", "loss_type", *_MODEL, *_BITS, "full_finetuning", "peft_type", "r", "lora_alpha",
            "lora_dropout", "target_modules", "use_rslora", "use_dora", "loraplus_lr_ratio", "num_virtual_tokens",
            "continue_from", "completion_only_loss", "packing", "neftune_noise_alpha", "early_stopping_patience",
            "accuracy_steps", "learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps",
            "per_device_train_batch_size", "gradient_accumulation_steps", "optim", "weight_decay", "max_grad_norm",
            "gradient_checkpointing", "save_steps", "logging_steps", "eval_steps", "guard_warnings", "report_to",
            "seed", "devices", "nodes", "rdzv_endpoint",
        ),
    ),
    "evaluate": Row(
        "30_evaluate", "eval", in_every_run=True, memory=("eval_batch_size", "max_new_tokens"),
        settings=(*_MODEL, *_BITS, "eval_rows", "calculator", "max_new_tokens", "eval_batch_size", "show_answers"),
    ),
    "compare": Row("31_compare", "figures", in_every_run=True, settings=("others",)),
    "export": Row(
        "40_export", "export", memory=("eval_batch_size", "max_new_tokens"),
        settings=(
            *_MODEL, *_BITS, "eval_rows", "calculator", "max_new_tokens", "eval_batch_size", "llama_cpp_path",
            "quantizations", "margin", "merge_onto", "skip_merge", "skip_gguf", "skip_quantize",
        ),
    ),
    "deploy": Row(
        "41_serve", "deploy",
        settings=(
            *_MODEL, *_BITS, "eval_rows", "max_new_tokens", "eval_batch_size", "llama_cpp_path", "engine", "port",
            "parallel",
        ),
    ),
    "cloud": Row("42_cloud", "requests", settings=CLOUD),
}  # fmt: skip
IN_EVERY_RUN = tuple(name for name, row in STAGES.items() if row.in_every_run)
RUN_FIELDS = ("push_to_hub", "hub_private_repo")  # what `sharpen run` does after the stages, and no notebook reads
# Programs that are started, places that are written to, what costs money: never taken from a run (maybe another's)
YOURS = ("llama_cpp_path", *RUN_FIELDS, *CLOUD)


def notebook_of(stage: str, settings: Settings) -> str:
    """The name of the notebook that does a stage with these settings."""
    row = STAGES[stage]
    return row.notebook_of_devices if row.notebook_of_devices and settings.devices > 1 else row.notebook
