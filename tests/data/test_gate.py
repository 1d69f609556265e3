"""The data gate: each check with a row that has the fault and rows that have not, and planted leaks found."""

import copy
import json

import numpy as np
import pytest

from lib.data import chat, gate, questions, sources, tasks
from tests.benchmarks import bench_gate


def row(id, question, answer="#### 1", gold=None, group=None, kind="any"):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    gold = gold if gold is None or isinstance(gold, dict) else {"value": gold, "unit": "none"}
    return {"id": id, "source": "test", "kind": kind, "messages": messages, "gold": gold, "group": group or id}


CLEAN = {
    "train": [row("a-1", "What is 1.5 times 4?", "1.5*4 = <<1.5*4=6>>6\n#### 6", 6), row("a-2", "What is 2 plus 2?")],
    "validation": [row("b-1", "What is 2 plus 3?")],
    "test": [row("c-1", "What is 15 times 4?"), row("c-2", "How far is it?")],
}


def pairs(splits, benchmarks=None):
    """(check, row, other, does it matter) of each duplicate found."""
    return [(f.check, f.row, f.other, f.matters) for f in gate.duplicates(splits, benchmarks)]


def audited(tokenizer, splits, max_length=640):
    return gate.audit(splits, tokenizer, max_length)


def only(findings, check):
    (finding,) = [finding for finding in findings if finding.check == check]
    return finding


# --- exact duplicates -------------------------------------------------------------------------------------------------
def test_clean_splits_have_no_findings(tokenizer):
    assert audited(tokenizer, CLEAN).findings == ()
    assert gate.enforce(CLEAN, (), "stop") == (CLEAN, [])


@pytest.mark.parametrize("question", [
    "What is 1.5 times 4?", "what is 1.5 times 4", "WHAT IS 1.5  TIMES\n4 ?", " What\tis 1.5 times 4?! ",
])  # fmt: skip
def test_an_exact_duplicate_is_found_and_the_training_row_goes(question):
    planted = CLEAN | {"test": [*CLEAN["test"], row("c-3", question)]}
    assert pairs(planted) == [("exact duplicate", "a-1", "c-3", True)]
    kept, (rejected,) = gate.enforce(planted, gate.duplicates(planted), "drop")
    assert [r["id"] for r in kept["train"]] == ["a-2"] and kept["test"] == planted["test"]
    assert rejected["place"] == "train/a-1" and rejected["row"] == CLEAN["train"][0]
    assert rejected["others"] == ["c-3"] and "exact duplicate of c-3 in test" in rejected["reason"]


def test_every_pair_of_splits_is_compared():
    planted = CLEAN | {"test": [row("c-9", "what is 2 PLUS 3")]}
    assert pairs(planted) == [("exact duplicate", "b-1", "c-9", True)]


def test_of_copies_in_one_split_the_later_ones_go_but_none_of_the_test():
    copies = [row("x-3", "What is 2 plus 2"), row("x-4", "what IS 2 plus 2?")]
    assert [(a, b, m) for _, a, b, m in pairs({"train": [*CLEAN["train"], *copies]})] == [
        ("x-3", "a-2", True), ("x-4", "x-3", True)
    ]  # fmt: skip
    assert pairs({"test": copies}) == [("exact duplicate", "x-4", "x-3", False)]


def test_one_question_with_two_golds_is_a_finding_of_its_own():
    rows = [row("a", "What is 2 + 2?", gold=4), row("b", "what is 2 + 2", gold=5), row("c", "What is 2 + 2?", gold=5)]
    assert pairs({"train": rows[:1], "test": rows[1:2]}) == [("another gold", "a", "b", True)]
    assert pairs({"train": rows}) == [("another gold", "b", "a", True), ("exact duplicate", "c", "b", True)]
    assert pairs({"test": rows[:2]}) == [("another gold", "b", "a", False)]
    (found,) = gate.duplicates({"train": rows[:2]})
    assert "DIFFERENT golds" in found.reason


def test_numbers_keep_their_decimal_points_and_separators():
    for a, b in [("1.5", "15"), ("1.5", "1 5"), ("1.05", "10.5"), ("1,234", "1.234"), ("12", "1 2")]:
        assert questions.normal(f"Is {a} much?") != questions.normal(f"Is {b} much?")
    assert questions.normal("It is 1.5. And 2, then 3!") == questions.normal("it is 1.5 and 2 then 3")


