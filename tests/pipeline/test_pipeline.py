"""Claims about the pipeline, on four throwaway notebooks that take the place of the project's."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from lib.pipeline import execute
from lib.run import runs
from lib.run.paths import ROOT
from lib.run.settings import SettingsError
from lib.run.stages import STAGES

START = (
    "from lib.run import parameters, runs\n"
    "stage = runs.begin(parameters.from_notebook({stage!r}, globals()))\nstage"
)
PARAMETERS = "preset = 'demo'\nrun = None\noutputs = None\nrehearse = False"
WORK = {
    "prepare": "import sys\nstage.write_rows('train.jsonl', [{'id': 1}])\n"
               "stage.finish(executable=sys.executable, headline={'rows': '1'})",
    "train": "stage.input('prepare')\nprint('before the error')\n"
             "if open('broken.txt').read():\n    raise ValueError('planted failure')\n"
             "stage.save_json('adapter_config.json', stage.settings)\nstage.finish()",
    "evaluate": "stage.input('prepare'), stage.input('train')\nstage.finish(headline={'accuracy': '61 %'})",
    "compare": "stage.input('evaluate')\nstage.finish(others=stage.settings.others)",
}


def write_notebooks(folder: Path, work: dict[str, str] = WORK) -> None:
    for stage, source in work.items():
        cells = [nbformat.v4.new_code_cell(text) for text in (PARAMETERS, START.format(stage=stage), source)]
        cells[0].metadata["tags"] = ["parameters"]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{STAGES[stage].notebook}.ipynb")
    (folder / "broken.txt").write_text("")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of throwaway notebooks; the report, which another module writes, is a stand-in."""
    folder = tmp_path / "note{books}"
    folder.mkdir()
    write_notebooks(folder)
    monkeypatch.setattr(execute, "NOTEBOOK_FOLDER", folder)

    def write(run_folder: Path) -> Path:
        (run_folder / "report.html").write_text("report")
        return run_folder / "report.html"

    monkeypatch.setattr(execute.report, "write", write)
    return tmp_path


class Talk(list):
    """What the pipeline said, line by line."""

    def __call__(self, text: str) -> None:
        self.extend(text.splitlines())


def go(place, talk=None, **arguments) -> execute.Summary:
    return execute.run("demo", "trial", outputs=place / "out", echo=talk if talk is not None else Talk(), **arguments)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"overrides": {"learning_rte": "0.1"}}, "did you mean 'learning_rate'?"),
        ({"overrides": {"r": "many"}}, "r = 'many': must be a whole number"),
        ({"stages": ["trian"]}, "unknown stage 'trian'"),
        ({"overrides": {"port": 8080}}, "'port' belongs to 41_serve, which this run does not execute: leave it out"),
        ({"overrides": {"model_size": "tiny"}}, "'model_size' belongs to 20_pretrain_gpt, which this run does not"),
        ({"overrides": {"margin": 3}},
         "'margin' belongs to 40_export and 41_serve, which this run does not execute: add --export, or leave it out"),
        ({"overrides": {"samples": 8}}, "'samples' belongs to 32_probe, which this run does not execute: add --probe"),
        ({"overrides": {"base_model": "a/b/c"}}, "base_model = 'a/b/c': neither a folder here nor a hub id"),
        ({"overrides": {"others": "typo"}}, "others: run 'typo' has no complete stage 'evaluate': run 30_evaluate"),
        ({"overrides": {"others": "../x"}}, "others: run = '../x': must be a name"),
        ({"overrides": {"others": "trial"}}, "others: 'trial' is this very run: name another"),
        ({"overrides": {"continue_from": "typo"}}, "continue_from: run 'typo' has no complete stage 'train': run 21"),
    ],
)
def test_wrong_settings_are_refused_before_anything_starts(place, monkeypatch, arguments, told):
    monkeypatch.setattr(execute, "_execute", lambda *_: pytest.fail("a kernel would have started"))
    with pytest.raises(SettingsError, match=re.escape(told)):
        go(place, **arguments)
    for name in ("../up", ""):
        with pytest.raises(SettingsError, match=f"run = '{name}': must be a name"):
            execute.run("demo", name, outputs=place / "out")
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        {"overrides": {"others": "first", "continue_from": "first", "push_to_hub": None}},
        {"overrides": {"quantizations": "Q8_0"}, "export": True},
        {"overrides": {"r": 8, "bucket": "name"}, "stages": ["prepare"]},  # `sharpen cloud train` trains elsewhere
        {"overrides": {"others": "typo", "continue_from": "typo"}, "stages": ["evaluate"]},
    ],
)
def test_what_a_chosen_stage_will_find_or_another_reads_is_no_fault(place, write_run, monkeypatch, arguments):
    def started(*_):
        raise execute.StageFailed("started")

    monkeypatch.setattr(execute, "_execute", started)
    write_run(place / "out", "first")
    with pytest.raises(execute.StageFailed, match="^started$"):
        go(place, **arguments)


