"""QLoRA's guards: adapters, checkpoints, rows and losses that must not pass. Importing Unsloth takes seconds."""

import copy
import json
import os
import random
from types import SimpleNamespace

import numpy as np
import pytest

from lib.run import parameters, presets, runs
from lib.run.paths import ROOT
from lib.run.settings import SettingsError
from tests.train import shown

pytestmark = pytest.mark.slow


def save_adapter(folder, **tensors):
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    plain = {"q.lora_A.weight": [0.5, 0.5], "q.lora_B.weight": [0.1, 0.0], "v.lora_B.weight": [0.0, 0.0]}
    tensors = {name: torch.tensor(values) for name, values in (plain | tensors).items()}
    save_file(tensors, folder / "adapter_model.safetensors")


def save_checkpoint(folder, step, ended=False):
    import torch

    path = folder / f"checkpoint-{step}"
    save_adapter(path)
    (path / "trainer_state.json").write_text(json.dumps(
        {"global_step": step, "stateful_callbacks": {"TrainerControl": {"args": {"should_training_stop": ended}}}}
    ))  # fmt: skip
    random_states = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.random.get_rng_state()}
    torch.save(random_states, path / "rng_state.pth")
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.save({"state": torch.zeros(100)}, path / name)
    return path


def cut(path):
    """Leave the first half, as a killed process does."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("where", ["base", "adapter", "base of the adapter"])
def test_a_model_that_carries_code_is_refused_before_unsloth_sees_it(qlora, tmp_path, monkeypatch, where):
    monkeypatch.setattr(qlora.FastLanguageModel, "from_pretrained", lambda *_, **__: pytest.fail("it was loaded"))
    for name in ("base", "adapter", "base of the adapter"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ("pytorch_model.bin" if name == where else "model.safetensors")).touch()
    config = {"base_model_name_or_path": str(tmp_path / "base of the adapter")}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    settings = SimpleNamespace(base_model=str(tmp_path / "base"), max_length=64, load_in_4bit=True)
    with pytest.raises(SettingsError, match=f"{where}'?: pytorch_model.bin is a pickle"):
        qlora.load(settings, None if where == "base" else tmp_path / "adapter")


def test_a_model_that_memory_does_not_hold_is_named_with_what_would_be_smaller(qlora, monkeypatch):
    import torch

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(qlora.FastLanguageModel, "from_pretrained", full)
    for four_bit, more in ((True, "$"), (False, r", or set load_in_4bit = true \(now false\)")):
        settings = presets.resolve("demo", {"load_in_4bit": four_bit}).settings
        advice = rf"out of memory \(\d+\.\d GiB were held\): choose a smaller base_model \(now data/base\){more}"
        with pytest.raises(qlora.TrainingError, match=advice):
            qlora.load(settings)


# --- checkpoints ------------------------------------------------------------------------------------------------------
def test_the_newest_checkpoint_is_the_one_of_the_highest_step(qlora, tmp_path):
    for step in (20, 100, 80):
        save_checkpoint(tmp_path, step)
    assert qlora.resume.newest_checkpoint(tmp_path) == tmp_path / "checkpoint-100"


@pytest.mark.parametrize("file", [
    "adapter_model.safetensors", "trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth",
])  # fmt: skip
@pytest.mark.parametrize("damage", [cut, os.unlink])
def test_a_torn_newest_checkpoint_is_skipped_and_named(qlora, tmp_path, capsys, file, damage):
    for step in (20, 100):
        save_checkpoint(tmp_path, step)
    damage(tmp_path / "checkpoint-100" / file)
    assert qlora.resume.newest_checkpoint(tmp_path) == tmp_path / "checkpoint-20"
    assert "checkpoint-100 does not load" in capsys.readouterr().out


def test_a_torn_scaler_of_fp16_is_torn_too_and_where_there_is_none_none_is_missed(qlora, tmp_path):
    save_checkpoint(tmp_path, 20)
    torn = save_checkpoint(tmp_path, 100) / "scaler.pt"
    torn.write_bytes(b"PK")
    assert qlora.resume.newest_checkpoint(tmp_path) == tmp_path / "checkpoint-20"


def test_folders_that_are_no_steps_checkpoint_are_passed_over(qlora, tmp_path):
    save_checkpoint(tmp_path, 20)
    for name in ("checkpoint-20 (1)", "checkpoint-best", "checkpoint-"):
        save_checkpoint(tmp_path, 100).rename(tmp_path / name)
    assert qlora.resume.newest_checkpoint(tmp_path) == tmp_path / "checkpoint-20"


def test_the_checkpoint_of_an_ended_training_is_not_gone_beyond(qlora, tmp_path):
    save_checkpoint(tmp_path, 20), save_checkpoint(tmp_path, 100, ended=True)
    assert qlora.resume.newest_checkpoint(tmp_path) == tmp_path / "checkpoint-20"


def test_without_a_whole_checkpoint_there_is_none(qlora, tmp_path):
    assert qlora.resume.newest_checkpoint(tmp_path) is None
    assert qlora.resume.newest_checkpoint(tmp_path / "missing") is None
    cut(save_checkpoint(tmp_path, 5) / "adapter_model.safetensors")
    assert qlora.resume.newest_checkpoint(tmp_path) is None


# --- rows -------------------------------------------------------------------------------------------------------------
def rows(*answers):
    return [{"id": f"row-{i}", "messages": [{"role": "user", "content": "How much?"},
                                            {"role": "assistant", "content": answer}]}
            for i, answer in enumerate(answers)]  # fmt: skip


def test_rows_that_are_too_long_are_left_out_whole_and_named(qlora, tokenizer):
    from lib.data import chat

    given = rows("#### 5", "5 " * 60 + "#### 5", "#### 6")
    longest = len(chat.encode(given[0], tokenizer)["input_ids"])
    kept, left_out = qlora.encode(given, tokenizer, longest)
    assert left_out == ["row-1"]
    assert kept["input_ids"] == [chat.encode(row, tokenizer)["input_ids"] for row in (given[0], given[2])]
    assert all(labels[-1] == tokenizer.eos_token_id for labels in kept["labels"])


def test_rows_with_but_a_gold_are_not_learnt_as_answers(qlora, tokenizer):
    from lib.data import formats

    given = [*rows("#### 5"), *map(formats.gold_only, rows("Six. #### 6"))]
    with pytest.raises(qlora.TrainingError, match="1 of 2 rows have a gold and no worked answer, such as row-0: learn"):
        qlora.encode(given, tokenizer, 100)


def test_no_row_that_fits_is_an_error(qlora, tokenizer):
    with pytest.raises(qlora.TrainingError, match="no row of 2 fits max_length = 4 tokens: raise it"):
        qlora.encode(rows("#### 5", "#### 6"), tokenizer, 4)


def test_a_mask_that_the_trainer_does_not_keep_is_refused(qlora, tokenizer):
    import torch

    kept, _ = qlora.encode(rows("#### 5", "#### 6"), tokenizer, 100)
    plain = SimpleNamespace(packing=False)
    honest = SimpleNamespace(train_dataset=kept, args=plain, data_collator=lambda batch: {
        "input_ids": None,
        "labels": torch.nn.utils.rnn.pad_sequence([torch.tensor(row["labels"]) for row in batch], True, -100),
    })  # fmt: skip
    qlora.check_mask(honest, kept)
    whole = SimpleNamespace(train_dataset=kept, args=plain, data_collator=lambda batch: {
        "input_ids": None,
        "labels": torch.nn.utils.rnn.pad_sequence([torch.tensor(row["input_ids"]) for row in batch], True, -100),
    })  # fmt: skip
    told = "the trainer supervises .* tokens of the first rows, but their answers have "
    with pytest.raises(qlora.TrainingError, match=told):
        qlora.check_mask(whole, kept)
    packed = [{"labels": sum(kept["labels"], [])}]
    for dataset, passes in ((packed, True), ([{"labels": packed[0]["labels"][:-1]}], False)):
        trainer = SimpleNamespace(args=SimpleNamespace(packing=True), train_dataset={"labels": [dataset[0]["labels"]]})
        if passes:
            qlora.check_mask(trainer, kept)
        else:
            with pytest.raises(qlora.TrainingError, match="the trainer supervises"):
                qlora.check_mask(trainer, kept)


def test_the_whole_text_is_learnt_where_the_settings_say_so(qlora, tokenizer):
    for completion_only, first in ((True, -100), (False, tokenizer.bos_token_id)):
        kept, _ = qlora.encode(rows("#### 5"), tokenizer, 100, completion_only)
        assert kept[0]["labels"][0] == first
        assert kept[0]["labels"][-1] == kept[0]["input_ids"][-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("joined", [True, False])
def test_whole_text_passes_the_check_in_joined_rows_as_on_a_gpu_and_in_padded_ones(qlora, tokenizer, joined):
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    kept, _ = qlora.encode(rows("#### 5", "#### 6", "no more than #### 7"), tokenizer, 100, completion_only_loss=False)
    collator = DataCollatorForLanguageModeling(tokenizer.pad_token_id, padding_free=joined)
    assert len(collator([kept[i] for i in range(3)])["labels"]) == (1 if joined else 3)
    trainer = SimpleNamespace(train_dataset=kept, args=SimpleNamespace(packing=False), data_collator=collator)
    qlora.check_mask(trainer, kept)


# --- training, each choice --------------------------------------------------------------------------------------------
FEW = {
    "max_steps": 3, "per_device_train_batch_size": 2, "logging_steps": 1, "eval_steps": None, "save_steps": 2,
    "r": 4, "lora_alpha": 8, "learning_rate": 1e-2,
}  # fmt: skip


@pytest.fixture(scope="module")
def problems():
    from lib.data import tasks

    return [problem.row() for problem in tasks.generate("train", 8, 0, ("compounding",))]


@pytest.fixture
def learn(qlora, problems, tmp_path):
    """Train the embedded base for a few steps: (metrics, logged lines, model, tokenizer, settings)."""

    def call(folder=tmp_path, callbacks=(), given=None, held_out=None, resume=False, **changes):
        settings, lines = presets.resolve("demo", FEW | changes).settings, []
        model, tokenizer = qlora.load(settings)
        model = qlora.attach(model, settings)
        kept, held = (
            qlora.encode(found, tokenizer, settings.max_length, settings.completion_only_loss)[0] if found else None
            for found in (given or problems, held_out)
        )
        made = [make(tokenizer, settings, lines) for make in callbacks]
        metrics = shown.train(
            model, tokenizer, kept, held, settings, folder, lambda step, **m: lines.append({"step": step} | m), made,
            resume,
        )
        return metrics, lines, model, tokenizer, settings

    return call


def loss_of(model, tokenizer, rows):
    """Each row's loss, nats a token."""
    from lib.judge import evaluate

    found = evaluate.losses(model, tokenizer, rows, SimpleNamespace(eval_batch_size=4))
    return [row["loss"] / row["tokens"] for row in found]


