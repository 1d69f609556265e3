"""Documents of files and folders, read one at a time; what is bad is named with its place."""

import gzip
import json
import os
import tracemalloc

import pytest

from lib.data import texts
from lib.run import untrusted


def test_a_news_file_is_parted_at_its_article_lines(tmp_path):
    path = tmp_path / "news.txt"
    path.write_text("Article 1:\nRates rose.\nA lot.\n\nArticle 2:\nRates fell.\nArticle 3:\n\n", encoding="utf-8")
    assert list(texts.documents(path)) == ["Rates rose.\nA lot.", "Rates fell."]


def test_a_folder_gives_its_text_and_json_files_in_order(tmp_path):
    (tmp_path / "b.txt").write_text("second", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"text": " first "}\n{"text": ""}\n', encoding="utf-8")
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": "third", "id": 3}) + "\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert list(texts.documents(tmp_path)) == ["first", "second", "third"]


@pytest.mark.parametrize("name, content, says", [
    ("a.jsonl", b'{"text": "fine"}\n{"body": "none"}\n', "a.jsonl:2: "),
    ("a.jsonl", b"[1]\n", "a.jsonl:1: "), ("a.jsonl", b"not json\n", "a.jsonl:1: "),
    ("a.txt", b"fine\n\xff\xfe", "is not UTF-8"), ("a.csv", b"x", "holds no .txt"),
])  # fmt: skip
def test_text_that_cannot_be_read_is_named_with_its_place(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(texts.CorpusError, match=says):
        list(texts.documents(tmp_path))


def test_text_that_cannot_be_read_may_be_told_instead_and_the_rest_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n{"txt": "x"}\n' + b"[" * 99_999 + b'\n{"text": "two"}\n')
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "c.txt").write_text("three")
    rejected = []
    assert list(texts.documents(tmp_path, rejected)) == ["one", "two", "three"]
    places = [bad["place"].rpartition("/")[2] for bad in rejected]
    assert places == ["a.jsonl:2", "a.jsonl:3", "b.txt"] and "UTF-8" in rejected[2]["reason"]


def test_a_line_or_an_article_of_any_length_is_told_and_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(untrusted, "LONGEST_LINE", 1 << 20)
    (tmp_path / "a.jsonl").write_text(f'{{"text": "one"}}\n{{"text": "{"x" * (16 << 20)}"}}\n{{"text": "two"}}\n')
    (tmp_path / "b.txt").write_text(f"three\nArticle 1:\n{'x' * (16 << 20)}\nArticle 2:\nfour\n")
    (tmp_path / "c.txt").write_text("Article 1:\n" + (99 * "line " + "\n") * (1 << 15) + "Article 2:\r\nfive\r\nsix")
    rejected = []
    tracemalloc.start()
    found = list(texts.documents(tmp_path, rejected))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == ["one", "two", "three", "four", "five\nsix"] and most < 6 << 20
    told = [(bad["place"].rpartition("/")[2], bad["reason"][:20]) for bad in rejected]
    assert told == [("a.jsonl:2", "is longer than 1 MiB"), *((f"{name}", "begins a text of ove") for name in
                                                             ("b.txt:2", "c.txt:1"))]  # fmt: skip
    with pytest.raises(texts.CorpusError, match="c.txt:1: begins a text of over 1 MiB: part it by lines `Article N:`"):
        list(texts.documents(tmp_path / "c.txt"))


def test_a_folder_is_no_text_and_a_pipe_is_not_waited_for(tmp_path):
    (tmp_path / "a.txt").mkdir()
    (tmp_path / "a.txt" / "b.txt").write_text("inside")
    assert list(texts.documents(tmp_path)) == ["inside"]
    for name in ("p.jsonl", "p.jsonl.gz"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(untrusted.UntrustedError, match=f"{name} is no file"):
            list(texts.documents(tmp_path))
        (tmp_path / name).unlink()


def test_half_a_character_in_a_text_is_told(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "\\ud800"}\n')
    with pytest.raises(texts.CorpusError, match="a.jsonl:1: "):
        list(texts.documents(tmp_path))


def test_an_absent_path_is_named(tmp_path):
    with pytest.raises(texts.CorpusError, match="nowhere: no such file"):
        list(texts.documents(tmp_path / "nowhere"))


def test_a_share_of_the_documents_is_held_out_whatever_their_order():
    every = [f"document {n}" for n in range(4000)]
    out = [text for text in every if texts.held_out(text, 5)]
    assert 0.03 < len(out) / len(every) < 0.07
    assert set(out) == {text for text in reversed(every) if texts.held_out(text, 5)}
    assert set(out) <= {text for text in every if texts.held_out(text, 10)}
