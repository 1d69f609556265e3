"""Real files: what is read whichever program wrote it, and what is refused with the remedy in the message."""

import bz2
import gzip
import json
import re
from decimal import Decimal

import pyarrow
import pytest
from pyarrow import feather, ipc, parquet

from lib.data import files, sources
from lib.run import presets, untrusted

RECORDS = [{"question": f"Sum of {n}, and\n{n}; in €?", "answer": 2 * n} for n in range(12)]
TABLE = "question,answer\n" + "".join(f'"Sum of {n}, and\n{n}; in €?",{2 * n}\n' for n in range(12))
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS)


def loaded(path, split="train", **overrides):
    """One split of your own rows in a file or folder."""
    usual = {"data_dir": str(path), "base_model": "data/base", "chat_template": None, "source": "own",
             "train_rows": "none", "validation_rows": 0, "test_rows": 1}  # fmt: skip
    return sources.load(presets.resolve("llama32_3b_gsm8k", usual | overrides).settings, [split])[split]


def read(folder, name, content, **overrides):
    """(question, gold's value) of each training row, and the notes, of a file with this content."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    part = loaded(path, **overrides)
    return [(row["messages"][0]["content"], row["gold"] and row["gold"]["value"]) for row in part.rows], part.notes


def refusal(folder, name, content, **overrides) -> str:
    with pytest.raises((sources.SourceError, untrusted.UntrustedError)) as caught:
        read(folder, name, content, **overrides)
    assert name in str(caught.value)
    return str(caught.value)


EXPECTED = [(record["question"], record["answer"]) for record in RECORDS[:-1]]  # the last is the test's


# --- endings and encodings --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "content"), [
    ("a.CSV", TABLE), ("a.Csv.GZ", gzip.compress(TABLE.encode())), ("a.csv", TABLE.replace("\n", "\r\n")),
    ("a.tsv", TABLE.replace('",', '"\t').replace("n,", "n\t")), ("a.ndjson", LINES), ("a.json", LINES),
    ("a.json", json.dumps(RECORDS)), ("a.json.gz", gzip.compress(json.dumps(RECORDS).encode())),
    ("a.json", json.dumps(RECORDS, indent=2)), ("a.csv", TABLE + ",\n, \n\n,\n"), ("a.csv", ",\n" + TABLE),
    ("a.csv", TABLE.replace("question,answer", "  Question , ANSWER  ")),
    ("a.csv", TABLE.replace("answer\n", "answer,,\n").replace('",', '", ').replace("2\n", "2,,\n")),
])  # fmt: skip
def test_the_same_rows_come_whatever_program_wrote_the_file(tmp_path, name, content):
    rows, notes = read(tmp_path, name, content)
    assert [(question.replace("\r\n", "\n"), gold) for question, gold in rows] == EXPECTED and notes == ()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize(("name", "content"), [("a.csv", TABLE), ("a.jsonl", LINES), ("a.json", json.dumps(RECORDS))])
def test_a_byte_order_mark_tells_the_encoding(tmp_path, name, content, encoding):
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    assert read(tmp_path, name, mark + content.encode(encoding))[0] == EXPECTED
    assert read(tmp_path, f"{name}.gz", gzip.compress(mark + content.encode(encoding)))[0] == EXPECTED


@pytest.mark.parametrize(("name", "content", "remedy"), [
    ("a.xlsx", b"PK", "a spreadsheet: save its sheet as CSV"), ("a.ODS", b"PK", "a spreadsheet"),
    ("a.jsonl.bz2", bz2.compress(LINES.encode()), "packed, .*: unpack it"), ("a.zip", b"PK", "unpack it"),
    ("a.parquet.gz", b"x", "unpack it"), ("a.pkl", b"x", "can hold code, and is never read"),
    ("a.txt", LINES, "its ending is none of .jsonl, "), ("a", LINES, "its ending is none of"),
    ("a.csv", "", "no rows"), ("a.csv", "question,answer\n", "no rows"), ("a.json", "[]", "no rows"),
    ("a.csv", TABLE.encode("utf-16-le"), "UTF-16 without a byte order mark: save it as UTF-8"),
    ("a.csv", TABLE.encode("utf-16")[:-1], "no whole utf-16 text"),
    ("a.json", json.dumps(RECORDS, ensure_ascii=False).encode("cp1252"), "no utf-8 text at byte .*Windows-1252"),
    ("a.jsonl", LINES.encode("cp1252"), "at a.jsonl:1: not JSON: not UTF-8 at byte .*save the file as UTF-8"),
    ("a.csv", TABLE.encode("cp1252"), "'question' is not UTF-8 at character .*save the file as UTF-8"),
    ("a.csv", "question,answer,Straße\na,1,2\n".encode("latin-1"), "its header is not UTF-8: save"),
    ("a.csv", TABLE.replace("\n", "\r"), "its header is not CSV"),
    ("a.csv", "question,answer,Answer \na,1,2\n", "a.csv has two columns 'answer'.*rename or remove one"),
    ("a.csv", "question;answer,EUR\nx;1,5\n", "can be parted by commas and by semicolons"),
    ("a.csv", "question,answers\na,1\n", "no 'answer' .but question, answers.; name yours: .*did you mean 'answers'"),
    ("a.csv", "question,answer\nq, or r,1\n", "more cells than .*: quote a text that holds the separator"),
    ("a.jsonl", '{"question": "a", "answer": 1, "answer": 2}\n', "the field 'answer' twice"),
    ("a.jsonl", '{"question": "a", "answer": 1, "Answer": 2}\n', "the field 'answer' twice, but for case"),
    ("a.json", '[{"question": "a", "answer": 1, "answer": 2}]', "the field 'answer' twice"),
    ("a.jsonl", json.dumps(RECORDS), "one JSON list, not a record a line: name it .json"),
    ("a.jsonl", json.dumps(RECORDS, indent=1), "name it .json"),
    ("a.json", "\n".join(json.dumps(record, indent=1) for record in RECORDS), "is not JSON"),
    ("a.json", json.dumps({"train": RECORDS, "test": RECORDS}), "several lists of records .train, test.: give each"),
    ("a.json", json.dumps({"question": {"0": "a"}, "answer": {"0": 1}}), "holds no list of records.*orient='records'"),
    ("a.jsonl", '{"question": "a", "answer": NaN}\n', "'answer' is no finite number"),
    ("a.jsonl", '{"question": "a", "answer": -Infinity}\n', "'answer' is no finite number"),
    ("a.jsonl", '{"question": "a", "answer": 1%s}\n' % ("0" * 400), "'answer' is no finite number"),
])  # fmt: skip
def test_what_is_not_read_is_refused_with_its_remedy(tmp_path, name, content, remedy):
    assert re.search(remedy, refusal(tmp_path, name, content))


def test_an_object_that_holds_one_list_of_records_gives_them_and_says_so(tmp_path):
    rows, notes = read(tmp_path, "a.json", json.dumps({"version": "1.1", "data": RECORDS, "authors": ["A"]}))
    assert rows == EXPECTED and notes == ("a.json: the records are those of 'data'",)


# --- separators and decimal signs -------------------------------------------------------------------------------------
def semicolons(*answers, before="question;answer\n"):
    return before + "".join(f"q{n};{answer}\n" for n, answer in enumerate((*answers, "0")))


def test_numbers_in_a_file_of_semicolons_have_decimal_commas_where_all_fit(tmp_path):
    content = semicolons("1.234,56", "-43,00", "14.040", "7", "12,5 %", "Also gilt #### 1.007,5", "Kein Wert.")
    rows, notes = read(tmp_path, "a.csv", content)
    assert [gold for _, gold in rows] == [1234.56, -43, 14040, 7, 12.5, 1007.5, None]
    assert notes == ("a.csv: its columns are parted by semicolons",
                     "a.csv: column 'answer' has decimal commas: '1.234,56' is read as '1234.56'")  # fmt: skip
    assert read(tmp_path, "a.csv", "sep=;\n" + content)[0] == rows
    assert read(tmp_path, "a.tsv", content.replace(";", "\t"))[0] == rows
    gold = {"columns": "question=Frage,gold=Betrag", "trainer": "rft"}
    renamed = semicolons("1.234,56", "18,5", before="Frage;Betrag\n")
    assert [gold for _, gold in read(tmp_path, "a.csv", renamed, **gold)[0]] == [1234.56, 18.5]


def test_decimal_points_in_a_file_of_semicolons_stay(tmp_path):
    rows, notes = read(tmp_path, "a.csv", semicolons("1234.56", "1,234.5", "0.123", "14.040"))
    assert [gold for _, gold in rows] == [1234.56, 1234.5, 0.123, 14.04] and len(notes) == 1


@pytest.mark.parametrize(("answers", "doubt"), [
    (["14.040", "7"], "'14.040' can be thousands or decimals"), (["1,234"], "'1,234' can be thousands or decimals"),
    (["1,5", "1.5"], "'1,5' has a decimal comma, '1.5' a point"),
])  # fmt: skip
def test_a_decimal_sign_in_doubt_is_refused(tmp_path, answers, doubt):
    told = refusal(tmp_path, "a.csv", semicolons(*answers))
    assert doubt in told and "its columns are parted by semicolons" in told and "with one decimal sign" in told


def test_what_the_header_does_not_name_is_told(tmp_path):
    rows, notes = read(tmp_path, "a.csv", ",question,answer\n" + "".join(f"{n},q{n},{n}\n" for n in range(3)))
    assert rows == [("q0", 0), ("q1", 1)] and notes == ("a.csv: a column without a name in the header is passed over",)


# --- Parquet and Arrow ------------------------------------------------------------------------------------------------
def table(**columns):
    return pyarrow.table({"Question ": [f"q{n}" for n in range(300)]} | columns)


def written(path, content, **options):
    if path.suffix == ".parquet":
        parquet.write_table(content, path, row_group_size=70, **options)
    elif path.suffix == ".feather":
        feather.write_feather(content, path, **options)
    else:
        with open(path, "wb") as file, ipc.new_stream(file, content.schema) as stream:
            stream.write_table(content)
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.PARQUET", "a.feather", "a.arrow"])
def test_tables_of_columns_give_their_rows_in_order(tmp_path, name):
    amounts = pyarrow.array([Decimal(n) / 4 for n in range(300)], pyarrow.decimal128(9, 2))
    content = table(amount=amounts, page=[n // 2 for n in range(300)], context=[["a", "b"], None] * 150)
    path = written(tmp_path / name.lower(), content).rename(tmp_path / name)
    part = loaded(path, columns="question=question,answer=amount,group=page", test_rows=2)
    assert [row["gold"]["value"] for row in part.rows] == [n / 4 for n in range(298)] and part.rejected == []
    assert part.rows[5]["messages"][1]["content"] == "#### 1.25" and part.rows[5]["group"] == "own-2"
    assert [row["messages"][0]["content"] for row in part.rows[:2]] == ["a\n\nb\n\nq0", "q1"]
    assert part.rows[-1]["id"] == f"own-{name}:298"


def test_a_number_of_32_bits_is_the_one_that_was_written(tmp_path):
    path = written(tmp_path / "a.parquet", table(answer=pyarrow.array([0.1] * 300, pyarrow.float32())))
    assert {row["gold"]["value"] for row in loaded(path).rows} == {0.1}


@pytest.mark.parametrize("name", ["a.parquet", "a.feather", "a.arrow"])
def test_a_table_that_is_torn_is_refused_and_columns_of_unknown_types_are_passed_over(tmp_path, name):
    path = written(tmp_path / name, table(answer=range(300)))
    whole = path.read_bytes()
    for torn in (b"", b"no table", whole[:-30], whole[: len(whole) // 2]):
        assert "is no whole ." in refusal(tmp_path, name, torn)
    ids = pyarrow.array([b"0123456789abcdef"] * 300, pyarrow.uuid())
    nested = pyarrow.StructArray.from_arrays([ids], ["id"])
    nothing = pyarrow.ListArray.from_arrays(range(301), pyarrow.nulls(300))
    for column in (ids, nested, nothing):
        part = loaded(written(path, table(answer=range(300), ids=column)))
        (note,) = part.notes
        assert len(part.rows) == 299 and note.startswith(f"{name}: column 'ids' is passed over: its type is ")
    texts = pyarrow.array(["7", "8", "9"] * 100)
    for column in (texts.dictionary_encode(), texts.cast(pyarrow.string_view())):
        part = loaded(written(path, table(answer=column)))
        assert [row["gold"]["value"] for row in part.rows[:4]] == [7, 8, 9, 7] and part.notes == ()
    with pytest.raises(sources.SourceError, match="two columns 'question'"):
        loaded(written(path, table(question=range(300))))


@pytest.mark.parametrize(("name", "options"), [
    ("a.parquet", {"compression": "zstd", "use_dictionary": False}), ("a.parquet", {"use_dictionary": True}),
    ("a.feather", {"compression": "zstd"}), ("a.arrow", {}),
])  # fmt: skip
def test_a_table_that_unpacks_out_of_proportion_is_refused(tmp_path, monkeypatch, name, options):
    monkeypatch.setattr(untrusted, "GZIP_BYTES", 1 << 20)
    answers = pyarrow.array(["0" * 40_000] * 300)
    path = written(tmp_path / name, table(answer=answers if options else answers.dictionary_encode()), **options)
    assert path.stat().st_size < 110_000
    with pytest.raises(untrusted.UntrustedError, match="unpacks to over 100 times its size"):
        loaded(path)


# --- folders ----------------------------------------------------------------------------------------------------------
def folder_of(place, **contents):
    for name, count in contents.items():
        lines = ({"question": f"{name} {n}", "answer": n} for n in range(count))
        (place / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return place


def test_a_validation_file_beside_train_is_the_validation_split(tmp_path):
    folder = folder_of(tmp_path, train=20, validation=6, test=5)
    settings = {"validation_rows": 4, "test_rows": "none"}
    names = {"train": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl"}
    for split, count in (("train", 20), ("validation", 4), ("test", 5)):
        part = loaded(folder, split, **settings)
        assert {row["id"].partition(":")[0] for row in part.rows} == {f"own-{names[split]}"}
        assert (len(part.rows), part.files) == (count, [folder / names[split]])
    assert len(loaded(folder, "validation", validation_rows="none").rows) == 6
    assert loaded(folder, "validation", validation_rows=0).rows == []
    (folder / "test.jsonl").unlink()
    (folder / "validation.jsonl").rename(folder / "Dev.JSONL")
    assert [len(loaded(folder, split, **settings | {"test_rows": 3}).rows) for split in names] == [17, 4, 3]


def test_the_files_beside_a_training_file_that_is_named_alone_are_told(tmp_path):
    folder_of(tmp_path, train=20, validation=6)
    assert loaded(tmp_path / "train.jsonl").notes == (
        "train.jsonl: validation.jsonl beside it is not read, as data_dir names one file: name their folder",
    )


def test_two_files_of_one_split_are_refused_and_so_are_parts_and_spreadsheets(tmp_path):
    folder_of(tmp_path, train=20)
    (tmp_path / "TRAIN.csv").write_text(TABLE)
    with pytest.raises(sources.SourceError, match="holds TRAIN.csv and train.jsonl: keep one, or name"):
        loaded(tmp_path)
    (tmp_path / "TRAIN.csv").unlink()
    (tmp_path / "train.jsonl").rename(tmp_path / "train-00000-of-00001.jsonl")
    (tmp_path / "train.zip").touch()  # what it was unpacked from
    assert len(loaded(tmp_path).rows) == 19
    (tmp_path / "train.zip").unlink()
    (tmp_path / "train-00000-of-00001.jsonl").rename(tmp_path / "train-00000-of-00002.jsonl")
    with pytest.raises(sources.SourceError, match="is one of 2 parts: join them"):
        loaded(tmp_path)
    (tmp_path / "train-00000-of-00002.jsonl").rename(tmp_path / "train.xlsx")
    with pytest.raises(sources.SourceError, match="train.xlsx is a spreadsheet: save its sheet as CSV"):
        loaded(tmp_path)


def test_a_link_out_of_the_folder_is_refused_for_every_ending(tmp_path):
    (tmp_path / "data").mkdir()
    written(tmp_path / "secret.parquet", table(answer=range(300)))
    (tmp_path / "data/train.parquet").symlink_to("../secret.parquet")
    with pytest.raises(sources.SourceError, match="train.parquet is a symbolic link out of"):
        loaded(tmp_path / "data")


# --- fields -----------------------------------------------------------------------------------------------------------
def test_fields_that_change_what_a_row_means_are_told_once(tmp_path):
    records = [record | {"weight": 0, "Reasoning": "because", "id": n, "label": None}
               for n, record in enumerate(RECORDS)]  # fmt: skip
    records[3] |= {"label": "bad"}
    _, notes = read(tmp_path, "a.jsonl", "\n".join(map(json.dumps, records)))
    assert notes == ("a.jsonl: own does not use the fields 'label' (in 1 records), 'reasoning' (in 12 records), "
                     "'weight' (in 12 records)",)  # fmt: skip
    _, notes = read(tmp_path, "a.jsonl", "\n".join(map(json.dumps, records)), columns="question=reasoning,gold=weight",
                    trainer="rft")  # fmt: skip
    assert notes == ("a.jsonl: own does not use the fields 'answer' (in 12 records), 'label' (in 1 records)",)


@pytest.mark.parametrize(("source", "record"), [
    ("gsm8k", {"question": "q", "answer": "#### 1"}),
    ("svamp", {"ID": 1, "Type": "t", "Body": "b", "Question": "q", "Equation": "1.0 + 1.0", "Answer": 2}),
    ("investopedia", {"Context": "c", "Question": "q", "Answer": "a"}),
])  # fmt: skip
def test_the_published_sources_tell_of_them_too_and_not_of_their_own(tmp_path, source, record):
    records = [record | {"Topic": f"topic {n}"} for n in range(3)]
    assert read(tmp_path, "a.jsonl", "\n".join(map(json.dumps, records)), source=source)[1] == ()
    records[1] |= {"Is_Correct": False}
    _, notes = read(tmp_path, "b.jsonl", "\n".join(map(json.dumps, records)), source=source)
    assert notes == (f"b.jsonl: {source} does not use the fields 'is_correct' (in 1 records)",)


def test_groups_may_be_numbers_contexts_lists_and_answers_truths(tmp_path):
    records = [{"question": f"Did it grow in {n}?", "answer": n % 2 == 0, "group": n // 2, "context": ["a", " b "]}
               for n in range(8)]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    part = loaded(tmp_path / "a.jsonl")
    assert [row["group"] for row in part.rows] == ["own-0", "own-0", "own-1", "own-1", "own-2", "own-2"]
    assert part.rows[1]["messages"] == [{"role": "user", "content": "a\n\nb\n\nDid it grow in 1?"},
                                        {"role": "assistant", "content": "#### no"}]  # fmt: skip
    assert [row["gold"] for row in part.rows[:2]] == [{"value": True, "unit": "bool"}, {"value": False, "unit": "bool"}]


def test_a_column_that_no_record_has_is_refused_by_name(tmp_path):
    told = refusal(tmp_path, "a.csv", TABLE, columns="group=questions")
    assert "no record has the column of group=questions (but answer, question); did you mean 'question'?" in told
    assert files.ending_of(tmp_path / "a.csv.gz") == ".csv.gz"
