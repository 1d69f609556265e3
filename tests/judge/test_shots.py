"""Worked examples before a question: none of its own group, on validation rows alone, and what does not fit is told."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lib.data import chat, formats, tasks
from lib.judge import evaluate, shots
from lib.run import runs
from lib.run.paths import ROOT


@pytest.fixture(scope="module")
def train():
    return [problem.row() for problem in tasks.generate("train", 120, 3)]


@pytest.fixture(scope="module")
def asked(train):
    """Questions of groups that half of the training rows have, two of which ask what a training row asks."""
    groups = {row["group"] for row in train[::2]}
    rows = [problem.row() for problem in tasks.generate("train", 60, 4)]
    twins = [row | {"id": f"twin-{n}", "group": "elsewhere"} for n, row in enumerate(train[1:4:2])]
    return [row for row in rows if row["group"] in groups] + twins


def question(row):
    return row["messages"][-2]["content"]


def test_no_example_is_of_the_questions_group_or_asks_what_it_asks(train, asked):
    pool = shots.pool_of(train, asked, 0)
    own = shots.pool_of([row for row in train if row["group"] in {one["group"] for one in asked}], asked, 0)
    for few in (pool, own):  # with none but groups that are asked, each question has examples of its own
        for row in asked:
            examples = shots.examples_of(row, few, 8)
            assert len({example["id"] for example in examples}) == 8
            assert row["group"] not in {example["group"] for example in examples}
            assert question(row) not in map(question, examples)
    assert len({tuple(one["id"] for one in shots.examples_of(row, own, 8)) for row in asked}) > 1


def test_examples_are_worked(train, asked):
    bare = [formats.gold_only(row) for row in train[:60]]
    ids = {row["id"] for row in shots.pool_of([*bare, *train[60:]], asked, 0)}
    assert ids == {row["id"] for row in train[60:]}


def test_all_questions_have_the_same_examples_where_groups_allow_and_kinds_in_turn(train, asked):
    pool = shots.pool_of(train, asked[:-2], 0)
    (examples,) = {tuple(one["id"] for one in shots.examples_of(row, pool, 8)) for row in asked[:-2]}
    kinds = [row["kind"] for row in pool[:12]]
    assert len(set(kinds[:6])) == len(set(kinds[6:])) == 6 == len({row["kind"] for row in train})
    assert shots.pool_of(train, asked[:-2], 0) == pool != shots.pool_of(train, asked[:-2], 1)
    assert sorted(row["id"] for row in pool) == sorted(row["id"] for row in train)
    record = shots.Prompting(8, pool).record(asked[:-2])
    assert record["examples"] == list(examples) and record["others"] == {}
    twin = asked[-1] | {"messages": pool[2]["messages"]}
    without = [row["id"] for row in [*pool[:2], *pool[3:9]]]
    assert shots.Prompting(8, pool).record([twin])["others"] == {twin["id"]: without}


def test_a_prompt_with_examples_is_the_chat_template_of_those_turns(train, asked, tokenizer):
    prompting = shots.Prompting(4, shots.pool_of(train, asked, 0))
    row = asked[0] | {"messages": [{"role": "system", "content": "Be brief."}, *asked[0]["messages"]]}
    (shown,) = prompting.before([row], 4)
    text = f"{tokenizer.bos_token}<|user|>Be brief."
    for example in shots.examples_of(row, prompting.pool, 4):
        answer = example["messages"][1]["content"]
        assert "<<" in answer and ">>" in answer  # marks as the row has them: what a model writes in both modes
        text += f"<|user|>{question(example)}<|assistant|>{answer}{tokenizer.eos_token}"
    text += f"<|user|>{question(row)}<|assistant|>"
    assert tokenizer.decode(chat.prompt_ids(shown["messages"], tokenizer)) == text
    assert {name: shown[name] for name in row if name != "messages"} == {
        name: row[name] for name in row if name != "messages"}  # fmt: skip


def test_arms_are_the_base_after_the_examples_too_and_the_tuned_model_where_it_is_asked_for(train, asked):
    pool, questions = shots.pool_of(train, asked, 0), [*asked, asked[0] | {"gold": None}]
    sizes = [{"base": 1}, {"tuned": 1}, {"base": 1, "base, 1 shot": 0}, {"tuned": 1, "tuned, 4 shots": 0}]
    arms = [shots.Prompting().arms("base", questions), shots.Prompting(4, pool).arms("tuned", questions),
            shots.Prompting(1, pool).arms("base", questions),
            shots.Prompting(4, pool, with_tuned=True).arms("tuned", questions)]  # fmt: skip
    assert [{name: len(rows) - len(asked) for name, rows in arm.items()} for arm in arms] == sizes


# --- how many ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def run(tmp_path, train, asked):
    """data/ of a run, its graded test rows, and settings."""
    validation = [problem.row() for problem in tasks.generate("train", 10, 5)]
    for name, rows in (("train", train), ("validation", validation)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = SimpleNamespace(few_shot="best", few_shot_seed=0, few_shot_tuned=False, max_new_tokens=64,
                               chat_template=None, eval_batch_size=4)  # fmt: skip
    return SimpleNamespace(data=tmp_path, graded={"test": asked}, settings=settings, validation=validation)


def reads(tokens):
    return SimpleNamespace(config=SimpleNamespace(max_position_embeddings=tokens))


def choose(run, base, tokenizer):
    return shots.choose(base, tokenizer, run.data, run.graded, run.settings, True, run.data)


def test_the_number_is_chosen_on_validation_rows_alone_and_what_does_not_fit_is_named(run, tokenizer, monkeypatch):
    right, seen = {0: 2, 1: 6, 4: 6}, []

    def generate(model, tokenizer, prompts, *rest):
        count = tokenizer.decode(prompts[0]).count("<|assistant|>") - 1
        seen.append(count)
        texts = [row["messages"][-1]["content"] for row in run.validation]
        assert all(question(row) in tokenizer.decode(ids) for row, ids in zip(run.validation, prompts, strict=True))
        return [{"completion": text if n < right[count] else "?", "tokens": 1, "finished": True}
                for n, text in enumerate(texts)]  # fmt: skip

    monkeypatch.setattr(evaluate, "generate", generate)
    whole = {n: max(len(chat.prompt_ids(row["messages"], tokenizer)) for row in shots.Prompting(pool=shots.pool_of(
        runs.read_rows(run.data / "train.jsonl"), [*run.graded["test"], *run.validation], 0,
    )).before([*run.graded["test"], *run.validation], n)) for n in (4, 8)}  # fmt: skip
    prompting = choose(run, reads(whole[4] + 64), tokenizer)
    assert seen == [0, 1, 4] and prompting.shots == 1  # of equal accuracies the fewer examples
    told = f"the longest prompt has {whole[8]:,} tokens, an answer up to 64; the base reads {whole[4] + 64:,}"
    assert prompting.not_tried == [{"shots": 8, "why": told}]
    rows = prompting.table()
    assert [row["model"] for row in rows] == ["base", "base, 1 shot", "base, 4 shots", "base, 8 shots"]
    assert [row["note"] for row in rows] == ["", "chosen", "", f"not tried: {told}"]
    assert rows[1]["n"] == "10" and rows[1]["accuracy [95 %]"] == "60.0 % [31.3, 83.2]"  # Wilson, 6 of 10
    record = prompting.record(run.graded["test"])
    assert record["shots"] == len(record["examples"]) == 1 and len(record["validation"]) == 3
    assert json.loads(json.dumps(record)) == record


def test_a_base_that_no_example_fits_is_asked_cold_without_a_look_at_validation_rows(run, tokenizer, monkeypatch):
    monkeypatch.setattr(evaluate, "generate", lambda *_: pytest.fail("there is nothing to choose from"))
    prompting = choose(run, reads(100), tokenizer)
    assert prompting.shots == 0 and [row["shots"] for row in prompting.not_tried] == [1, 4, 8]


def test_a_number_that_cannot_be_asked_is_refused_with_the_reason(run, tokenizer):
    run.settings.few_shot = 8
    with pytest.raises(runs.RunError, match="few_shot = 8: the longest prompt has .* reads 700; lower it, or set 0"):
        choose(run, reads(700), tokenizer)
    assert choose(run, reads(9000), tokenizer).shots == 8
    (run.data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in run.graded["test"][:5]))
    with pytest.raises(runs.RunError, match="few_shot = 8: too few worked training rows have a gold and are"):
        choose(run, reads(9000), tokenizer)


def test_without_golds_there_is_nothing_to_choose_by(run, tokenizer):
    (run.data / "validation.jsonl").write_text("")
    prompting = choose(run, reads(9000), tokenizer)
    assert prompting.shots == 0 and {row["why"] for row in prompting.not_tried} == {
        "no validation row has a gold to grade by"}  # fmt: skip
    run.graded, run.settings.few_shot = {}, 4
    with pytest.raises(runs.RunError, match="few_shot = 4: no test row has a gold to grade by; lower it, or set 0"):
        choose(run, reads(9000), tokenizer)


# --- plain text -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("folds", [True, False])
def test_a_base_that_knows_no_chat_is_asked_in_plain_text_and_ends_where_it_asks_itself(
    train, tokenizer, monkeypatch, folds
):  # fmt: skip
    prompting = shots.Prompting(1, shots.pool_of(train[1:], train[:1], 0), plain=True)
    (row,) = prompting.before(train[:1], 1)
    (example,) = shots.examples_of(train[0], prompting.pool, 1)
    text = f"Question: {question(example)}\n\nAnswer: {example['messages'][1]['content']}\n\n"
    text += f"Question: {question(row)}\n\nAnswer:"
    ids = chat.prompt_ids(row["messages"], tokenizer, plain=True)
    assert ids == tokenizer.encode(text) and not prompting.before(train[:1], 0)[0]["plain"]

    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(ROOT / "data/base", num_hidden_layers=1, initializer_range=0.3)
    model = LlamaForCausalLM(config).float().eval()
    monkeypatch.setattr(evaluate.decode, "unsupported", lambda *_: None if folds else "for the test")
    (free,) = evaluate.generate(model, tokenizer, [ids], 24, 1, False)
    stop = free["completion"][9:12]  # what this random model does write
    (ended,) = evaluate.generate(model, tokenizer, [ids], 24, 1, False, stop=stop)
    assert ended["finished"] and ended["completion"] == free["completion"].partition(stop)[0]
    assert ended["tokens"] < free["tokens"] == 24


def test_each_arm_has_a_journal_of_its_own(train, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.disk, "writing", lambda path: names.append(path.name) or open(tmp_path / "lock", "w"))
    names, settings = [], SimpleNamespace(max_new_tokens=1, eval_batch_size=4)
    config = LlamaConfig.from_pretrained(ROOT / "data/base", num_hidden_layers=1)
    model = LlamaForCausalLM(config).float().eval()
    for labels in ({"model": "base"}, {"model": "base, 1 shot"}, {"model": "base, 1 shot", "split": "validation"}):
        evaluate.ask(model, tokenizer, train[:2], settings, True, labels, tmp_path)
    assert names == [".base-calculator-on-torch.jsonl", ".base-1-shot-calculator-on-torch.jsonl",
                     ".base-1-shot-validation-calculator-on-torch.jsonl"]  # fmt: skip
