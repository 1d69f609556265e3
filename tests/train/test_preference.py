"""Preference training against the formula, on plain transformers. Importing Unsloth takes seconds."""

import json
import math
from types import SimpleNamespace

import pytest

from lib.data import chats, gate, sources
from lib.run import parameters, presets
from lib.run.paths import ROOT
from lib.run.settings import SettingsError
from tests.train import shown

pytestmark = pytest.mark.slow
FEW = {
    "trainer": "dpo", "source": "trader_dpo", "data_dir": str(ROOT), "max_steps": 6, "per_device_train_batch_size": 4,
    "logging_steps": 1, "eval_steps": None, "save_steps": 2, "r": 4, "lora_alpha": 8, "learning_rate": 5e-3,
    "lr_scheduler_type": "constant", "warmup_steps": 0, "validation_rows": 12, "test_rows": 12, "kinds": None,
}  # fmt: skip
PLACES = "bank board bond city firm fund loan mine note plan port rate sale seat ship shop road team town yard".split()


@pytest.fixture(scope="module")
def learning(qlora):
    from lib.train import preference

    return SimpleNamespace(qlora=qlora, preference=preference)


def pair(number: int, chosen="The answer is no.", rejected="The answer is 7.") -> dict:
    question = f"Is the {PLACES[number % 20]} worth {number + 2} or more?"
    return chats.trader_dpo({"prompt": question, "chosen": chosen, "rejected": rejected}, f"pairs.jsonl:{number}")


@pytest.fixture
def prefer(learning, tmp_path):
    """Train on pairs: (metrics, logged lines, model, tokenizer, settings); `earlier` is an adapter that goes on."""

    def call(pairs, folder=tmp_path, earlier=None, callbacks=(), held=None, resume=False, exact=False, **changes):
        import torch

        settings, lines = presets.resolve("demo", FEW | changes).settings, []
        model, tokenizer = learning.qlora.load(settings, earlier, dtype=torch.float32 if exact else None)
        model = learning.qlora.attach(model, settings)
        encoded = [learning.preference.encode(rows, tokenizer, settings.max_length)[0] for rows in (pairs, held or [])]
        metrics = shown.train(
            model, tokenizer, *encoded, settings, folder, lambda step, **m: lines.append({"step": step} | m),
            callbacks, resume, **({"bf16": False} if exact else {}),
        )  # fmt: skip
        return metrics, lines, model, tokenizer, settings

    return call


