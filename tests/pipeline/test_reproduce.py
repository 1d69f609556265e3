"""Claims about `sharpen reproduce`: what it runs again, what counts as equal, and which runs it refuses.

That a rehearsed run really comes out the same is claimed in test_sweep.py, where one is at hand."""

import json
import re
import shutil
import sys

import pytest

from lib import cli
from lib.judge import compare
from lib.pipeline import execute, report, reproduce, status
from lib.run import presets, provenance, runs
from lib.run.settings import SettingsError
from lib.ship import deploy
from tests.judge.test_compare import make_run

WHOLE = ("prepare", "train", "evaluate", "compare", "export")


@pytest.fixture
def again(monkeypatch, tmp_path, write_run):
    """Reproduce a run in tmp_path, with a stand-in for the pipeline that writes the planted figures: (found, told)."""

    def call(name="first", **figures):
        def stand_in(preset, run_name, settings, rehearse, outputs, stages, echo):
            assert preset == "demo"
            call.asked.append((stages, settings))
            write_run(outputs, run_name, settings, rehearse, stages, **figures)

        monkeypatch.setattr(execute, "run", stand_in)
        call.asked, talk = [], []
        return reproduce.reproduce(name, tmp_path, echo=talk.append), "\n".join(talk)

    return call


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_equal_figures_are_a_reproduction_whatever_it_took(tmp_path, write_run, again):
    first = write_run(tmp_path, "first")
    found, told = again()
    manifests = [runs.read(folder, "train") for folder in (first, tmp_path / "first-reproduced")]
    assert manifests[0]["metrics"]["train_seconds"] != manifests[1]["metrics"]["train_seconds"]
    assert found["equal"] and found["causes"] == [] and re.search(r"\nREPRODUCED: all \d+ figures are equal\n", told)
    assert "equal    accuracy.0.accuracy: 0.5" in told
    assert "equal    data/train.jsonl" in told and "DIFFERS  adapter/metrics.jsonl" in told  # it holds a time
    names = {row["name"] for row in found["figures"]}
    assert "step 1.eval_loss" in names and "perplexity.tuned.perplexity" in names
    assert not [name for name in names if "seconds" in name or "runtime" in name or "headline" in name]
    assert json.loads((tmp_path / "first-reproduced/reproduction.json").read_text()) == found


@pytest.mark.parametrize(
    ("figures", "told"),
    [
        ({"accuracy": 0.25}, "DIFFERS  accuracy.0.accuracy: 0.5 -> 0.25"),
        ({"loss": 0.30000000000000004}, "DIFFERS  step 1.eval_loss: 0.3 -> 0.30000000000000004"),
        ({"loss": None}, "DIFFERS  step 1.eval_loss: 0.3 -> (absent)"),
        ({"perplexity": 1.6}, "DIFFERS  perplexity.tuned.perplexity: 1.5 -> 1.6"),
    ],
)
def test_a_figure_that_differs_in_its_last_digit_is_named(tmp_path, write_run, again, figures, told):
    write_run(tmp_path, "first")
    found, text = again(**figures)
    assert not found["equal"] and told in text and "NOT REPRODUCED: 1 of" in text
    assert "nothing recorded differs: sums in another order" in text


def test_what_differs_around_the_figures_is_named_once(tmp_path, write_run, again, monkeypatch):
    versions, device, code = provenance.versions(), provenance.device(), provenance.code()
    monkeypatch.setattr(provenance, "git", lambda: {"commit": "cd" * 20, "dirty": False})
    write_run(tmp_path, "first")
    monkeypatch.setattr(provenance, "git", lambda: {"commit": "ab" * 20, "dirty": True})
    monkeypatch.setattr(provenance, "versions", lambda: versions | {"torch": "9.9"})
    monkeypatch.setattr(provenance, "device", lambda: device | {"cpu_threads": 99})
    monkeypatch.setattr(provenance, "code", lambda: code | {"lib/train/qlora.py": "ef" * 32})
    _, told = again(accuracy=0.25)
    for cause in (r"versions\.torch: .* -> 9\.9", r"git\.commit: cdcdcdcd -> abababab", r"git\.dirty: False -> True",
                  r"device\.cpu_threads: \d+ -> 99", r"code\.lib/train/qlora\.py: .* -> efefefef"):  # fmt: skip
        assert len(re.findall(rf"^  {cause} \(data, adapter, eval\)$", told, re.MULTILINE)) == 1, cause
    assert "possible causes are above" in told