def test_what_is_gone_on_with_in_a_later_epoch_is_the_uninterrupted_training(qlora, learn, tmp_path):
    class Stop(qlora.TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    changes = {"max_steps": 8, "save_steps": 5}  # four steps an epoch: it stops in the second
    _, whole, *_ = learn(tmp_path / "whole", **changes)
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "parts", callbacks=[lambda *_: Stop()], **changes)
    metrics, rest, *_ = learn(tmp_path / "parts", resume=True, **changes)
    assert metrics["resumed_from"] == "checkpoint-5"
    losses = [[(line["step"], line["loss"]) for line in lines if "loss" in line] for lines in (whole, rest)]
    assert losses[1] == losses[0][5:] and len(losses[1]) == 3
    one, other = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert one == other


@pytest.mark.parametrize("choice", [
    {}, {"use_rslora": True}, {"use_dora": True},
    {"peft_type": "ia3", "load_in_4bit": False, "learning_rate": 0.1},
    {"peft_type": "prefix_tuning", "num_virtual_tokens": 3, "learning_rate": 0.1},
    {"load_in_4bit": False}, {"neftune_noise_alpha": 5.0},
    {"load_in_4bit": False, "full_finetuning": True, "learning_rate": 1e-3},
], ids=lambda choice: "-".join(choice) or "lora")  # fmt: skip
def test_what_was_trained_is_what_is_saved_and_the_base_is_still_there(qlora, learn, problems, tmp_path, choice):
    metrics, _, model, tokenizer, settings = learn(**choice)
    qlora.FastLanguageModel.for_inference(model)
    evaluation = presets.resolve("demo", {"load_in_4bit": settings.load_in_4bit}).settings
    base = loss_of(qlora.load(evaluation)[0].eval(), tokenizer, problems)
    again, _ = qlora.load(evaluation, tmp_path)
    qlora.FastLanguageModel.for_inference(again)
    tuned = loss_of(again, tokenizer, problems)
    assert tuned == pytest.approx(loss_of(model, tokenizer, problems), rel=2e-2)
    assert sum(tuned) != pytest.approx(sum(base), rel=0.02), "three steps at a high rate must show"
    with qlora.untuned(again, evaluation) as untuned:
        assert loss_of(untuned, tokenizer, problems) == pytest.approx(base, rel=1e-2)
    config = tmp_path / "adapter_config.json"
    told = json.loads(config.read_text()) if config.exists() else {"peft_type": None}
    asked = {"peft_type": None if "full_finetuning" in choice else settings.peft_type.upper()}
    asked |= {name: True for name in ("use_rslora", "use_dora") if name in choice}
    assert {name: told[name] for name in asked} == asked
    assert metrics["bits_asked"] == metrics["bits_ran"] == (4 if settings.load_in_4bit else 16)