# --- the loss ---------------------------------------------------------------------------------------------------------
def plain_model(adapter: dict | None, scale: float = 2.0):
    """The base as transformers loads it; an adapter's matrices are added to its weights by hand."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(ROOT / "data/base", dtype=torch.float32).eval()
    for name, weight in (adapter or {}).items():
        if "lora_A" in name:
            layer = model.get_submodule(name.removeprefix("base_model.model.").partition(".lora_A")[0])
            layer.weight.data += scale * adapter[name.replace("lora_A", "lora_B")] @ weight
    return model


def log_probability(model, tokenizer, row: dict) -> float:
    """Of the answer and its end token, given the question, in nats."""
    import torch

    prompt = tokenizer.apply_chat_template(row["messages"][:-1], add_generation_prompt=True)["input_ids"]
    ids = torch.tensor(tokenizer.apply_chat_template(row["messages"])["input_ids"])
    with torch.no_grad():
        found = model(ids[None, :-1]).logits[0].log_softmax(-1)
    return float(found[torch.arange(len(ids) - 1), ids[1:]][len(prompt) - 1 :].sum())


def losses(loss_type: str, beta: float, chosen: float, rejected: float, lengths: tuple[int, int]) -> float:
    """Of one pair, by the gain of each answer over the reference: Rafailov 2023; Zhao 2023; Azar 2024, a token."""
    return {
        "sigmoid": math.log1p(math.exp(-beta * (chosen - rejected))),
        "hinge": max(0.0, 1 - beta * (chosen - rejected)),
        "ipo": (chosen / lengths[0] - rejected / lengths[1] - 1 / (2 * beta)) ** 2,
    }[loss_type]


@pytest.mark.parametrize(("loss_type", "goes_on"), [("sigmoid", False), ("sigmoid", True), ("hinge", False),
                                                    ("ipo", False)])  # fmt: skip
def test_the_loss_is_the_formula_on_plain_log_probabilities(learning, prefer, tmp_path, loss_type, goes_on):
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    pairs = [pair(0), pair(1, "No."), pair(2, "It is not.", "Yes, buy."), pair(3, "#### 5", "It may be 8 or 9.")]

    class Move(learning.qlora.TrainerCallback):
        """Puts the model at random before the first step, so that it is not its reference."""

        def on_train_begin(self, args, state, control, model=None, **kwargs):
            torch.manual_seed(3)
            for name, weight in model.named_parameters():
                if "lora_B.default" in name:
                    weight.data = weight.data + 0.02 * torch.randn_like(weight)
            self.adapter = {name: weight.clone() for name, weight in get_peft_model_state_dict(model).items()}
            self.ref = "ref" in model.peft_config

    move, changes = Move(), {"load_in_4bit": False, "max_steps": 1, "exact": True, "dpo.beta": 0.3}
    changes["dpo.loss_type"] = loss_type
    earlier = tmp_path / "earlier" if goes_on else None
    if goes_on:
        prefer(pairs, earlier, exact=True, load_in_4bit=False)
    _, lines, model, tokenizer, settings = prefer(pairs, earlier=earlier, callbacks=[move], **changes)
    assert move.ref == goes_on, "the base needs no copy"
    reference = plain_model(load_file(earlier / "adapter_model.safetensors") if goes_on else None)
    tuned, found = plain_model(move.adapter), []
    for row in pairs:
        both = [row, row | {"messages": [row["messages"][0], {"role": "assistant", "content": row["rejected"]}]}]
        gains = [log_probability(tuned, tokenizer, one) - log_probability(reference, tokenizer, one) for one in both]
        lengths = [len(learning.qlora.chat.encode(one, tokenizer)["input_ids"]) -
                   len(learning.qlora.chat.prompt_ids(one["messages"], tokenizer)) for one in both]  # fmt: skip
        found.append((losses(loss_type, 0.3, *gains, lengths), *(0.3 * gain for gain in gains)))
    (line,) = [line for line in lines if "loss" in line]
    loss, chosen, rejected = (sum(column) / 4 for column in zip(*found))
    assert line["loss"] == pytest.approx(loss, abs=1e-4) and abs(chosen - rejected) > 0.01
    assert line["rewards/chosen"] == pytest.approx(chosen, abs=1e-4)
    assert line["rewards/rejected"] == pytest.approx(rejected, abs=1e-4)
    assert line["rewards/margins"] == pytest.approx(chosen - rejected, abs=1e-4)
    assert line["rewards/accuracies"] == sum(pair[1] > pair[2] for pair in found) / 4
    with_adapter = {name: weight for name, weight in model.named_parameters() if "lora_B.default" in name}
    for name, weight in with_adapter.items():  # the single step is taken back, to look at the same model again
        weight.data = move.adapter[name.replace(".default", "")].clone()
    for name, weight in model.named_parameters():
        if "lora_A.default" in name:
            weight.data = move.adapter[name.replace(".default", "")].clone()
    for ours, (_, *theirs) in zip(learning.preference.rewards(model, tokenizer, pairs, settings), found):
        assert [ours["chosen"], ours["rejected"]] == pytest.approx(theirs, abs=1e-4)


# --- training ---------------------------------------------------------------------------------------------------------
def test_a_planted_preference_is_learnt_and_so_is_its_opposite(learning, prefer, tmp_path):
    held = [pair(number) for number in range(30, 42)]
    for folder, answers, right in (("plain", {}, 12), ("turned", {"chosen": "The answer is 7.",
                                                                 "rejected": "The answer is no."}, 0)):  # fmt: skip
        pairs = [pair(number, **answers) for number in range(16)]
        metrics, lines, model, tokenizer, settings = prefer(pairs, tmp_path / folder, held=held, max_steps=8,
                                                            eval_steps=2)  # fmt: skip
        told = [line for line in lines if "eval_rewards/accuracies" in line]
        margins = [line["eval_rewards/margins"] for line in told]
        assert len(told) == 4 and {"rewards/margins", "rewards/accuracies"} <= lines[0].keys()
        assert abs(margins[-1]) > abs(margins[0]) and (margins[-1] > 0) == bool(right)
        found = learning.preference.held_out(model, tokenizer, held, settings)
        assert found["preference_pairs"] == 12 and found["preference_accuracy"] == right / 12
        assert told[-1]["eval_rewards/accuracies"] == right / 12
        assert found["reward_margin"] == pytest.approx(margins[-1], abs=0.1 * abs(margins[-1]))
        assert (found["preference_low"] > 0.5) == bool(right)
        ahead = "100.0% (75.8% to 100.0%)" if right else "0.0% (0.0% to 24.2%)"  # R: binom::binom.wilson(12, 12)
        assert f"ahead in {ahead} of 12, " in learning.preference.headline(metrics | found)["held-out pairs"]
    assert learning.preference.headline(metrics) == {}


@pytest.fixture
def one_thread():
    """The order of sums is then always the same."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("goes_on", [False, True])
