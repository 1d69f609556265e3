"""The search for duplicates: rows that differ in what matters are kept apart, the same in other words is found."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from lib.data import duplicates, formats, gate, questions, sources
from lib.run.paths import ROOT
from tests.benchmarks.gate_rows import MADE, inside_chat
from tests.data.test_gate import pairs, row


def told(rows, benchmarks=None):
    return pairs({"train": rows}, benchmarks)


def chat(id, *texts, **more):
    """A conversation: user and assistant in turns."""
    roles = ("user", "assistant")
    messages = [{"role": roles[k % 2], "content": text} for k, text in enumerate(texts)]
    return row(id, "") | {"messages": messages} | more


# --- different questions ----------------------------------------------------------------------------------------------
FIRMS = "Alder Birch Cedar Elm Fir Hazel Larch Maple Oak Pine Rowan Spruce".split()


@pytest.mark.parametrize("golds", [True, False])
@pytest.mark.parametrize("count", [2, 12])
def test_a_name_that_was_exchanged_makes_another_question(golds, count):
    text = "What is the FY2021 operating profit (in EUR millions) of {}?"
    assert told([row(name, text.format(name), gold=1000 + 37 * k if golds else None)
                 for k, name in enumerate(FIRMS[:count])]) == []  # fmt: skip


@pytest.mark.parametrize("a, b", [
    ("What was Alder's gross margin in 2021?", "What was Alder's gross margin in 2022?"),
    ("What was Alder's gross margin in 2021?", "What was Alder's quick ratio in 2021?"),
    ("Should the loss be recognised at once under the lower of cost or market rule?",
     "Should the loss not be recognised at once under the lower of cost or market rule?"),
    ("毛利率的含义是什么？它对投资者有什么用处？", "净利率的含义是什么？它对投资者有什么用处？"),
    ("Ann got 3 letters at noon and 6 at night. How many at night?",
     "Ann got 6 letters at noon and 3 at night. How many at night?"),
])  # fmt: skip
def test_a_year_a_measure_a_negation_and_numbers_that_change_places_make_another_question(a, b):
    assert told([row("a", a), row("b", b)]) == []


def test_a_year_is_no_evidence():
    texts = ["Which division of Alder grew fastest in FY2022?", "What were the main takeovers of Birch in FY2022?",
             "Did Cedar pay a dividend for FY2022?", "What moved the gross margin of Elm in FY2022?"]  # fmt: skip
    assert told([row(text, text) for text in texts]) == []
    assert questions.content("FY2022, 2,022 and 12").numbers == {"#12.0 0"}


def test_an_instruction_that_all_rows_share_says_nothing():
    instruction = "What is the mood of this headline? Choose one of {good, bad, neither}, and give no reason."
    news = [f"{name} {event}" for name in FIRMS[:6] for event in ("soars", "slumps", "cuts outlook", "beats forecasts")]
    assert told([row(text, f"{instruction}\n\n{text}") for text in news]) == []


def test_the_same_follow_up_in_other_chats_says_nothing():
    chats = [chat(str(n), f"{name} holds {37 * n + 5} crates and ships {n + 2}. How many stay?", "Few.",
                  "Can you show me the steps?", "One less the other.") for n, name in enumerate(FIRMS)]  # fmt: skip
    assert told(chats) == [] and told(chats[:2]) == []


def test_two_questions_on_one_page_are_two_and_one_in_other_words_is_found():
    page = "\n".join(f"| {name} | {1000 + 7 * n} | {2000 + 13 * n} |" for n, name in enumerate(FIRMS))
    asked = ["What share of the total did Oak hold in 2019?", "By how much did the sum over all trees change?"]
    rows = [row(text, f"{page}\n\n{text}", gold=gold) for text, gold in zip(asked, (3.14, 271.8))]
    assert told(rows) == []
    again = row("c", f"{page}\n\nWhich share of the total was held by Oak in 2019?", gold=3.14)
    assert told([*rows, again]) == [("near duplicate", "c", asked[0], False)]


def test_pairs_of_one_prompt_are_duplicates_only_with_both_answers():
    def pair(id, rejected):
        return row(id, "A mill sells 37 sacks at 3 euros each. What does it earn?", "111.") | {"rejected": rejected}

    assert told([pair("a", "113."), pair("b", "116."), pair("c", "120.")]) == []
    assert told([pair("a", "113."), pair("b", "116."), pair("c", " 113")]) == [("exact duplicate", "c", "a", True)]
    assert pairs({"train": [pair("a", "113.")], "test": [pair("b", "116.")]}) == [("exact duplicate", "a", "b", True)]


def test_rows_of_one_conversation_are_no_duplicates_within_a_split():
    texts = [
        "What was Alder's revenue of 1,250 and 1,375 million worth in 2019?",
        "1,375.",
        "And by what share did it grow?",
    ]
    turns = [chat("a", *texts[:2], conversation="x", turn=0), chat("b", *texts, "10 %.", conversation="x", turn=1)]
    assert told(turns) == []
    assert [found[:3] for found in pairs({"train": turns[:1], "test": turns[1:]})] == [("near duplicate", "a", "b")]


# --- the same question ------------------------------------------------------------------------------------------------
LEAK = "A ferry carries 128 passengers on each of its 17 daily crossings. How many does it carry in 23 days?"
REWORDED = "On each of 17 crossings a day 128 people are on the ferry. How many passengers is that over 23 days?"


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("text", [LEAK, REWORDED])
def test_a_leak_is_found_in_whichever_turn(place, text):
    turns = [["Hello, who are you?", "A model."], ["What is a bond worth at par?", "Its face value."]]
    turns.insert(place, [text, "50,048."])
    train = [chat("a", *sum(turns, [])), chat("b", "How does a swap work?", "Two sides exchange payments.")]
    assert pairs({"train": train, "test": [row("t", LEAK, gold=50_048)]}) == [("near duplicate", "a", "t", True)]
    test = chat("t", *sum(turns, []))
    assert pairs({"train": [row("a", LEAK, gold=50_048)], "test": [test]}) == [("near duplicate", "a", "t", True)]


def test_chinese_in_other_words_and_order_is_found():
    test = [row("t", "小明买了128个苹果，每个17元，一共花了多少元？", gold=2176)]
    for text in (
        "每个苹果17元，小明一共买了128个，总共要付多少钱？",
        "小明买了１２８个苹果，每个１７元，一共花了多少元？",
    ):
        ((check, *found),) = pairs({"train": [row("a", text, gold=2176)], "test": test})
        assert found == ["a", "t", True] and check == ("exact duplicate" if "１" in text else "near duplicate")


def test_what_tools_tell_is_part_of_the_question():
    def quote(id, price):
        call = {"function": {"name": "price", "arguments": {"of": "ALD"}}}
        return row(id, "") | {"messages": [
            {"role": "user", "content": "What is my stake worth?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": json.dumps({"close": price})}, {"role": "assistant", "content": "See above."},
        ]}  # fmt: skip

    assert told([quote("a", 17.25), quote("b", 171.5)]) == []
    assert told([quote("a", 17.25), quote("b", 17.25)]) == [("exact duplicate", "b", "a", True)]


def test_words_are_stems_and_pairs_of_characters_where_no_spaces_part_them():
    assert questions.content("Annual dividends were DEPOSITED annually").words == {"annual", "dividend", "deposit"}
    assert questions.content("净利率是ABC什么").words == {"净利", "利率", "率是", "什么", "abc"}
    assert questions.content("M2 and Q3 grew by 12").numbers == {"#12.0 0"}


# --- sets of a thousand rows ------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("name", list(MADE))
def test_made_sets_without_duplicates_have_at_most_one_finding_in_a_thousand(name):
    rows, _ = MADE[name](1000, np.random.default_rng(3))
    assert len(rows) >= 900 and len(told(rows)) <= 1


@pytest.mark.parametrize("name", ["tool chats", "sums in Chinese"])
def test_planted_rewordings_with_golds_are_found_alone_and_inside_a_chat(name):
    rng = np.random.default_rng(3)
    rows, said = MADE[name](600, rng)
    for inside in (False, True):
        planted = [inside_chat(row, rng) if inside and len(row["messages"]) == 2 else row for row in said[:60]]
        leaks = {
            (f.row, f.other) for f in gate.duplicates({"train": rows[60:] + planted, "test": rows[:60]}) if f.matters
        }
        assert sum((one["id"], other["id"]) in leaks for one, other in zip(said, rows[:60])) >= 57
        assert len({one for one, _ in leaks} - {one["id"] for one in said[:60]}) <= 1


@pytest.mark.parametrize("source, file, most", [
    ("gsm8k", "gsm8k/train.jsonl", 1), ("gsm8k", "gsm8k/test.jsonl", 1), ("svamp", "svamp/test.jsonl", 3),
])  # fmt: skip
def test_published_sets_have_hardly_a_finding(published_data, source, file, most):
    lines = (published_data / file).read_text(encoding="utf-8").splitlines()[:1000]
    rows = []
    for number, line in enumerate(lines):
        try:
            rows.append(sources.PARSERS[source](json.loads(line), str(number)))
        except formats.BadRow:
            pass
    assert len(rows) >= 990 and len(told(rows)) <= most


@pytest.mark.slow
def test_findings_do_not_change_from_run_to_run(published_data):
    """Python's order of sets does."""
    program = (
        "import json, sys; from lib.data import gate, sources\n"
        "rows = [json.loads(line) for line in open(sys.argv[1])]\n"
        "rows = [sources.PARSERS['gsm8k'](row, str(n)) for n, row in enumerate(rows[:400] + rows[300:400])]\n"
        "print([(f.row, f.other, f.check) for f in gate.duplicates({'train': rows})])"
    )
    command, said = [sys.executable, "-c", program, str(published_data / "gsm8k/test.jsonl")], set()
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
        said.add(done.stdout)
    assert len(said) == 1 and "exact duplicate" in said.pop()


# --- cost -------------------------------------------------------------------------------------------------------------
def test_a_long_chat_costs_a_bounded_number_of_texts_of_bounded_length():
    long = chat("a", *(f"turn {n} " * 30_000 for n in range(100)))
    units = duplicates._units(0, long)
    assert len(units) == 1 + duplicates.MOST_TURNS
    assert sum(map(len, questions.sentences(questions.asked(long)).values())) <= questions.LONGEST


def test_a_template_of_many_rows_has_a_bounded_number_of_candidates():
    texts = duplicates._Texts(
        [row(str(n), f"How many of {n % 7 + 2} pens are left of {n % 5 + 2}?") for n in range(400)]
    )
    later = [second for _, second in duplicates._candidates(texts)]
    assert max(map(later.count, set(later))) <= duplicates.MOST_OTHERS
