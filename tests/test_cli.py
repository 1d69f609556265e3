"""Claims about the command `sharpen`: one clear message, the right exit code, and a quick start."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import types

import pytest

import lib
from lib import cli
from lib.grade import stats
from lib.pipeline import execute
from lib.run import parameters, references, runs, settings, settings_file
from lib.run.paths import ROOT
from lib.run.presets import PRESETS, resolve
from lib.run.rules import unread
from lib.run.settings import FIELDS, SettingsError
from lib.run.stages import IN_EVERY_RUN


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
        (["run", "gsm9k"], "unknown preset 'gsm9k'; choose from demo, demo_rewards-sft, demo_rewards"),
        (["run", "demo", "--set", "learning_rte=1e-4"], "did you mean 'learning_rate'?"),
        (["run", "demo", "--set", "learning_rate"], "must be KEY=VALUE"),
        (["run", "demo", "--run", "../up"], "run = '../up': must be a name"),
        (["run", "llama32_3b_gsm8k", "--data-dir", "no/such"], "no such folder"),
        (["compare", "no_such_run"], "there is no run 'no_such_run' in"),
        (["compare", "../up"], "must be a name"),
        (["push", "demo", "--to", "demo"], "there is no run 'demo' in"),
        (["run", "demo", "--export", "--set", "llama_cpp_path=/nope"], "llama_cpp_path = '/nope' lacks convert_hf_to"),
        (["run", "demo", "--set", "eval_engine=llama-server", "--set", "llama_cpp_path=/nope"], "'/nope' lacks"),
        (["agree", "demo"], "there is no run 'demo' in"),
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
    assert arguments == ("demo", "x", overrides, True, tmp_path / "out", True)
    assert named["export"] is named["probe"] is False
    assert sharpen("run", "demo", "--probe")[0] == 0 and asked[-1][1]["probe"]


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


def test_presets_is_a_line_a_preset_within_80_columns(sharpen):
    code, out, _ = sharpen("presets")
    lines = out.splitlines()
    assert code == 0 and max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[1 : 1 + len(PRESETS)]] == list(PRESETS)
    assert re.search(r"^best_8b +Qwen3-8B-Base +gsm8k +7\.8 +34 min$", out, flags=re.MULTILINE)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_tells_the_rest_within_80_columns(sharpen, name):
    code, out, _ = sharpen("presets", name)
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    told, preset = " ".join(out.split()), PRESETS[name]
    published = references.in_words(preset.reference)
    for text in (preset.description, published, preset.settings.base_model, str(preset.settings.learning_rate)):
        assert " ".join(text.split()) in told
    assert "tokens x 6 x parameters / (312 TFLOP/s, of which 20%" in told and " GiB" in told


def test_a_preset_that_is_not_there_is_answered_with_the_nearest(sharpen):
    assert "did you mean 'best_4b'?" in sharpen("presets", "best4b")[2]


def test_settings_lists_all_with_type_bounds_default_and_notebooks(sharpen):
    code, out, _ = sharpen("settings")
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    listed = re.findall(r"^  ([\w.]+) = .*  \[.+\]$", out, flags=re.MULTILINE)
    assert sorted(listed) == sorted(FIELDS)
    entry = out[out.index("  max_grad_norm = 1.0  [21, 22, 23]") :].splitlines()[:3]
    assert entry[1:] == ["      gradients are clipped to this norm", "      (a number above 0)"]
    assert "lora_alpha" in sharpen("settings", "lora")[1] and "max_steps" not in sharpen("settings", "lora")[1]
    assert "  max_length = " in sharpen("settings", "seq_length")[1]
    assert "no setting is named like 'lora_alfa'; did you mean 'lora_alpha'?" in sharpen("settings", "lora_alfa")[2]


def test_the_page_of_settings_is_what_the_command_prints(sharpen):
    assert (ROOT / "docs/settings.md").read_text(encoding="utf-8") == sharpen("settings", "--markdown")[1]


def test_the_tables_of_references_on_pages_are_what_the_command_prints(sharpen):
    printed = sharpen("presets", "--markdown")[1]
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs/numbers.md", ROOT / "README.md")]
    assert printed in pages[0]
    tables = [line for page in pages for line in page.splitlines() if re.match(r"\| `(best_|llama32_|demo`)", line)]
    assert set(tables) <= set(printed.splitlines())


MEANT = {"lr": "learning_rate", "epochs": "num_train_epochs", "batch_size": "per_device_train_batch_size",
         "rank": "r", "model": "base_model", "seq_length": "max_length"}  # fmt: skip


@pytest.mark.parametrize(("typed", "meant"), MEANT.items())
def test_names_that_people_type_are_answered_with_the_setting_that_they_mean(sharpen, tmp_path, typed, meant):
    (tmp_path / "my.yaml").write_text(f"preset: demo\nsettings:\n  {typed}: 1\n")
    answers = [sharpen("run", "demo", "--set", f"{typed}=1")[2], sharpen("run", str(tmp_path / "my.yaml"))[2],
               sharpen("sweep", "demo", "--grid", f"{typed}=1,2")[2]]  # fmt: skip
    for changes in ({"changes": {typed: 1}}, {typed: 1}):
        with pytest.raises(SettingsError) as refused:
            parameters.from_notebook("train", {"preset": "demo", **changes})
        answers.append(str(refused.value))
    assert [answer for answer in answers if f"unknown setting '{typed}'" not in answer] == []
    assert [answer for answer in answers if f"did you mean '{meant}'?" not in answer] == []


def test_no_name_that_people_type_is_a_setting_and_each_means_one():
    assert not settings.MEANT.keys() & FIELDS.keys() and set(settings.MEANT.values()) <= FIELDS.keys()


# ---- a settings file


def test_a_presets_file_resolves_to_the_preset(sharpen, tmp_path):
    for name in PRESETS:
        path = tmp_path / f"{name}.yaml"
        assert sharpen("presets", name, "--yaml", str(path))[0] == 0
        nothing = {"data_dir": str(tmp_path)} if PRESETS[name].settings.source not in ("quant_tasks", "gsm8k") else {}
        asked = settings_file.read(path, nothing)
        assert not unread(IN_EVERY_RUN, asked.overrides) and asked.preset == name and len(asked.overrides) > 15
        assert resolve(name, asked.overrides).settings == resolve(name, nothing).settings
    assert "is there already" in sharpen("presets", "demo", "--yaml", str(tmp_path / "demo.yaml"))[2]


def test_a_runs_file_resolves_to_its_settings(sharpen, write_run, tmp_path):
    changed = {"r": 8, "kinds": ("CAGR", "beta"), "calculator": "on", "loraplus_lr_ratio": 16.0, "eval_steps": None,
               "llama_cpp_path": "/not/yours"}  # fmt: skip
    for rehearse in (False, True):
        run = write_run(tmp_path, f"run-{rehearse}", changed, rehearse)
        path = tmp_path / f"{rehearse}.yaml"
        assert sharpen("settings", "--of", run.name, "--yaml", str(path), "--outputs", str(tmp_path))[0] == 0
        asked = settings_file.read(path, {})
        assert (asked.preset, asked.run, asked.rehearse) == ("demo", f"{run.name}-again", rehearse)
        kept = {name: value for name, value in changed.items() if name != "llama_cpp_path"}
        again, then = (resolve("demo", given, rehearse) for given in (asked.overrides, kept))
        for stage in ("prepare", "train", "evaluate"):
            assert again.for_stage(stage) == then.for_stage(stage)
        assert "/not/yours" not in path.read_text()


def test_a_file_starts_its_paths_where_it_lies_and_the_command_line_wins(sharpen, asked, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/rows.csv").write_text("question,answer\n")
    (tmp_path / "sub/base").mkdir()
    text = """\
