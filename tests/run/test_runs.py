"""Claims about run folders: complete or not, locked or not, changed or not, and what a manifest holds."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import grimp
import nbformat
import numpy as np
import pytest
from pydantic import ValidationError

from lib.pipeline import status
from lib.run import disk, provenance, runs
from lib.run.parameters import from_notebook
from lib.run.paths import ROOT
from lib.run.presets import resolve
from lib.run.stages import STAGES


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """An outputs folder, and the stages' notebooks in the working directory, as a kernel has them."""
    (tmp_path / "notebooks").mkdir()
    for name in (row.notebook for row in STAGES.values()):
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", "print('work')")
    monkeypatch.chdir(tmp_path / "notebooks")
    yield tmp_path / "outputs"
    for held in list(disk._locks):
        disk.unlock(held.parent, held.name.split(".")[1])


def write_notebook(path: Path, source: str, parameters: str = "preset = 'demo'", output: str = "") -> None:
    cells = [nbformat.v4.new_code_cell(parameters), nbformat.v4.new_code_cell(source)]
    cells[0].metadata["tags"] = ["parameters"]
    if output:
        cells[1].outputs = [nbformat.v4.new_output("stream", text=output)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


def start(outputs, stage="prepare", run="trial", **parameters) -> runs.Stage:
    return runs.begin(from_notebook(stage, {"preset": "demo", "run": run, "outputs": str(outputs)} | parameters))


def prepare(outputs, run="trial", rows=({"id": 1},), **parameters) -> dict:
    stage = start(outputs, run=run, **parameters)
    stage.write_rows("train.jsonl", rows)
    return stage.finish(rows=len(rows))


def current(outputs, stage="prepare", overrides=None, rehearse=False) -> tuple[bool, str]:
    notebook = outputs.parent / "notebooks" / f"{STAGES[stage].notebook}.ipynb"
    return runs.is_current(outputs, "trial", stage, resolve("demo", overrides, rehearse), notebook)


def test_manifest_holds_what_came_in_what_came_out_and_how(outputs):
    prepare(outputs)
    (outputs.parent / "base").mkdir()
    (outputs.parent / "base" / "weights").write_text("w")
    stage = start(outputs, "train", learning_rate="1e-4")
    stage.input("prepare")
    stage.uses(outputs.parent / "base")
    stage.log(1, loss=2.5)
    stage.save_json("adapter_config.json", {"r": 32})
    told = stage.finish(headline={"loss": "2.5"}, rows=900)
    manifest = runs.read(outputs / "trial", "train")
    assert manifest == told
    assert manifest["settings"]["learning_rate"] == 1e-4 and manifest["origins"]["learning_rate"] == "override"
    assert manifest["inputs"]["data"]["train.jsonl"] == disk.sha256(outputs / "trial/data/train.jsonl")
    assert list(manifest["external"].values()) == [{"weights": disk.sha256(outputs.parent / "base/weights")}]
    assert set(manifest["outputs"]) == {"adapter_config.json", "metrics.jsonl"}
    assert manifest["code"]["lib/run/runs.py"] == disk.sha256(ROOT / "lib/run/runs.py")
    assert manifest["versions"]["transformers"] and manifest["versions"]["python"]
    assert manifest["device"]["kind"] in ("cpu", "cuda") and manifest["device"]["cpu_threads"] >= 1
    assert manifest["seeds"] == {"seed": 3407} and manifest["rehearse"] is False
    assert manifest["peak_memory_bytes"]["resident"] > 10e6 and manifest["elapsed_seconds"] > 0
    assert manifest["started_at"] < manifest["ended_at"] and manifest["ended_at"].endswith("+00:00")
    assert set(manifest["git"]) == {"commit", "dirty"}
    assert manifest["metrics"] == {"headline": {"loss": "2.5"}, "rows": 900}
    assert not (outputs / "trial/adapter/started.json").exists()


def test_a_stage_sees_only_the_settings_that_its_manifest_records(outputs):
    stage = start(outputs)
    assert stage.settings.train_rows == 900
    with pytest.raises(AttributeError):
        _ = stage.settings.learning_rate
    with pytest.raises(ValidationError, match="frozen"):
        stage.settings.train_rows = 3


def test_missing_stage_names_the_notebook_to_run(outputs):
    stage = start(outputs, "train")
    with pytest.raises(runs.RunError, match="'trial' has no complete stage 'prepare': run 10_prepare_data first"):
        stage.input("prepare")


@pytest.mark.parametrize("deed", ["changed", "missing", "added"])
def test_tampered_outputs_are_named(outputs, deed):
    prepare(outputs)
    file = outputs / "trial/data/train.jsonl"
    if deed == "changed":
        file.write_text(file.read_text().replace("1", "2"))
    elif deed == "missing":
        file.unlink()
    else:
        file = file.with_name("extra.jsonl")
        file.write_text("{}")
    assert current(outputs) == (False, f"{file.name} {'is' if deed == 'missing' else 'was'} {deed}")
    with pytest.raises(runs.RunError, match=f"{file.name} (is|was) {deed}: run 10_prepare_data again"):
        start(outputs, "train").input("prepare")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"stage": "train"}', "[" * 100_000, "\0"])