@pytest.mark.parametrize("a, b", [("Compute 8-4.", "Compute 8+4."), ("Is -5 much?", "Is 5 much?"),
                                  ("Is .5 much?", "Is 5 much?"), ("Take 5% of it.", "Take $5 of it.")])  # fmt: skip
def test_other_sums_are_no_exact_duplicates(a, b):
    assert questions.normal(a) != questions.normal(b)


# --- near duplicates --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text, numbers", [
    ("He pays $1,200.50 for 3 bags", [1200.5, 3]), ("twelve hundred and fifty men", [1250]), ("a dozen", [12]),
    ("twenty-five of the 200 five-dollar bills", [25, 200, 5]), ("2 million, or two thousand", [2e6, 2000]),
    ("one of 1 and -1", []), ("a correlation of -0.3, from 5-10", [-0.3, 5, 10]), ("twice half of .5", [2, 0.5, 0.5]),
    ("three hundred twenty one", [321]), ("at 5%.", [5]), ("zero, 0", [0, 0]),
])  # fmt: skip
def test_numbers_are_read_in_digits_and_in_words(text, numbers):
    assert questions.read(text)[0] == numbers


def test_words_lose_case_order_endings_and_function_words():
    assert questions.read("The prices of apples: how MUCH?")[1] == questions.read("How much is the APPLE priced?")[1]


TEMPLATE = "A deposit of ${:,} earns {}% a year, compounded {}. What is it worth after {} years?"
SAME = TEMPLATE.format(12_500, 4.25, "quarterly", 7)


@pytest.mark.parametrize("question", [
    "For 7 years, $12,500 stands in an account at 4.25% annual interest, compounded quarterly. What is the balance?",
    "seven years at 4.25 percent, compounded quarterly: what becomes of a 12500 dollar deposit?",
    "IF 4.25% A YEAR IS EARNED AND COMPOUNDED QUARTERLY WHAT IS A $12,500 DEPOSIT WORTH AFTER 7 YEARS",
])  # fmt: skip
@pytest.mark.parametrize("gold", [16_810.77, None])
def test_the_same_numbers_in_other_words_are_a_near_duplicate(question, gold):
    splits = {"train": [row("a", question, gold=gold)], "test": [row("b", SAME, gold=16_810.77)]}
    assert pairs(splits) == [("near duplicate", "a", "b", True)]


def test_the_same_words_with_other_numbers_are_another_question():
    other = [TEMPLATE.format(12_500, 4.5, "quarterly", 7), TEMPLATE.format(7_000, 4.25, "quarterly", 12)]
    splits = {"train": [row(f"a{i}", text, gold=i) for i, text in enumerate(other)], "test": [row("b", SAME, gold=9)]}
    assert pairs(splits) == []


def test_numbers_that_change_places_are_another_question():
    a, b = "Fund X returned 5% at 8% volatility. Its ratio?", "Fund X returned 8% at 5% volatility. Its ratio?"
    assert pairs({"train": [row("a", a, gold=0.62)], "test": [row("b", b, gold=1.6)]}) == []


def test_questions_without_numbers_are_compared_by_their_words():
    a = "Explain why the volatility of a portfolio falls when uncorrelated assets are added to it."
    b = "Explain why portfolio volatility falls when you add uncorrelated assets."
    c = "Explain why the price of a bond falls when market yields rise."
    splits = {"train": [row("a", b), row("c", c)], "test": [row("b", a)]}
    assert pairs(splits) == [("near duplicate", "a", "b", True)]


def test_near_duplicates_within_a_split_are_only_shown():
    inside = {"train": [row("a", SAME, gold=5), row("b", SAME.replace("worth", "valued at"), gold=5)]}
    assert pairs(inside) == [("near duplicate", "b", "a", False)]
    assert gate.enforce(inside, gate.duplicates(inside), "stop") == (inside, [])