def test_a_prefix_that_training_did_not_move_is_refused(qlora, learn):
    with pytest.raises(qlora.TrainingError, match=r"training did not change the adapter \(every"):
        learn(peft_type="prefix_tuning", num_virtual_tokens=3, learning_rate=1e-30)


def test_full_finetuning_moves_every_weight_and_saves_a_plain_model(learn, tmp_path):
    from safetensors.torch import load_file

    *_, model, _, _ = learn(load_in_4bit=False, full_finetuning=True, learning_rate=1e-3)
    assert all(parameter.requires_grad for parameter in model.parameters())
    before, after = (load_file(folder / "model.safetensors") for folder in (ROOT / "data/base", tmp_path))
    assert before.keys() == after.keys()
    still = [name for name in after if (before[name].to(after[name].dtype) == after[name]).all()]
    assert not [name for name in still if "norm" not in name], still  # a norm's 1 is too coarse in bf16 to move at once
    assert (tmp_path / "tokenizer_config.json").exists()


def test_lora_plus_gives_b_a_faster_rate_and_a_the_plain_one(qlora, learn):
    class Rates(qlora.TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
            names = {id(parameter): name for name, parameter in model.named_parameters()}
            self.seen = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}

    rates = Rates()
    learn(loraplus_lr_ratio=16, lr_scheduler_type="constant", warmup_steps=0, callbacks=[lambda *_: rates])
    assert {rate for name, rate in rates.seen.items() if "lora_A" in name} == {1e-2}
    assert {rate for name, rate in rates.seen.items() if "lora_B" in name} == {16e-2}


