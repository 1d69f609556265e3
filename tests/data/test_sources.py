"""Every source as rows of one schema: splits by group, each way a record can be bad, mixtures, the published files."""

import csv
import gzip
import json
import re
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import pytest

from lib.data import formats, gate, sources, tasks
from lib.grade import scoring
from lib.run import presets, untrusted
from lib.run.paths import ROOT
from lib.run.runs import read_rows
from lib.run.settings import FROM_HUB, SOURCES

GOOD = [
    {"question": f" Ann has {n} pens and buys one. How many? ",
     "answer": f"{n}+1 = <<{n}+1={n + 1}>>{n + 1}\n#### {n + 1}"}
    for n in range(200)
]  # fmt: skip


def settings_for(folder, **overrides):
    local = {"data_dir": str(folder), "base_model": "data/base", "chat_template": None}
    return presets.resolve("llama32_3b_gsm8k", local | overrides).settings


def load(settings, split):
    """(rows, rejected records, files) of one split."""
    return sources.load(settings, [split])[split][:3]


def write(folder, lines, split="train"):
    """A source's file; a line is a row, or raw bytes."""
    folder.mkdir(exist_ok=True)
    content = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (folder / f"{split}.jsonl").write_bytes(b"\n".join(content) + b"\n")


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "gsm8k", GOOD)
    write(tmp_path / "gsm8k", GOOD[:30], "test")
    return tmp_path


# --- good rows --------------------------------------------------------------------------------------------------------
def test_a_good_row_has_the_schema_with_its_marks_kept(folder):
    rows, rejected, files = load(settings_for(folder), "train")
    assert (len(rows), rejected, files) == (200, [], [folder / "gsm8k/train.jsonl"])
    assert rows[4] == {
        "id": "gsm8k-train.jsonl:5", "source": "gsm8k", "kind": "grade school",
        "messages": [{"role": "user", "content": "Ann has 4 pens and buys one. How many?"},
                     {"role": "assistant", "content": "4+1 = <<4+1=5>>5\n#### 5"}],
        "gold": {"value": 5.0, "unit": "count"}, "group": "gsm8k-train.jsonl:5",
    }  # fmt: skip
    assert json.loads(json.dumps(list(rows))) == rows and rows[-2:] == list(rows)[-2:]


@pytest.mark.parametrize("shown, value, unit", [
    ("18", 18, "count"), ("-3", -3, "count"), ("1,234,567", 1_234_567, "count"), ("2.50", 2.5, "none"),
    ("7.0", 7, "count"),
])  # fmt: skip
def test_golds_are_read_with_sign_separators_and_decimals(tmp_path, shown, value, unit):
    write(tmp_path / "gsm8k", [{"question": "q", "answer": f"so\n#### {shown} "}])
    (row,), _, _ = load(settings_for(tmp_path), "train")
    assert row["gold"] == {"value": value, "unit": unit}
    assert scoring.grade(row["messages"][1]["content"], row["gold"]).correct


def test_a_folder_of_the_files_alone_will_do(tmp_path):
    write(tmp_path, GOOD[:3])
    rows, _, files = load(settings_for(tmp_path), "train")
    assert len(rows) == 3 and files == [tmp_path / "train.jsonl"]


@pytest.mark.parametrize(("source", "names", "train", "test"), [
    ("finqa", ["train", "dev", "test"], "train", "test"), ("finqa", ["train", "dev"], "train", "dev"),
    ("tatqa", ["tatqa_dataset_train", "tatqa_dataset_dev", "tatqa_dataset_test_gold"], "tatqa_dataset_train",
     "tatqa_dataset_test_gold"),
    ("tatqa", ["tatqa_dataset_train", "tatqa_dataset_dev"], "tatqa_dataset_train", "tatqa_dataset_dev"),
    ("convfinqa", ["train", "dev", "test", "train_turn", "dev_turn", "test_turn"], "train", "dev"),
    ("convfinqa", ["train_turn", "dev_turn", "test_turn"], "train_turn", "dev_turn"),
    ("convfinqa", ["train", "test"], "train", "test"), ("gsm8k", ["train", "dev", "test"], "train", "test"),
])  # fmt: skip
def test_published_files_are_found_under_their_own_names(tmp_path, source, names, train, test):
    for name in names:
        (tmp_path / f"{name}.json").write_text(json.dumps([EXAMPLES[source]] * 2))
    loaded = sources.load(settings_for(tmp_path, source=source, validation_rows=0, test_rows=None, train_rows=None))
    assert [loaded[split].files for split in ("train", "test")] == [[tmp_path / f"{n}.json"] for n in (train, test)]