# --- planted leaks: at least 95 % found, at most 1 % of clean rows called leaks -----------------------------------
@pytest.mark.parametrize("recipe", ["synonyms, order", "synonyms, names, shape", "spelling, order, names", "all of it"])
def test_planted_paraphrases_of_generated_rows_are_found(recipe):
    splits = bench_gate.generated(tasks.DEMO_KINDS, 900)
    edits, rng = bench_gate.RECIPES[recipe], np.random.default_rng(7)
    planted, made = bench_gate.planted(
        splits, lambda row, rng, id: bench_gate.paraphrase(row, rng, id, edits), rng, 0.05
    )
    recall, alarms = bench_gate.found(planted, made)
    assert len(made) == 45 and recall >= 0.95 and alarms <= 0.01


def test_planted_rephrasings_of_generated_rows_are_found():
    splits = bench_gate.generated(tuple(tasks.KINDS), 950)
    planted, made = bench_gate.planted(splits, bench_gate.rephrase, np.random.default_rng(7), 0.05)
    recall, alarms = bench_gate.found(planted, made)
    assert recall >= 0.95 and alarms <= 0.01


@pytest.mark.slow
def test_planted_paraphrases_of_gsm8k_are_found(published_data):
    splits = bench_gate.gsm8k(str(published_data))
    recipes, made = ["synonyms, order", "synonyms, names, shape", "spelling, order, names"], {}
    for number, recipe in enumerate(recipes):  # a third of 1 % of the 7,473 rows each
        edits, rng = bench_gate.RECIPES[recipe], np.random.default_rng(number)
        splits, third = bench_gate.planted(
            splits, lambda row, rng, id, edits=edits: bench_gate.paraphrase(row, rng, id, edits), rng, 0.01 / 3
        )
        made |= third
    recall, alarms = bench_gate.found(splits, made)
    assert len(made) >= 70 and recall >= 0.95 and alarms <= 0.01