def test_no_layers_inputs_are_copied_into_single_precision(learn, monkeypatch):
    from peft.tuners.tuners_utils import BaseTunerLayer

    monkeypatch.setattr(BaseTunerLayer, "_cast_input_dtype", lambda layer, x, dtype: pytest.fail("PEFT casts"))
    learn(lora_dropout=0.1)


def test_what_a_cpu_cannot_do_is_recorded_as_asked_and_as_run(learn):
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU does it")
    metrics, *_ = learn(packing=True, load_in_4bit=False, load_in_8bit=True, optim="paged_adamw_8bit")
    assert (metrics["packing_asked"], metrics["packing_ran"]) == (True, False)
    assert (metrics["bits_asked"], metrics["bits_ran"]) == (8, 16)
    assert (metrics["optim_asked"], metrics["optim_ran"]) == ("paged_adamw_8bit", "AdamW")


@pytest.mark.parametrize("again", [True, False])
def test_blocks_are_computed_again_only_where_the_settings_say_so(qlora, learn, again):
    class Count(qlora.TrainerCallback):
        calls = 0

        def on_train_begin(self, args, state, control, model=None, **kwargs):
            def count(*_):
                self.calls += 1

            next(module for name, module in model.named_modules() if name.endswith("layers.0.mlp")
                 ).register_forward_pre_hook(count)  # fmt: skip

    count = Count()
    learn(gradient_checkpointing=again, max_steps=2, callbacks=[lambda *_: count])
    assert count.calls == (4 if again else 2)


