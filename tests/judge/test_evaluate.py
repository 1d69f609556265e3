"""Questions through a tiny random Llama: batching, the calculator, grading and perplexity."""

import errno
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lib.data import chat, tasks
from lib.engine.marks import Marks
from lib.grade.calculator import MARK, calculate, show
from lib.judge import evaluate
from lib.run import memory, presets, runs
from lib.run.paths import ROOT

KEPT = ("id", "kind", "level", "group", "gold")


@pytest.fixture(scope="module")
def model():
    """One layer of the embedded base's shape with large random weights, so that no two tokens nearly tie."""
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(ROOT / "data/base", num_hidden_layers=1, initializer_range=0.3)
    return LlamaForCausalLM(config).float().eval()


@pytest.fixture(scope="module")
def rows():
    return [problem.row() for problem in tasks.generate("train", 12, 21)]


@pytest.fixture(scope="module")
def prompts(rows, tokenizer):
    return [chat.prompt_ids(row["messages"], tokenizer) for row in rows]


def test_questions_are_those_with_a_gold_by_split_and_a_few_without(tmp_path):
    rows = [{"id": n, "gold": None if n % 3 else {"value": n}} for n in range(9)]
    for name, own in (("test", rows), ("test_seen", rows[1:3])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    graded, ungraded, held_out = evaluate.questions(tmp_path, SimpleNamespace(eval_rows=2, show_answers=3))
    assert graded == {"test": [row | {"split": "test"} for row in (rows[0], rows[3])]}  # none of test_seen has one
    assert ungraded == [rows[1], rows[2], rows[4]] and held_out == rows[:2]


def test_rows_that_a_published_protocol_grades_are_asked_without_a_gold_too(tmp_path):
    rows = [{"id": n, "gold": None} | ({"published": {"protocol": "tatqa"}} if n > 3 else {}) for n in range(9)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "test_seen.jsonl").write_text("")
    graded, ungraded, _ = evaluate.questions(tmp_path, SimpleNamespace(eval_rows=4, show_answers=1))
    assert graded == {} and ungraded == [*rows[4:8], rows[0]]


# --- generation -------------------------------------------------------------------------------------------------------
def plain_greedy(model, prompt, count, ends=()):
    """The most likely token, one at a time: no cache, no padding, no generate()."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in ends:
            break
    return ids[len(prompt) :]


def test_a_left_padded_batch_answers_as_each_question_alone(model, tokenizer, prompts):
    assert len({len(prompt) for prompt in prompts}) > 6  # so that there is padding
    together = evaluate.generate(model, tokenizer, prompts, 16, batch_size=len(prompts), calculator=False)
    alone = evaluate.generate(model, tokenizer, prompts, 16, batch_size=1, calculator=False)
    assert together == alone
    assert evaluate.generate(model, tokenizer, prompts, 16, batch_size=5, calculator=False) == alone
    for prompt, answer in zip(prompts[:4], together):
        assert answer["completion"] == tokenizer.decode(plain_greedy(model, prompt, 16), skip_special_tokens=True)
    assert len({answer["completion"] for answer in together}) == len(prompts)  # in the questions' order, not sorted


def test_an_answer_ends_at_an_end_token_or_says_that_it_was_cut(model, tokenizer, prompts, monkeypatch):
    free = [plain_greedy(model, prompt, 12) for prompt in prompts]
    ends = [tokenizer.eos_token_id, free[0][5], free[3][0]]  # tokens that this random model does write
    monkeypatch.setattr(chat, "end_ids", lambda _: ends)
    answers = evaluate.generate(model, tokenizer, prompts, 12, batch_size=4, calculator=False)
    assert {answer["finished"] for answer in answers} == {True, False}
    for answer, tokens in zip(answers, free):
        length = next((i for i, token in enumerate(tokens) if token in ends), None)
        assert answer["finished"] == (length is not None)
        assert answer["tokens"] == (12 if length is None else length + 1)
        assert answer["completion"] == tokenizer.decode(tokens[:length], skip_special_tokens=True)


def test_progress_counts_the_questions_answered(model, tokenizer, prompts):
    seen = []
    evaluate.generate(model, tokenizer, prompts, 1, batch_size=5, calculator=False, tell=seen.append)
    assert seen == [5, 10, 12]


def test_an_evaluation_that_was_stopped_goes_on_with_the_same_answers(model, tokenizer, prompts, tmp_path):
    def ask(tell):
        return evaluate.generate(model, tokenizer, prompts, 8, 1, False, tell, journal=tmp_path / "journal")

    def stop(done):
        if done == 10:
            raise KeyboardInterrupt

    whole = evaluate.generate(model, tokenizer, prompts, 8, 1, False)
    with pytest.raises(KeyboardInterrupt):
        ask(stop)
    with open(tmp_path / "journal", "a") as file:
        file.write('[8, [{"completion": "to')  # torn as it was written
    asked = []
    assert ask(asked.append) == whole and asked == [9, 10, 11, 12]  # only the last part, of four batches
    assert ask(asked.append) == whole and asked == [9, 10, 11, 12]


class Echo:
    """An engine that answers each prompt with its length, twice, and goes on after the end."""

    name, part = "echo 1.0", 5

    def __init__(self):
        self.asked = []

    def answers(self, prompts, max_new_tokens, ends, filling, tell, stop="", draws=None):
        self.asked.append(len(prompts))
        return [[len(prompt), len(prompt), ends[0], 7] for prompt in prompts]


def test_any_engine_is_journaled_decoded_and_named_alike(rows, tokenizer, prompts, tmp_path):
    engine, settings = Echo(), SimpleNamespace(max_new_tokens=8, eval_batch_size=2)
    results = evaluate.ask(engine, tokenizer, rows, settings, False, {"model": "tuned"}, tmp_path)
    texts = [tokenizer.decode([len(prompt)] * 2, skip_special_tokens=True) for prompt in prompts]
    assert [result["completion"] for result in results] == texts  # in the questions' order, cut at the end
    assert {(result["engine"], result["tokens"], result["finished"]) for result in results} == {("echo 1.0", 3, True)}
    assert engine.asked == [5, 5, 2]
    assert evaluate.ask(engine, tokenizer, rows, settings, False, {"model": "tuned"}, tmp_path) == results
    assert engine.asked == [5, 5, 2], "what the journal holds was asked again"
    other = Echo()
    other.name = "echo 2.0"
    evaluate.ask(other, tokenizer, rows, settings, False, {"model": "tuned"}, tmp_path)
    assert other.asked == [5, 5, 2], "another engine's answers were taken from the journal"


ANSWER = {"completion": "#### 5", "tokens": 4, "finished": True}


@pytest.mark.parametrize("line", [
    "no JSON", "7", "null", '[0, [{"completion": "#### 5"}]]', json.dumps([0, [ANSWER] * 4]), json.dumps([3, [ANSWER]]),
    json.dumps([0, 5]),
])  # fmt: skip
def test_a_journal_with_lines_that_no_evaluation_wrote_is_named_and_left_as_it_is(
    model, tokenizer, prompts, tmp_path, line
):  # fmt: skip
    journal = tmp_path / "journal"
    journal.write_text(f"{line}\n")
    with pytest.raises(runs.RunError, match=f"{journal} has lines that no evaluation wrote: move it away"):
        evaluate.generate(model, tokenizer, prompts, 8, 5, False, journal=journal)
    assert journal.read_text() == f"{line}\n"


def test_a_disk_that_is_full_takes_no_answer_away(model, tokenizer, prompts, tmp_path, monkeypatch):
    def ask():
        return evaluate.generate(model, tokenizer, prompts, 1, 5, False, journal=tmp_path / "journal")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    ask()
    answered = (tmp_path / "journal").read_text()
    with monkeypatch.context() as patch, pytest.raises(runs.RunError, match="cannot write to .*No space left.*make"):
        patch.setattr(runs.os, "fsync", full)
        ask()
    assert (tmp_path / "journal").read_text() == answered
    (tmp_path / "journal").unlink()
    monkeypatch.setattr(evaluate, "open", full, raising=False)
    with pytest.raises(runs.RunError, match="cannot write to .*No space left on device; make room"):
        ask()


# --- the calculator ---------------------------------------------------------------------------------------------------
def drive(tokenizer, texts, steps):
    """What the processor forces after each text, row by row: token ids, or None where the model is free."""
    processor = evaluate.Calculator(Marks(tokenizer), len(texts))
    rows = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    longest = max(map(len, rows))
    ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(row)) + row for row in rows])  # (B, T)
    forced, generator = [[] for _ in texts], torch.Generator().manual_seed(0)
    free = tokenizer.encode("a", add_special_tokens=False)[0]
    for _ in range(steps):
        scores = torch.randn(len(texts), len(tokenizer), generator=generator)
        before, after = scores.clone(), processor(ids, scores)
        for row, (old, new) in enumerate(zip(before, after)):
            allowed = torch.isfinite(new).nonzero().flatten().tolist()
            forced[row].append(allowed[0] if len(allowed) == 1 else None)
            assert len(allowed) == 1 or torch.equal(old, new)
        ids = torch.cat([ids, torch.tensor([[free if f[-1] is None else f[-1]] for f in forced])], dim=1)
    return forced


def forced_text(tokenizer, forced):
    """The forced tokens as text; they come first and without a gap."""
    count = next((i for i, token in enumerate(forced) if token is None), len(forced))
    assert forced[count:] == [None] * (len(forced) - count)
    return tokenizer.decode(forced[:count])


@pytest.mark.parametrize("expression", [
    "12/4", "10700*(1+3.5/100/4)^16", "100*(1-63/70)", "2/3", "0-5", "max(3,12.5,7)", "6.75*sqrt(12)", "1/30000",
    "floor(7/2)",
])  # fmt: skip
def test_the_value_and_the_closing_sign_are_forced_after_an_equals_sign(tokenizer, expression):
    (forced,) = drive(tokenizer, [f"Value: <<{expression}="], 24)
    assert forced_text(tokenizer, forced) == show(calculate(expression)) + ">>"
    asked = tokenizer.encode(f"Value: <<{expression}=", add_special_tokens=False)
    whole = tokenizer.encode(f"Value: <<{expression}={show(calculate(expression))}>>", add_special_tokens=False)
    assert asked + [t for t in forced if t is not None] == whole  # tokens that training would have shown


@pytest.mark.parametrize("text", [
    "Value: <<x+1=", "<<1/0=", "<<=", "<<12/4", "12/4=", "a = b =", "<<12/4=3>> and =", "<<2*(3+4=", "<<9^9^9=",
    "<< =", "",
])  # fmt: skip
def test_what_cannot_be_computed_is_left_to_the_model(tokenizer, text):
    (forced,) = drive(tokenizer, [text or "a"], 6)
    assert forced == [None] * 6


def test_each_row_has_its_own_value(tokenizer):
    texts = ["A long sentence about nothing. <<1000*1000=", "<<12/4=", "<<x=", "No mark here", "<<12/4=3>> <<3+4="]
    forced = drive(tokenizer, texts, 14)
    assert [forced_text(tokenizer, row) for row in forced] == ["1000000>>", "3>>", "", "", "7>>"]


def test_every_worked_answer_could_be_written_with_it(tokenizer, rows):
    """Cut after each `=`, the processor writes on exactly as the gold answer does."""
    for row in rows:
        answer = row["messages"][-1]["content"]
        cuts = [match.start(2) for match in MARK.finditer(answer)]
        for text, forced in zip(cuts, drive(tokenizer, [answer[:cut] for cut in cuts], 16)):
            assert answer[text:].startswith(forced_text(tokenizer, forced)) and forced[0] is not None


def test_while_generating_every_mark_gets_its_value(model, tokenizer):
    """A question that ends in an open mark: the random model's answer begins with the value."""
    asked = [tokenizer.encode(f"<s>{text}", add_special_tokens=False) for text in ("<<12/4=", "So: <<50*20=", "<<y=")]
    on = evaluate.generate(model, tokenizer, asked, 8, batch_size=3, calculator=True)
    off = evaluate.generate(model, tokenizer, asked, 8, batch_size=3, calculator=False)
    assert on[0]["completion"].startswith("3>>") and on[1]["completion"].startswith("1000>>")
    assert on[2] == off[2] and not off[0]["completion"].startswith("3>>")


# --- memory -----------------------------------------------------------------------------------------------------------
def test_where_memory_runs_out_it_says_what_to_lower(rows, tokenizer):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    class Full(torch.nn.Linear):
        generate = forward = full

    settings = presets.resolve("demo", {"eval_batch_size": 64, "max_new_tokens": 96}).settings
    advice = r"\(\d+\.\d GiB were held\): lower eval_batch_size \(now 64; try 32\), or lower max_new_tokens"
    for work in (lambda: evaluate.ask(Full(1, 1), tokenizer, rows, settings, False, {"model": "tuned"}),
                 lambda: evaluate.losses(Full(1, 1), tokenizer, rows, settings)):  # fmt: skip
        with pytest.raises(memory.TrainingError, match=advice):
            work()


# --- perplexity -------------------------------------------------------------------------------------------------------
def own_losses(model, tokenizer, row, with_prompt=False):
    """Negative log-likelihoods of the answer's tokens and the end token, one forward pass a row."""
    question, answer = (message["content"] for message in row["messages"])
    parts = [f"<s><|user|>{question}<|assistant|>", f"{answer}</s>"]
    prompt, learnt = (tokenizer.encode(part, add_special_tokens=False) for part in parts)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + learnt])).logits[0].double()
    logs = logits.log_softmax(-1)
    told = enumerate((prompt + learnt)[1:]) if with_prompt else enumerate(learnt, len(prompt) - 1)
    return [-float(logs[i, token]) for i, token in told]