preset: own
run: mine
data: rows.csv
settings:
  base_model: base
  learning_rate: 1e-4   # a text to YAML
  calculator: on        # a truth to YAML
  use_dora: yes
  eval_steps:
  benchmarks: [b.jsonl]
  r: 8
"""
    (tmp_path / "sub/my.yaml").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    (tmp_path / "sub/b.jsonl").write_text("")
    assert sharpen("run", str(tmp_path / "sub/my.yaml"), "--set", "r=4", "--run", "other")[0] == 0
    (((preset, run, overrides, rehearse, *_), _),) = asked
    found = resolve(preset, overrides).settings
    assert (preset, run, rehearse) == ("own", "other", False)
    assert (found.learning_rate, found.calculator, found.use_dora, found.eval_steps) == (1e-4, "on", True, None)
    assert (found.r, found.data_dir) == (4, f"{tmp_path}/sub/rows.csv")
    assert (found.base_model, found.benchmarks) == (f"{tmp_path}/sub/base", (f"{tmp_path}/sub/b.jsonl",))


@pytest.mark.parametrize(("text", "told"), [
    ("preset: demo\nrnu: x\n", ":2: unknown key 'rnu'; did you mean 'run'?"),
    ("preset: demo\nr: 8\n", ":2: unknown key 'r'; the setting 'r' is written under `settings:`"),
    ("preset: demo\nlr: 8\n", ":2: unknown key 'lr'; the setting 'learning_rate' is written under `settings:`"),
    ("preset: demo\nsettings:\n  epsilon: 1\n  grpo.epsilon: 2\n", ":4: the setting 'grpo.epsilon' is given twice"),
    ("preset: demo\nsettings:\n  dpo: {bta: 1}\n", ":3: unknown setting 'dpo.bta' = '1'; did you mean 'dpo.beta'?"),
    ("preset: dmo\n", ":1: unknown preset 'dmo'; choose from"),
    ("run: x\n", ":1: the key `preset` is missing"),
    ("preset: demo\nsettings:\n  lerning_rate: 1\n", ":3: unknown setting 'lerning_rate' = '1'; did you mean 'learn"),
    ("preset: demo\nsettings:\n  save_steps: 0\n  r: eight\n", ":4: r = 'eight': must be a whole number"),
    ("preset: demo\nsettings:\n  r: 8\n  r: 9\n", ":4: 'r' is given twice"),
    ("preset: demo\nsettings:\n  kinds: [CAGR, [x]]\n", ":3: kinds must be a text or a number"),
    ("preset: demo\nsettings: [r]\n", ":2: `settings` must hold lines of `name: value`"),
    ("preset: demo\nsettings:\n  ? [a]\n  : b\n", ":3: a key must be a text"),
    ("preset: demo\ndata: a\nsettings:\n  data_dir: b\n", ":2: the setting 'data_dir' is given twice"),
    ("preset: demo\nrun: ../up\n", ":2: run = '../up': must be a name"),
    ("preset: demo\nrehearse: maybe\n", ":2: rehearse must be true or false"),
    ("preset: demo\n\tsettings: x\n", ":2: no YAML: found character"),
    ("preset: !!python/object/apply:os.system ['true']\n", ":1: preset must be a text"),
    ("", ":1: a settings file must hold lines"), ("- demo\n", ":1: a settings file must hold lines"),
    ("preset: " + "[" * 10_000, "is nested too deeply"), ("#" * 2_000_000, "this is no settings file"),
])  # fmt: skip
def test_what_is_wrong_in_a_file_is_told_with_its_line(sharpen, asked, tmp_path, text, told):
    (tmp_path / "my.yaml").write_text(text)
    code, out, err = sharpen("run", str(tmp_path / "my.yaml"))
    assert code == 2 and asked == [] and "Traceback" not in out + err
    assert [line for line in err.splitlines() if line.startswith(f"{tmp_path}/my.yaml") and told in line]


def test_a_file_that_is_not_there_is_named(sharpen, asked, tmp_path):
    assert f"{tmp_path}/no.yaml cannot be read" in sharpen("run", str(tmp_path / "no.yaml"))[2]
    (tmp_path / "dir.yml").mkdir()
    assert "is no file" in sharpen("run", str(tmp_path / "dir.yml"))[2] and asked == []


# ---- help and completion


def test_help_groups_commands_by_what_one_wants_to_do(sharpen):
    code, out, _ = sharpen("--help")
    groups = re.split(r"─ ([A-Z][a-z ]+) ─", out)
    boxes = zip(groups[1::2], groups[2::2])
    commands = {name: re.findall(r"^│ ([a-z]+) ", box, flags=re.MULTILINE) for name, box in boxes}
    assert code == 0 and commands["Make a run"] == ["run", "sweep", "reproduce"]
    assert commands["Look"] == ["presets", "settings", "doctor", "compare", "status", "grade", "agree"]
    assert commands["Ask and serve"] == ["serve", "ask", "demo", "deploy", "cloud"]
    assert commands["Share and tidy"] == ["clean", "push"]


@pytest.mark.parametrize(("words", "completed"), [
    ("sharpen pres", "presets"), ("sharpen run best_4", "best_4b"), ("sharpen run demo --set learni", "learning_rate="),
    ("sharpen compare --outputs OUT de", "demo"), ("sharpen ask --outputs OUT de", "demo"),
    ("sharpen sweep demo --grid lora_a", "lora_alpha="),
])  # fmt: skip
def test_the_shell_completes_commands_presets_runs_and_settings(write_run, tmp_path, words, completed):
    write_run(tmp_path, "demo")
    (tmp_path / "de$(touch x)").mkdir()  # which a shell would execute
    words = words.replace("OUT", str(tmp_path))
    asked = {"_SHARPEN_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    program = "import sys; sys.argv = ['sharpen']; from lib import cli; cli.app(prog_name='sharpen')"
    command, environment = [sys.executable, "-c", program], os.environ | asked
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == ([completed], "")


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


@pytest.mark.parametrize(("words", "told"), [
    (["--engines", "torch"], "--engines torch: name two of torch, vllm, llama-server, as in --engines torch,llama-se"),
    (["--engines", "torch,onnx"], "--engines torch,onnx: name two of torch, vllm, llama-server"),
    (["--model", "merged"], "--model merged: must be base or tuned"),
    (["--engines", "torch,vllm"], "eval_engine = 'vllm': vLLM is not installed: pip install vllm, or name the Python"),
])  # fmt: skip
def test_engines_that_cannot_be_compared_are_named_before_a_model_is_loaded(
    sharpen, write_run, tmp_path, monkeypatch, words, told
):  # fmt: skip
    monkeypatch.delenv("SHARPEN_VLLM_PYTHON", raising=False)
    folder = write_run(tmp_path, "one", stages=("prepare", "train"))
    (folder / "adapter/adapter_config.json").write_text('{"peft_type": "LORA"}')
    manifest = folder / "adapter/manifest.json"
    recorded = json.loads(manifest.read_text())
    recorded["outputs"] = runs.hashes_of(folder / "adapter")
    manifest.write_text(json.dumps(recorded))
    code, _, err = sharpen("agree", "one", *words, "--outputs", str(tmp_path))
    assert (code, told in err) == (2, True), err


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