def test_training_ends_where_the_held_out_loss_rises_and_keeps_the_best(qlora, learn, tmp_path):
    import torch

    sevens, eights = ([row | {"messages": [row["messages"][0], {"role": "assistant", "content": answer}]}
                       for row in rows("x", "x", "x", "x")] for answer in ("#### 7", "#### 8"))  # fmt: skip
    metrics, lines, _, tokenizer, settings = learn(
        given=sevens, held_out=eights, max_steps=60, eval_steps=1, save_steps=1, early_stopping_patience=2
    )
    losses = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    best = min(losses, key=losses.get)
    assert metrics["ended_early"] and metrics["steps"] < 60 and metrics["best_step"] == best < metrics["steps"]
    saved, _ = qlora.load(settings, tmp_path)
    with torch.autocast("cpu", torch.bfloat16, enabled=qlora.precision("cpu")["bf16"]):  # as in training
        held_out = [losses[best]] * 4  # of padded rows: logits rounded to bf16 differ
        assert loss_of(saved.eval(), tokenizer, eights) == pytest.approx(held_out, rel=0.02)


@pytest.mark.parametrize("peft_type", ["lora", "ia3", "prefix_tuning"])
def test_asking_questions_at_checkpoints_gives_a_curve_and_leaves_training_as_it_is(qlora, learn, tmp_path, peft_type):
    short = [row | {"kind": "sum", "group": "sum", "gold": {"value": 5.0, "unit": "count"}}
             for row in rows("#### 5", "#### 5", "#### 5", "#### 5")]  # fmt: skip

    def asking(tokenizer, settings, lines):
        held = [short[0] | {"gold": None}, *short]
        return qlora.Accuracy(tokenizer, held, settings, lambda step, **m: lines.append({"step": step} | m))

    changes = {"given": short, "max_length": 40, "save_steps": 2, "max_steps": 4, "peft_type": peft_type}
    changes |= {"load_in_4bit": peft_type != "ia3"}
    _, plain, *_ = learn(tmp_path / "plain", **changes)
    _, asked, *_ = learn(tmp_path / "asked", callbacks=[asking], accuracy_steps=2, **changes)
    curve = [line for line in asked if "accuracy" in line]
    assert [(line["step"], line["questions"]) for line in curve] == [(0, 2), (2, 2), (4, 2)]
    assert all(line["accuracy"] in (0, 0.5, 1) for line in curve)
    assert [line["loss"] for line in asked if "loss" in line] == pytest.approx(
        [line["loss"] for line in plain if "loss" in line], rel=1e-3
    )
    settings = presets.resolve("demo", {"accuracy_steps": 20}).settings
    with pytest.raises(qlora.TrainingError, match="accuracy_steps = 20: only 4 held-out rows have a gold"):
        qlora.Accuracy(None, short, settings, None)


# --- going on from an earlier run -------------------------------------------------------------------------------------
def train_stage(outputs, name, **settings):
    named = {"preset": "demo", "run": name, "outputs": str(outputs), "rehearse": False}
    return runs.begin(parameters.from_notebook("train", named | settings))