def batches_of(rows):
    return SimpleNamespace(eval_batch_size=rows)


def test_perplexity_is_that_of_a_plain_loop_over_the_answers_tokens(model, tokenizer, rows):
    losses = [own_losses(model, tokenizer, row) for row in rows]
    tokens = sum(map(len, losses))
    expected = math.exp(sum(map(sum, losses)) / tokens)
    for batch_size in (1, 5, 12):
        found = evaluate.perplexity(evaluate.losses(model, tokenizer, rows, batches_of(batch_size)))
        assert found["perplexity"] == pytest.approx(expected, rel=1e-4)
        assert (found["rows"], found["tokens"]) == (12, tokens)


def test_perplexitys_interval_is_that_of_a_ratio_estimator(model, tokenizer, rows):
    sums = np.array([(sum(found), len(found)) for found in (own_losses(model, tokenizer, row) for row in rows)])
    ratio = sums[:, 0].sum() / sums[:, 1].sum()
    residuals = sums[:, 0] - ratio * sums[:, 1]
    error = residuals.std(ddof=1) / math.sqrt(len(rows)) / sums[:, 1].mean()  # Cochran 1977, equation 6.9
    found = evaluate.perplexity(evaluate.losses(model, tokenizer, rows, batches_of(12)))
    assert math.log(found["high"] / found["perplexity"]) == pytest.approx(2.201 * error, rel=1e-3)  # t, 11 degrees
    assert found["low"] * found["high"] == pytest.approx(found["perplexity"] ** 2, rel=1e-6)


