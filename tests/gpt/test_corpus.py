"""The base's pretraining text: right in every mark, complete in its words, and free of the task kinds."""

import hashlib
import itertools
import os
import re
import subprocess
import sys

import pytest

from lib.data import tasks
from lib.gpt import corpus
from lib.grade.calculator import MARK, wrong_marks

WORD = re.compile(r"[A-Za-z]+(?:-[A-Za-z]+)*")


def documents(count, seed=3, stream="train"):
    return list(itertools.islice(corpus.documents(seed, stream), count))


def texts(found):
    return [text for document in found for text in ([document] if isinstance(document, str) else document)]


@pytest.fixture(scope="module")
def sample():
    return documents(5_000)


@pytest.fixture(scope="module")
def chats(sample):
    return [document for document in sample if isinstance(document, tuple)]


def test_the_text_that_the_base_was_trained_on_can_be_made_again():
    """To the letter: a draw more or in another order, or one phrase less, and all that follows is another text."""
    sha = hashlib.sha256(repr(documents(3_000, seed=0)).encode()).hexdigest()
    assert sha == "def195257dd1a1ccfa019071175ce7f23115ef00ddc3d14df18e017ba47aa3c3"


def test_the_same_seed_gives_the_same_documents_in_any_process(sample):
    assert documents(500) == sample[:500]
    code = """import hashlib, itertools; from lib.gpt import corpus
print(hashlib.sha256(repr(list(itertools.islice(corpus.documents(3), 500))).encode()).hexdigest())"""
    shas = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           env=os.environ | {"PYTHONHASHSEED": salt}).stdout for salt in "12"}  # fmt: skip
    assert len(shas) == 1


def test_other_seeds_and_streams_give_other_documents(sample):
    for others in (documents(500, seed=4), documents(500, stream="held-out")):
        assert len(set(others) & set(sample[:500])) < 0.05 * 500  # short ones may be drawn twice


def test_every_mark_is_right(sample, chats):
    assert not [wrong for text in texts(sample) for wrong in wrong_marks(text)]
    assert sum(bool(MARK.search(answer)) for _, answer in chats) > 0.3 * len(chats)
    for _, answer in chats:  # nothing half written: a mark for each of its signs
        assert answer.count("<<") == answer.count(">>") == len(MARK.findall(answer)), answer


def test_every_comparison_names_a_winner_by_the_sign_of_its_difference(chats):
    """`Iris or Maple: <<12-9=3>>, Iris.`: within an answer always the larger one, or always the smaller one."""
    compared = 0
    for question, answer in chats:
        duels = re.findall(r"(\w+) or (\w+): <<[^=]+=([^>]+)>>, (\w+)\.", answer)
        larger = {(float(difference) > 0) == (winner == a) for a, _, difference, winner in duels}
        assert len(larger) <= 1 and all(winner in (a, b) for a, b, _, winner in duels), answer
        if re.search("(?i)highest|largest|higher|larger|best", question) and "lowest" not in question:
            assert larger <= {True}, (question, answer)
        compared += len(duels)
    assert compared > 100


@pytest.mark.slow
def test_every_word_of_the_tasks_occurs_as_they_write_it():
    """In the case used: tied, frozen embeddings give LoRA no way to a token that the base never saw."""
    needed = {w for k in tasks.KINDS.values() for p in k.phrasings for w in WORD.findall(re.sub(r"{\w+}", " ", p))}
    for split in ("train", "test"):  # "daily" and "Daily": a slot at the beginning is capitalised
        for problem in tasks.generate(split, 900, 1):
            needed |= set(WORD.findall(problem.question)) | set(WORD.findall(problem.reasoning))
    assert len(needed) > 300
    written = {word for text in texts(documents(40_000)) for word in WORD.findall(text)}
    assert needed <= written, sorted(needed - written)


# --- none of the task kinds -------------------------------------------------------------------------------------------
def test_no_document_is_a_task(sample):
    for text in texts(sample):
        with pytest.raises(ValueError, match="no kind of task reads"):
            tasks.solve(text)


def test_no_answer_divides_a_return_by_a_volatility(chats):
    """Sharpe comparison and ranking: with a return and a volatility told, nothing is divided."""
    told = [
        (question, answer) for question, answer in chats
        if re.search("(?i)volatil|deviation|the risk of|moved by", question)
        and re.search("(?i)return|earn|made|brought", question)
    ]  # fmt: skip
    assert len(told) > 50
    assert not [answer for _, answer in told if "/" in answer]


def test_no_answer_compounds_a_described_deposit(chats):
    """A power is computed only where the question writes it out; no amount in dollars or percent is raised to one."""
    powers = [question for question, answer in chats if "^" in answer]
    assert powers
    assert not [question for question in powers if not re.search(r"\^|to the power of", question) or "$" in question]


def test_no_answer_finds_a_whole_drawdown(chats):
    """Running peaks and percentage falls each occur, but never together."""
    peaks = [answer for _, answer in chats if "peak <<max(" in answer]
    falls = [answer for _, answer in chats if "100*(1-" in answer]
    assert peaks and falls
    assert not [answer for answer in peaks + falls if "100*(1-" in answer and "max(" in answer]


def test_no_answer_sizes_a_position(chats):
    """Risk in money and distance to the stop each occur, but never together, nor divided by each other."""
    trades = [(question, answer) for question, answer in chats if re.search(r"\bstop\b|protective|latest", question)]
    assert trades
    assert not [answer for _, answer in trades if len(MARK.findall(answer)) > 1 or "floor" in answer]


def test_no_phrasing_that_is_held_out_stands_in_the_text(sample):
    """Six of its words in a row, whatever the case and the punctuation."""
    runs = {}
    for kind in tasks.KINDS.values():
        for phrasing in kind.phrasings[-tasks.HELD_OUT_PHRASINGS :]:
            for part in re.split(r"{\w+}", phrasing.lower()):
                words = WORD.findall(part)
                runs |= {f" {' '.join(words[i : i + 6])} ": phrasing for i in range(len(words) - 5)}
    assert len(runs) > 50
    for text in texts(sample):
        plain = f" {' '.join(WORD.findall(text.lower()))} "
        assert not [phrasing for run, phrasing in runs.items() if run in plain], text


# --- held-out problems ------------------------------------------------------------------------------------------------
def test_one_step_problems_have_exactly_one_mark():
    problems = corpus.one_step_problems(300, 0)
    assert len(problems) == 300 and corpus.one_step_problems(100, 0) == problems[:100]
    for question, answer in problems:
        assert len(MARK.findall(answer)) == 1 and not wrong_marks(answer) and "<<" not in question


def test_one_step_problems_are_not_in_the_training_text():
    trained = {document[0] for document in documents(20_000, seed=0) if isinstance(document, tuple)}
    problems = corpus.one_step_problems(300, 0)
    assert sum(question in trained for question, _ in problems) < 0.05 * 300  # "What is 2 years in months?" may recur


def test_no_answer_annualises_a_described_volatility():
    for document in itertools.islice(corpus.documents(7), 20_000):
        if isinstance(document, tuple) and (found := re.search(r"\*sqrt\((\d+)\)=", document[1])):
            assert not re.search(rf"\b{found[1]} (trading days|weeks|months|days)", document[0]), document