def test_foreign_manifest_is_refused_by_name(outputs, text):
    prepare(outputs)
    path = outputs / "trial/data/manifest.json"
    path.write_text(text)
    with pytest.raises(runs.RunError, match=str(path)):
        runs.read(outputs / "trial", "prepare")
    assert current(outputs)[0] is False


@pytest.mark.parametrize("key", ["settings", "inputs", "external", "outputs", "code", "notebook", "preset", "stage"])
def test_manifest_with_odd_parts_gives_a_reason_not_a_traceback(outputs, key):
    manifest = prepare(outputs)
    path = outputs / "trial/data/manifest.json"
    for odd in (None, 7, "text", [], {"a": None}, {"../../x": {"b": 1}}):
        path.write_text(json.dumps(manifest | {key: odd}))
        unchanged, reason = current(outputs)
        assert not unchanged and reason
    del manifest[key]
    path.write_text(json.dumps(manifest))
    assert current(outputs)[0] is False


def test_a_stage_of_another_setup_is_refused(outputs):
    prepare(outputs, max_length=256)
    with pytest.raises(runs.RunError, match="max_length was 256 and is 640"):
        start(outputs, "train").input("prepare")
    prepare(outputs, run="other", rehearse=True)
    with pytest.raises(runs.RunError, match="rehearse was True and is False"):
        start(outputs, "train", run="other", base_model="data/base").input("prepare")


def test_another_run_can_be_an_input(outputs):
    prepare(outputs)
    prepare(outputs, run="other", rows=[{"id": 2}])
    stage = start(outputs, "compare", others=["other"])
    assert stage.input("prepare", run="other") == outputs / "other/data"
    assert "../other/data" in stage.inputs
    with pytest.raises(runs.RunError, match="must be a name"):
        stage.input("prepare", run="../other")
    stage.finish()
    assert current(outputs, "compare", {"others": ("other",)})[0]
    prepare(outputs, run="other", rows=[{"id": 3}])
    assert current(outputs, "compare", {"others": ("other",)}) == (False, "input ../other/data changed")


def test_unchanged_stage_is_current_and_says_why_not_otherwise(outputs, monkeypatch):
    assert current(outputs) == (False, runs.NOT_COMPLETE)
    prepare(outputs)
    assert current(outputs)[0]
    assert current(outputs, overrides={"learning_rate": 1e-4})[0]  # not a setting of this stage
    assert current(outputs, overrides={"test_rows": 60}) == (False, "test_rows was 300 and is 60")
    assert "rehearse was False and is True" in current(outputs, rehearse=True)[1]
    manifest = json.loads((outputs / "trial/data/manifest.json").read_text())
    manifest["code"]["lib/run/runs.py"] = "0" * 64
    (outputs / "trial/data/manifest.json").write_text(json.dumps(manifest))
    assert current(outputs) == (False, "lib/run/runs.py changed")


def test_a_data_file_beside_a_module_is_code_too(outputs):
    import lib.data.kinds  # noqa: F401 (its phrasings stand in kinds.json)

    code = prepare(outputs)["code"]
    beside = {path.relative_to(ROOT).as_posix() for path in (ROOT / "lib").rglob("*.json")}
    assert "lib/data/kinds.json" in code and {name for name in code if name.endswith(".json")} <= beside
    assert code["lib/data/kinds.json"] == disk.sha256(ROOT / "lib/data/kinds.json") and current(outputs)[0]
    manifest = json.loads((outputs / "trial/data/manifest.json").read_text())
    manifest["code"]["lib/data/kinds.json"] = "0" * 64
    (outputs / "trial/data/manifest.json").write_text(json.dumps(manifest))
    assert current(outputs) == (False, "lib/data/kinds.json changed")


