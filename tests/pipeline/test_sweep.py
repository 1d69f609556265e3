"""Claims about sweeps: the grid is checked first, luck shows as luck, and the rehearsed one really runs."""

import json
import subprocess
import sys

import pytest

from lib import cli
from lib.data.tasks import DEMO_KINDS
from lib.pipeline import execute, reproduce, sweep
from lib.run import disk, runs
from lib.run.paths import ROOT
from lib.run.settings import SettingsError


@pytest.fixture
def go(monkeypatch, tmp_path, write_run):
    """Sweep the demo with a stand-in for the pipeline, which writes runs with the figures that `planted` says."""

    def call(grid, planted=lambda settings: {}, **arguments):
        def stand_in(preset, run_name, overrides, rehearse, outputs, echo):
            figures = planted(overrides)
            if isinstance(figures, Exception):
                raise figures
            return execute.Summary(write_run(outputs, run_name, overrides, rehearse, **figures), None, (), {}, None)

        monkeypatch.setattr(execute, "run", stand_in)
        talk = []
        found = sweep.run("demo", grid, outputs=tmp_path, echo=talk.append, **arguments)
        return found, "\n".join(talk)

    return call


# ---- the grid


def test_every_problem_is_named_before_the_first_run_starts(monkeypatch, tmp_path):
    monkeypatch.setattr(execute, "run", lambda *_, **__: pytest.fail("a run started"))
    grid = {"learning_rate": ["1e-4", "fast"], "r": ["8", "0"], "lora_alhpa": ["16"], "seed": ["1"], "optim": ["sgd"]}
    with pytest.raises(SettingsError) as error:
        sweep.run("demo", grid, overrides={"r": "4"}, outputs=tmp_path)
    told = str(error.value)
    for part in ("learning_rate = 'fast'", "r = '0': must be", "did you mean 'lora_alpha'", "optim = 'sgd'",
                 "seed cannot be in --grid", "r is in --set and in --grid"):  # fmt: skip
        assert part in told
    assert len(error.value.problems) == 6 and not list(tmp_path.iterdir())


def test_a_contradiction_that_only_one_cell_has_is_refused():
    with pytest.raises(SettingsError, match="eval_rows = 400 is more than test_rows = 300"):
        sweep.plan("demo", {"eval_rows": ["100", "400"]}, 2, "s", {}, False)


@pytest.mark.parametrize("grid", [{"learning_rate": ["1e-4", "0.0001"]}, {"base_model": ["data/base", "data-base"]}])
def test_two_values_that_would_share_a_run_are_refused(grid):
    with pytest.raises(SettingsError, match="a second run s-.*: name each value once"):
        sweep.plan("demo", grid, 1, "s", {}, False)


def test_a_list_is_one_value_and_other_values_part_at_commas():
    pairs = ["r=8, 16", "target_modules=q_proj,v_proj", "target_modules=q_proj", "kinds=all", "mixture=gsm8k=2,svamp"]
    assert sweep.read_grid(pairs) == {
        "r": ["8", "16"], "target_modules": ["q_proj,v_proj", "q_proj"], "kinds": ["all"], "mixture": ["gsm8k=2,svamp"],
    }  # fmt: skip
    with pytest.raises(SettingsError, match="--grid 'r': must be KEY=VALUE"):
        sweep.read_grid(["r"])


def test_runs_are_named_by_their_cell_so_that_a_grid_can_grow():
    small = sweep.plan("demo", {"r": ["8"], "target_modules": ["q_proj,v_proj"]}, 2, "s", {"seed": "5"}, False)
    assert [(row["run"], row["seed"]) for row in small] == [
        ("s-r-8-target_modules-q_proj-v_proj-seed-5", 5), ("s-r-8-target_modules-q_proj-v_proj-seed-6", 6),
    ]  # fmt: skip
    assert small[0]["settings"] == {"r": 8, "target_modules": ("q_proj", "v_proj")}
    large = sweep.plan("demo", {"r": ["4", "8"], "target_modules": ["q_proj,v_proj"]}, 3, "s", {"seed": "5"}, False)
    assert {row["run"] for row in small} < {row["run"] for row in large} and len(large) == 6


