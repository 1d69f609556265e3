"""Claims about what a client sees of an answer while it is written: settled text, no part of a mark or of a stop."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.front.shown import Shown

PIECES = ["<", "<<", ">", ">>", "a", "b", "=", "1+1", " ", "<<1+2=3>>", "<<b>>"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=10).map("".join)


def given_of(shown: Shown, chunks) -> list[str]:
    """What is given after each chunk, and at last what was held back; nothing is written after a stop."""
    texts = []
    for chunk in chunks:
        texts.append(shown.add(chunk))
        if shown.stopped:
            return texts
    return [*texts, shown.rest()]


def cut(text: str, places: list[int]) -> list[str]:
    edges = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[begin:end] for begin, end in zip(edges, edges[1:])]


@pytest.mark.parametrize("marks, chunks, texts", [
    ("show", ["So ", "<<", "2+3", "=", "5", ">>", " it"], ["So ", "", "", "", "", "<<2+3=5>>", " it", ""]),
    ("hide", ["So ", "<<", "2+3", "=", "5>", ">5", " it"], ["So ", "", "", "", "", "5", " it", ""]),
    (None, ["So ", "<<", "2+3", "=", "5>>"], ["So ", "<<", "2+3", "=", "5>>", ""]),
    ("show", ["a <", " b"], ["a ", "< b", ""]),  # no mark after all
    ("show", ["<", "<1<", "<2=2>", ">"], ["", "<<1", "", "<<2=2>>", ""]),
    ("hide", ["x<<1>>y<<2>>", "z"], ["xy", "z", ""]),
    ("show", ["<<>>"], ["<<>>", ""]),
])  # fmt: skip
def test_an_open_mark_is_held_back_until_it_is_filled(marks, chunks, texts):
    assert given_of(Shown(marks), chunks) == texts


def test_hidden_marks_are_kept_in_their_order():
    shown = Shown("hide")
    assert "".join(given_of(shown, ["So <<2+", "3=5>>5 and <<4*25", "=100>>100"])) == "So 5 and 100"
    assert shown.hidden == ["<<2+3=5>>", "<<4*25=100>>"]


@pytest.mark.parametrize("marks", ["show", "hide"])
def test_an_open_mark_is_given_where_the_answer_ends_in_it_or_none_is_that_long(marks):
    assert given_of(Shown(marks), ["So <<2+3"]) == ["So ", "<<2+3"]
    assert given_of(Shown(marks), ["<<" + "1" * 300, "1"]) == ["", "<<" + "1" * 301, ""]


@pytest.mark.parametrize("stops, chunks, texts", [
    (["three"], ["one ", "two three four"], ["one ", "two "]),
    (["o th"], ["one tw", "o t", "hree"], ["one tw", "", ""]),  # over the borders of what is written
    (["o th"], ["one tw", "o t", "en"], ["one tw", "", "o ten", ""]),  # begun, and no stop after all
    (["\n\n"], ["a\n", "b\n", "\nc"], ["a", "\nb", ""]),
    (["d", "c", "b"], ["abcd"], ["a"]),  # the first in the text, not in the list
    (["aab"], ["a", "a", "a", "b"], ["", "", "a", ""]),
    (["end"], ["it en"], ["it ", "en"]),
    (["="], ["a <<1+1=2>>"], ["a <<1+1"]),
])  # fmt: skip
def test_nothing_is_shown_of_a_text_that_stops_the_answer(stops, chunks, texts):
    shown = Shown("show", stops)
    assert given_of(shown, chunks) == texts
    assert shown.stopped == any(stop in "".join(chunks) for stop in stops)


@pytest.mark.parametrize("chunks", [["So <<2+3=5>>5."], ["So <<2", "+", "3=", "5>", ">5."]])
def test_a_stop_within_a_hidden_mark_is_none_of_the_text_and_ends_nothing(chunks):
    shown = Shown("hide", ["+"])
    assert "".join(given_of(shown, chunks)) == "So 5."
    assert (shown.hidden, shown.stopped) == (["<<2+3=5>>"], False)


def test_a_stop_is_found_around_a_hidden_mark():
    shown = Shown("hide", ["ab"])
    assert "".join(given_of(shown, ["xa<<1=1>>", "b"])) == "x" and shown.stopped


@settings(max_examples=150, deadline=None, derandomize=True)
@given(TEXTS, st.lists(st.integers(0, 60), max_size=8), st.sampled_from(["show", "hide", None]),
       st.sampled_from([[], ["ab"], [" <", "ba"], [">>>"]]))  # fmt: skip
def test_what_is_shown_does_not_depend_on_how_it_was_cut_when_it_was_written(text, places, marks, stops):
    whole, parts = Shown(marks, stops), Shown(marks, stops)
    assert "".join(given_of(whole, [text])) == "".join(given_of(parts, cut(text, places)))
    assert (whole.hidden, whole.stopped) == (parts.hidden, parts.stopped)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(TEXTS, st.lists(st.integers(0, 60), max_size=8))
def test_a_stream_shows_a_whole_mark_at_once(text, places):
    pieces = given_of(Shown("show"), cut(text, places))
    assert "".join(pieces) == text
    borders = {sum(map(len, pieces[:count])) for count in range(len(pieces) + 1)}
    inside = {place for mark in re.finditer(r"<<[^<>]{1,300}>>", text) for place in range(mark.start() + 1, mark.end())}
    assert not borders & inside
