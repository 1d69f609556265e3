"""What must stop a training or warn of it, and how it ends at a step: TRL's trainer is a transformers one, as here."""

import ast
import json
import os
import re
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import (
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from lib.run import memory, presets, progress
from lib.run.paths import ROOT
from lib.run.settings import GUARDS, SettingsError
from lib.run.stages import STAGES, names_of
from lib.train import guards

WITHIN_SECONDS = 120


# --- rewards ---------------------------------------------------------------------------------------------------------
ALIVE = {"groups/same reward": 0.5, "completions/clipped_ratio": 0.1, "entropy": 0.4}


@pytest.mark.parametrize(("guard", "dead", "message"), [
    ("reward", {"groups/same reward": 1.0}, "all earned the same: start from a model that is sometimes right"),
    ("length", {"completions/clipped_ratio": 0.95}, "cut off at their longest: raise rollouts.max_compl"),
    ("entropy", {"entropy": 0.001}, "all answers are alike: lower learning_rate or num_train_epochs"),
])  # fmt: skip
def test_a_collapse_that_lasts_stops_training_or_warns(told, guard, dead, message):
    for warn in ((), (guard,)):
        watching, show = told(warn, kind=guards.RewardGuard)
        for _ in range(3):  # it does not last: an answer in between begins the count anew
            for _ in range(guards.STEPS - 1):
                show(**ALIVE | dead)
            show(**ALIVE)
        for _ in range(guards.STEPS - 1):
            show(**ALIVE | dead)
        assert watching.warnings == {}
        if warn:
            show(**ALIVE | dead)
            assert list(watching.warnings) == [guard]
        else:
            with pytest.raises(memory.TrainingError, match=f"for 20 steps, by step \\d+, .*{message}"):
                show(**ALIVE | dead)


# --- logged lines -----------------------------------------------------------------------------------------------------
@pytest.fixture
def told(tmp_path):
    """`told(warn, fp16)` -> (guard, show): a guard, and what shows it a logged line of step 1, 2, 3, ..."""

    def make(warn=(), fp16=False, kind=None):
        lines = []

        def log(step, **metrics):
            lines.append((step, metrics))

        guard = kind(log, warn) if kind else guards.Guard(log, [], warn)
        args = SimpleNamespace(learning_rate=0.5, max_grad_norm=1.0, num_train_epochs=4.0, max_steps=-1,
                               gradient_accumulation_steps=1, output_dir=str(tmp_path / "checkpoints"), fp16=fp16,
                               process_index=0, world_size=1, logging_steps=1)  # fmt: skip
        state = SimpleNamespace(global_step=0, max_steps=100)

        def show(**logs):
            state.global_step += 1
            guard.on_log(args, state, None, logs=logs)
            return lines

        return guard, show

    return make


@pytest.mark.parametrize("name", ["loss", "eval_loss", "grad_norm"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_training_with_the_remedy(told, name, bad):
    with pytest.raises(memory.TrainingError, match=rf"{name} is {bad} at step 1: lower learning_rate \(now 0.5\)"):
        told()[1](**{"learning_rate": 0.5} | {name: bad})


def test_a_held_out_loss_that_is_no_number_accuses_no_training_batch(told, tmp_path):
    guard, show = told()
    guard.batches = [(torch.tensor([[5]]), torch.tensor([[5]]), torch.tensor(1.0))]
    with pytest.raises(memory.TrainingError, match="eval_loss is nan at step 1: lower"):
        show(eval_loss=float("nan"))
    assert not (tmp_path / "failed_batch.json").exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_fp16_leaves_out_for_its_gradient_does_not_stop_training(told, bad):
    _, show = told(fp16=True)
    assert len(show(loss=1.0, grad_norm=bad)) == 1
    with pytest.raises(memory.TrainingError, match="loss is nan at step 2"):
        show(loss=float("nan"), grad_norm=1.0)


def test_other_lines_are_passed_on_and_the_closing_one_is_not(told):
    _, show = told()
    assert show(loss=1.5, learning_rate=0.1, note="text") == [(1, {"loss": 1.5, "learning_rate": 0.1})]
    assert len(show(eval_loss=2)) == 2
    assert len(show(train_runtime=9.0, train_loss=1.0)) == 2


def test_a_gradient_that_explodes_is_measured_by_those_before(told):
    _, show = told()
    for norm in (300.0, 2.0, 3.0, 250.0, 1.0, 2.0, 3.0, 2.0, 1.0, 2.0, 199.0):  # the median is 2
        show(grad_norm=norm)
    with pytest.raises(memory.TrainingError, match="the gradient norm is 201 at step 12, usually it is 2: lower"):
        show(grad_norm=201.0)


def test_norms_that_are_no_number_hide_no_explosion(told):
    guard, show = told(["loss"])
    for norm in [float("nan"), float("inf")] * 10 + [2.0] * 10:
        show(grad_norm=norm)
    assert list(guard.warnings) == ["loss"], "an infinite norm is told once, as no number"
    with pytest.raises(memory.TrainingError, match="the gradient norm is 1e.09 at step 31, usually it is 2: lower"):
        show(grad_norm=1e9)


def test_a_held_out_loss_that_keeps_rising_is_told_and_one_that_wavers_is_not(told):
    _, show = told()
    for loss in (3.0, 3.1, 3.2, 3.1, 3.2, 3.3, 3.3, 3.2, 3.3, 3.4):
        show(eval_loss=loss)
    with pytest.raises(memory.TrainingError, match=r"rose 3 times in a row by step 11, 3.2000 to 3.5000: l.*overfits"):
        show(eval_loss=3.5)


def test_a_guard_that_only_warns_lets_training_go_on_and_says_so_once(told, capsys):
    guard, show = told(["loss", "adapter"])
    show(loss=float("nan"))
    assert len(show(loss=float("nan"))) == 2
    assert capsys.readouterr().out.count("warning: loss is nan at step 1") == 1
    assert list(guard.warnings) == ["loss"]
    with pytest.raises(memory.TrainingError):
        guard.act("grad_norm", "another guard")


def test_every_guard_can_warn_and_no_other(told):
    all_of_them = {"guard_warnings": ",".join(GUARDS)}
    assert presets.resolve("demo", all_of_them).settings.guard_warnings == GUARDS
    with pytest.raises(SettingsError, match="guard_warnings = 'los': must be .*supervised_tokens"):
        presets.resolve("demo", {"guard_warnings": "los"})
    source = (ROOT / "lib/train/guards.py").read_text()
    used = re.findall(r'(?:yield|self\.act\()\s*"(\w+)"', source)
    used += re.findall(r'^ {12}"(\w+)": \($', source, flags=re.MULTILINE)  # of RewardGuard
    assert sorted(set(used)) == sorted(GUARDS)


# --- a real trainer ---------------------------------------------------------------------------------------------------
POISON = 7  # a token that makes the loss of its batch NaN


class Model(LlamaForCausalLM):
    def forward(self, input_ids=None, **inputs):
        output = super().forward(input_ids=input_ids, **inputs)
        output.loss = output.loss * float("nan") if (input_ids == POISON).any() else output.loss
        return output


class Interrupt(TrainerCallback):
    """Sends this process a signal in the middle of step 4."""

    def __init__(self, number):
        self.number = number

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 3:
            os.kill(os.getpid(), self.number)


def train(folder, rows, tokenizer, warn=(), callbacks=(), resume=None, **changes):
    """Twelve rows in batches of two on a tiny Llama; returns its weights, the guard and the logged lines."""
    torch.manual_seed(0)
    model = Model(LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                              num_attention_heads=2, num_key_value_heads=1))  # fmt: skip
    arguments = dict(
        output_dir=str(folder / "checkpoints"), per_device_train_batch_size=2, max_steps=8, logging_steps=3, seed=1,
        save_strategy="no", logging_nan_inf_filter=False, report_to="none", use_cpu=True, disable_tqdm=True,
        remove_unused_columns=False,
    )  # fmt: skip
    lines = []
    guard = guards.Guard(lambda step, **metrics: lines.append({"step": step} | metrics), rows, warn)
    trainer = Trainer(model, TrainingArguments(**arguments | changes), DataCollatorForSeq2Seq(tokenizer),
                      rows.remove_columns("id"), processing_class=tokenizer, callbacks=list(callbacks))  # fmt: skip
    guard.watch(trainer)
    with guard.stop:
        lines.append(trainer.train(resume_from_checkpoint=resume).training_loss)
    return model.state_dict(), guard, lines


def rows_of(*tokens, learnt=True):
    """Rows of 3 + i tokens each; `tokens` are put into rows 5, 6, ..."""
    rows = [{"id": f"row-{i}", "input_ids": list(range(300, 303 + i)), "labels": list(range(300, 303 + i))}
            for i in range(12)]  # fmt: skip
    for row, token in zip(rows[5:], tokens):
        row["input_ids"][1] = token
        row["labels"] = row["labels"] if learnt else [-100] * len(row["labels"])
    return Dataset.from_list(rows)


def failed(folder):
    return json.loads((folder / "failed_batch.json").read_text())


def test_the_batch_with_the_bad_loss_is_kept_and_not_a_later_one(tokenizer, tmp_path):
    with pytest.raises(memory.TrainingError, match=r"is nan at step \d \(its batch is in \S+/failed_batch.json\): l"):
        train(tmp_path, rows_of(POISON), tokenizer)
    found = failed(tmp_path)
    assert found["guard"] == "loss" and len(found["rows"]) == 2
    (bad,) = [row for row in found["rows"] if row["id"] == "row-5"]
    assert bad["text"] == tokenizer.decode([300, POISON, *range(302, 308)]) and bad["supervised_tokens"] == 8


def test_steps_after_the_last_full_interval_of_lines_are_looked_at(tokenizer, tmp_path):
    _, _, lines = train(tmp_path, rows_of(), tokenizer)
    assert [line["step"] for line in lines[:-1]] == [3, 6, 8]
    with pytest.raises(memory.TrainingError, match="loss is nan at step 8"):
        train(tmp_path, rows_of(POISON), tokenizer, logging_steps=100)


def test_packed_rows_are_kept_apart_each_with_its_id(tokenizer, tmp_path):
    rows = rows_of(400, learnt=False)
    guard, args = guards.Guard(None, rows), SimpleNamespace(output_dir=str(tmp_path / "checkpoints"), world_size=1)
    ids, labels = (torch.tensor([rows[5][name] + rows[2][name] + [9, 9]]) for name in ("input_ids", "labels"))
    guard.keep("loss", [(ids, labels, None)], args, tokenizer)
    assert [(row["id"], row["supervised_tokens"]) for row in failed(tmp_path)["rows"]] == [
        ("row-5", 0), ("row-2", 5), (None, 2)]  # fmt: skip


def test_a_row_without_a_supervised_token_stops_training_with_its_batch(tokenizer, tmp_path):
    with pytest.raises(memory.TrainingError, match="a row without a supervised token was trained on at step"):
        train(tmp_path, rows_of(400, learnt=False), tokenizer)
    assert {"id": "row-5", "supervised_tokens": 0}.items() <= min(
        failed(tmp_path)["rows"], key=lambda row: row["supervised_tokens"]).items()  # fmt: skip


def test_training_goes_on_past_a_row_that_is_only_warned_of(tokenizer, tmp_path):
    _, guard, _ = train(tmp_path, rows_of(400, learnt=False), tokenizer, ["supervised_tokens"])
    assert list(guard.warnings) == ["supervised_tokens"] and (tmp_path / "failed_batch.json").exists()


def test_what_was_found_before_a_checkpoint_is_known_after_it(tokenizer, tmp_path):
    rows, every = rows_of(400, learnt=False), {"save_strategy": "steps", "save_steps": 2, "logging_steps": 1}
    _, whole, _ = train(tmp_path, rows, tokenizer, ["supervised_tokens"], **every)
    found = re.search(r"at step (\d), or shortly before", whole.warnings["supervised_tokens"])
    assert int(found[1]) <= 6, "the row comes in the first epoch"
    checkpoint = str(tmp_path / "checkpoints" / "checkpoint-6")
    _, resumed, _ = train(tmp_path, rows, tokenizer, ["supervised_tokens"], resume=checkpoint)
    assert (resumed.warnings, resumed.norms) == (whole.warnings, whole.norms)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_training_after_its_step_and_what_follows_is_the_same(tokenizer, tmp_path, number):
    whole, _, lines = train(tmp_path / "whole", rows_of(), tokenizer)
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 4: run all cells again"):
        train(tmp_path / "cut", rows_of(), tokenizer, callbacks=[Interrupt(number)])
    assert signal.getsignal(number) is before
    checkpoint = tmp_path / "cut" / "checkpoints" / "checkpoint-4"
    resumed, _, others = train(tmp_path / "cut", rows_of(), tokenizer, resume=str(checkpoint))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert others == lines[1:], "the losses since step 3, and the mean over all steps"


def test_a_second_signal_ends_it_at_once():
    with pytest.raises(KeyboardInterrupt), guards.Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        pytest.fail("it went on")


# --- adapters ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["q.lora_A.weight", "v.lora_B.weight"])
def test_an_adapter_with_numbers_that_are_not_finite_is_refused_or_warned_of(told, tmp_path, capsys, name, bad):
    tensors = {"q.lora_A.weight": [0.5, 0.5], "v.lora_B.weight": [0.0, 0.0]} | {name: [1.0, bad]}
    save_file({name: torch.tensor(values) for name, values in tensors.items()}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(memory.TrainingError, match="the adapter holds numbers that are not finite: lower"):
        told()[0].check_adapter(tmp_path)
    told(["adapter"])[0].check_adapter(tmp_path)
    assert "warning: the adapter holds numbers that are not finite" in capsys.readouterr().out


def trained_weights(folder, *arguments, **changes):
    """What `train` (below) gives, with its weights saved in `folder`: the guard."""
    weights, guard, _ = train(folder, rows_of(), *arguments, **changes)
    save_file({name: tensor.clone() for name, tensor in weights.items()}, folder / "model.safetensors")
    return guard


UNCHANGED = r"training did not change the adapter \(every trained weight is as before.*: raise learning_rate"


def test_weights_that_training_did_not_move_are_refused_and_moved_ones_pass(tokenizer, tmp_path):
    trained_weights(tmp_path, tokenizer).check_adapter(tmp_path)
    with pytest.raises(memory.TrainingError, match=UNCHANGED):
        trained_weights(tmp_path, tokenizer, learning_rate=0.0).check_adapter(tmp_path)


def test_weights_that_only_decayed_are_refused(tokenizer, tmp_path, monkeypatch):
    loss_of = Model.forward
    monkeypatch.setattr(Model, "forward", lambda self, **inputs: (loss_of(self, **inputs).loss * 0.0,))  # no gradient
    guard = trained_weights(tmp_path, tokenizer, weight_decay=0.5, learning_rate=0.1)
    assert guards.totals(guard.trainer.model) != guard.before
    with pytest.raises(memory.TrainingError, match=UNCHANGED):
        guard.check_adapter(tmp_path)


def test_what_moved_is_measured_from_the_start_also_after_a_resumption(tokenizer, tmp_path):
    every = {"save_strategy": "steps", "save_steps": 4, "lr_scheduler_type": "constant"}
    whole = trained_weights(tmp_path, tokenizer, **every)
    checkpoint = tmp_path / "checkpoints" / "checkpoint-4"
    resumed = trained_weights(tmp_path, tokenizer, resume=str(checkpoint), **every)
    assert resumed.before == whole.before != guards.totals(resumed.trainer.model)


# --- memory -----------------------------------------------------------------------------------------------------------
def too_much():
    torch.empty(2**52)


def gpu_full():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def gpu_full_elsewhere():
    raise torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported at another call")


def cublas_full():
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def too_small_for_four_bit():
    """As transformers says it, and Unsloth of that."""
    try:
        raise ValueError("Some modules are dispatched on the CPU or the disk. Make sure you have enough GPU RAM to fit")
    except ValueError as error:
        raise ValueError("Unsloth: data/base does not fit in GPU memory") from error


@pytest.mark.parametrize("work", [too_much, gpu_full, gpu_full_elsewhere, cublas_full, too_small_for_four_bit])
def test_out_of_memory_says_what_was_held_and_what_to_lower(work):
    settings = presets.resolve("demo").settings
    with pytest.raises(memory.TrainingError) as caught, memory.memory_told("train", settings):
        work()
    assert re.fullmatch(
        r"out of memory \(\d+\.\d GiB were held\): lower per_device_train_batch_size \(now 16; try 8\) and raise "
        r"gradient_accumulation_steps as much, for the same step, or lower max_length \(now 640 tokens\)",
        str(caught.value),
    )


def test_of_two_that_tell_the_outer_one_speaks_as_it_knows_whose_settings_they_are():
    settings = presets.resolve("demo").settings
    with pytest.raises(memory.TrainingError, match="lower per_device_train_batch_size"):
        with memory.memory_told("train", settings), memory.memory_told("evaluate", settings):
            gpu_full()


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_another_error_is_left_as_it_is(kind):
    with pytest.raises(kind, match="^shapes differ$"), memory.memory_told("train", None):
        raise kind("shapes differ")


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_every_stage_has_advice_by_settings_that_it_reads(stage):
    advice = progress.less_memory(stage, presets.resolve("demo").settings)
    named = set(re.findall(r"[a-z]+_[a-z_]+", advice))
    assert named <= set(names_of(stage)) and (named or "close other programs" in advice)


# --- the table of troubles ------------------------------------------------------------------------------------------
def texts() -> list[str]:
    """Every text in lib's code that is no docstring; a value's place in it is an ellipsis."""
    found = []
    for path in (ROOT / "lib").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        formatted = [node for node in nodes if isinstance(node, ast.JoinedStr)]
        inner = {id(part) for node in formatted for part in ast.walk(node) if part is not node}
        bare = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if id(node) not in inner | bare and isinstance(node, ast.Constant | ast.JoinedStr):
                parts = getattr(node, "values", [node])
                found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts))
    return found


def test_every_error_in_the_troubleshooting_table_is_one_that_lib_raises():
    page = (ROOT / "docs/troubleshooting.md").read_text()
    errors = re.findall(r"^\| `([^`]+)`", page, flags=re.MULTILINE)
    assert len(errors) >= 12
    known = texts()
    patterns = {error: re.compile(re.escape(error).replace("…", ".+")) for error in errors}
    assert [error for error in errors if not any(map(patterns[error].match, known))] == []
    tested = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py")).replace("\\", "")
    fixed = {error: max(error.split("…"), key=len).strip() for error in errors}
    assert [error for error in errors if fixed[error] not in tested] == [], "each is expected by some test"