def test_counts_are_cut_and_blank_lines_keep_the_line_numbers(tmp_path):
    write(tmp_path / "gsm8k", [b"", GOOD[0], b"  ", *GOOD[1:9]])
    rows, rejected, _ = load(settings_for(tmp_path, train_rows=2), "train")
    assert [row["id"] for row in rows] == ["gsm8k-train.jsonl:2", "gsm8k-train.jsonl:4"] and not rejected


def test_training_and_validation_are_disjoint_and_validation_is_the_files_end(folder):
    settings = settings_for(folder, train_rows=500, validation_rows=20, test_rows=10)
    rows = {split: load(settings, split)[0] for split in ("train", "validation", "test")}
    assert {split: len(found) for split, found in rows.items()} == {"train": 180, "validation": 20, "test": 10}
    assert not {r["id"] for r in rows["train"]} & {r["id"] for r in rows["validation"]}
    assert rows["validation"][-1]["id"] == "gsm8k-train.jsonl:200"
    assert load(settings_for(folder, validation_rows=0), "validation")[0] == []


def test_a_file_is_parsed_once_for_all_its_splits(folder, monkeypatch):
    parsed, stream = [], sources.stream
    monkeypatch.setattr(sources, "stream", lambda *given: parsed.append(given[1]) or stream(*given))
    settings = settings_for(folder, train_rows=100, validation_rows=20, test_rows=10)
    loaded = sources.load(settings)
    assert parsed == [folder / "gsm8k/train.jsonl", folder / "gsm8k/test.jsonl"]
    assert {split: len(part.rows) for split, part in loaded.items()} == {
        "train": 100, "validation": 20, "test": 10, "test_seen": 0
    }  # fmt: skip
    for split, part in loaded.items():
        assert part == sources.load(settings, [split])[split]
    parsed.clear()
    sources.load(own(folder / "gsm8k/train.jsonl", validation_rows=5, test_rows=5))
    mixed_splits = sources.load(mixed(folder, "gsm8k, quant_tasks:24", kinds="CAGR", train_rows=10, test_rows=10))
    assert parsed == [folder / f"gsm8k/{name}.jsonl" for name in ("train", "train", "test")]
    assert mixed_splits["train"].files == [folder / "gsm8k/train.jsonl"]


# --- bad rows ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bad, reason", [
    (b'{"question": "q", "ans', "not JSON"),
    (b'{"question": "\xff", "answer": "#### 1"}', "not JSON"),
    (b'["q", "#### 1"]', "is no object with fields, but list"),
    (b"null", "is no object with fields, but NoneType"),
    ({"answer": "#### 1"}, "field 'question' is missing, empty or no text"),
    ({"question": "  ", "answer": "#### 1"}, "field 'question' is missing, empty or no text"),
    ({"question": ["q"], "answer": "#### 1"}, "field 'question' is missing, empty or no text"),
    ({"question": "q"}, "field 'answer' is missing, empty or no text"),
    ({"question": "q", "answer": 5}, "field 'answer' is missing, empty or no text"),
    ({"question": "q", "answer": "It is 5."}, "field 'answer' does not end with '#### ' and a number"),
    ({"question": "q", "answer": "#### five"}, "field 'answer' does not end with '#### ' and a number"),
    ({"question": "q", "answer": "#### 5 pens"}, "field 'answer' does not end with '#### ' and a number"),
])  # fmt: skip
def test_a_bad_row_is_rejected_with_its_file_line_and_reason(tmp_path, bad, reason):
    write(tmp_path / "gsm8k", [*GOOD[:6], bad, *GOOD[6:]])
    rows, (rejected,), _ = load(settings_for(tmp_path), "train")
    assert rejected["place"] == "train.jsonl:7" and reason in rejected["reason"]
    assert len(rows) == len(GOOD) and all(row["id"] != "gsm8k-train.jsonl:7" for row in rows)


