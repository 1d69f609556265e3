"""What only a GPU can show; one is enough. Without one every test here skips."""

import math
from pathlib import Path

import pytest
import torch

from lib.gpt import plain
from lib.gpt.fast import FastGPT
from lib.run import presets
from lib.run.paths import ROOT
from tests.train import shown

pytestmark = [
    pytest.mark.gpu, pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none"),
]  # fmt: skip
BASE = Path(ROOT) / "data/base"
ONE_STEP = {
    "max_steps": 1, "per_device_train_batch_size": 8, "logging_steps": 1, "eval_steps": None, "r": 8,
    "warmup_steps": 0.0, "learning_rate": 1e-2,
}  # fmt: skip


@pytest.fixture(scope="module")
def problems():
    from lib.data import tasks

    return [problem.row() for problem in tasks.generate("train", 8, 0, ("compounding", "position_sizing"))]


@pytest.fixture
def learn(qlora, problems, tmp_path):
    """One step on all problems at once: (metrics, the loss before it in nats a token)."""

    def call(**changes):
        settings, lines = presets.resolve("demo", ONE_STEP | changes).settings, []
        model, tokenizer = qlora.load(settings)
        rows, _ = qlora.encode(problems, tokenizer, settings.max_length, settings.completion_only_loss)
        folder = tmp_path / "-".join(["adapter", *changes])
        folder.mkdir()
        metrics = shown.train(qlora.attach(model, settings), tokenizer, rows, None, settings, folder,
                              lambda step, **values: lines.append(values))  # fmt: skip
        assert (folder / "adapter_model.safetensors").exists()  # train refuses an adapter that did not change
        return metrics, next(line["loss"] for line in lines if "loss" in line)

    return call


@pytest.fixture
def expected(tokenizer, problems):
    """The base's loss on the problems' answers, nats a token, by the project's own GPT in single precision."""
    from lib.data import chat

    model, total, count = own_gpt().cuda(), 0.0, 0
    for row in problems:
        encoded = chat.encode(row, tokenizer)
        ids, labels = (torch.tensor([encoded[name]], device="cuda") for name in ("input_ids", "labels"))
        with torch.no_grad():
            losses = model.losses(ids)[labels[:, 1:] != chat.IGNORED]
        total, count = total + float(losses.sum()), count + losses.numel()
    return total / count


def own_gpt() -> FastGPT:
    from safetensors.torch import load_file

    model = FastGPT(plain.SIZES["base"])
    weights = load_file(BASE / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): weight.float() for name, weight in weights.items()})
    return model.eval()


# --- QLoRA ------------------------------------------------------------------------------------------------------------
def test_a_step_of_qlora_runs_in_4_bit_and_the_fast_half_precision(qlora, learn, expected):
    metrics, loss = learn()
    assert (metrics["bits_ran"], metrics["optim_ran"]) == (4, "AdamW8bit")
    assert metrics["bf16"] == torch.cuda.is_bf16_supported(including_emulation=False)
    assert loss == pytest.approx(expected, rel=0.1)  # NF4 rounds a model of this size by some percent


@pytest.mark.parametrize(("changes", "bits"), [
    ({"load_in_4bit": False}, 16), ({"load_in_4bit": False, "load_in_8bit": True}, 8),
])  # fmt: skip
def test_8_and_16_bit_start_from_the_bases_own_loss(learn, expected, changes, bits):
    metrics, loss = learn(**changes)
    assert metrics["bits_ran"] == bits
    assert loss == pytest.approx(expected, rel=0.03)


def test_packed_rows_do_not_see_each_other(learn, expected):
    """One step holds all rows, packed or not: were they one text, the loss would be another."""
    metrics, loss = learn(packing=True, load_in_4bit=False)
    assert (metrics["packing_asked"], metrics["packing_ran"]) == (True, True)
    assert loss == pytest.approx(expected, rel=0.03)