def test_perplexity_with_the_prompt_counts_every_token_but_the_first(model, tokenizer, rows):
    losses = [own_losses(model, tokenizer, row, with_prompt=True) for row in rows]
    found = evaluate.perplexity(evaluate.losses(model, tokenizer, rows, batches_of(5)), "_with_prompt")
    assert found["tokens"] == sum(map(len, losses))
    assert math.log(found["perplexity"]) == pytest.approx(sum(map(sum, losses)) / found["tokens"], rel=1e-4)


def test_the_change_of_loss_is_paired_and_in_nats_a_token():
    base = [{"loss": 10.0, "tokens": 5}, {"loss": 40.0, "tokens": 10}, {"loss": 12.0, "tokens": 5}]
    tuned = [row | {"loss": row["loss"] - 0.5 * row["tokens"]} for row in base]
    found = evaluate.loss_change(base, tuned)
    assert (found["base"], found["tuned"]) == (pytest.approx(62 / 20), pytest.approx(52 / 20))
    assert (found["low"], found["difference"], found["high"]) == pytest.approx((-0.5,) * 3)  # pairs are alike
    tuned[1]["loss"] += 4.0
    values = np.array([-2.5, -1.0, -2.5]) + 6 / 20 * np.array([5, 10, 5])
    error = values.std(ddof=1) / math.sqrt(3) / (20 / 3)
    found = evaluate.loss_change(base, tuned)
    assert (found["difference"], found["high"]) == pytest.approx((-6 / 20, -6 / 20 + 4.303 * error), rel=1e-3)
    with pytest.raises(AssertionError, match="the same answers"):
        evaluate.loss_change(base, tuned[1:] + tuned[:1])