def test_too_many_bad_rows_stop_it_and_the_first_is_named(tmp_path):
    bad = {"question": "q", "answer": "none"}
    write(tmp_path / "gsm8k", [*GOOD[:98], bad, GOOD[98]])
    assert len(load(settings_for(tmp_path), "train")[1]) == 1  # 1 of 100 is no more than 1 %
    write(tmp_path / "gsm8k", [GOOD[0], bad, *GOOD[1:98], bad])
    with pytest.raises(sources.SourceError, match=r"2 of 100 rows are bad, the first at train\.jsonl:2: .*'answer'"):
        load(settings_for(tmp_path), "train")


def test_a_missing_file_names_every_place_tried(tmp_path):
    with pytest.raises(sources.SourceError) as caught:
        load(settings_for(tmp_path), "train")
    for path in (tmp_path / "gsm8k/train.jsonl", tmp_path / "train.jsonl"):
        assert str(path) in str(caught.value)


def test_read_rows_gives_back_what_a_stage_wrote(tmp_path):
    write(tmp_path, [{"id": "1", "text": "é"}, {"id": "2"}])
    assert read_rows(tmp_path / "train.jsonl") == [{"id": "1", "text": "é"}, {"id": "2"}]
    assert read_rows(tmp_path / "train.jsonl", limit=1) == [{"id": "1", "text": "é"}]
    (tmp_path / "test.jsonl").write_text('{"gold": null}\n{"gold": {"value": 1}}\n{"gold": {"value": 2}}\n')
    assert read_rows(tmp_path / "test.jsonl", 1, gold=True) == [{"gold": {"value": 1}}]


KINDS_OF_BAD = {  # 20 ways in which a line can be no row of GSM8K, and what is said of it
    b'{"question": "q", "ans': "not JSON", b"question,answer": "not JSON", b'{"question": "q"} {}': "not JSON",
    b"[" * 100_000: "not JSON", b'{"question": "\xff\xfe", "answer": "#### 1"}': "not JSON", b"\x00\x01": "not JSON",
    '{"question": "q"}'.encode("utf-16"): "not JSON", b"9" * 5000: "not JSON", b"[1, 2]": "but list",
    b"true": "but bool", b'"text"': "but str", b"NaN": "but float", b"{}": "'question' is missing",
    b'{"question": "", "answer": "#### 1"}': "'question' is missing, empty",
    b'{"question": {"a": 1}, "answer": "#### 1"}': "'question' is missing, empty or no text",
    b'{"question": "q", "answer": null}': "'answer' is missing",
    b'{"question": "q", "answer": "one"}': "does not end with",
    b'{"question": "\\ud800", "answer": "#### 1"}': "not UTF-8",
    b'{"question": "q", "answer": "#### ' + b"9" * 400 + b'"}': "does not end with",
    b'{"question": "' + b"q" * (1 << 20) + b'"}': "longer than 0 MiB",
}  # fmt: skip


def test_a_thousand_bad_lines_of_twenty_kinds_are_each_rejected_with_their_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "REJECTED_SHARE", 1.0)
    monkeypatch.setattr(untrusted, "LONGEST_LINE", 1 << 19)
    bad = list(KINDS_OF_BAD) * 50
    write(tmp_path, [GOOD[0], *bad, GOOD[1]])
    rows, rejected, _ = load(settings_for(tmp_path), "train")
    assert [row["id"] for row in rows] == ["gsm8k-train.jsonl:1", "gsm8k-train.jsonl:1002"]
    assert len(KINDS_OF_BAD) == 20 and len(rejected) == 1000
    for number, (line, told) in enumerate(zip(bad, rejected, strict=True), 2):
        assert told["place"] == f"train.jsonl:{number}" and KINDS_OF_BAD[line] in told["reason"], (line[:80], told)
    json.dumps(rejected, ensure_ascii=False).encode()