def test_interrupted_training_ends_at_the_very_adapter_of_one_that_was_not(
    learning, prefer, tmp_path, one_thread, goes_on
):  # fmt: skip
    pairs = [pair(number) for number in range(10)]  # three steps an epoch: step 4, where it stops, is in the second

    class Stop(learning.qlora.TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 4:
                raise KeyboardInterrupt

    earlier = tmp_path / "earlier" if goes_on else None
    if goes_on:
        prefer([pair(9, "#### 5")], earlier, max_steps=2)
    _, whole, *_ = prefer(pairs, tmp_path / "whole", earlier)
    with pytest.raises(KeyboardInterrupt):
        prefer(pairs, tmp_path / "parts", earlier, [Stop()])
    kept = sorted((tmp_path / "parts/checkpoints").glob("checkpoint-4/**/adapter_model.safetensors"))
    assert [file.parent.name for file in kept] == ["checkpoint-4"], "a reference in it would be restored, and no more"
    metrics, rest, *_ = prefer(pairs, tmp_path / "parts", earlier, resume=True)
    assert metrics["resumed_from"] == "checkpoint-4" and metrics["steps"] == 6
    one, other = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert one == other and not list((tmp_path / "parts").rglob("ref"))
    names = ("step", "loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "grad_norm")
    assert [[line[name] for name in names] for line in rest if "loss" in line] == [
        [line[name] for name in names] for line in whole if "loss" in line and line["step"] > 4
    ]


def test_a_small_rate_still_moves_a_quantised_bases_adapter(prefer, tmp_path):
    """TRL would keep it in bf16, whose step beside 0.05 is 0.0002."""
    from safetensors.torch import load_file

    pairs = [pair(number) for number in range(4)]
    prefer(pairs, tmp_path / "first", max_steps=2)
    prefer(pairs, tmp_path / "second", tmp_path / "first", max_steps=1, learning_rate=1e-6)
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("first", "second"))
    moved = sum(float((before[name].float() != after[name].float()).float().mean()) for name in after) / len(after)
    assert moved > 0.5


def test_a_bad_loss_is_told_with_the_pair_that_it_was_found_in(learning, prefer, tmp_path):
    class Break(learning.qlora.TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            next(weight for name, weight in model.named_parameters() if "lora_A" in name).data.fill_(float("nan"))

    with pytest.raises(learning.qlora.TrainingError, match=r"is nan at step 1 \(its batch is in \S+/failed_batch.json"):
        prefer([pair(0)], callbacks=[Break()])
    row, *same = json.loads((tmp_path / "failed_batch.json").read_text())["rows"]
    assert all(one == row for one in same)  # a step is filled up
    assert row["id"] == "trader_dpo-pairs.jsonl:0"
    assert row["text"].index("The answer is no.") < row["text"].index("The answer is 7.")


# --- pairs ------------------------------------------------------------------------------------------------------------
def test_a_pair_is_left_out_whole_where_either_answer_is_too_long(learning, tokenizer):
    from lib.data import chat

    long, encode = "It may be " + "so and " * 60 + "so.", learning.preference.encode
    rows = [pair(0), pair(1, chosen=long), pair(2, rejected=long)]
    longest = max(len(chat.encode(row, tokenizer)["input_ids"]) for row in (rows[0], chats.with_rejected(rows[0])))
    kept, left_out = encode(rows, tokenizer, longest)
    assert kept["id"] == [rows[0]["id"]] and left_out == [row["id"] for row in rows[1:]]
    assert learning.preference.answers(kept[0]) == [
        chat.encode(row, tokenizer) for row in (rows[0], chats.with_rejected(rows[0]))
    ]
    with pytest.raises(learning.qlora.TrainingError, match="no pair of 3 fits max_length = 4 tokens: raise it"):
        encode(rows, tokenizer, 4)
    with pytest.raises(learning.qlora.TrainingError, match="1 of 2 rows have no rejected answer, such as x: trainer ="):
        encode([rows[0], {k: v for k, v in rows[0].items() if k != "rejected"} | {"id": "x"}], tokenizer, 99)


def test_the_gate_audits_the_rejected_answer_only_where_it_is_trained_on(tokenizer):
    rows = [pair(n, f"No, {n} is too much for it.") for n in range(8)]
    rows[1]["rejected"], rows[2]["rejected"] = "", "no: 2 is TOO much, for it"
    rows[3]["rejected"] = "It may be " + "so and " * 60 + "so."
    splits = {"train": rows, "validation": [], "test": []}
    found = gate.audit(splits, tokenizer, 60, pairs=True)
    told = [(finding.row, finding.check, finding.reason) for finding in found.findings]
    assert [line[:2] for line in told] == [
        (rows[1]["id"], "rejected answer"), (rows[2]["id"], "rejected answer"), (rows[3]["id"], "too long")
    ]  # fmt: skip
    assert told[0][2] == "it has no rejected answer" and "is the chosen one, but for case, spaces" in told[1][2]
    kept, dropped = gate.enforce(splits, found.findings, "drop")
    assert [row["id"] for row in kept["train"]] == [row["id"] for row in rows[:1] + rows[4:]] and len(dropped) == 3
    assert gate.audit(splits, tokenizer, 60).findings == ()


def test_bad_pairs_are_rejected_with_file_line_and_reason(tmp_path):
    good, talk = {"prompt": "Buy?", "chosen": "No.", "rejected": "Yes!"}, [{"role": "user", "content": "Buy?"}]
    bad = {
        "field 'rejected' is missing, empty or no text": good | {"rejected": ""},
        "field 'chosen' is missing, empty or no text": {"prompt": "Buy?", "rejected": "Yes!"},
        "fields 'chosen' and 'rejected' are the same": good | {"rejected": " No. "},
        "field 'chosen' holds no answer": good | {"chosen": talk},
        "the conversation has no user's message, or does not end with what it answers":
            good | {"prompt": [{"role": "system", "content": "x"}]},
        "field 'rejected' is not UTF-8 at character 1: save the file as UTF-8": good | {"rejected": "x\ud800"},
    }
    lines = [good, *bad.values()]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    settings, rejected = SimpleNamespace(source="trader_dpo", max_length=64), []
    (row,) = sources.stream(settings, tmp_path / "pairs.jsonl", rejected)
    assert row["rejected"] == "Yes!" and row["messages"][-1]["content"] == "No."
    assert rejected == [{"place": f"pairs.jsonl:{n}", "reason": reason} for n, reason in enumerate(bad, 2)]


@pytest.mark.parametrize(("overrides", "about"), [
    ({"source": "quant_tasks", "data_dir": None}, "source = 'quant_tasks' has no pairs"),
    ({"devices": 2}, "devices = 2: trainer only on one device"),
    ({"packing": True, "lora_dropout": 0.1}, "trainer = 'dpo': packing, lora_dropout only with trainer = 'sft'"),
    ({"completion_only_loss": False}, "completion_only_loss only with trainer = 'sft'"),
    ({"full_finetuning": True, "load_in_4bit": False}, "no second copy"),
    ({"peft_type": "ia3", "load_in_4bit": False}, "peft_type only with trainer = 'sft'"),
    ({"dpo.beta": 0}, "beta = 0: must be a number above 0"), ({"dpo.loss_type": "dpo"}, "one of sigmoid, hinge, ipo"),
])  # fmt: skip
def test_what_does_not_go_with_pairs_is_refused_with_the_reason(overrides, about):
    with pytest.raises(SettingsError) as caught:
        presets.resolve("demo", FEW | overrides)
    assert about in str(caught.value)


def test_an_adapter_made_with_dropout_may_go_on_by_pairs_which_are_trained_without(learning, tmp_path):
    from lib.run import runs

    def stage(run, **settings):
        return runs.begin(parameters.from_notebook("train", {"preset": "demo", "run": run, "outputs": str(tmp_path)}
                                                | {"rehearse": False} | settings))  # fmt: skip

    first = stage("first", lora_dropout=0.1)
    (first.folder / "adapter_model.safetensors").write_bytes(b"")
    first.finish()
    assert learning.qlora.earlier(stage("pairs", trainer="dpo", continue_from="first")) == first.folder
    with pytest.raises(runs.RunError, match="that run has lora_dropout = 0.1, not 0.0"):
        learning.qlora.earlier(stage("answers", continue_from="first"))