# --- graded answers ------------------------------------------------------------------------------------------------
def test_ask_grades_every_answer_and_keeps_the_questions_order(rows, tokenizer, monkeypatch, capsys):
    def generate(
        model, tokenizer, prompts, max_new_tokens, batch_size, calculator, progress, kinds, journal, stop, draws
    ):
        assert (max_new_tokens, batch_size, calculator, journal, stop, draws) == (64, 4, True, None, "", None)
        assert kinds == [row["kind"] for row in rows]
        progress(len(prompts))
        texts = [row["messages"][-1]["content"] if i % 2 else "I do not know" for i, row in enumerate(rows)]
        return [{"completion": text, "tokens": 3, "finished": i != 0} for i, text in enumerate(texts)]

    monkeypatch.setattr(evaluate, "generate", generate)
    asked = [row | {"split": "test_seen" if i > 8 else "test"} for i, row in enumerate(rows)]
    settings = SimpleNamespace(max_new_tokens=64, eval_batch_size=4)
    results = evaluate.ask(None, tokenizer, asked, settings, True, {"model": "tuned"})
    assert "tuned, calculator on, torch: 12 of 12 answered" in capsys.readouterr().out
    for i, (row, result) in enumerate(zip(asked, results, strict=True)):
        assert {name: result[name] for name in KEPT} == {name: row[name] for name in KEPT}
        assert result["question"] == row["messages"][0]["content"]
        assert (result["model"], result["split"], result["calculator"]) == ("tuned", row["split"], True)
        assert result["correct"] == bool(i % 2)
        assert result["error"] == (None if i % 2 else "truncated" if i == 0 else "no answer")
        assert result["within"] == dict.fromkeys(("0.1 %", "1 %", "5 %"), bool(i % 2))
    assert json.loads(json.dumps(results)) == results  # as generations.jsonl will hold them