def before_rooms(run):
    """A run as it was written when lib had no rooms: modules by other names, the workers' code as outside files."""
    for stage in ("data", "adapter", "eval"):
        code = {f"lib/{name}.py": "ab" * 32 for name in ("runs", "qlora", "gpt_fast")}
        edit(run / stage / "manifest.json", code=code)
    edit(run / "adapter/manifest.json", external={"lib/fsdp_worker.py": {"fsdp_worker.py": "ab" * 32}})
    return run


def test_a_run_from_before_the_rooms_is_made_again_and_its_code_is_said_to_have_changed(tmp_path, write_run, again):
    before_rooms(write_run(tmp_path, "first"))
    found, told = again()
    assert found["equal"] and "REPRODUCED: all" in told
    assert re.search(r"code\.lib/qlora\.py: abababab -> \(absent\) \(data, adapter, eval\)", told)
    assert any(row["name"].startswith("code.lib/run/") and row["first"] == "(absent)" for row in found["causes"])


def test_a_run_from_before_the_rooms_is_not_current_but_can_be_compared_reported_and_served(tmp_path):
    run = make_run(tmp_path, "first")
    table = compare.table([compare.load(run)])
    before_rooms(run)
    assert compare.table([compare.load(run)]) == table
    resolved, notebook = presets.resolve("demo"), execute.notebook_path("21_train_qlora")
    current, reason = runs.is_current(tmp_path, "first", "train", resolved, notebook)
    assert (current, reason) == (False, "lib/fsdp_worker.py: fsdp_worker.py is missing")
    assert [row["complete"] for row in status.table(tmp_path)] == ["prepare, train, evaluate"]
    assert deploy.settings_of(run).base_model == "data/base"
    assert "Sharpen: run first" in report.write(run).read_text()


@pytest.mark.parametrize(("share", "verdict"), [(0.5, "equal    accuracy.0.accuracy: 0.5"),
                                               (0.25, "DIFFERS  accuracy.0.accuracy: 0.25 -> 0.5")])  # fmt: skip
def test_accuracies_of_a_run_from_before_they_were_records_are_held_against_the_same_figures(
    tmp_path, write_run, again, share, verdict
):  # fmt: skip
    manifest = write_run(tmp_path, "first") / "eval/manifest.json"
    metrics = json.loads(manifest.read_text())["metrics"]
    former = {"tuned, test, calculator on": share, "base, test, calculator on": 0.0}
    edit(manifest, metrics=metrics | {"accuracy": former})
    found, told = again()
    assert verdict in told and found["equal"] == (share == 0.5)
    names = [row["name"] for row in found["figures"] if row["name"].startswith("accuracy")]
    assert names == [f"accuracy.{n}.{name}" for n in (0, 1) for name in ("model", "split", "calculator", "accuracy")]


def test_the_settings_are_the_manifests_whatever_the_preset_says_now(tmp_path, write_run, again, monkeypatch):
    write_run(tmp_path, "first", {"r": 8, "seed": 5, "data_seed": 7, "train_rows": 77}, rehearse=True)
    demo = presets.PRESETS["demo"]
    changed = demo.settings.model_copy(update={"learning_rate": 0.5, "lora_alpha": 1, "kinds": ("compounding",)})
    monkeypatch.setitem(presets.PRESETS, "demo", presets.Preset("demo", "", "", changed))
    found, told = again()
    for stage in ("prepare", "train", "evaluate"):
        then, now = (runs.read(tmp_path / name, stage) for name in ("first", "first-reproduced"))
        assert then["settings"] == now["settings"] and then["rehearse"] is now["rehearse"] is True
    assert now["preset"] == "demo" and found["equal"] and told.startswith("\nREHEARSAL")


def test_a_setting_that_is_newer_than_the_run_is_named(tmp_path, write_run, again):
    manifest = write_run(tmp_path, "first") / "adapter/manifest.json"
    settings = json.loads(manifest.read_text())["settings"]
    edit(manifest, settings={name: value for name, value in settings.items() if name != "devices"})
    found, told = again()
    assert "settings.devices: (absent) -> 1 (adapter)" in told and found["equal"]


def test_weights_that_are_gone_are_held_against_by_their_hashes(tmp_path, write_run, again):
    (write_run(tmp_path, "first") / "adapter/adapter_model.safetensors").unlink()
    found, told = again()
    assert found["equal"] and "equal    adapter/adapter_model.safetensors" in told


def test_bytes_that_differ_and_stages_left_out_are_said_beside_equal_figures(tmp_path, write_run, again):
    first = write_run(tmp_path, "first", stages=("pretrain", *WHOLE[:3]))
    manifest = json.loads((first / "eval/manifest.json").read_text())
    edit(first / "eval/manifest.json", outputs=manifest["outputs"] | {"generations.jsonl": "0" * 64})
    (first / "eval/generations.jsonl").unlink()
    found, told = again()
    assert found["left_out"] == ["pretrain"] and "not made again: pretrain" in told
    assert re.search(r"REPRODUCED: all \d+ figures are equal, but not the bytes of eval/generations.jsonl", told)


