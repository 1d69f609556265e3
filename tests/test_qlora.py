"""QLoRA's guards: adapters, checkpoints, rows and losses that must not pass. Importing Unsloth takes seconds."""

import importlib
import json
import os
from types import SimpleNamespace

import pytest

from lib.presets import SettingsError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def qlora(tmp_path_factory):
    """lib.qlora, imported late (it imports Unsloth, which patches transformers and writes where it is started)."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("unsloth"))
    try:
        return importlib.import_module("lib.qlora")
    finally:
        os.chdir(before)


def save_adapter(folder, **tensors):
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    plain = {"q.lora_A.weight": [0.5, 0.5], "q.lora_B.weight": [0.1, 0.0], "v.lora_B.weight": [0.0, 0.0]}
    tensors = {name: torch.tensor(values) for name, values in (plain | tensors).items()}
    save_file(tensors, folder / "adapter_model.safetensors")


def save_checkpoint(folder, step):
    import torch

    path = folder / f"checkpoint-{step}"
    save_adapter(path)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
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


# --- adapters ---------------------------------------------------------------------------------------------------------
def test_an_adapter_that_moved_passes(qlora, tmp_path):
    save_adapter(tmp_path)
    qlora.check_adapter(tmp_path)


def test_an_adapter_whose_b_is_all_zero_is_refused(qlora, tmp_path):
    save_adapter(tmp_path, **{"q.lora_B.weight": [0.0, 0.0]})
    with pytest.raises(qlora.TrainingError, match="did not change the adapter.*raise learning_rate"):
        qlora.check_adapter(tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["q.lora_A.weight", "v.lora_B.weight"])
def test_an_adapter_with_numbers_that_are_not_finite_is_refused(qlora, tmp_path, name, bad):
    save_adapter(tmp_path, **{name: [1.0, bad]})
    with pytest.raises(qlora.TrainingError, match="not finite: lower learning_rate"):
        qlora.check_adapter(tmp_path)


# --- checkpoints ------------------------------------------------------------------------------------------------------
def test_the_newest_checkpoint_is_the_one_of_the_highest_step(qlora, tmp_path):
    for step in (20, 100, 80):
        save_checkpoint(tmp_path, step)
    assert qlora.newest_checkpoint(tmp_path) == tmp_path / "checkpoint-100"


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "trainer_state.json", "optimizer.pt", "scheduler.pt"])
@pytest.mark.parametrize("damage", [cut, os.unlink])
def test_a_torn_newest_checkpoint_is_skipped_and_named(qlora, tmp_path, capsys, file, damage):
    for step in (20, 100):
        save_checkpoint(tmp_path, step)
    damage(tmp_path / "checkpoint-100" / file)
    assert qlora.newest_checkpoint(tmp_path) == tmp_path / "checkpoint-20"
    assert "checkpoint-100 does not load" in capsys.readouterr().out


def test_without_a_whole_checkpoint_there_is_none(qlora, tmp_path):
    assert qlora.newest_checkpoint(tmp_path) is None
    assert qlora.newest_checkpoint(tmp_path / "missing") is None
    cut(save_checkpoint(tmp_path, 5) / "adapter_model.safetensors")
    assert qlora.newest_checkpoint(tmp_path) is None


# --- rows -------------------------------------------------------------------------------------------------------------
def rows(*answers):
    return [{"id": f"row-{i}", "messages": [{"role": "user", "content": "How much?"},
                                            {"role": "assistant", "content": answer}]}
            for i, answer in enumerate(answers)]  # fmt: skip


def test_rows_that_are_too_long_are_left_out_whole_and_named(qlora, tokenizer):
    from lib import chat

    given = rows("#### 5", "5 " * 60 + "#### 5", "#### 6")
    longest = len(chat.encode(given[0], tokenizer)["input_ids"])
    kept, left_out = qlora.encode(given, tokenizer, longest)
    assert left_out == ["row-1"]
    assert kept["input_ids"] == [chat.encode(row, tokenizer)["input_ids"] for row in (given[0], given[2])]
    assert all(labels[-1] == tokenizer.eos_token_id for labels in kept["labels"])


def test_no_row_that_fits_is_an_error(qlora, tokenizer):
    with pytest.raises(qlora.TrainingError, match="no row of 2 fits max_length = 4 tokens: raise it"):
        qlora.encode(rows("#### 5", "#### 6"), tokenizer, 4)


def test_a_mask_that_the_trainer_does_not_keep_is_refused(qlora, tokenizer):
    import torch

    kept, _ = qlora.encode(rows("#### 5", "#### 6"), tokenizer, 100)
    honest = SimpleNamespace(train_dataset=kept, data_collator=lambda batch: {
        "labels": torch.nn.utils.rnn.pad_sequence([torch.tensor(row["labels"]) for row in batch], True, -100)
    })  # fmt: skip
    qlora.check_mask(honest, kept)
    whole = SimpleNamespace(train_dataset=kept, data_collator=lambda batch: {
        "labels": torch.nn.utils.rnn.pad_sequence([torch.tensor(row["input_ids"]) for row in batch], True, -100)
    })  # fmt: skip
    with pytest.raises(qlora.TrainingError, match="the trainer supervises"):
        qlora.check_mask(whole, kept)


# --- losses -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def guard(qlora):
    lines = []
    settings, state = SimpleNamespace(learning_rate=0.5, max_grad_norm=1.0), SimpleNamespace(global_step=7)
    watcher = qlora.Guard(lambda step, **metrics: lines.append((step, metrics)))
    return lambda **logs: watcher.on_log(settings, state, None, logs=logs) or lines


@pytest.mark.parametrize("name", ["loss", "eval_loss", "grad_norm"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_training_with_the_remedy(qlora, guard, name, bad):
    with pytest.raises(qlora.TrainingError, match=rf"{name} is {bad} at step 7: lower learning_rate \(now 0.5\)"):
        guard(**{"learning_rate": 0.5} | {name: bad})


def test_other_lines_are_passed_on_and_the_closing_one_is_not(guard):
    assert guard(loss=1.5, learning_rate=0.1, note="text") == [(7, {"loss": 1.5, "learning_rate": 0.1})]
    assert len(guard(eval_loss=2)) == 2
    assert len(guard(train_runtime=9.0, train_loss=1.0)) == 2