def test_the_command_to_go_on_reads_as_it_was_given():
    overrides = {"learning_rate": "1e-4", "target_modules": ("q_proj", "v_proj"), "test_rows": None}
    assert execute.command("demo", "a", overrides, True, "/o p") == (
        "sharpen run demo --run a --set learning_rate=1e-4 --set target_modules=q_proj,v_proj --set test_rows=none "
        "--rehearse --outputs '/o p'"
    )


@pytest.mark.notebooks
def test_a_run_fails_goes_on_and_is_then_skipped(place):
    broken = place / "note{books}" / "broken.txt"
    broken.write_text("yes")
    talk = Talk()
    with pytest.raises(execute.StageFailed):
        go(place, talk, overrides={"learning_rate": "1e-4"})
    told = "\n".join(talk)
    executed = place / "out/trial/notebooks/21_train_qlora.ipynb"
    assert "[1/4] 10_prepare_data  done in " in told
    assert "stage 'train' failed: ValueError: planted failure" in told and "Traceback" not in told
    again = f"sharpen run demo --run trial --set learning_rate=1e-4 --outputs {place / 'out'}"
    assert str(executed) in told and talk[-1].endswith(again)
    assert "before the error" in executed.read_text() and "planted failure" in executed.read_text()

    broken.write_text("")
    talk = Talk()
    summary = go(place, talk, overrides={"learning_rate": "1e-4"})
    assert [row[1] for row in summary.stages] == ["skipped", "done", "done", "done"]
    assert talk[1] == "[1/4] 10_prepare_data  skipped: settings, inputs and code are unchanged"
    assert summary.headline == {"rows": "1", "accuracy": "61 %"} and summary.report.name == "report.html"
    told = "\n".join(talk)
    assert "accuracy" in told and "report.html" in told and "REHEARSAL" not in told
    manifest = runs.read(summary.run_folder, "prepare")
    assert manifest["metrics"]["executable"] == sys.executable  # whatever kernels the machine has registered
    assert runs.read(summary.run_folder, "train")["settings"]["learning_rate"] == 1e-4  # YAML's 1e-4 is text

    summary = go(place, overrides={"learning_rate": 0.0001})
    assert [row[1] for row in summary.stages] == ["skipped"] * 4

    notebook = place / "note{books}" / "31_compare.ipynb"
    notebook.write_text(notebook.read_text().replace("stage.finish(", "stage.finish(edited=1, "))
    talk = Talk()
    summary = go(place, talk, overrides={"learning_rate": 0.0001})
    assert [row[1] for row in summary.stages] == ["skipped"] * 3 + ["done"]
    assert "(again, as 31_compare.ipynb changed)" in "\n".join(talk)


@pytest.mark.notebooks
def test_papermill_alone_refuses_a_misspelt_parameter_in_the_first_cell(place, monkeypatch):
    import papermill

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook, parameters = place / "note{books}" / "10_prepare_data.ipynb", {"train_rws": "6", "learning_rate": "1e-4"}
    target = place / "plain.ipynb"
    (place / "input.ipynb").write_text(notebook.read_text())
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        papermill.execute_notebook(place / "input.ipynb", target, parameters, progress_bar=False, kernel_name="python3",
                                   language="python")
    assert "unknown setting 'train_rws' = '6'; did you mean 'train_rows'?" in caught.value.evalue
    assert "'learning_rate' belongs to 21_train_qlora" in caught.value.evalue
    assert json.loads(target.read_text())


@pytest.mark.notebooks
def test_a_notebook_that_does_not_finish_its_stage_has_failed(place, monkeypatch):
    monkeypatch.setattr(execute, "FULL_BYTES", 2**63)
    write_notebooks(place / "note{books}", {"prepare": "print('forgot to finish')"})
    talk = Talk()
    with pytest.raises(execute.StageFailed):
        go(place, talk, stages=["prepare"])
    assert "no complete stage 'prepare'" in "\n".join(talk)
    assert f"the disk that holds {place / 'out/trial'} is full: make room" in "\n".join(talk)


@pytest.mark.notebooks
def test_a_dead_kernel_is_named_and_none_reaches_the_notebook(place):
    write_notebooks(place / "note{books}", {
        "prepare": "assert stage.settings.train_rows is None and stage.rehearse\nimport os\nos._exit(9)",
    })
    (place / "gsm8k").mkdir()
    talk = Talk()
    with pytest.raises(execute.StageFailed):
        execute.run("llama32_3b_gsm8k", None, {"train_rows": "none", "data_dir": str(place)}, True, place / "out",
                     stages=["prepare"], echo=talk)
    assert "REHEARSAL" in talk[0] and "run llama32_3b_gsm8k-rehearsal" in talk[0]
    assert re.search(r"stage 'prepare' failed: DeadKernelError: the kernel died holding 0\.\d GiB", "\n".join(talk))