@pytest.mark.parametrize("worker", ["lib.train.fsdp_worker", "lib.gpt.pretrain_worker"])
def test_the_code_of_other_processes_is_a_stages_code_too(outputs, worker):
    """grimp, which the linter reads imports by, says what a worker loads."""
    names = {worker} | grimp.build_graph("lib", cache_dir=None).find_upstream_modules(worker) - {"lib"}
    files = {ROOT / f"{name.replace('.', '/')}.py" for name in names}
    assert provenance.loaded_with(worker) == files and len(files) > 15
    stage = start(outputs)
    stage.uses_code(worker)
    begun = json.loads((stage.folder / "started.json").read_text())["code"]
    wanted = {path.relative_to(ROOT).as_posix() for path in files} - provenance.SETTLED
    assert wanted <= begun.keys() and wanted <= stage.finish()["code"].keys()


def test_a_models_card_is_not_what_a_stage_is_made_from(outputs):
    base = outputs.parent / "base"
    base.mkdir()
    (base / "weights").write_text("w")
    (base / "README.md").write_text("a card")
    stage = start(outputs)
    stage.uses(base)
    assert [*stage.finish()["external"].values()] == [{"weights": disk.sha256(base / "weights")}]
    path = outputs / "trial/data/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["external"][str(base)]["README.md"] = "0" * 64  # as earlier runs recorded it
    path.write_text(json.dumps(manifest))
    assert current(outputs)[0]


def test_outputs_and_parameters_of_a_notebook_are_not_its_code(outputs):
    prepare(outputs)
    notebook = outputs.parent / "notebooks/10_prepare_data.ipynb"
    write_notebook(notebook, "print('work')", parameters="preset = 'other'", output="work")
    assert current(outputs)[0]
    write_notebook(notebook, "print('play')")
    assert current(outputs) == (False, "10_prepare_data.ipynb changed")


def test_a_changed_base_model_is_noticed(outputs):
    base = outputs.parent / "base"
    base.mkdir()
    (base / "model.safetensors").write_text("one")
    stage = start(outputs)
    stage.uses(base)
    stage.finish()
    assert current(outputs)[0]
    (base / "model.safetensors").write_text("two")
    assert current(outputs)[1].endswith("base: model.safetensors was changed")


def test_same_rows_made_again_leave_later_stages_current(outputs):
    prepare(outputs)
    stage = start(outputs, "train")
    stage.input("prepare")
    stage.finish()
    prepare(outputs)
    assert current(outputs, "train")[0]
    prepare(outputs, rows=[{"id": 2}])
    assert current(outputs, "train") == (False, "input data changed")


def test_a_second_start_keeps_the_former_result_until_the_new_one_is_complete(outputs):
    prepare(outputs)
    stage = start(outputs)
    assert not (outputs / "trial/data/manifest.json").exists() and not list(stage.folder.glob("*.jsonl"))
    assert (outputs / "trial/data.former/train.jsonl").exists()
    stage.finish()
    assert not (outputs / "trial/data.former").exists()


def test_unfinished_attempt_is_gone_on_from_only_with_the_same_settings(outputs):
    start(outputs, "train").log(1, loss=1.0)
    again = start(outputs, "train")
    assert again.resumed and (again.folder / "metrics.jsonl").exists()
    other = start(outputs, "train", learning_rate=1e-5)
    assert not other.resumed and not (other.folder / "metrics.jsonl").exists()
    assert (outputs / "trial/adapter.abandoned/metrics.jsonl").exists()


def test_unfinished_attempt_from_other_inputs_is_put_aside(outputs):
    prepare(outputs)
    first = start(outputs, "train")
    first.input("prepare")
    first.log(1, loss=1.0)
    prepare(outputs, rows=[{"id": 2}])
    again = start(outputs, "train")
    assert again.resumed
    again.input("prepare")
    assert not again.resumed and not (again.folder / "metrics.jsonl").exists()


def test_files_that_no_stage_wrote_are_left_alone(outputs):
    precious = outputs / "trial/data/thesis.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("years of work")
    with pytest.raises(runs.RunError, match="no stage of Sharpen wrote"):
        start(outputs)
    assert precious.read_text() == "years of work"


def test_what_a_killed_process_left_half_written_stops_nobody(outputs):
    """Killed as the stage began, and again between its manifest and the tidying up."""
    folder = outputs / "trial" / "data"
    folder.mkdir(parents=True)
    (folder / ".started.json.99.part").write_text('{"pl')
    stage = start(outputs)
    (folder / ".manifest.json.99.part").write_text('{"st')
    begun = (folder / "started.json").read_text()
    stage.finish()
    assert [path.name for path in folder.iterdir()] == ["manifest.json"]
    (folder / "started.json").write_text(begun)
    (row,) = status.table(outputs)
    assert row == {"run": "trial", "complete": "prepare"}
    assert runs.changes(outputs / "trial", "prepare") == []


