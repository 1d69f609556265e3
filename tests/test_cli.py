"""Claims about the command `sharpen`: one clear message, the right exit code, and a quick start."""

import importlib.util
import json
import re
import subprocess
import sys
import types

import pytest

import lib
from lib import cli
from lib.grade import stats
from lib.pipeline import execute
from lib.run.paths import ROOT
from lib.run.presets import PRESETS


@pytest.fixture
def sharpen(monkeypatch, capsys):
    """Call the command in this process: (exit code, stdout, stderr)."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sharpen", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def asked(monkeypatch):
    """What the command asks of the pipeline, which does not run."""
    calls = []

    def run(*arguments, **named):
        calls.append((arguments, named))
        return types.SimpleNamespace(settings=types.SimpleNamespace(push_to_hub=None))

    monkeypatch.setattr(execute, "run", run)
    return calls


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "gsm9k"], "unknown preset 'gsm9k'; choose from demo, llama32_3b_gsm8k"),
        (["run", "demo", "--set", "learning_rte=1e-4"], "did you mean 'learning_rate'?"),
        (["run", "demo", "--set", "learning_rate"], "must be KEY=VALUE"),
        (["run", "demo", "--run", "../up"], "run = '../up': must be a name"),
        (["run", "llama32_3b_gsm8k", "--data-dir", "no/such"], "no such folder"),
        (["compare", "no_such_run"], "there is no run 'no_such_run' in"),
        (["compare", "../up"], "must be a name"),
        (["push", "demo", "--to", "demo"], "there is no run 'demo' in"),
        (["run", "demo", "--export", "--set", "llama_cpp_path=/nope"], "llama_cpp_path = '/nope' lacks convert_hf_to"),
        (["rnu"], "No such command"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(sharpen, tmp_path, words, told):
    code, out, err = sharpen(*words, *(["--outputs", str(tmp_path)] if words[0] != "rnu" else []))
    assert code == 2 and told in err and "Traceback" not in err + out
    assert not list(tmp_path.iterdir())


def test_settings_on_the_command_line_reach_the_pipeline(sharpen, asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--set", "learning_rate=1e-4", "--set", "base_model=a=b", "--data-dir", "here", "--rehearse", "--force"]
    words += ["--set", "benchmarks=one.jsonl, sub/two.jsonl", "--set", "llama_cpp_path=None"]
    assert sharpen("run", "demo", "--run", "x", *words, "--outputs", "out")[0] == 0
    overrides = {"learning_rate": "1e-4", "base_model": "a=b", "data_dir": str(tmp_path / "here")}
    overrides |= {"benchmarks": f"{tmp_path}/one.jsonl,{tmp_path}/sub/two.jsonl", "llama_cpp_path": "None"}
    ((arguments, named),) = asked
    assert arguments == ("demo", "x", overrides, True, tmp_path / "out", True) and named["export"] is False


def test_a_setting_is_given_once_and_all_that_is_wrong_is_told_at_once(sharpen, asked):
    words = ["--set", "lerning_rate=1", "--set", "oops", "--set", "r=8", "--set", "r = 16"]
    malformed, *others = sharpen("run", "demo", *words, "--set", "data_dir=/a", "--data-dir", "/b")[2].splitlines()
    assert malformed.startswith("--set 'oops': must be KEY=VALUE") and asked == []
    assert others == [
        "r is set twice, to '8' and '16': set it once", "data_dir is set twice, to '/a' and '/b': set it once",
        "unknown setting 'lerning_rate' = '1'; did you mean 'learning_rate'?",
    ]  # fmt: skip


def test_an_empty_text_is_not_the_folder_where_the_user_is():
    assert cli._overrides(["data_dir=", "llama_cpp_path = "], None) == {"data_dir": "", "llama_cpp_path": ""}


def test_a_failed_stage_is_exit_code_1_and_an_interrupt_130(sharpen, monkeypatch):
    def fail(*_, **__):
        raise execute.StageFailed("said already")

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(execute, "run", fail)
    assert sharpen("run", "demo") == (1, "", "")
    monkeypatch.setattr(execute, "run", stop)
    assert sharpen("run", "demo")[0] == 130


def test_presets_lists_every_preset_with_its_published_result():
    out = subprocess.check_output([sys.executable, "-m", "lib.cli", "presets"], text=True, cwd=ROOT)
    assert all(name in out for name in PRESETS) and "32.90 %" in out and "QLoRA" in out
    assert out.count("GiB") == len(PRESETS)
    assert "estimates; time: training alone, on A100s, tokens x 6 x parameters / (312 TFLOP/s, of which 20%" in out


def test_the_command_starts_without_any_library_that_takes_long():
    check = "import sys, lib.cli, lib.grade.grading, lib.pipeline.execute; print(*sys.modules)"
    loaded = set(subprocess.check_output([sys.executable, "-c", check], text=True, cwd=ROOT).split())
    assert "lib.cli" in loaded and not loaded & {"torch", "numpy", "scipy", "pandas", "transformers"}


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_doctor_fails_only_on_a_failure(sharpen, monkeypatch, state, code):
    examination = types.SimpleNamespace(
        checks=lambda: [types.SimpleNamespace(state=state)], report=lambda found: f"{found[0].state} disk"
    )
    monkeypatch.setitem(sys.modules, "lib.doctor", examination)
    monkeypatch.setattr(lib, "doctor", examination, raising=False)
    assert sharpen("doctor") == (code, f"{state} disk\n", "")


def test_compare_asks_for_the_comparison_alone(sharpen, asked, monkeypatch, tmp_path):
    monkeypatch.setattr("lib.run.runs.read", lambda folder, stage: {"preset": "demo", "rehearse": True})
    for name in "abc":
        (tmp_path / name).mkdir()
    assert sharpen("compare", "a", "b", "c", "--outputs", str(tmp_path))[0] == 0
    (arguments, named) = asked[0]
    assert arguments == ("demo", "a", {"others": ("b", "c")}, True, tmp_path)
    assert named.pop("again") == f"sharpen compare a b c --outputs {tmp_path}"
    assert named == {"force": True, "stages": ["compare"]}


def test_a_setting_of_another_notebook_is_refused_by_deploy(sharpen, asked, write_run, tmp_path):
    write_run(tmp_path, "done")
    code, _, err = sharpen("deploy", "done", "--set", "r=3", "--outputs", str(tmp_path))
    assert (code, asked) == (2, []) and "'r' belongs to 21_train_qlora, not to 41_serve" in err


def test_a_file_is_no_folder_of_runs(sharpen, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = sharpen("status", "--outputs", str(tmp_path / "file"))
    assert code == 2 and "is no folder" in err


# ---- sharpen grade

ROWS = [
    {"id": "b", "completion": "#### 42", "gold": {"value": 42, "unit": "count"}},
    {"id": 7, "completion": "The answer is -5.2", "gold": 5.2},
    {"id": "c", "completion": "12 %? Final answer: 12.5%", "gold": {"value": 0.125, "unit": "ratio", "decimals": 3}},
    {"id": "d", "completion": "it must be 42", "gold": {"value": 42}},
    {"id": "a", "completion": r"\boxed{\text{Fund B}}", "gold": "B"},
    {"id": "e", "completion": "#### 104", "gold": {"value": 100.0, "tolerance": 0.05}},
    {"id": "f", "completion": "We begin with", "gold": True, "finished": False},
    {"id": "\u00e9", "completion": "#### 104", "gold": {"value": 100.0, "unit": "currency"}},
]
VERDICTS = [
    ("b", True, 42.0, "marker", None), (7, False, -5.2, "marker", "wrong sign"),
    ("c", True, 0.125, "marker", None), ("d", False, 42.0, "last number", "no answer"),
    ("a", True, "b", "marker", None), ("e", True, 104.0, "marker", None),
    ("f", False, None, "none", "truncated"), ("\u00e9", False, 104.0, "marker", "wrong value"),
]  # fmt: skip


@pytest.fixture
def answers(tmp_path):
    """Write rows (or lines of text) to a file of answers."""

    def write(rows):
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        (tmp_path / "answers.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return tmp_path / "answers.jsonl"

    return write


def test_verdicts_are_written_in_the_order_of_the_answers(sharpen, answers, tmp_path):
    out = tmp_path / "verdicts.jsonl"
    assert sharpen("grade", str(answers(ROWS)), "--out", str(out))[::2] == (0, "")
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [list(row) for row in rows] == [["id", "correct", "value", "reading", "error"]] * len(ROWS)
    assert [tuple(row.values()) for row in rows] == VERDICTS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.jsonl", "verdicts.jsonl"]


def test_the_table_counts_by_tolerance_and_class_with_wilsons_interval(sharpen, answers):
    code, out, _ = sharpen("grade", str(answers(ROWS)))
    counts = dict(re.findall(r"^(\S.*?)  +([\d,]+) ", out, re.MULTILINE))
    wanted = {"correct": 4, "within 0.1 %": 3, "within 1 %": 3, "within 5 %": 5, "marked answer": 6}
    wanted |= {"last number counts": 5, "wrong sign": 1, "no answer": 1, "truncated": 1, "wrong value": 1}
    assert code == 0 and counts == {name: str(count) for name, count in (wanted | {"percent as ratio": 1}).items()}
    interval = stats.wilson(4, 8)
    assert f"50.0 %    {100 * interval.low:.1f} to  {100 * interval.high:.1f} %" in out and "Wilson" in out


def test_answers_that_share_a_group_get_a_clustered_interval(sharpen, answers):
    rows = [{"id": i, "completion": f"#### {i // 5 % 2}", "gold": 1, "group": i // 5} for i in range(60)]
    interval = stats.clustered([i // 5 % 2 for i in range(60)], [i // 5 for i in range(60)])
    out = sharpen("grade", str(answers(rows)))[1]
    assert f"{100 * interval.low:.1f} to  {100 * interval.high:.1f} %" in out and "12 groups" in out
    assert "only 5 groups" in sharpen("grade", str(answers(rows[:25])))[1]
    assert "all in one group" in sharpen("grade", str(answers(rows[:5])))[1]


def test_a_byte_order_mark_and_blank_lines_are_no_fault(sharpen, answers):
    code, out, _ = sharpen(
        "grade", str(answers(["\ufeff" + json.dumps(ROWS[0]), "", "  ", json.dumps(ROWS[1]) + "\r"]))
    )
    assert code == 0 and "2 answers" in out


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("nope", "not JSON"),
        ('{"id": 1, "completion": "x", "gold": 1', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "a row is an object with 'id', 'completion' and 'gold'"),
        ('{"completion": "x", "gold": 1}', "field 'id' is missing; give a text or a whole number"),
        ('{"id": true, "completion": "x", "gold": 1}', "field 'id' is true; give a text"),
        ('{"id": 1, "gold": 1}', "field 'completion' is missing"),
        ('{"id": 1, "completion": ["x"], "gold": 1}', "field 'completion' is [\"x\"]; give a text"),
        ('{"id": 1, "completion": "x"}', "field 'gold' is missing"),
        ('{"id": 1, "completion": "x", "gold": null}', "field 'gold' is null; give a number"),
        ('{"id": 1, "completion": "x", "gold": {}}', "field 'gold.value' is missing"),
        (
            '{"id": 1, "completion": "x", "gold": {"value": 1, "tolerence": 0}}',
            "unknown 'tolerence'; choose from value",
        ),
        (
            '{"id": 1, "completion": "x", "gold": {"value": 1, "unit": "furlong"}}',
            "unknown gold unit 'furlong'; choose",
        ),
        ('{"id": 1, "completion": "x", "gold": {"value": 1, "tolerance": "1%"}}', "'tolerance' is '1%'; give"),
        ('{"id": 1, "completion": "x", "gold": {"value": 1, "decimals": -99}}', "'decimals' is -99; give"),
        ('{"id": 1, "completion": "x", "gold": {"value": [1]}}', "give numbers"),
        ('{"id": 1, "completion": "x", "gold": NaN}', "not a finite number"),
        ('{"id": 1, "completion": "x", "gold": "x", "finished": 1}', "field 'finished' is 1; give true or false"),
        ('{"id": 1, "completion": "x", "gold": "x", "group": {}}', "field 'group' is {}; give"),
    ],
)
def test_a_bad_row_is_named_with_its_line_and_field_and_nothing_is_written(sharpen, answers, tmp_path, line, told):
    out = tmp_path / "verdicts.jsonl"
    out.write_text("before")
    code, printed, err = sharpen("grade", str(answers([ROWS[0], line])), "--out", str(out))
    assert (code, printed, out.read_text()) == (2, "", "before")
    assert "answers.jsonl, line 2: " in err and told in err and "Traceback" not in err


def test_many_bad_rows_are_counted_not_all_shown(sharpen, answers):
    err = sharpen("grade", str(answers(["x"] * 100)))[2]
    assert err.count("answers.jsonl, line ") == 5 and "and 95 more such lines" in err


def test_a_file_that_is_no_text_is_refused(sharpen, tmp_path):
    (tmp_path / "answers.jsonl").write_bytes(b'{"id": "\xff"}')
    code, _, err = sharpen("grade", str(tmp_path / "answers.jsonl"))
    assert code == 2 and "line 1: not UTF-8 at byte 8" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["missing.jsonl"], "no such file"),
        (["."], "is a directory"),
        (["empty.jsonl"], "has no rows"),
        (["good.jsonl", "--out", "."], "is a folder; name a file in it"),
        (["good.jsonl", "--out", "no/such/v.jsonl"], "no such folder"),
        (["good.jsonl", "--out", "./good.jsonl"], "is the file that is graded"),
        (["good.jsonl", "--beside", "exact-match"], "unknown grader; choose math-verify"),
    ],
)
def test_a_wrong_path_or_grader_is_refused_with_the_remedy(sharpen, tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "good.jsonl").write_text(json.dumps(ROWS[0]))
    code, out, err = sharpen("grade", *words)
    assert (code, out) == (2, "") and told in err and "Traceback" not in err
    assert (tmp_path / "good.jsonl").read_text() == json.dumps(ROWS[0])


def test_without_math_verify_its_side_by_side_says_how_to_get_it(sharpen, answers, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)  # as if it were not installed
    out = tmp_path / "verdicts.jsonl"
    code, _, err = sharpen("grade", str(answers(ROWS)), "--beside", "math-verify", "--out", str(out))
    assert code == 2 and "pip install math-verify" in err and not out.exists()


@pytest.mark.skipif(not importlib.util.find_spec("math_verify"), reason="math-verify, optional, is not installed")
def test_math_verify_beside_us_lists_the_disagreements(sharpen, answers):
    code, out, _ = sharpen("grade", str(answers(ROWS)), "--beside", "math-verify")
    assert code == 0 and re.search(r"^sharpen: right +\d+ +\d+$", out, re.MULTILINE)
    assert "d: gold 42; sharpen reads 42.0 (no answer), math-verify says right; text ends 'it must be 42'" in out
    assert "\nb: " not in out  # #### 42 is right for both