@pytest.mark.parametrize("value", ["a/../../b", "x" * 90])
def test_no_value_makes_a_run_name_that_leaves_the_outputs(value):
    try:
        (row,) = sweep.plan("demo", {"chat_template": [value]}, 1, "s", {}, False)
        assert "/" not in row["run"] and ".." not in row["run"]
    except SettingsError as error:
        assert "100 are the most: shorten --run" in str(error)


# ---- what is said of the cells


def judge(grid, planted, seeds=3, **overrides) -> tuple[dict, str]:
    """What a sweep says of runs whose figures are `planted(settings, number of the seed)`: (found, text)."""
    rows = sweep.plan("demo", grid, seeds, "s", overrides, False)
    for row in rows:
        scores = planted(row["settings"], row["seed"] - rows[0]["seed"])
        row |= {"scores": scores if isinstance(scores, dict) else {sweep.LOSS: scores}, "asked": {"data_seed": 0}}
    found = sweep.summarise(rows)
    return found, sweep.text({"sweep": "s", "preset": "demo", "rehearse": False} | found)


def test_mean_and_interval_over_seeds_are_students():
    found, told = judge({}, lambda _, number: (0.2, 0.3, 0.4)[number])
    score = found["cells"][0]["scores"][sweep.LOSS]
    half = 4.302653 * 0.1 / 3**0.5  # a t table at 97.5 %, 2 degrees of freedom; the standard deviation is 0.1
    assert [score["mean"], score["low"], score["high"]] == pytest.approx([0.3, 0.3 - half, 0.3 + half], abs=1e-6)
    assert "the preset as it is  3 of 3  0.3000 [0.0516, 0.5484]" in told


def test_the_best_is_chosen_by_the_validation_loss_and_not_by_the_test():
    def planted(settings, number):
        return {sweep.LOSS: 1 / settings["r"], "accuracy, test, calculator on": 4 / settings["r"]}

    found, told = judge({"r": [8, 16]}, planted)
    assert found["best"] == "r=16" and "best by validation loss: r=16" in told and "flatters" not in told
    assert "50.0 % [50.0, 50.0]" in told and "-25.0 points" in told


@pytest.mark.parametrize(("grid", "loss"), [({"r": [8, 16]}, {}), ({"max_length": [320, 640]}, {sweep.LOSS: 0.3})])
def test_without_a_validation_loss_to_compare_the_test_chooses_and_says_that_it_flatters(grid, loss):
    (field,) = grid
    found, told = judge(grid, lambda s, _: loss | {"accuracy, test, calculator off": s[field] / 1000})
    assert found["best"] == f"{field}={grid[field][1]}" and "which flatters it" in told


def test_rows_without_a_gold_are_judged_by_their_perplexity():
    found, told = judge({"r": [8, 16]}, lambda s, number: {"perplexity": 1 + s["r"] + number / 10})
    assert (found["best"], found["chosen_by"]) == ("r=8", "perplexity") and "9.1000 [8.8516, 9.3484]" in told


def test_neighbours_differ_in_one_setting_by_one_place():
    grid = {"r": [4, 64, 8, 16], "optim": ["adamw_8bit", "adamw_torch"]}
    found, told = judge(grid, lambda s, _: abs(s["r"] - 8) + (s["optim"] == "adamw_torch"))
    assert found["best"] == "r=8, optim=adamw_8bit"
    assert {row["cell"] for row in found["neighbours"]} == {
        "r=4, optim=adamw_8bit", "r=16, optim=adamw_8bit", "r=8, optim=adamw_torch",
    }  # fmt: skip
    assert "that was tried" not in told  # it has a neighbour on both sides


def test_a_best_at_the_end_of_the_grid_says_so():
    _, told = judge({"learning_rate": [1e-3, 1e-4]}, lambda s, _: s["learning_rate"])
    assert "learning_rate=0.0001 is the smallest that was tried: a smaller one may be better still" in told