def test_recomputed_layers_give_the_same_loss(learn, expected):
    _, loss = learn(gradient_checkpointing=True, load_in_4bit=False)
    assert loss == pytest.approx(expected, rel=0.03)


def test_the_whole_text_can_be_learnt(learn):
    """Unsloth joins the rows of a batch without padding; each row's first token is then no target."""
    _, loss = learn(completion_only_loss=False, load_in_4bit=False)
    assert math.isfinite(loss)


# --- evaluation -------------------------------------------------------------------------------------------------------
def test_the_base_sets_up_sums_as_its_card_says(qlora):
    from lib.gpt import corpus, pretrain

    model, tokenizer = qlora.load(presets.resolve("demo", {"load_in_4bit": False}).settings)
    qlora.FastLanguageModel.for_inference(model)
    results = pretrain.setup_accuracy(model, tokenizer, corpus.one_step_problems(100, seed=0))
    assert sum(result["correct"] for result in results) >= 92  # of 100, where the card says 97.8 %


def test_losses_are_those_of_the_projects_own_gpt(qlora, problems, expected):
    from lib.judge import evaluate

    settings = presets.resolve("demo", {"load_in_4bit": False}).settings
    model, tokenizer = qlora.load(settings)
    qlora.FastLanguageModel.for_inference(model)
    found = evaluate.losses(model, tokenizer, problems, settings)
    assert sum(row["loss"] for row in found) / sum(row["tokens"] for row in found) == pytest.approx(expected, rel=0.02)


# --- the GPT from scratch ---------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def batch():
    """Ids of the base's own kind of text, two documents a row, and their numbers: (4, 129) each."""
    from lib.gpt import corpus, tokens

    processor, ids = tokens.load_processor(BASE), []
    for document in corpus.documents(0, "validation"):
        ids += tokens.encode(document, processor)[0]
        if len(ids) >= 4 * 129:
            break
    return torch.tensor(ids[: 4 * 129]).view(4, 129), (torch.arange(129) >= 60).long().expand(4, 129)


def test_single_precision_gives_a_cpus_logits(batch):
    ids, documents = batch
    model = own_gpt()
    with torch.no_grad():
        there, here = model(ids, documents), model.cuda()(ids.cuda(), documents.cuda()).cpu()
    assert (there - here).abs().max() <= 1e-2 and (there.argmax(-1) == here.argmax(-1)).float().mean() >= 0.999


@pytest.mark.parametrize("compiled", [False, True])
def test_bfloat16_compiled_or_not_gives_single_precisions_loss(batch, compiled):
    ids, documents = (tensor.cuda() for tensor in batch)
    model, weights = own_gpt().cuda(), torch.ones(ids.shape, device="cuda")
    loss_of = torch.compile(model.loss) if compiled else model.loss
    with torch.no_grad():
        wanted = float(model.loss(ids, weights, documents))
        with torch.autocast("cuda", torch.bfloat16):
            found = float(loss_of(ids, weights, documents))
    assert found == pytest.approx(wanted, rel=0.01)


def test_a_step_of_pretraining_on_a_gpu_is_that_on_a_cpu(tmp_path, monkeypatch):
    from lib.gpt import pretrain, tokens

    settings = presets.resolve("demo", {
        "model_size": "tiny", "pretrain_tokens": 3 * 4 * 128, "pretrain_batch_size": 4, "block_size": 128,
        "torch_compile": False,
    }).settings  # fmt: skip
    tokens.prepare(settings, tmp_path, tokens.load_processor(BASE))
    blocks, found = tokens.Blocks(tmp_path / "train", 4, 128, 0), {}
    for device in ("cuda", "cpu"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda device=device: device == "cuda")
        losses = []
        pretrain.train(settings, blocks, recipe=pretrain.Recipe(fast=True), log_every=1,
                       log=lambda step, losses=losses, **values: losses.append(values["loss"]))  # fmt: skip
        found[device] = losses
    assert len(found["cpu"]) == 3 and found["cuda"] == pytest.approx(found["cpu"], rel=1e-3)
