"""Pretraining's loop, exact to resume, and the embedded base as it is committed."""

import json
import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM

from lib.data import chat
from lib.gpt import ablation, corpus, plain, pretrain, tokens
from lib.judge import evaluate
from lib.run import disk, memory, presets
from lib.run.paths import ROOT
from lib.train import guards

BASE = ROOT / "data/base"
SMALL = plain.Config(tokens.VOCABULARY, 64, 128, 2, 2, 1, 128)


@pytest.fixture(scope="module")
def streams(tmp_path_factory, processor):
    folder = tmp_path_factory.mktemp("streams")
    settings = SimpleNamespace(corpus="generated", pretrain_seed=0, pretrain_tokens=20_000)
    return folder, tokens.prepare(settings, folder, processor)


@pytest.fixture
def settings(monkeypatch):
    monkeypatch.setitem(plain.SIZES, "tiny", SMALL)
    values = presets.resolve("demo", {"model_size": "tiny", "pretrain_tokens": 2 * 64 * 12, "pretrain_batch_size": 2,
                                      "block_size": 64}).settings  # fmt: skip
    return lambda **changes: values.model_copy(update=changes)


def blocks_of(folder, settings):
    return tokens.Blocks(folder, settings.pretrain_batch_size, settings.block_size, settings.pretrain_seed)


# --- the learning rate ------------------------------------------------------------------------------------------------
def test_wsd_warms_up_stays_and_falls_linearly_to_nothing():
    shares = [pretrain.schedule(step, 1000, "wsd", 0.4) for step in range(1001)]
    assert shares[:19] == pytest.approx([(i + 1) / 20 for i in range(19)])
    assert set(shares[20:600]) == {1}
    assert shares[600:] == pytest.approx(np.linspace(1, 0, 401))


def test_cosine_is_half_way_down_in_the_middle_and_nothing_at_the_end():
    assert pretrain.schedule(500, 1000, "cosine") == pytest.approx(0.5)
    assert pretrain.schedule(250, 1000, "cosine") == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert pretrain.schedule(1000, 1000, "cosine") == pytest.approx(0)


@pytest.mark.parametrize("kind", ["wsd", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 7, 49])
def test_short_runs_have_a_learning_rate_at_every_step(steps, kind):
    assert all(0 < pretrain.schedule(step, steps, kind) <= 1 for step in range(steps))


# --- the loop ---------------------------------------------------------------------------------------------------------
RECIPE = pretrain.Recipe(fast=True, bf16=False, fused=True, muon=True)


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(streams, settings, tmp_path):
    own, curves, models, kills = settings(), {}, {}, []

    class Killed(Exception):
        pass

    for name in ("whole", "killed"):
        curves[name] = []
        (tmp_path / name).mkdir()

        def log(step, name=name, **metrics):
            curves[name].append((step, metrics["loss"], metrics["learning_rate"]))
            if name == "killed" and step == 8 and not kills:
                kills.append(step)
                raise Killed

        def go(name=name, log=log):
            blocks = blocks_of(streams[0] / "train", own)
            return pretrain.train(own, blocks, tmp_path / name, RECIPE, log=log, log_every=1, save_every=5)[0]

        if name == "killed":
            with pytest.raises(Killed):
                go()
            curves[name] = curves[name][:4]  # the newest checkpoint is that of step 5, which is logged again
        models[name] = go()
    assert curves["whole"] == curves["killed"] and len(curves["whole"]) == 12
    for (key, a), b in zip(models["whole"].state_dict().items(), models["killed"].state_dict().values()):
        assert torch.equal(a, b), key


def test_a_stopped_run_goes_on_with_the_same_curve_and_not_beyond_its_end(streams, settings, tmp_path, monkeypatch):
    own, curves = settings(), {}

    def go(name):
        (tmp_path / name).mkdir(exist_ok=True)
        lines, blocks = tmp_path / name / "metrics.jsonl", blocks_of(streams[0] / "train", own)
        _, metrics = pretrain.train(own, blocks, lines.parent, RECIPE, log=disk.Log(lines), log_every=4, save_every=6)
        told = map(json.loads, lines.read_text().splitlines())
        curves[name] = [(line["step"], line["loss"], line["learning_rate"]) for line in told]
        return metrics["steps"], metrics["loss"]

    end = go("whole")
    with monkeypatch.context() as patch:
        steps = iter(range(1, 13))
        patch.setattr(guards, "on_any_rank", lambda asked: next(steps) == 7)  # Ctrl-C after a step that has no line
        with pytest.raises(KeyboardInterrupt, match="stopped after step 7"):
            go("stopped")
    for _ in range(2):  # the second time as after a kill between the training's end and the stage's
        assert go("stopped") == end and curves["stopped"] == curves["whole"]
    assert [step for step, *_ in curves["whole"]] == [4, 6, 8, 12]


