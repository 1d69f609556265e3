"""The settings there are: what each is, its type, bounds and default (`stages.py`: which stage reads which)."""

import difflib
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from lib import SharpenError
from lib.run import untrusted

Count = Annotated[int, Field(ge=1)]
SOURCES = (
    "quant_tasks", "gsm8k", "svamp", "finqa", "tatqa", "finance_reasoning", "investopedia", "trader_sft", "trader_dpo",
    "corpus", "own",
)  # fmt: skip
FROM_HUB = ("gsm8k", "svamp", "investopedia")  # the others have no rows of one type each there, or are yours
PART = (  # of a mixture: finqa@COMMIT=3:2000
    rf"(?P<source>{'|'.join(SOURCES)})(?:@(?P<revision>[\w./-]+))?"
    r"(?:=(?P<weight>[1-9]\d{0,8}(?:\.\d+)?|0?\.\d*[1-9]\d*))?(?::(?P<cap>[1-9]\d{0,8}))?"
)
KIND_NAMES = (  # of the generated tasks, as `lib.data.kinds` defines them
    "compounding", "maximum drawdown", "Sharpe comparison", "volatility annualisation", "position sizing",
    "risk-adjusted ranking", "CAGR", "geometric mean return", "Sortino ratio", "beta", "bond price", "current yield",
    "net present value", "loan payment", "value at risk", "Kelly fraction", "portfolio variance",
    "information ratio", "break-even",
)  # fmt: skip
GUARDS = ("loss", "supervised_tokens", "grad_norm", "eval_loss", "adapter")  # what training is watched for