# --- benchmarks -------------------------------------------------------------------------------------------------------
def test_training_rows_are_compared_with_a_benchmark_but_the_test_is_not(tmp_path):
    path = tmp_path / "bench.jsonl"
    lines = [
        {"body": "Ann has 31 pens and gives 12 to Bo.", "question": "How many pens are left?", "answer": 19.0},
        {"question": "How far is it?", "answer": "It is far. #### 7"},
        {"messages": row("x", "Hello, who is there?")["messages"], "gold": {"value": "me"}},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    rows = gate.read_benchmark(path)
    assert [r["id"] for r in rows] == ["bench.jsonl:1", "bench.jsonl:2", "bench.jsonl:3"]
    assert [r["gold"] for r in rows] == [{"value": 19.0}, {"value": 7.0}, {"value": "me"}]
    splits = CLEAN | {"train": [row("a", "Bo gets twelve of Ann's 31 pens. How many pens has Ann now?", gold=19)]}
    (found,) = gate.duplicates(splits, {"bench.jsonl": rows})
    assert (found.row, found.other, found.other_split, found.matters) == ("a", "bench.jsonl:1", "bench.jsonl", True)


def test_a_benchmark_with_a_byte_order_mark_is_read_and_its_conversations_whole(tmp_path):
    path = tmp_path / "bench.jsonl"
    turns = [{"role": "user", "content": "A mill sells 37 sacks at 3 euros each. What does it earn?"},
             {"role": "assistant", "content": None, "tool_calls": []}, {"role": "tool", "content": "111"},
             {"role": "user", "content": [{"type": "text", "text": "And how is that worked out?"}]}]  # fmt: skip
    path.write_text(json.dumps({"messages": turns}), encoding="utf-8-sig")
    (read,) = gate.read_benchmark(path)
    assert [message["role"] for message in read["messages"]] == ["user", "assistant", "tool", "user", "assistant"]
    assert read["messages"][3]["content"] == "And how is that worked out?"
    leak = row("a", "What does a mill earn that sells 37 sacks at 3 euros each?", gold=111)
    assert pairs({"train": [leak]}, {"bench.jsonl": [read]}) == [("near duplicate", "a", "bench.jsonl:1", True)]


@pytest.mark.parametrize("bad", ["{", "[1]", "null", '{"text": "x"}', '{"question": 3}', '{"messages": []}',
                                 '{"messages": [{"role": "user"}]}', '{"messages": 5}'])  # fmt: skip
def test_a_benchmark_line_without_a_question_is_named(tmp_path, bad):
    path = tmp_path / "bench.jsonl"
    path.write_text('{"question": "x"}\n' + bad)
    with pytest.raises(gate.GateError, match=r"benchmark bench\.jsonl:2: no JSON object with messages, question"):
        gate.read_benchmark(path)


def test_an_empty_benchmark_is_refused(tmp_path):
    (tmp_path / "b.jsonl").write_text("\n")
    with pytest.raises(gate.GateError, match="has no rows"):
        gate.read_benchmark(tmp_path / "b.jsonl")


# --- groups -----------------------------------------------------------------------------------------------------------
def test_a_group_shared_with_the_test_is_a_leak_and_with_other_splits_is_told_once():
    train = [row("a", "x", group="page 2"), row("b", "y", group="page 2"), row("c", "z", group="page 1")]
    found = gate.shared_groups({"train": train, "test": [row("t", "w", group="page 2")]})
    assert [(f.row, f.other, f.matters) for f in found] == [("a", "t", True), ("b", "t", True)]
    found = gate.shared_groups(
        {"train": train, "test_seen": [row("s", "v", group="page 2"), row("r", "u", group="page 2")]}
    )
    assert [(f.row, f.other, f.matters) for f in found] == [("a", "s", False)]
    assert "2 training rows" in found[0].reason


# --- tokens -----------------------------------------------------------------------------------------------------------
def test_rows_over_max_length_go_but_stay_in_the_test(tokenizer):
    splits = {"train": [row("long", "word " * 60), row("short", "x")], "test": [row("t", "other " * 60)]}
    found = only(audited(tokenizer, splits, 40).findings, "too long")
    length = len(chat.encode(splits["train"][0], tokenizer)["input_ids"])
    assert found.row == "long" and found.reason == f"{length} tokens, {length - 40} more than max_length = 40"
    assert gate.enforce(splits, [found], "drop")[0]["train"] == [splits["train"][1]]
    assert not [f for f in audited(tokenizer, splits, length).findings if f.check == "too long"]


def test_supervised_tokens_are_counted_with_the_end_token(tokenizer):
    audit = audited(tokenizer, CLEAN)
    expected = {
        r["id"]: len(tokenizer.encode(r["messages"][-1]["content"], add_special_tokens=False)) + 1
        for rows in CLEAN.values() for r in rows
    }  # fmt: skip
    assert audit.learnt == expected and all(audit.lengths[id] > n for id, n in expected.items())
    assert gate.spread({"a": 3, "b": 10, "c": 4}) == {"min": 3, "median": 4, "max": 10}


def changed(tokenizer, **attributes):
    other = copy.deepcopy(tokenizer)
    for name, value in attributes.items():
        setattr(other, name, value)
    return other


@pytest.mark.parametrize("check, template", [
    ("end token", chat.TEMPLATE.replace("{{ eos_token }}", "")),
    ("nothing learnt", "{{ bos_token }}{{ messages[0]['content'] }}<|assistant|>"),
    ("prompt tokens", "{{ bos_token }}{{ messages | length }}{{ messages[-1]['content'] }}{{ eos_token }}"),
])  # fmt: skip
def test_a_template_that_spoils_rows_is_found_in_each(tokenizer, check, template):
    findings = audited(changed(tokenizer, chat_template=template), CLEAN).findings
    assert sorted(f.row for f in findings if f.check == check) == ["a-1", "a-2", "b-1", "c-1", "c-2"]
    with pytest.raises(gate.GateError, match=f"x {check} .*\n  train/a-1: row a-1: "):
        gate.enforce(CLEAN, findings, "drop")  # nothing, or too little, would be left
    assert gate.enforce(CLEAN, findings, "report") == (CLEAN, [])


def test_one_row_without_a_supervised_token_stops_the_gate_whatever_it_may_drop():
    found = [gate.Finding("nothing learnt", "train", "a-1", "row a-1: its answer has no tokens to learn")]
    for setting in ("stop", "drop"):
        with pytest.raises(gate.GateError, match="a-1.*\n.*mend the chat template"):
            gate.enforce(CLEAN, found, setting)


@pytest.mark.parametrize("pad", [None, "</s>"])
def test_padding_with_the_end_token_stops_but_drops_no_row(tokenizer, pad):
    found = only(audited(changed(tokenizer, pad_token=pad), CLEAN).findings, "pad token")
    assert "every row is padded with" in found.reason
    with pytest.raises(gate.GateError, match="pad token"):
        gate.enforce(CLEAN, [found], "stop")
    assert gate.enforce(CLEAN, [found], "drop") == (CLEAN, [])


# --- golds ------------------------------------------------------------------------------------------------------------
def test_a_gold_that_the_worked_answer_contradicts_is_found(tokenizer):
    splits = {"train": [row("good", "x", "So 5.\n#### 5", 5), row("bad", "y", "So 5.\n#### 5", 6)],
              "test": [row("silent", "z", "So it is.", 4)]}  # fmt: skip
    found = {f.row: f for f in audited(tokenizer, splits).findings if f.check == "contradicted gold"}
    assert found.keys() == {"bad", "silent"}
    assert found["bad"].reason == "gold 6, but the worked answer reads 5.0 (wrong value)"
    assert "has no marked answer" in found["silent"].reason
    kept, rejected = gate.enforce(splits, found.values(), "drop")
    assert kept == splits | {"train": splits["train"][:1]} and [line["place"] for line in rejected] == ["train/bad"]


@pytest.mark.parametrize("working, marked, stands", [
    ("48 + 16 = <<48+16=64>>64 points.", "66", False), ("$70 + $38 = $<<70+38=108>>108 in all.", "106", False),
    ("48 + 16 = <<48+16=64>>64 points.", "64", True), ("The difference is .50-.25 = $0.25 a can.", "25", True),
    ("17 000/5 = 3 400 people.", "3400", True), ("240/12 = 20 dozen", "20", True), ("It took three days.", "3", True),
    ("It falls by 5-8 = -3.", "-3", True), ("No numbers here.", "7", True), ("", "7", True), ("1*1 = 1", "1", True),
    (r"We get \$ 14{,}040.", "14040", True), ("也就是1.404万。", "14040", True), ("0.1404 lakh rupees", "14040", True),
    ("Das sind 14.040,00 EUR.", "14040", True), ("$1.404 \\times 10^{4}$", "14040", True),
    ("So 14{,}400.", "14040", False),
])  # fmt: skip
def test_the_marked_answer_must_stand_in_the_working(tokenizer, working, marked, stands):
    """The first two are rows of GSM8K, whose golds are read from the marker and so cannot contradict it."""
    splits = {"train": [row("a", "x", f"{working}\n#### {marked}", float(marked))]}
    found = [f.reason for f in audited(tokenizer, splits).findings if f.check == "contradicted gold"]
    assert found == ([] if stands else [f"{float(marked)!r} is marked, but stands nowhere in the working"])


def test_wrong_arithmetic_is_shown_and_stops_nothing(tokenizer):
    splits = {"train": [row("a", "x", "3*4 = <<3*4=13>>13\n#### 13", 13), row("b", "y", "2 + 2 = 5\n#### 5", 5)]}
    found = [f for f in audited(tokenizer, splits).findings if f.check == "wrong arithmetic"]
    assert [(f.row, f.matters) for f in found] == [("a", False), ("b", False)]
    assert "<<3*4=13>>" in found[0].reason and found[1].reason == "2 + 2 = 5"


# --- what the gate does -----------------------------------------------------------------------------------------------
def test_stop_names_the_rows_and_the_remedy():
    planted = CLEAN | {"test": [*CLEAN["test"], row("c-3", "What is 1.5 times 4?")]}
    with pytest.raises(gate.GateError) as error:
        gate.enforce(planted, gate.duplicates(planted), "stop")
    told = str(error.value)
    assert (
        told.startswith("1 x exact duplicate (asks what another row asks")
        and "train/a-1: exact duplicate of c-3" in told
    )
    assert "let gate = 'drop' leave them out; gate = 'report' only shows" in told
    assert gate.enforce(planted, gate.duplicates(planted), "report") == (planted, [])


def test_a_row_with_several_faults_is_rejected_once_with_all_reasons():
    found = [
        gate.Finding("too long", "train", "a-1", "long"),
        gate.Finding("near duplicate", "train", "a-1", "same", "c-1"),
    ]
    _, (rejected,) = gate.enforce(CLEAN, found, "drop")
    assert rejected["reason"] == "long; same" and rejected["checks"] == ["too long", "near duplicate"]


def test_dropping_more_than_half_of_a_split_stops():
    found = [gate.Finding("too long", "train", id, "700 tokens") for id in ("a-1", "a-2")]
    assert len(gate.enforce(CLEAN, found[:1], "drop")[0]["train"]) == 1
    with pytest.raises(gate.GateError, match="the gate leaves 0 of 2 rows of train: look at the data, base_model"):
        gate.enforce(CLEAN, found, "drop")


def test_the_table_has_a_line_a_check_with_what_matters_first(tokenizer):
    planted = CLEAN | {"test": [*CLEAN["test"], row("c-3", "What is 1.5 times 4?"), row("c-4", "how far is it")]}
    table = {line["check"]: line for line in audited(tokenizer, planted).table()}
    assert list(table) == list(gate.CHECKS)
    line = table["exact duplicate"]
    assert (line["rows"], line["findings"], line["that matter"]) == (7, 2, 1)
    assert line["first"] == "a-1 = c-3, c-4 = c-2" and table["too long"]["rows"] == 3


def test_doubtful_pairs_show_both_questions_those_that_matter_first(tokenizer):
    other = SAME.replace("worth", "valued at")
    splits = {"train": [row("a", SAME, gold=5), row("b", other, gold=5)], "test": [row("t", "How far?")]}
    known = {"bench.jsonl": [row("bench.jsonl:1", SAME.replace("What is it worth", "Its value"), gold=5)]}
    pairs = gate.audit(splits, tokenizer, 640, known).doubtful_pairs(splits, known)
    assert [(pair["matters"], pair["row"]) for pair in pairs] == [(True, SAME), (True, other), (False, other)]
    assert pairs[0]["other"] == known["bench.jsonl"][0]["messages"][0]["content"] and pairs[2]["other"] == SAME
    assert "of the numbers and" in pairs[0]["why"] and gate.audit(CLEAN, tokenizer, 640).doubtful_pairs(CLEAN, {}) == []


def test_what_matters_and_is_still_in_training_is_left_in(tokenizer):
    planted = CLEAN | {"test": [*CLEAN["test"], row("c-3", "What is 1.5 times 4?")]}
    audited_rows = audited(changed(tokenizer, pad_token=None), planted)
    (finding,) = audited_rows.left_in(planted["train"])
    assert (finding.check, finding.row) == ("exact duplicate", "a-1")
    kept, _ = gate.enforce(planted, audited_rows.findings, "drop")
    assert audited_rows.left_in(kept["train"]) == []


def test_values_are_grouped_by_kind_and_golds_that_are_no_numbers_left_out():
    rows = [
        row("a", "x", gold=5, kind="one"),
        row("b", "y", gold=2.5, kind="two"),
        row("c", "z", kind="one"),
        row("d", "w", gold={"value": "Iris", "unit": "choice"}, kind="two"),
        row("e", "v", gold=7, kind="one"),
    ]
    assert gate.numeric_golds(rows) == {"a": 5, "b": 2.5, "e": 7}
    assert gate.by_kind(rows, gate.numeric_golds(rows)) == {"one": [5, 7], "two": [2.5]}


def test_ids_that_repeat_are_named_within_and_between_splits():
    assert gate.repeated_ids(CLEAN) == []
    splits = {"train": [row("a", "x"), row("a", "y"), row("b", "z"), row("c", "w")], "test": [row("b", "v")]}
    assert gate.repeated_ids(splits) == ["a", "b"]


def test_the_demo_passes_by_default_and_its_test_is_untouched(tokenizer):
    from lib.run.presets import resolve

    settings = resolve("demo").settings
    rows = {split: part.rows for split, part in sources.load(settings).items()}
    findings = gate.audit(rows, tokenizer, settings.max_length).findings
    kept, rejected = gate.enforce(rows, findings, settings.gate)
    assert kept["test"] == rows["test"] and kept["test_seen"] == rows["test_seen"]
    assert len(rejected) <= 0.01 * len(rows["train"])
    assert {f.check for f in findings} <= {"near duplicate", "shared group"}
    assert not [f for f in findings if f.matters and f.other_split == "test"]