INTERRUPTED = """
import sys
from pathlib import Path
from lib.pipeline import execute
execute.NOTEBOOK_FOLDER = Path(sys.argv[1])
execute.run("demo", "trial", outputs=sys.argv[2], stages=["prepare"])
"""


def started(place: Path, sign: Path) -> subprocess.Popen:
    """A pipeline in a process of its own, once a cell of it has written `sign`."""
    running = subprocess.Popen([sys.executable, "-c", INTERRUPTED, place / "note{books}", place / "out"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    deadline = time.monotonic() + 30
    while not sign.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return running


@pytest.mark.notebooks
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_ends_the_kernel_and_its_children(place, number):
    pids = place / "pids"
    write_notebooks(place / "note{books}", {
        "prepare": "import os, subprocess, time\nchild = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
                   "zombie = subprocess.Popen(['true'])\n"
                   f"open({str(pids) + '.part'!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
                   f"os.rename({str(pids) + '.part'!r}, {str(pids)!r})\ntime.sleep(60)",
    })
    running = started(place, pids)
    running.send_signal(number)
    told, _ = running.communicate(timeout=30)
    assert "this goes on from there:\n  sharpen run demo --run trial" in told
    for pid in map(int, pids.read_text().split()):
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert "KeyboardInterrupt" in (place / "out/trial/notebooks/10_prepare_data.ipynb").read_text()


@pytest.mark.notebooks
def test_asked_again_a_kernel_that_does_not_listen_is_ended(place):
    deaf = place / "deaf"
    write_notebooks(place / "note{books}", {
        "prepare": "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
                   f"open({str(deaf)!r}, 'w').close()\ntime.sleep(60)",
    })
    running = started(place, deaf)
    (kernel,) = psutil.Process(running.pid).children()
    running.send_signal(signal.SIGINT)
    assert "stopping" in running.stderr.readline() + running.stderr.readline()
    assert running.poll() is None
    running.send_signal(signal.SIGINT)
    told, _ = running.communicate(timeout=30)
    assert "this goes on from there:\n  sharpen run demo --run trial" in told
    assert not kernel.is_running()


@pytest.mark.notebooks
def test_an_interrupt_that_a_kernel_does_not_hear_ends_the_notebook_before_the_next_cell(place):
    deaf, later, path = place / "deaf", place / "later", place / "note{books}" / f"{STAGES['prepare'].notebook}.ipynb"
    write_notebooks(path.parent, {
        "prepare": "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
                   f"open({str(deaf)!r}, 'w').close()\ntime.sleep(3)",
    })
    notebook = nbformat.read(path, 4)
    notebook.cells.append(nbformat.v4.new_code_cell(f"open({str(later)!r}, 'w').close()"))
    nbformat.write(notebook, path)
    running = started(place, deaf)
    running.send_signal(signal.SIGINT)
    told, _ = running.communicate(timeout=30)
    assert "this goes on from there:\n  sharpen run demo --run trial" in told and not later.exists()


def test_two_pipelines_on_one_run_are_told_apart(place):
    folder = place / "out" / "trial"
    folder.mkdir(parents=True)
    program = "import sys, time; from pathlib import Path; from lib.run import disk\n" \
              "disk.lock(Path(sys.argv[1]), 'pipeline'); print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", program, folder], stdout=subprocess.PIPE,
                              env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(runs.RunError, match=f"process {holder.pid}"):
            go(place)
    finally:
        holder.kill()
        holder.wait()


def test_the_run_that_a_preset_goes_on_from_is_made_first_with_its_data_and_shape(tmp_path, monkeypatch):
    class Enough(Exception):
        pass

    made, run = [], execute.run
    monkeypatch.setattr(execute, "run", lambda *words, **named: made.append(words))
    monkeypatch.setattr(execute, "command", lambda *words: (_ for _ in ()).throw(Enough))
    changes = {"r": 8, "kinds": "CAGR", "learning_rate": 1e-4, "train_rows": 24}
    with pytest.raises(Enough):
        run("demo_rewards", overrides=changes, rehearse=True, outputs=tmp_path)
    name = "demo_rewards-sft"
    assert made == [(name, f"{name}-rehearsal", {"r": 8, "kinds": "CAGR"}, True, tmp_path)]
    for preset, wrong in (("demo", "demo"), ("trader_dpo", "qwen_14b_finance"), ("demo_rewards", "demo")):
        others = {"data_dir": str(tmp_path)} if preset == "trader_dpo" else {}
        with pytest.raises(SettingsError, match="continue_from: "):
            run(preset, overrides={"continue_from": wrong} | others, outputs=tmp_path)
    assert len(made) == 1