def test_unwritable_outputs_are_named(outputs):
    outputs.write_text("a file, not a folder")
    with pytest.raises(runs.RunError, match=f"cannot write to {outputs}"):
        start(outputs)


HOLDER = """
import sys, time
from lib.run import parameters, runs
runs.begin(parameters.from_notebook("prepare", {"preset": "demo", "run": "trial", "outputs": sys.argv[1]}))
print("held", flush=True)
time.sleep(60)
"""


def test_lock_names_its_holder_and_is_freed_by_a_dead_process(outputs):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, outputs], stdout=subprocess.PIPE, env=environment)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(runs.RunError, match=f"written by process {holder.pid} on .+ since 20"):
            start(outputs)
        start(outputs, run="other")  # another run is free
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert start(outputs).resumed


def test_finished_stage_gives_the_lock_back_and_takes_no_more(outputs):
    stage = start(outputs)
    stage.finish()
    assert not disk._locks
    for write in (lambda: stage.log(1), lambda: stage.save_json("a", {}), lambda: stage.write_rows("b", []),
                  stage.finish):
        with pytest.raises(AssertionError, match="finished"):
            write()


def test_a_failed_write_leaves_the_old_file_whole(outputs):
    stage = start(outputs)
    stage.write_rows("rows.jsonl", [{"id": 1}])

    def rows():
        yield {"id": 2}
        raise OSError(28, "No space left on device")

    with pytest.raises(runs.RunError, match="rows.jsonl: No space left on device; make room"):
        stage.write_rows("rows.jsonl", rows())
    assert json.loads((stage.folder / "rows.jsonl").read_text()) == {"id": 1}
    assert sorted(p.name for p in stage.folder.iterdir()) == ["rows.jsonl", "started.json"]


def test_metrics_are_strict_json(outputs):
    stage = start(outputs)
    stage.log(1, loss=float("nan"), norm=np.float32("inf"), rows=np.int64(3), parts=np.array([1.5, np.nan]), ok=True)
    line = (stage.folder / "metrics.jsonl").read_text()
    read = json.loads(line, parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    assert read == {"step": 1, "loss": None, "norm": None, "rows": 3, "parts": [1.5, None], "ok": True}
    assert stage.finish(loss=float("nan"))["metrics"] == {"loss": None}


def test_checkpoints_and_hidden_files_are_no_outputs(outputs):
    stage = start(outputs, "train")
    for name in ("checkpoints/checkpoint-5/model.safetensors", "checkpoint-9/a", ".cache/b", "adapter.safetensors"):
        (stage.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (stage.folder / name).write_text("x")
    assert set(stage.finish()["outputs"]) == {"adapter.safetensors"}


def test_secrets_of_the_environment_reach_no_output(outputs, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_planted_secret")
    stage = start(outputs, chat_template="hf_planted_secret")
    stage.log(1, loss=1.0)
    started = json.loads((stage.folder / "started.json").read_text())
    assert started["plan"]["settings"]["chat_template"] == "[HF_TOKEN]"
    stage.finish(headline={"asked": "by hf_planted_secret"})
    files = [path for path in outputs.rglob("*") if path.is_file()]
    assert len(files) >= 2 and not [path for path in files if "hf_planted_secret" in path.read_text()]
    assert runs.read(outputs / "trial", "prepare")["metrics"]["headline"] == {"asked": "by [HF_TOKEN]"}


def test_shown_settings_tell_their_origin_rehearsal_and_no_markup(outputs):
    stage = start(outputs, "evaluate", rehearse=True, chat_template="<script>alert(1)</script>")
    page, text = stage._repr_html_(), repr(stage)
    assert "REHEARSAL" in page and "REHEARSAL" in text
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "override" in page and "rehearsal" in page and "preset" in page
    assert "REHEARSAL" not in repr(start(outputs, "evaluate", run="real"))


def test_outputs_in_colabs_drive_are_there_before_anything_is_written(outputs, monkeypatch):
    mounted = []

    def mount(place):
        mounted.append(place)
        assert not outputs.exists()

    colab = ModuleType("google.colab")
    colab.drive = SimpleNamespace(mount=mount)
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    runs.start("prepare", {"preset": "demo", "run": "elsewhere", "outputs": str(outputs.with_name("elsewhere"))})
    monkeypatch.setattr(runs, "DRIVE", outputs.parent)
    assert mounted == []
    runs.start("prepare", {"preset": "demo", "run": "trial", "outputs": str(outputs)})
    assert mounted == [str(outputs.parent)] and (outputs / "trial/data").is_dir()