def test_a_lucky_seed_shows_and_so_does_a_steady_lead():
    lucky = {8: (0.40, 0.41, 0.42), 16: (0.41, 0.42, 0.10)}
    _, told = judge({"r": [8, 16]}, lambda s, number: lucky[s["r"]][number])
    assert "best by validation loss: r=16 (by seed: 0.4100, 0.4200, 0.1000)" in told
    assert "r=8       0.4000, 0.4100, 0.4200  -0.1000 [" in told and "may be the seeds' luck" in told
    _, told = judge({"r": [8, 16]}, lambda s, number: 0.4 - s["r"] / 100 + number * (1 + s["r"] / 1000) / 10)
    assert "more than the seeds' luck" in told  # the seeds move both by 0.2, but together: the pairs show it


def test_one_seed_has_no_interval_and_claims_nothing():
    found, told = judge({"r": [8, 16]}, lambda s, _: 1 / s["r"], seeds=1)
    assert found["cells"][0]["scores"][sweep.LOSS] == {"mean": 0.125, "low": None, "high": None}
    assert "may be the seeds' luck" in told


def test_a_loss_that_was_not_finite_is_no_best():
    found, _ = judge({"r": [8, 16]}, lambda s, number: {} if (s["r"], number) == (16, 1) else 1 / s["r"])
    assert found["best"] == "r=8" and sweep.LOSS not in found["cells"][1]["scores"]


def test_all_cells_get_the_same_questions_or_the_table_says_careful(go):
    found, told = go({"r": [8, 16]}, seeds=1, overrides={"data_seed": "4"})
    assert found["asked_alike"] and "the same data_seed, 4, and so were asked the same questions" in told
    found, told = go({"data_seed": [0, 1]}, seeds=1, name="other")
    assert not found["asked_alike"] and "CAREFUL: the cells were asked different questions" in told


# ---- what goes wrong


def test_a_failed_run_is_named_the_others_go_on_and_its_cell_is_not_chosen(go, tmp_path):
    def planted(settings):
        failing = settings["r"] == 16 and settings["seed"] == 3408
        return execute.StageFailed("stage 'train' failed: planted\nmore") if failing else {"loss": 1 / settings["r"]}

    found, told = go({"r": [8, 16, 32], "lora_alpha": [64]}, planted, seeds=2)
    assert list(found["failed"]) == ["demo-sweep-r-16-lora_alpha-64-seed-3408"] and found["best"].startswith("r=32")
    assert "FAILED demo-sweep-r-16-lora_alpha-64-seed-3408: stage 'train' failed: planted" in told
    assert "r=16, lora_alpha=64  1 of 2" in told and found["neighbours"] == []  # r=8 is two places away
    assert json.loads((tmp_path / "demo-sweep/sweep.json").read_text()) == json.loads(json.dumps(found))
    assert (tmp_path / "demo-sweep/sweep.txt").read_text().rstrip() in told


def test_where_every_run_fails_each_is_named_and_nothing_is_best(go):
    found, told = go({"r": [8, 16]}, lambda s: runs.RunError("no space left"), seeds=1)
    assert found["best"] is None and told.count("FAILED") == 2 and "best by" not in told


def test_an_interrupted_sweep_keeps_what_is_done(go, tmp_path):
    def planted(settings):
        if settings["r"] == 16:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        go({"r": [8, 16]}, planted, seeds=1)
    first, second = json.loads((tmp_path / "demo-sweep/sweep.json").read_text())["cells"]
    assert "scores" in first["runs"][0] and "scores" not in second["runs"][0]
    assert disk.holder(tmp_path / "demo-sweep", "sweep") is None


def test_a_sweep_does_not_write_into_a_run_or_beside_another_sweep(go, tmp_path, write_run):
    write_run(tmp_path, "mine", stages=["prepare"])
    with pytest.raises(runs.RunError, match="is a run: give the sweep another name by --run"):
        go({"r": [8]}, name="mine")
    code = "import pathlib, sys; from lib.run import disk\nf = pathlib.Path(sys.argv[1]); f.mkdir()\n" \
           "disk.lock(f, 'sweep'); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / "demo-sweep")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(runs.RunError, match=f"process {other.pid}"):
            go({"r": [8]})
        other.stdin.close()