def test_a_line_of_50_mb_is_told_and_never_in_memory_at_once(tmp_path):
    with open(tmp_path / "train.jsonl", "wb") as file:
        file.write(json.dumps(GOOD[0]).encode() + b'\n{"question": "')
        for _ in range(50):
            file.write(b"q" * (1 << 20))
        file.write(b'"}\n' + json.dumps(GOOD[1]).encode())
    rejected = []
    rows = list(sources.stream(settings_for(tmp_path), tmp_path / "train.jsonl", rejected))
    assert rejected == [{"place": "train.jsonl:2", "reason": "longer than 16 MiB"}]
    assert [row["id"] for row in rows] == ["gsm8k-train.jsonl:1", "gsm8k-train.jsonl:3"]


STREAM = """
import resource, sys
from pathlib import Path
from lib.data import sources
from lib.run import presets
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
path = Path(sys.argv[1])
local = {"data_dir": str(path), "base_model": "data/base", "chat_template": None, "train_rows": None}
settings, before = presets.resolve("llama32_3b_gsm8k", local).settings, peak()
count = sum(1 for _ in sources.stream(settings, path, []))
streamed = peak()
rows = sources.load(settings, ["train"])["train"].rows
print(count, len(rows), streamed - before, peak() - before)
"""


@pytest.mark.slow
def test_streaming_keeps_no_rows_and_a_million_loaded_short_ones_would_take_1_5_gigabytes(tmp_path):
    question, path = "How many pens are on the desk when Ann has put hers there? " * 2, tmp_path / "train.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        lines = ({"question": f"{n} {question}", "answer": f"#### {n}"} for n in range(100_000))
        file.writelines(json.dumps(line) + "\n" for line in lines)
    done = subprocess.run([sys.executable, "-c", STREAM, str(path)], capture_output=True, text=True, check=True,
                          cwd=ROOT)  # fmt: skip
    count, kept, streamed, loaded = map(float, done.stdout.split())
    assert (count, kept) == (100_000, 100_000 - 1319)  # the test's rows come from the same file
    assert streamed < 8, f"{streamed} MiB to stream 100,000 rows"
    assert loaded < 143, f"{loaded} MiB to load 100,000 rows"


# --- files, splits by group -------------------------------------------------------------------------------------------
def own(path, **overrides):
    return settings_for(path, source="own", **{"validation_rows": 0, "test_rows": 1} | overrides)


def test_the_same_rows_come_from_jsonl_gzip_json_and_csv(tmp_path):
    records = [{"Prompt": f"Sum of {n}, and\n{n}?", "Reply": f"{2 * n}", "page": f"p{n // 2}"} for n in range(6)]
    lines = "\n".join(map(json.dumps, records)).encode()
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "a.json").write_text(json.dumps(records))
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8-sig") as file:
        table = csv.DictWriter(file, records[0])
        table.writeheader()
        table.writerows(records)
    columns, found = ("question=Prompt", "answer=Reply", "group=page"), []
    for name in ("a.jsonl", "a.jsonl.gz", "a.json", "a.csv"):
        rows, rejected, files = load(own(tmp_path / name, columns=columns), "train")
        assert files == [tmp_path / name] and rejected == []
        found.append([(row["messages"], row["gold"], row["group"]) for row in rows])
    assert found[0] == found[1] == found[2] == found[3] and len(found[0]) == 4, "the test's row took its page with it"
    assert rows[1]["id"] == "own-a.csv:5" and rows[1]["messages"][1]["content"] == "#### 2"


def test_golds_of_your_own_come_without_an_answer_to_learn(tmp_path):
    rows = [{"q": f"{n} and {n}?", "g": gold} for n, gold in enumerate(["$1,243", 7, "#### 12 %", "none"])]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    settings = own(tmp_path / "a.json", columns=("question=q", "gold=g"), trainer="rft", test_rows=1)
    with pytest.raises(sources.SourceError, match="field 'g' is no number, nor does it end with '#### '"):
        load(settings, "train")
    (tmp_path / "a.json").write_text(json.dumps(rows[:3]))
    found, rejected, _ = load(settings, "train")
    assert [row["messages"][1]["content"] for row in found] == ["#### $1,243", "#### 7"] and not rejected
    assert [row["gold"]["value"] for row in found] == [1243, 7] and not any(map(formats.is_worked, found))