def test_an_earlier_adapter_goes_on_from_where_it_was(qlora, learn, problems, tmp_path):
    *_, model, tokenizer, settings = learn(tmp_path)
    continued, _ = qlora.load(settings, tmp_path)
    assert qlora.attach(continued, settings) is continued
    assert {n for n, p in continued.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    before, after = (loss_of(m.eval(), tokenizer, problems) for m in (model, continued))
    assert after == pytest.approx(before, rel=1e-2)


def test_an_earlier_run_is_an_input_and_one_of_another_shape_is_refused(qlora, tmp_path):
    first = train_stage(tmp_path, "first", r=8)
    save_adapter(first.folder)
    first.finish()
    again = train_stage(tmp_path, "again", r=8, learning_rate=1e-4, continue_from="first")
    assert qlora.earlier(again) == tmp_path / "first" / "adapter"
    assert again.inputs["../first/adapter"] == first_outputs(tmp_path)
    for changed in ({"r": 16}, {"r": 8, "use_dora": True}, {"r": 8, "target_modules": ["q_proj"]}):
        other = train_stage(tmp_path, "other", continue_from="first", **changed)
        with pytest.raises(runs.RunError, match=f"continue_from = 'first': that run has {list(changed)[-1]} = "):
            qlora.earlier(other)
    with pytest.raises(runs.RunError, match="no complete stage 'train'"):
        qlora.earlier(train_stage(tmp_path, "lost", continue_from="nowhere"))
    assert qlora.earlier(train_stage(tmp_path, "anew")) is None


def first_outputs(outputs):
    return runs.read(outputs / "first", "train")["outputs"]


# --- devices and tokenizers -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("emulated", "fast", "chosen"), [
    (True, True, {"bf16": True, "fp16": False}), (True, False, {"bf16": False, "fp16": True}),
])  # fmt: skip
def test_a_gpu_that_only_emulates_bf16_trains_in_fp16(qlora, monkeypatch, emulated, fast, chosen):
    import torch

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True:
                        emulated if including_emulation else fast)  # fmt: skip
    assert qlora.precision("cuda") == chosen
    assert qlora.precision("cpu")["fp16"] is False


@pytest.mark.parametrize("pad", [None, "</s>"])
def test_a_base_that_pads_with_its_end_or_not_at_all_gets_a_padding_token(qlora, monkeypatch, tokenizer, pad):
    odd = copy.deepcopy(tokenizer)
    odd.pad_token = pad
    monkeypatch.setattr(qlora.chat, "load_tokenizer", lambda settings: odd)
    qlora.load(presets.resolve("demo").settings)
    assert odd.pad_token_id not in (None, odd.eos_token_id)


def test_a_base_whose_end_pads_too_is_refused(qlora, monkeypatch, tokenizer):
    odd = copy.deepcopy(tokenizer)
    odd.pad_token = odd.eos_token
    monkeypatch.setattr(qlora.chat, "load_tokenizer", lambda settings: odd)
    monkeypatch.setattr(qlora.FastLanguageModel, "from_pretrained", lambda *args, **kwargs: (None, None))
    monkeypatch.setattr(qlora, "fix_pad_token", lambda tokenizer, model: None)  # it found no other token
    with pytest.raises(qlora.TrainingError, match="data/base: padding and end token are the same, so an end would not"):
        qlora.load(presets.resolve("demo").settings)


def test_every_presets_chat_template_opens_the_answer_that_it_closes(qlora):
    from jinja2 import Environment
    from unsloth.chat_templates import CHAT_TEMPLATES

    asked, answer = {"role": "user", "content": "How much?"}, {"role": "assistant", "content": "#### 5"}
    for name in {row.settings.chat_template for row in presets.PRESETS.values()} - {None}:
        text, end, *_ = CHAT_TEMPLATES[name]
        template = Environment(trim_blocks=True, lstrip_blocks=True).from_string(text)
        tokens = {"bos_token": "<s>", "eos_token": "</s>"}
        prompt = template.render(messages=[asked], add_generation_prompt=True, **tokens)
        whole = template.render(messages=[asked, answer], add_generation_prompt=False, **tokens)
        ends = ("<|eot_id|>", "<|im_end|>", "</s>")
        assert whole.startswith(prompt) and whole[len(prompt):].strip() in {f"#### 5{end}" for end in ends}, name


def test_freed_memory_is_given_back_every_few_steps(qlora, monkeypatch):
    given = []
    monkeypatch.setattr(qlora.memory, "give_back", lambda: given.append(step))
    for step in range(1, 45):
        qlora.GivesBack().on_step_end(None, SimpleNamespace(global_step=step), None)
    assert given == [20, 40]