def test_rows_without_a_level_are_asked_too(rows, tokenizer, monkeypatch):
    monkeypatch.setattr(evaluate, "generate", lambda *_: [{"completion": "#### 1", "tokens": 1, "finished": True}])
    row = {name: value for name, value in rows[0].items() if name != "level"}
    settings = SimpleNamespace(max_new_tokens=64, eval_batch_size=4)
    (result,) = evaluate.ask(None, tokenizer, [row], settings, False, {"model": "base", "split": "test"})
    assert result["level"] is None


def test_an_answer_without_a_gold_has_no_verdict_but_its_rows_own_answer(rows, tokenizer, monkeypatch):
    monkeypatch.setattr(evaluate, "generate", lambda *_: [{"completion": "buy", "tokens": 1, "finished": True}])
    settings = SimpleNamespace(max_new_tokens=64, eval_batch_size=4)
    (result,) = evaluate.ask(None, tokenizer, [rows[0] | {"gold": None}], settings, False, {"model": "base"})
    assert result["reference"] == rows[0]["messages"][-1]["content"] and result["gold"] is None
    assert not {"correct", "error", "reading"} & result.keys()
    published = {"protocol": "tatqa", "answer": ["Buy!"], "answer_type": "span", "scale": ""}
    row = rows[0] | {"gold": None, "published": published}
    (result,) = evaluate.ask(None, tokenizer, [row], settings, False, {"model": "base"})
    assert result["published"] == published and result["published_correct"] and result["published_f1"] == 1.0
    assert "correct" not in result and json.loads(json.dumps(result)) == result


@pytest.mark.parametrize("text", ["<<10^64*10^64*10^64*10^64*10^64=", "<<max((0-8)^0.5,1)="])
def test_what_a_model_writes_cannot_stop_the_evaluation(tokenizer, text):
    import torch

    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    scores = torch.zeros(1, len(tokenizer))
    assert torch.isfinite(evaluate.Calculator(Marks(tokenizer), 1)(ids, scores)).all()