def test_a_checkpoint_is_on_the_disk_before_it_takes_the_former_ones_place(tmp_path, monkeypatch):
    synced, path = [], tmp_path / "checkpoint.safetensors"
    monkeypatch.setattr(pretrain.os, "fsync", lambda number: synced.append(os.fstat(number).st_ino))
    monkeypatch.setattr(pretrain.os, "replace", lambda part, whole: synced.append(os.stat(part).st_ino))
    pretrain.save_checkpoint(path, 1, torch.nn.Linear(2, 2), {}, {}, [])
    assert len(synced) == 2 and synced[0] == synced[1]


@pytest.mark.parametrize("damage", [
    lambda whole: whole[: len(whole) // 2], lambda whole: bytes(len(whole)), lambda _: b"",
    lambda whole: whole.replace(b'"told"', b'"tale"'),
])  # fmt: skip
def test_a_checkpoint_that_does_not_load_is_named_with_what_to_do(streams, settings, tmp_path, damage):
    own, path = settings(), tmp_path / "checkpoint.safetensors"
    pretrain.save_checkpoint(path, 1, pretrain.FastGPT(SMALL), {}, {}, [])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(memory.TrainingError, match=rf"{path} does not load \(.*\): move it away, and pretraining"):
        pretrain.train(own, blocks_of(streams[0] / "train", own), tmp_path, RECIPE)


def test_accumulated_parts_train_as_one_batch_does(streams, settings):
    curves = []
    for batch, parts in ((4, 1), (2, 2)):
        own, curve = settings(pretrain_batch_size=batch, pretrain_accumulation=parts, pretrain_tokens=4 * 64 * 4), []
        blocks = blocks_of(streams[0] / "train", own)
        uniform = lambda step, at=blocks.at: (at(step)[0], torch.ones(at(step)[0].shape), at(step)[2])  # noqa: E731
        blocks.at = uniform  # equal weights: then the mean of the parts' means is the batch's mean
        model, _ = pretrain.train(
            own, blocks, recipe=RECIPE, log=lambda step, c=curve, **m: c.append(m["loss"]), log_every=1
        )
        curves.append(curve)
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


@pytest.mark.parametrize("recipe", [
    pretrain.Recipe(), pretrain.Recipe(fast=True, muon=True), pretrain.Recipe(fast=True, bf16=True, checkpointing=True),
])  # fmt: skip
def test_the_loss_falls(streams, settings, recipe):
    curve = []
    own = settings(pretrain_tokens=2 * 64 * 30)
    pretrain.train(own, blocks_of(streams[0] / "train", own), recipe=recipe, log_every=1,
                   log=lambda step, **m: curve.append(m["loss"]))  # fmt: skip
    assert sum(curve[-5:]) < 0.95 * sum(curve[:5])


def test_a_loss_that_is_no_number_stops_and_leaves_its_batch(streams, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain.FastGPT, "loss", lambda self, ids, *rest: self.norm.weight.sum() * math.nan)
    own = settings()
    blocks = blocks_of(streams[0] / "train", own)
    with pytest.raises(memory.TrainingError, match="the loss is nan at step 1.*failed_batch.*lower muon_learning_rate"):
        pretrain.train(own, blocks, tmp_path, RECIPE)
    assert torch.equal(load_file(tmp_path / "failed_batch.safetensors")["ids"], blocks.at(0)[0])


def test_held_out_loss_counts_every_document_once(streams, settings):
    own = settings(pretrain_batch_size=7)
    torch.manual_seed(0)
    model = pretrain.FastGPT(SMALL)
    found = pretrain.held_out_loss(model, blocks_of(streams[0] / "held_out", own), torch.autocast("cpu", enabled=False))
    again = pretrain.held_out_loss(model, blocks_of(streams[0] / "held_out", settings(pretrain_batch_size=3)),
                                   torch.autocast("cpu", enabled=False))  # fmt: skip
    train, held_out = streams[1]
    pieces = len(blocks_of(streams[0] / "held_out", own).sizes)
    assert found["eval_tokens"] == held_out["tokens"] - pieces  # each piece's first token is not predicted
    assert found["perplexity"] == pytest.approx(math.exp(found["eval_nats"] / found["eval_tokens"]))
    assert found == pytest.approx(again, rel=1e-4)


def test_bits_per_byte_of_a_fair_coin_a_byte():
    assert pretrain.bits_per_byte(1000 * math.log(2), 1000) == pytest.approx(1)
    assert pretrain.bits_per_byte(500 * math.log(256), 500) == pytest.approx(8)


def test_what_is_saved_is_what_was_trained_with_its_tokenizer(streams, settings, tmp_path, tokenizer):
    own = settings()
    pretrain.tokenizer_for(settings(tokenizer="embedded"), tmp_path)
    model, _ = pretrain.train(own, blocks_of(streams[0] / "train", own), recipe=RECIPE, log=lambda *a, **k: None)
    pretrain.save(model, tmp_path)
    loaded, ids = LlamaForCausalLM.from_pretrained(tmp_path).eval(), torch.arange(4, 64)[None]
    with torch.no_grad():
        assert (loaded(ids).logits - model(ids)).abs().max() <= 1e-4
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert saved.encode("<<12/4=3>>") == tokenizer.encode("<<12/4=3>>") and saved.chat_template == chat.TEMPLATE


# --- the ablation -----------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_ladder_measures_every_step_at_equal_tokens(streams, settings, monkeypatch):
    rungs = tuple((name, recipe, packed) for name, recipe, packed in ablation.LADDER if not recipe.compile)
    monkeypatch.setattr(ablation, "LADDER", rungs)
    rows = ablation.ladder(
        settings(), streams[0] / "train", streams[0] / "held_out", steps=3, runs=2, log=lambda _: None
    )
    assert [row["step"] for row in rows] == [name for name, *_ in rungs]
    assert all(row["tokens_per_second"] > 0 and 4 < row["loss"] < 9 and row["runs"] == 2 for row in rows)
    assert rows[0]["seconds_to_loss"] is not None  # the plain one reaches its own loss


def test_the_ladder_adds_one_thing_at_a_time():
    for (_, before, packed_before), (name, after, packed) in zip(ablation.LADDER, ablation.LADDER[1:]):
        changed = [f for f in vars(after) if getattr(before, f) != getattr(after, f)]
        assert len(changed) + (packed != packed_before) == 1, name


def test_generation_is_measured_with_and_without_cache(settings):
    settings()
    rows = ablation.generation("tiny", new_tokens=8, runs=1)
    assert [row["generation"] for row in rows] == ["without cache", "with cache"]
    assert all(row["tokens_per_second"] > 0 for row in rows)


def test_the_peak_is_what_was_held_at_once_also_where_freed_memory_is_kept():
    if memory.reset_peak() is None:
        pytest.skip("this system does not tell a process's peak memory")
    memory.keep_freed()
    for numbers in (60_000_000, 30_000_000):
        start = memory.reset_peak()
        torch.ones(numbers).sum()
        assert 0.8 * 4 * numbers < memory.peak_since(start) < 1.6 * 4 * numbers


# --- set-up accuracy --------------------------------------------------------------------------------------------------
def test_a_sum_counts_as_set_up_right_by_its_expression_not_its_value(tokenizer, monkeypatch):
    problems = [(f"q{i}", "<<12/4=3>>\n#### 3") for i in range(5)]
    said = ["Value: <<12/4=99>>", "<<12/5=2.4>>\n#### 3", "3", "<<1+1=2>> <<12/4=3>>", "<<4/12=3>>"]
    monkeypatch.setattr(evaluate, "generate", lambda *a, **k: [{"completion": text} for text in said])
    results = pretrain.setup_accuracy(None, tokenizer, problems)
    assert [r["correct"] for r in results] == [True, False, False, False, False]
    assert {r["wanted"] for r in results} == {"12/4"} and [r["got"] for r in results] == said


# --- the embedded base ------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def config():
    return json.loads((BASE / "config.json").read_text())


def test_the_base_is_small_and_its_embeddings_are_tied(config):
    path = BASE / "model.safetensors"
    assert path.stat().st_size <= 16 * 2**20
    with safe_open(path, "numpy") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
    assert 3_000_000 <= sum(int(np.prod(shape)) for shape in shapes.values()) <= 5_000_000
    assert config["tie_word_embeddings"] and "lm_head.weight" not in shapes
    assert shapes["model.embed_tokens.weight"] == [config["vocab_size"], config["hidden_size"]]


def test_the_base_fits_q4_k_and_its_attention_is_grouped(config):
    assert config["architectures"] == ["LlamaForCausalLM"] and config["head_dim"] == 64
    assert config["hidden_size"] % 256 == config["intermediate_size"] % 256 == 0
    heads, key_value_heads = config["num_attention_heads"], config["num_key_value_heads"]
    assert key_value_heads < heads and heads % key_value_heads == 0
    size = plain.SIZES["base"]
    assert {name: config[name] for name in vars(size) if name in config} == {
        n: v for n, v in vars(size).items() if n in config
    }


def test_the_bases_files_agree_on_special_tokens(config, tokenizer, processor):
    generation = json.loads((BASE / "generation_config.json").read_text())
    for name, own in (("bos", processor.bos_id()), ("eos", processor.eos_id()), ("pad", processor.pad_id())):
        name = f"{name}_token_id"
        assert config[name] == generation[name] == getattr(tokenizer, name) == own
    assert config["pad_token_id"] != config["eos_token_id"]
    assert len(tokenizer) == config["vocab_size"] == processor.get_piece_size()


def test_the_base_sets_up_one_step_sums_that_it_never_saw(tokenizer):
    """At least 97 % of 600 are (its card); of so few more than 90 % must be."""
    problems = corpus.one_step_problems(100, seed=1)
    results = pretrain.setup_accuracy(LlamaForCausalLM.from_pretrained(BASE).eval(), tokenizer, problems)
    assert sum(result["correct"] for result in results) > 90


def test_the_bases_chat_template_marks_what_is_learnt():
    template = (BASE / "chat_template.jinja").read_text()
    assert "{% generation %}" in template and "{% endgeneration %}" in template and template == chat.TEMPLATE


def test_the_base_holds_nothing_that_can_be_executed():
    assert {p.suffix for p in BASE.iterdir()} <= {".safetensors", ".json", ".model", ".jinja", ".md"}