class Settings(BaseModel):
    """One flat set of settings under the names that the libraries give them; `stages.STAGES` says who reads which."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # data
    source: Literal[*SOURCES, "mixture"] = Field(description="where the rows come from")
    mixture: tuple[Annotated[str, Field(pattern=f"^{PART}$")], ...] = Field(
        (), description="NAME[@REVISION][=WEIGHT][:CAP] of each source where source = 'mixture'; a cap is rows"
    )
    columns: tuple[Annotated[str, Field(pattern="^(question|answer|context|group)=.+$")], ...] = Field(
        (), description="your columns where source = 'own': question=NAME, answer=NAME, context=NAME, group=NAME"
    )
    data_dir: str | None = Field(None, description="a file, or a folder with gsm8k/train.jsonl, ...; none: ask the hub")
    train_rows: Count | None = Field(description="training rows, over all kinds; none: all there are")
    validation_rows: Annotated[int, Field(ge=0)] | None = Field(description="rows for the held-out loss; 0: no such")
    test_rows: Count | None = Field(description="test rows, over all kinds; none: all there are, or held_out_percent")
    held_out_percent: float = Field(5.0, gt=0, le=50, description="share of your own documents kept from training")
    kinds: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None, description="kinds of generated tasks, or 'all'; none: the demo's six"
    )
    data_seed: int = Field(0, ge=0, lt=2**31, description="seed of generated rows and of splits")
    dataset_revision: str | None = Field(None, description="commit or tag of the hub's data set; none: newest")
    gate: Literal["stop", "drop", "report"] = Field("drop", description="what happens where the audit finds bad rows")
    benchmarks: tuple[str, ...] = Field((), description="JSONL files; no training row may ask what they ask")

    # model and training
    base_model: str = Field(min_length=1, description="hub id, or folder (a relative one lies in the project)")
    chat_template: str | None = Field(None, description="Unsloth's name of a chat template; none: the tokenizer's own")
    max_length: int = Field(ge=16, le=131072, description="longest row, tokens")
    load_in_4bit: bool = Field(True, description="NF4 with double quantisation (QLoRA), else 16 bit (LoRA)")
    load_in_8bit: bool = Field(False, description="LLM.int8() instead; a CPU takes 16 bit, and says so")
    full_finetuning: bool = Field(False, description="train every weight, in 16 bit, instead of an adapter")
    peft_type: Literal["lora", "ia3", "prefix_tuning"] = Field("lora", description="the kind of adapter")
    r: int = Field(ge=1, le=1024, description="rank of the LoRA matrices")
    lora_alpha: int = Field(ge=1, le=4096, description="LoRA's scale is lora_alpha / r")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="share of LoRA inputs dropped")
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] = Field(description="layers that get LoRA, or IA3")
    use_rslora: bool = Field(False, description="rank-stabilised LoRA: its scale is lora_alpha / sqrt(r)")
    use_dora: bool = Field(False, description="DoRA: LoRA turns the weights, a trained magnitude scales them")
    loraplus_lr_ratio: Annotated[float, Field(ge=1)] | None = Field(
        None, description="LoRA+: how much faster B learns than A; none: alike"
    )
    num_virtual_tokens: Count = Field(20, description="trained tokens that prefix_tuning puts before each row")
    trainer: Literal["sft", "dpo"] = Field(
        "sft", description="learn answers, or from pairs which of two answers is better: SFTTrainer, or DPOTrainer"
    )
    beta: float = Field(0.1, gt=0, le=10, description="of dpo: the higher, the nearer to the reference it stays")
    loss_type: Literal["sigmoid", "hinge", "ipo"] = Field("sigmoid", description="of dpo: its loss on a pair")
    continue_from: str | None = Field(None, description="a finished run in the same outputs whose adapter goes on")
    completion_only_loss: bool = Field(True, description="learn the answers only, else the questions too")
    packing: bool = Field(False, description="several rows in one of max_length; a CPU does not, and says so")
    neftune_noise_alpha: Annotated[float, Field(gt=0, le=100)] | None = Field(
        None, description="NEFTune: noise on the embeddings while training"
    )
    learning_rate: float = Field(gt=0, le=1, description="peak learning rate")
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = Field("cosine")
    warmup_steps: float = Field(0.0, ge=0, description="share of all steps if below 1, else a whole number of steps")
    num_train_epochs: float = Field(gt=0, le=1000, description="passes over the training rows")
    max_steps: int = Field(-1, ge=-1, description="optimiser steps, at least 1; -1: by num_train_epochs")
    per_device_train_batch_size: int = Field(ge=1, description="rows a forward pass on one device")
    gradient_accumulation_steps: int = Field(1, ge=1, description="forward passes an optimiser step")
    optim: Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"]
    weight_decay: float = Field(0.0, ge=0, le=1, description="AdamW's decoupled weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    gradient_checkpointing: bool = Field(False, description="compute activations again instead of keeping them")
    save_steps: Count = Field(100, description="optimiser steps between checkpoints")
    logging_steps: Count = Field(5, description="optimiser steps between lines of metrics.jsonl")
    eval_steps: Count | None = Field(50, description="steps between held-out losses; none: only at the end")
    guard_warnings: tuple[Literal[*GUARDS], ...] = Field(
        ("grad_norm", "eval_loss"), description=f"guards that only warn, of {', '.join(GUARDS)}; the others stop"
    )
    early_stopping_patience: Count | None = Field(
        None, description="end after so many held-out losses without a gain, with the best; none: train to the end"
    )
    accuracy_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="held-out questions asked before training and at each checkpoint; 0: none"
    )
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = Field(
        "none", description="a tracker beside metrics.jsonl, in the run's folder; wandb is offline without its key"
    )
    seed: int = Field(3407, ge=0, lt=2**31, description="seed of LoRA's start and of the rows' order")
    devices: int = Field(1, ge=1, le=1024, description="GPUs (or CPU processes) in all; above 1: 22_train_fsdp")
    nodes: int = Field(1, ge=1, le=128, description="machines that the devices are on, as many on each")
    rdzv_endpoint: str | None = Field(None, description="host:port where nodes meet, on the first; none: one machine")

    # pretraining from nothing
    model_size: Literal["base", "tiny", "small", "medium"] = Field("base", description="a key of gpt.SIZES")
    corpus: str = Field("generated", min_length=1, description="'generated', or a text file or folder of your own")
    tokenizer: Literal["new", "embedded"] = Field("new", description="trained on the corpus, or that of data/base")
    pretrain_tokens: Count = Field(40_000_000, description="tokens to train on, over all epochs")
    pretrain_batch_size: Count = Field(16, description="blocks a forward pass")
    pretrain_accumulation: Count = Field(1, description="forward passes an optimiser step")
    block_size: int = Field(512, ge=16, le=1024, description="tokens of a block, which holds whole documents")
    muon_learning_rate: float = Field(0.012, gt=0, le=1, description="peak learning rate of the matrices")
    adamw_learning_rate: float = Field(1e-3, gt=0, le=1, description="peak learning rate of embeddings and norms")
    schedule: Literal["wsd", "cosine"] = Field("wsd", description="warm-up, stable, decay; or a cosine")
    decay_share: float = Field(1.0, gt=0, le=1, description="share of the steps over which wsd falls to zero")
    torch_compile: bool = Field(True, description="needs a C++ compiler on a CPU; worth it over many steps")
    checkpoint_activations: bool = Field(False, description="compute layers again instead of keeping them")
    ablation_steps: Annotated[int, Field(ge=0)] = Field(12, description="steps of each recipe; 0: no ablation")
    ablation_runs: Count = Field(3, description="runs that the ablation's medians are over")
    pretrain_seed: int = Field(0, ge=0, lt=2**31, description="seed of the generated text and of the weights")

    # evaluation
    eval_rows: Count | None = Field(None, description="test questions asked; none: all test rows")
    calculator: Literal["both", "on", "off"] = Field("both", description="fill in <<expr=value>> while decoding")
    max_new_tokens: int = Field(ge=1, le=8192, description="longest answer, tokens")
    eval_batch_size: Count = Field(description="questions answered at once")
    show_answers: int = Field(10, ge=0, le=1000, description="answers shown side by side")

    # export
    llama_cpp_path: str | None = Field(None, description="a checkout of llama.cpp with its build; none: build ours")
    quantizations: tuple[
        Literal["Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q3_K_M"], ...
    ] = Field(("Q4_K_M",), description="some of Q8_0, Q6_K, Q5_K_M, Q5_K_S, Q4_K_M, Q4_K_S, Q3_K_M")
    margin: float = Field(
        2.0, gt=0, lt=100, description="percentage points of accuracy (without golds: % of perplexity) a file may lose"
    )
    merge_onto: Literal["trained", "16bit"] = Field(
        "trained", description="the base under the adapter: rounded to 4 bit and back, as QLoRA trained on it, or not"
    )
    skip_merge: bool = Field(False, description="do not merge: take the merged model that an earlier export left")
    skip_gguf: bool = Field(False, description="do not convert: take the f16 file that is there, or go without")
    skip_quantize: bool = Field(False, description="do not quantise: take the files that are there, or go without")

    # deployment
    engine: Literal["auto", "llama-server", "vllm", "transformers"] = Field(
        "auto", description="what serves; auto: llama-server for a GGUF file, else vllm on a GPU, else transformers"
    )
    port: int = Field(0, ge=0, le=65535, description="where the server listens on 127.0.0.1; 0: a port that is free")
    parallel: int = Field(16, ge=1, le=256, description="requests that the server answers at once")

    # cloud
    bucket: Annotated[str, Field(pattern=r"^([a-z0-9]+://)?[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]$")] | None = Field(
        None, description="your S3 bucket's name, of 3 to 63 small letters, digits, '.', '_', '-'; with SkyPilot also gs://NAME"
    )
    role_arn: Annotated[str, Field(pattern=r"^arn:aws[a-z-]*:iam::\d{12}:role/\S+$")] | None = Field(
        None, description="SageMaker's execution role, arn:aws:iam::ACCOUNT:role/NAME; it may use the bucket"
    )
    image_uri: str | None = Field(None, description="training container with Python 3.11 or 3.12, pip, make, and CUDA")
    instance_type: Annotated[str, Field(pattern=r"^ml\.\S+$")] | None = Field(
        None, description="SageMaker's name, as ml.g5.12xlarge"
    )
    instance_count: int = Field(1, ge=1, le=128, description="machines of a training in the cloud")
    cost_per_hour: Annotated[float, Field(ge=0)] | None = Field(
        None, description="of one machine that trains, by your cloud's price list; only multiplied"
    )
    max_hours: float = Field(24.0, gt=0, le=672, description="after which a training in the cloud is ended")
    use_spot: bool = Field(True, description="spare machines: cheaper, may be taken away; it goes on from a checkpoint")
    volume_gib: int = Field(100, ge=1, le=16384, description="disk of a machine that trains, GiB")
    accelerators: str | None = Field(None, description="GPUs of one machine in SkyPilot's words, e.g. A100-80GB:4")
    endpoint_artefact: Literal["merged", "gguf"] = Field("merged", description="what the endpoint serves")
    endpoint_image_uri: str | None = Field(None, description="serving container, e.g. AWS's DJL LMI (vLLM)")
    endpoint_environment: tuple[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*=")], ...] = Field(
        ("HF_MODEL_ID=/opt/ml/model",), repr=False,
        description="the serving container's NAME=VALUE; whoever may look at the endpoint can read it, so a secret "
                    "belongs into the container's own environment or AWS Secrets Manager",
    )
    endpoint_instance_type: Annotated[str, Field(pattern=r"^ml\.\S+$")] | None = Field(
        None, description="SageMaker's name, as ml.g5.xlarge"
    )
    endpoint_cost_per_hour: Annotated[float, Field(ge=0)] | None = Field(
        None, description="of one machine that serves, by AWS's price list; only multiplied"
    )
    endpoint_max_instances: int = Field(3, ge=1, le=100, description="machines that it grows to; it begins with one")
    endpoint_invocations: Annotated[float, Field(gt=0)] = Field(
        60.0, description="requests a minute that one machine is to have: above, another is added"
    )
    endpoint_latency_seconds: float = Field(10.0, gt=0, description="p95 of the model's time above which is an alarm")

    # comparison
    others: tuple[str, ...] = Field((), description="further runs in the same outputs folder to compare with")

    # sharing
    push_to_hub: str | None = Field(None, description="USER/NAME on the hub that gets adapter and card in the end")
    hub_private_repo: bool = Field(True, description="a repository that push_to_hub makes is seen by you alone")

    @field_validator("*")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        """No path, name or URL holds a control character, and a terminal or the system would stumble over it."""
        if any(isinstance(text, str) and untrusted.STEERING.search(text)
               for text in (value if isinstance(value, tuple) else (value,))):  # fmt: skip
            raise ValueError("control characters")
        return value

    @field_validator("endpoint_environment")
    @classmethod
    def _no_secrets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """A setting is kept in manifests and shown in reports and by AWS."""
        if any(untrusted.SECRET.search(pair.partition("=")[0]) for pair in value):
            raise ValueError("a secret")
        return value


class SettingsError(SharpenError):
    """Every problem found in the settings, one a line; `problems` holds them as a tuple."""

    def __init__(self, problems: list[str]):
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True)
class Part:
    """One source of a mixture: `weight` is its share of the training rows beside the others', `cap` its most rows."""

    source: str
    revision: str | None
    weight: float | None
    cap: int | None