@pytest.mark.parametrize(("failed", "code"), [({}, 0), ({"s-r-8": "why"}, 1)])
def test_the_command_hands_over_what_was_typed_and_fails_where_a_run_did(monkeypatch, tmp_path, failed, code):
    asked = []
    monkeypatch.setattr(sweep, "run", lambda *words: asked.append(words) or {"failed": failed})
    monkeypatch.chdir(tmp_path)
    words = "sweep demo --grid r=8,16 --grid data_dir=a,b --seeds 2 --run s --set optim=adamw_torch --rehearse"
    monkeypatch.setattr(sys, "argv", ["sharpen", *words.split(), "--outputs", "out"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    grid = {"r": ["8", "16"], "data_dir": [f"{tmp_path}/a", f"{tmp_path}/b"]}
    assert ended.value.code == code
    assert asked == [("demo", grid, 2, "s", {"optim": "adamw_torch"}, True, tmp_path / "out")]


# ---- the real thing


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """(outputs, what `sharpen sweep` returns) of one cell, rehearsed with as little work as there can be; what is said
    of several is claimed above."""
    outputs = tmp_path_factory.mktemp("outputs")
    small = {"train_rows": 12, "validation_rows": 6, "test_rows": 6, "eval_rows": 6, "max_new_tokens": 8,
             "per_device_train_batch_size": 2, "warmup_steps": 0}  # fmt: skip
    arguments = ("demo", {"max_steps": ["1"]}, 1, "s", small, True, outputs)
    return outputs, arguments, sweep.run(*arguments)


@pytest.mark.notebooks
def test_a_rehearsed_sweep_measures_its_cell_and_is_skipped_the_second_time(swept):
    outputs, arguments, found = swept
    (cell,) = found["cells"]
    name = cell["runs"][0]["run"]
    assert name == "s-max_steps-1-seed-3407" and not found["failed"]
    manifest = runs.read(outputs / name, "train")
    assert manifest["metrics"]["steps"] == 1 and manifest["seeds"] == {"seed": 3407}
    last = json.loads((outputs / name / "adapter/metrics.jsonl").read_text().splitlines()[-1])
    assert cell["scores"]["validation loss"]["mean"] == last["eval_loss"]
    assert found["asked_alike"] and found["chosen_by"] == "validation loss"
    assert "REHEARSAL" in (outputs / "s/sweep.txt").read_text()
    talk = []
    assert sweep.run(*arguments, echo=talk.append) == found
    assert sum("skipped: settings, inputs and code are unchanged" in line for line in talk) == 4


@pytest.mark.notebooks
def test_each_kind_is_asked_with_and_without_the_calculator(swept):
    outputs, _, found = swept
    table = json.loads((outputs / found["cells"][0]["runs"][0]["run"] / "eval/summary.json").read_text())["table"]
    asked = {(row["model"], row["calculator"], row["kind"]): row["n"] for row in table if row["split"] == "test"}
    assert asked == {(model, calculator, kind): n for model in ("base", "tuned") for calculator in (True, False)
                     for kind, n in {"all": 6, **dict.fromkeys(DEMO_KINDS, 1)}.items()}  # fmt: skip


@pytest.mark.notebooks
def test_a_run_is_reproduced_from_its_manifests(swept):
    outputs, _, found = swept
    name = found["cells"][0]["runs"][0]["run"]
    again = reproduce.reproduce(name, outputs)
    then, now = (runs.read(outputs / run, "evaluate") for run in (name, f"{name}-reproduced"))
    assert then["settings"] == now["settings"]
    files = {f"{row['in']}/{row['name']}": row["equal"] for row in again["files"]}
    assert files["data/train.jsonl"] and files["adapter/adapter_model.safetensors"] and files["eval/generations.jsonl"]
    assert then["outputs"]["generations.jsonl"] == now["outputs"]["generations.jsonl"]
    assert again["equal"] and len(again["figures"]) > 100 and not again["causes"]
