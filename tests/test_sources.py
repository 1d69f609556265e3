"""Every source as rows of one schema: a made-up GSM8K folder, each way a row can be bad, and the published files."""

import json
import re

import pytest

from lib import gate, presets, scoring, sources, tasks

GOOD = [
    {"question": f" Ann has {n} pens and buys one. How many? ",
     "answer": f"{n}+1 = <<{n}+1={n + 1}>>{n + 1}\n#### {n + 1}"}
    for n in range(200)
]  # fmt: skip


def settings_for(folder, **overrides):
    local = {"data_dir": str(folder), "base_model": "data/base", "chat_template": None}
    return presets.resolve("llama32_3b_gsm8k", local | overrides).settings


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
    rows, rejected, files = sources.load(settings_for(folder), "train")
    assert (len(rows), rejected, files) == (200, [], [folder / "gsm8k/train.jsonl"])
    assert rows[4] == {
        "id": "gsm8k-train.jsonl:5", "source": "gsm8k", "kind": "grade school",
        "messages": [{"role": "user", "content": "Ann has 4 pens and buys one. How many?"},
                     {"role": "assistant", "content": "4+1 = <<4+1=5>>5\n#### 5"}],
        "gold": {"value": 5.0, "unit": "count"}, "group": "gsm8k-train.jsonl:5",
    }  # fmt: skip
    assert json.loads(json.dumps(rows)) == rows


@pytest.mark.parametrize("shown, value, unit", [
    ("18", 18, "count"), ("-3", -3, "count"), ("1,234,567", 1_234_567, "count"), ("2.50", 2.5, "none"),
    ("7.0", 7, "count"),
])  # fmt: skip
def test_golds_are_read_with_sign_separators_and_decimals(tmp_path, shown, value, unit):
    write(tmp_path / "gsm8k", [{"question": "q", "answer": f"so\n#### {shown} "}])
    (row,), _, _ = sources.load(settings_for(tmp_path), "train")
    assert row["gold"] == {"value": value, "unit": unit}
    assert scoring.grade(row["messages"][1]["content"], row["gold"]).correct


def test_a_folder_of_the_files_alone_will_do(tmp_path):
    write(tmp_path, GOOD[:3])
    rows, _, files = sources.load(settings_for(tmp_path), "train")
    assert len(rows) == 3 and files == [tmp_path / "train.jsonl"]


def test_counts_are_cut_and_blank_lines_keep_the_line_numbers(tmp_path):
    write(tmp_path / "gsm8k", [b"", GOOD[0], b"  ", *GOOD[1:9]])
    rows, rejected, _ = sources.load(settings_for(tmp_path, train_rows=2), "train")
    assert [row["id"] for row in rows] == ["gsm8k-train.jsonl:2", "gsm8k-train.jsonl:4"] and not rejected


def test_training_and_validation_are_disjoint_and_validation_is_the_files_end(folder):
    settings = settings_for(folder, train_rows=500, validation_rows=20, test_rows=10)
    rows = {split: sources.load(settings, split)[0] for split in ("train", "validation", "test")}
    assert {split: len(found) for split, found in rows.items()} == {"train": 180, "validation": 20, "test": 10}
    assert not {r["id"] for r in rows["train"]} & {r["id"] for r in rows["validation"]}
    assert rows["validation"][-1]["id"] == "gsm8k-train.jsonl:200"
    assert sources.load(settings_for(folder, validation_rows=0), "validation")[0] == []


# --- bad rows ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bad, reason", [
    (b'{"question": "q", "ans', "not JSON"),
    (b'{"question": "\xff", "answer": "#### 1"}', "not JSON"),
    (b'["q", "#### 1"]', "'question'"),
    (b"null", "'question'"),
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
    rows, (rejected,), _ = sources.load(settings_for(tmp_path), "train")
    assert rejected["place"] == "train.jsonl:7" and reason in rejected["reason"]
    assert len(rows) == len(GOOD) and all(row["id"] != "gsm8k-train.jsonl:7" for row in rows)


def test_too_many_bad_rows_stop_it_and_the_first_is_named(tmp_path):
    bad = {"question": "q", "answer": "none"}
    write(tmp_path / "gsm8k", [*GOOD[:98], bad, GOOD[98]])
    assert len(sources.load(settings_for(tmp_path), "train")[1]) == 1  # 1 of 100 is no more than 1 %
    write(tmp_path / "gsm8k", [GOOD[0], bad, *GOOD[1:98], bad])
    with pytest.raises(sources.SourceError, match=r"2 of 100 rows are bad, the first at train\.jsonl:2: .*'answer'"):
        sources.load(settings_for(tmp_path), "train")