def test_rows_are_skipped_and_keep_but_their_golds():
    whole, _, _ = load(presets.resolve("demo", {"train_rows": 12}).settings, "train")
    changes = {"train_rows": 7, "skip_rows": 5, "golds_only": True, "trainer": "rft"}
    rest, _, _ = load(presets.resolve("demo", changes).settings, "train")
    assert [row["id"] for row in rest] == [row["id"] for row in whole[5:]]
    for bare, row in zip(rest, whole[5:], strict=True):
        assert not formats.is_worked(bare) and formats.is_worked(row) and bare["gold"] == row["gold"]
        assert bare["messages"][0] == row["messages"][0]
        text = bare["messages"][1]["content"]
        assert text == row["messages"][1]["content"].splitlines()[-1] and scoring.grade(text, row["gold"]).correct


@pytest.mark.parametrize(("line", "reason"), [
    ("q,a,extra\n", "more cells than the header"), ("q\n", "field 'answer' is missing"), (",a\n", "field 'question'"),
    ('"q"x,a\n', "not CSV"), ("q,\udcff\n", "field 'answer' is not UTF-8"),
    (f"q,{'a' * (1 << 20)}b\n", "not CSV: field larger"),
    (f"q,{'a' * (17 << 20)}\n", "not CSV: longer than 16 MiB"),
], ids=["long", "short", "empty", "quote", "bytes", "cell", "line"])  # fmt: skip
def test_bad_rows_of_a_table_are_told_and_the_next_row_is_read(tmp_path, monkeypatch, line, reason):
    monkeypatch.setattr(sources, "REJECTED_SHARE", 1.0)
    content = "question,answer\n1,1\n" + line + "2,2\n3,3\n"
    (tmp_path / "my.csv").write_bytes(content.encode("utf-8", "surrogateescape"))
    rows, (rejected,), _ = load(own(tmp_path / "my.csv"), "train")
    assert rejected["place"] == "my.csv:3" and reason in rejected["reason"]
    assert [row["id"] for row in rows] == ["own-my.csv:2", "own-my.csv:4"]


def test_one_file_is_split_by_its_groups_and_every_row_is_in_one_split_or_none(tmp_path):
    records = [{"question": f"q{n}", "answer": str(n), "group": f"page {n % 7}"} for n in range(70)]
    write(tmp_path, records)
    settings = own(tmp_path, validation_rows=12, test_rows=15)
    train, validation, test = (
        Counter(row["group"] for row in load(settings, split)[0]) for split in ("train", "validation", "test")
    )
    assert not train.keys() & test.keys() and not train.keys() & validation.keys()
    assert not validation.keys() & test.keys()
    assert [part.total() for part in (train, validation, test)] == [30, 12, 15]
    assert all(count == 10 for count in train.values()), "a page in training is there with all its rows"


def test_without_test_rows_a_share_of_one_file_is_held_out(tmp_path):
    write(tmp_path, [{"question": f"q{n}", "answer": str(n), "group": f"page {n // 2}"} for n in range(70)])
    tenth = own(tmp_path, validation_rows=0, test_rows="none", held_out_percent=10)
    train, test = ({row["group"] for row in load(tenth, split)[0]} for split in ("train", "test"))
    assert (len(train), len(test)) == (31, 4) and not train & test  # 7 rows are asked for, 8 make whole pages


def test_a_file_that_cannot_hold_all_splits_says_so(tmp_path):
    write(tmp_path, [{"question": "q", "answer": "1", "group": "all in one"}] * 5)
    with pytest.raises(sources.SourceError, match=r"test_rows = 1 leave nothing to train on \(5 rows in 1 groups\)"):
        load(own(tmp_path), "train")
    write(tmp_path / "svamp", [{"question": "q"}], "test")
    with pytest.raises(sources.SourceError, match="no svamp rows: looked for .*train.jsonl.*one file"):
        load(settings_for(tmp_path / "svamp", source="svamp"), "train")


def test_bad_records_are_told_once_over_the_splits_of_a_file(tmp_path):
    write(tmp_path, [*({"question": f"q{n}", "answer": "1"} for n in range(200)), {"question": "q"}])
    settings = own(tmp_path, validation_rows=5)
    assert [len(load(settings, split)[1]) for split in ("train", "validation", "test")] == [1, 0, 0]


@pytest.mark.parametrize(("content", "reason"), [(b'{"rows": []}', "holds no list"), (b"[1,", "is not JSON")])
def test_a_json_file_that_is_no_list_is_refused(tmp_path, content, reason):
    (tmp_path / "train.json").write_bytes(content)
    with pytest.raises(sources.SourceError, match=f"train.json: {reason}"):
        load(own(tmp_path), "train")