def parts_of(settings: Settings) -> list[Part]:
    """The sources that the rows come from; one alone has neither weight nor cap."""
    if settings.source != "mixture":
        return [Part(settings.source, settings.dataset_revision, None, None)]
    found = (re.fullmatch(PART, text).groups() for text in settings.mixture)
    return [Part(name, revision, weight and float(weight), cap and int(cap)) for name, revision, weight, cap in found]


def columns_of(settings: Settings) -> dict[str, str]:
    """{"question": the name of your column, ...}, in small letters."""
    return dict(pair.lower().split("=", 1) for pair in settings.columns)


def short(value: Any) -> str:
    """A value as Python writes it, cut in the middle where it is longer than a line holds."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python writes no integer of over 4,300 digits, nor any depth of lists
        return f"a too large {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:60]}...{text[-20:]}"


def nearest(name: Any, choices: Any) -> str:
    text = name if isinstance(name, str) else short(name)
    longer = {choice.lower(): choice for choice in choices if len(choice) > 2}  # `lr` is no `r`
    found = difflib.get_close_matches(text[:100].lower(), longer, n=1)
    return f"; did you mean {longer[found[0]]!r}?" if found else ""


PrepareSettings = PretrainSettings = TrainSettings = EvaluateSettings = Settings
CompareSettings = ExportSettings = ServeSettings = CloudSettings = Settings