def test_a_missing_file_names_every_place_tried(tmp_path):
    with pytest.raises(sources.SourceError) as caught:
        sources.load(settings_for(tmp_path), "train")
    for path in (tmp_path / "gsm8k/train.jsonl", tmp_path / "train.jsonl"):
        assert str(path) in str(caught.value)


def test_read_rows_gives_back_what_a_stage_wrote(tmp_path):
    write(tmp_path, [{"id": "1", "text": "é"}, {"id": "2"}])
    assert sources.read_rows(tmp_path / "train.jsonl") == [{"id": "1", "text": "é"}, {"id": "2"}]
    assert sources.read_rows(tmp_path / "train.jsonl", limit=1) == [{"id": "1", "text": "é"}]


# --- the real thing ---------------------------------------------------------------------------------------------------
def test_published_gsm8k_gives_all_its_rows_and_their_golds(published_data):
    settings, rows = settings_for(published_data), {}
    for split, count in (("train", 7473), ("test", 1319)):
        rows[split], rejected, _ = sources.load(settings, split)
        assert len(rows[split]) == count and rejected == []
        lines = (published_data / f"gsm8k/{split}.jsonl").read_text(encoding="utf-8").splitlines()
        for row, line in zip(rows[split], lines, strict=True):
            shown = json.loads(line)["answer"].rpartition("####")[2].strip()
            assert row["gold"]["value"] == float(re.sub(",", "", shown))
    assert "exact duplicate" not in {finding.check for finding in gate.duplicates(rows)}


def test_quant_tasks_come_in_the_counts_asked_for():
    counts = {"train_rows": 60, "validation_rows": 12, "test_rows": 30}
    settings = presets.resolve("demo", counts | {"data_seed": 4}).settings
    rows = {split: sources.load(settings, split) for split in ("train", "validation", "test", "test_seen")}
    assert [len(found) for found, _, _ in rows.values()] == [60, 12, 30, 6]
    assert all(rejected == [] and files == [] for _, rejected, files in rows.values())
    assert presets.PRESETS["demo"].settings.train_rows == 900
    again, _, _ = sources.load(presets.resolve("demo", counts | {"data_seed": 5}).settings, "train")
    assert again != rows["train"][0]


def test_kinds_are_the_demos_unless_some_or_all_are_named():
    counts = {"train_rows": 40, "validation_rows": 0, "test_rows": 19}

    def kinds(split, **named):
        return {row["kind"] for row in sources.load(presets.resolve("demo", counts | named).settings, split)[0]}

    assert kinds("train") == kinds("test") == set(tasks.DEMO_KINDS)
    assert kinds("train", kinds="CAGR, beta") == kinds("test", kinds=["CAGR", "beta"]) == {"CAGR", "beta"}
    assert kinds("train", kinds="all") == kinds("test", kinds=("all",)) == set(tasks.KINDS)


def test_more_rows_than_there_are_questions_is_refused_by_name():
    settings = presets.resolve("demo", {"kinds": "volatility annualisation", "validation_rows": 20_000}).settings
    with pytest.raises(sources.SourceError, match="validation_rows = 20000: no .* different questions of 'volatility"):
        sources.load(settings, "validation")


@pytest.mark.parametrize("bad", [
    b'{"question": "q", "answer": "#### ,"}', b'{"question": "q", "answer": "#### -,"}', b"[" * 100_000,
    b'{"question": "q", "answer": "#### ' + b"9" * 400 + b'"}',
])
def test_a_gold_that_is_no_number_is_rejected(tmp_path, bad):
    good = [json.dumps({"question": f"q{i}", "answer": "#### 1"}).encode() for i in range(200)]
    (tmp_path / "train.jsonl").write_bytes(b"\n".join([bad, *good]))
    local = {"data_dir": str(tmp_path), "base_model": "data/base", "chat_template": None}
    rows, (rejected,), _ = sources.load(presets.resolve("llama32_3b_gsm8k", local).settings, "train")
    assert rejected["place"] == "train.jsonl:1" and len(rows) == 200

def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b"")
    local = {"data_dir": str(tmp_path), "base_model": "data/base", "chat_template": None}
    with pytest.raises(sources.SourceError):
        sources.load(presets.resolve("llama32_3b_gsm8k", local).settings, "train")