# --- mixtures ---------------------------------------------------------------------------------------------------------
def mixed(folder, mixture, **overrides):
    counts = {"train_rows": "none", "validation_rows": 0, "test_rows": 20}
    return settings_for(folder, source="mixture", mixture=mixture, **counts | overrides)


@pytest.fixture
def two(tmp_path):
    """200 rows of gsm8k (30 to test) beside 60 of your own (10 of them to test)."""
    write(tmp_path / "gsm8k", GOOD)
    write(tmp_path / "gsm8k", GOOD[:30], "test")
    write(tmp_path / "own", [{"question": f"q{n}", "answer": str(n)} for n in range(50)])
    write(tmp_path / "own", [{"question": f"t{n}", "answer": str(n)} for n in range(10)], "test")
    return tmp_path


@pytest.mark.parametrize(("mixture", "train_rows", "gsm8k", "own_rows"), [
    ("gsm8k, own", None, 200, 50), ("gsm8k, own", 100, 80, 20), ("gsm8k:40, own", None, 40, 50),
    ("gsm8k=1, own=1", None, 50, 50), ("gsm8k=3, own=1", None, 150, 50), ("gsm8k=3, own=1", 100, 75, 25),
    ("gsm8k=1:30, own=2", None, 25, 50), ("gsm8k=9, own=.5", None, 200, 11),
])  # fmt: skip
def test_a_mixture_keeps_its_weights_and_caps_and_repeats_nothing(two, mixture, train_rows, gsm8k, own_rows):
    rows, _, files = load(mixed(two, mixture, train_rows=train_rows or "none"), "train")
    assert Counter(row["source"] for row in rows) == {"gsm8k": gsm8k, "own": own_rows}
    assert len({row["id"] for row in rows}) == len(rows) and len(files) == 2
    half = Counter(row["source"] for row in rows[: len(rows) // 2])
    assert abs(half["own"] - own_rows / 2) <= 1, "the sources are interleaved evenly"


def test_a_mixtures_test_asks_each_source_in_the_ratio_of_what_it_has(two):
    rows, _, _ = load(mixed(two, "gsm8k=1, own=9"), "test")
    assert Counter(row["source"] for row in rows) == {"gsm8k": 13, "own": 6}  # of 20 and 10 rows, 20 at most
    assert load(mixed(two, "gsm8k, own"), "validation")[0] == []


def test_generated_tasks_can_be_in_a_mixture(two):
    settings = SimpleNamespace(**vars(mixed(two, "gsm8k, quant_tasks:24", train_rows=60, kinds="CAGR, beta")))
    rows, _, _ = load(settings, "train")
    assert Counter(row["source"] for row in rows) == {"gsm8k": 53, "quant_tasks": 6}  # of 200 and 24, 60 at most
    assert {row["kind"] for row in rows if row["source"] == "quant_tasks"} == {"CAGR", "beta"}
    assert len(load(settings, "test_seen")[0]) == 4


def test_every_source_that_the_settings_name_can_be_read():
    assert {*sources.PARSERS, "own", "quant_tasks"} == set(SOURCES)
    assert sources.HUB.keys() == set(FROM_HUB)


# --- the hub ----------------------------------------------------------------------------------------------------------
def test_the_hub_is_asked_for_the_pinned_revision(monkeypatch):
    asked = []

    def load_dataset(repository, configuration, split, revision):
        asked.append((repository, configuration, split, revision))
        return [{"Body": "Two figs.", "Question": "How many?", "Equation": "( 1.0 + 1.0 )", "Answer": "2"}] * 3

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    hub = {"base_model": "data/base", "chat_template": None, "source": "svamp", "dataset_revision": "abc"}
    rows, rejected, files = load(presets.resolve("llama32_3b_gsm8k", hub).settings, "train")
    assert set(asked) == {("ChilleD/SVAMP", None, "train", "abc")} and (rejected, files) == ([], [])
    assert [row["id"] for row in rows] == ["svamp-train:1", "svamp-train:2", "svamp-train:3"]
    part = {"source": "mixture", "mixture": "svamp@def", "dataset_revision": None}
    load(presets.resolve("llama32_3b_gsm8k", hub | part).settings, "test")
    assert asked[-1] == ("ChilleD/SVAMP", None, "test", "def")


# --- the real thing ---------------------------------------------------------------------------------------------------
def test_published_gsm8k_gives_all_its_rows_and_their_golds(published_data):
    settings, rows = settings_for(published_data), {}
    for split, count in (("train", 7473), ("test", 1319)):
        rows[split], rejected, _ = load(settings, split)
        assert len(rows[split]) == count and rejected == []
        lines = (published_data / f"gsm8k/{split}.jsonl").read_text(encoding="utf-8").splitlines()
        for row, line in zip(rows[split], lines, strict=True):
            shown = json.loads(line)["answer"].rpartition("####")[2].strip()
            assert row["gold"]["value"] == float(re.sub(",", "", shown))
    assert "exact duplicate" not in {finding.check for finding in gate.duplicates(rows)}


def test_published_svamp_gives_all_rows_but_the_one_with_a_wrong_equation(published_data):
    path = published_data / "svamp/test.jsonl"
    rows, rejected, _ = load(settings_for(path, source="svamp", train_rows="none", test_rows=1), "train")
    assert len(rows) == 998 and [bad["place"] for bad in rejected] == ["test.jsonl:680"]
    answers = [json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row["gold"]["value"] for row in rows] == answers[:679] + answers[680:-1]
    assert all(scoring.grade(row["messages"][1]["content"], row["gold"]).correct for row in rows)


def test_published_minutes_are_read_as_pretraining_reads_them(published_data):
    from lib.data import texts

    path = published_data / "fomc_minutes/sample24.jsonl"
    rejected: list = []
    rows = list(sources.stream(settings_for(path, source="corpus", max_length=512), path, rejected))
    documents = list(texts.documents(path))
    assert len({row["group"] for row in rows}) == len(documents) == 24
    assert {bad["reason"] for bad in rejected} <= {"field 'text' has fewer than six words"} and len(rejected) < 9
    texts = ["".join(message["content"] for message in row["messages"]) for row in rows]
    kept, all_there_is = (sum(len("".join(text.split())) for text in found) for found in (texts, documents))
    assert all_there_is - 40 * len(rejected) <= kept <= all_there_is
    assert sum(len(text) > 1024 for text in texts) < 0.05 * len(rows), "a sentence is seldom longer than a block"


def test_quant_tasks_come_in_the_counts_asked_for():
    counts = {"train_rows": 60, "validation_rows": 12, "test_rows": 30}
    settings = presets.resolve("demo", counts | {"data_seed": 4}).settings
    rows = {split: load(settings, split) for split in ("train", "validation", "test", "test_seen")}
    assert [len(found) for found, _, _ in rows.values()] == [60, 12, 30, 6]
    assert all(rejected == [] and files == [] for _, rejected, files in rows.values())
    assert presets.PRESETS["demo"].settings.train_rows == 900
    again, _, _ = load(presets.resolve("demo", counts | {"data_seed": 5}).settings, "train")
    assert again != rows["train"][0]


def test_kinds_are_the_demos_unless_some_or_all_are_named():
    counts = {"train_rows": 40, "validation_rows": 0, "test_rows": 19}

    def kinds(split, **named):
        return {row["kind"] for row in load(presets.resolve("demo", counts | named).settings, split)[0]}

    assert kinds("train") == kinds("test") == set(tasks.DEMO_KINDS)
    assert kinds("train", kinds="CAGR, beta") == kinds("test", kinds=["CAGR", "beta"]) == {"CAGR", "beta"}
    assert kinds("train", kinds="all") == kinds("test", kinds=("all",)) == set(tasks.KINDS)


@pytest.mark.slow
def test_more_rows_than_there_are_questions_is_refused_by_name():
    settings = presets.resolve("demo", {"kinds": "volatility annualisation", "validation_rows": 20_000}).settings
    with pytest.raises(sources.SourceError, match="validation_rows = 20000: no .* different questions of 'volatility"):
        load(settings, "validation")


@pytest.mark.parametrize("bad", [
    b'{"question": "q", "answer": "#### ,"}', b'{"question": "q", "answer": "#### -,"}', b"[" * 100_000,
    b'{"question": "q", "answer": "#### ' + b"9" * 400 + b'"}',
])
def test_a_gold_that_is_no_number_is_rejected(tmp_path, bad):
    good = [json.dumps({"question": f"q{i}", "answer": "#### 1"}).encode() for i in range(200)]
    (tmp_path / "train.jsonl").write_bytes(b"\n".join([bad, *good]))
    local = {"data_dir": str(tmp_path), "base_model": "data/base", "chat_template": None}
    rows, (rejected,), _ = load(presets.resolve("llama32_3b_gsm8k", local).settings, "train")
    assert rejected["place"] == "train.jsonl:1" and len(rows) == 200

def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b"")
    local = {"data_dir": str(tmp_path), "base_model": "data/base", "chat_template": None}
    with pytest.raises(sources.SourceError):
        load(presets.resolve("llama32_3b_gsm8k", local).settings, "train")


# --- whatever a field holds -------------------------------------------------------------------------------------------
EXAMPLES = {
    "gsm8k": GOOD[0],
    "svamp": {"body": "Two figs.", "question": "How many?", "equation": "( 1.0 + 1.0 )", "answer": 2.0},
    "finqa": {"pre_text": ["a"], "post_text": "b", "table": [["x", "1"], ["y", "2"]], "question": "q", "answer": "2",
              "program": "add(1, 1), divide(#0, 1)", "exe_ans": 2.0, "facts": ["f"], "qa": None},
    "tatqa": {"table": [["x", "1"]], "paragraphs": [{"order": 1, "text": "a"}], "questions": [
              {"question": "q", "answer": ["5"], "scale": "", "derivation": "", "answer_type": "span"}]},
    "convfinqa": {"id": "c", "pre_text": ["a"], "post_text": "b", "text": "t", "table": [["x", "1"]],
                  "questions": ["q", "r?"], "programs": ["2", "add(1, 1), divide(#0, 1)"], "exe_ans": [2.0, 2.0],
                  "answers": ["2", "2%"], "annotation": None},
    "finance_reasoning": {"question": "q? Answer to two decimal places.", "context": "{}", "ground_truth": 1.5},
    "investopedia": {"Topic": "t", "Context": "c", "Question": "q", "Answer": "a"},
    "trader_sft": {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    "trader_dpo": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "own": {"question": "q", "answer": "1/3", "context": "c", "group": "g"},
}  # fmt: skip
JUNK = [
    None, "", " ", "x", "\ud800", "9" * 400, "1/0", "#### 5", "(", "#0", "[" * 10_000, 5, -1, 0.1, 10**400, 1e300, True,
    float("nan"), [], {}, [[]], [[[]]], [{}], [None], [1], ["\ud800"], {"a": 1}, {"text": 1}, [{"text": "\ud800"}],
]  # fmt: skip


def altered(value):
    """`value` with junk in the place of each of its parts, one at a time."""
    yield from JUNK
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        for other in altered(value[key]):
            copy = value.copy()
            copy[key] = other
            yield copy


@pytest.mark.parametrize("source", EXAMPLES)
def test_whatever_a_field_holds_gives_a_sound_row_or_a_reason(source, tmp_path):
    settings = settings_for(tmp_path, source=source, train_rows=None)
    path, rejected = tmp_path / "train.jsonl", []
    write(tmp_path, [EXAMPLES[source], *altered(EXAMPLES[source])])
    rows = list(sources.stream(settings, path, rejected))
    places = {row["id"].removeprefix(f"{source}-").partition("/")[0] for row in rows}
    places |= {bad["place"].partition(",")[0] for bad in rejected}
    assert rows[0]["id"].startswith(f"{source}-train.jsonl:1") and len(rejected) > 20
    assert len(places) == sum(1 for _ in altered(EXAMPLES[source])) + 1, "every line is told of"
    for row in rows:
        json.dumps(row, allow_nan=False, ensure_ascii=False).encode()
        assert [message["role"] for message in row["messages"][-2:]] == ["user", "assistant"]
        assert all(message["content"].strip() for message in row["messages"])
        if row["gold"]:
            assert scoring.grade(row["messages"][-1]["content"], row["gold"]).correct, row