def test_what_only_you_may_give_is_not_taken_from_a_run(tmp_path, write_run, again):
    first = write_run(tmp_path, "first", stages=WHOLE)
    settings = json.loads((first / "export/manifest.json").read_text())["settings"]
    edit(first / "export/manifest.json", settings=settings | {"llama_cpp_path": "planted", "push_to_hub": "a/b"})
    again()
    assert all(not {"llama_cpp_path", "push_to_hub"} & settings.keys() for _, settings in again.asked)


def test_a_probe_and_an_export_keep_their_own_settings(tmp_path, write_run, again):
    write_run(tmp_path, "first", stages=WHOLE[:4])
    write_run(tmp_path, "first", {"samples": 4, "max_new_tokens": 99}, stages=["probe"])
    write_run(tmp_path, "first", {"eval_rows": 60}, stages=["export"])
    assert again()[0]["equal"]
    (stages, settings), (probe, of_probe), (export, of_export) = again.asked
    assert (stages, settings["eval_rows"], settings["max_new_tokens"]) == (list(WHOLE[:4]), None, 540)
    assert (probe, of_probe["samples"], of_probe["max_new_tokens"]) == (["probe"], 4, 99)
    assert (export, of_export["eval_rows"], of_export["learning_rate"]) == (["export"], 60, 3e-3)


def foreign(run, **changes):
    edit(run / "adapter/manifest.json", **changes)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda run: shutil.rmtree(run), "no complete stage 'prepare': run 10_prepare_data first"),
        (lambda run: (run / "eval/manifest.json").unlink(), "no complete stage 'evaluate': run 30_evaluate first"),
        (lambda run: (run / "adapter/manifest.json").write_text("{"), "adapter/manifest.json"),
        (lambda run: (run / "adapter/manifest.json").write_text('{"epochs": 3}'), "adapter/manifest.json"),
        (lambda run: (run / "data/train.jsonl").write_text("{}"), "data: train.jsonl was changed (10_prepare_data)"),
        (lambda run: (run / "eval/more.json").write_text(""), "eval: more.json was added"),
        (lambda run: foreign(run, preset="mine"), "adapter: is of preset mine, not of demo"),
        (lambda run: foreign(run, inputs={"data": {}}), "adapter: was made from other files than are in data now"),
        (lambda run: foreign(run, inputs={"../../etc": {}}), "adapter"),
        (lambda run: foreign(run, external={"data/base": {"config.json": "0" * 64}}), "config.json, which was changed"),
        (lambda run: foreign(run, external={"no/such.csv": {"such.csv": "0"}}), "no/such.csv, which is missing"),
        (lambda run: foreign(run, inputs={"../gone/eval": {}}), "run 'gone' has no complete stage 'evaluate'"),
    ],
)
def test_a_run_that_is_not_what_its_manifests_say_is_refused(tmp_path, write_run, monkeypatch, spoil, told):
    spoil(write_run(tmp_path, "first"))
    monkeypatch.setattr(execute, "run", lambda *_, **__: pytest.fail("it started"))
    with pytest.raises(runs.RunError, match=re.escape(told)):
        reproduce.reproduce("first", tmp_path)
    assert not (tmp_path / "first-reproduced").exists()


def test_an_unknown_setting_or_preset_of_another_version_is_refused_by_name(tmp_path, write_run):
    run = write_run(tmp_path, "first")
    for stage in ("data", "adapter", "eval"):
        edit(run / stage / "manifest.json", preset="gone")
    foreign(run, preset="gone", settings={"lora_rank": 8})
    with pytest.raises(SettingsError) as error:
        reproduce.reproduce("first", tmp_path)
    assert "unknown preset 'gone'" in str(error.value) and "unknown setting 'lora_rank'" in str(error.value)


@pytest.mark.parametrize(("equal", "code"), [(True, 0), (False, 1)])
def test_the_command_fails_where_a_figure_differs(monkeypatch, tmp_path, equal, code):
    asked = []
    (tmp_path / "first").mkdir()
    monkeypatch.setattr(reproduce, "reproduce", lambda *words: asked.append(words) or {"equal": equal})
    monkeypatch.setattr(sys, "argv", ["sharpen", "reproduce", "first", "--outputs", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code and asked == [("first", tmp_path)]


def test_the_command_says_in_one_message_that_there_is_no_such_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["sharpen", "reproduce", "nowhere", "--outputs", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr().err
    assert ended.value.code == 2 and "there is no run 'nowhere' in" in told and "Traceback" not in told
