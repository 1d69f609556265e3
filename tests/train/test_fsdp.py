"""Claims about training on several devices: real ranks on this machine's cores (gloo), against one process."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import load_file

from lib.data import tasks
from lib.pipeline import execute
from lib.run import parameters, presets, progress, provenance, runs
from lib.run.paths import ROOT, locate
from lib.run.settings import SettingsError
from lib.train import fsdp, scale
from tests.train import shown

pytestmark = pytest.mark.slow
WITHIN_SECONDS = 90
# 50 rows are 12.5 steps of 4: the order passes the end of an epoch
SMALL = {"max_steps": 20, "lora_dropout": 0.0, "eval_steps": 20, "save_steps": 5, "per_device_train_batch_size": 1,
         "learning_rate": 5e-4}
PROBE = {"role": "user", "content": "How much is 2 + 3?"}, {"role": "assistant", "content": "<<2+3=5>>5\n#### 5"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """50 short rows to train on, and one row twice to hold out: its loss is the same however rows are batched."""
    folder = tmp_path_factory.mktemp("data")
    rows = sorted((problem.row() for problem in tasks.generate("train", 300, 0)), key=lambda row: len(str(row)))[:50]
    held_out = [{"id": str(i), "messages": list(PROBE)} for i in range(2)]
    for name, lines in (("train", rows), ("validation", held_out)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def start(outputs: Path, run: str, devices: int, **overrides) -> runs.Stage:
    resolved = presets.resolve("quant_7b_fsdp", SMALL | {"devices": devices} | overrides, rehearse=True)
    return runs.begin(parameters.Request("train", run, outputs, resolved))


def launch(stage, data: Path, show=lambda line: None, **changes) -> dict:
    """As notebook 22 does it; in float32, so that what is compared is arithmetic and not rounding to bfloat16."""
    arguments = shown.arguments(stage.settings) | {"bf16": False}
    return fsdp.launch(stage, data, show, **arguments | changes)


def losses(stage, name: str = "loss") -> list[float]:
    lines = [json.loads(line) for line in (stage.folder / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def adapter(stage) -> dict[str, torch.Tensor]:
    return load_file(stage.folder / "adapter_model.safetensors")


def workers(stage) -> list[psutil.Process]:
    """The ranks (and torchrun) of this stage that are alive."""
    plan, found = str(stage.folder / ".torchrun/plan.json"), []
    for process in psutil.process_iter(["cmdline", "status"]):
        if plan in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def rank_of(stage, rank: int) -> psutil.Process:
    ranks = [process for process in workers(stage) if "torch.distributed.run" not in process.cmdline()]
    return next(process for process in ranks if process.environ().get("RANK") == str(rank))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """`trained(devices)` -> (stage, metrics) of 20 uninterrupted steps, each kind trained once."""
    outputs, done = tmp_path_factory.mktemp("outputs"), {}

    def train(devices: int, four_bit: bool = False):
        stage = start(outputs, f"ranks{devices}{'q' * four_bit}", devices, load_in_4bit=four_bit)
        return stage, launch(stage, data)

    def once(devices: int, four_bit: bool = False):
        if not done:  # the single processes beside each other
            with ThreadPoolExecutor(2) as pool:
                done.update(zip([(1, False), (1, True)], pool.map(train, (1, 1), (False, True)), strict=True))
        if (devices, four_bit) not in done:
            done[devices, four_bit] = train(devices, four_bit)
        return done[devices, four_bit]

    return once


# --- the same training, on any number of ranks ------------------------------------------------------------------------
@pytest.mark.parametrize("devices", [2, 4])
def test_several_ranks_train_what_one_process_trains(trained, devices):
    (one, _), (several, _) = trained(1), trained(devices)
    assert len(losses(one)) == 20
    assert losses(several) == pytest.approx(losses(one), abs=1e-5, rel=0)
    wanted, got = adapter(one), adapter(several)
    assert wanted.keys() == got.keys()
    assert max(float((got[name] - wanted[name]).abs().max()) for name in wanted) <= 1e-5


def test_two_ranks_train_by_qlora_what_one_process_trains(trained):
    (one, _), (two, metrics) = trained(1, four_bit=True), trained(2, four_bit=True)
    assert losses(two) == pytest.approx(losses(one), abs=1e-3, rel=0)
    assert metrics["parameter_bytes"] < trained(2)[1]["parameter_bytes"]


@pytest.mark.parametrize("devices", [2, 4])
def test_each_rank_holds_its_share_of_the_parameters(trained, devices):
    _, metrics = trained(devices)
    assert metrics["parameter_bytes"] == trained(1)[1]["parameter_bytes"] == trained(1)[1]["parameter_bytes_by_rank"][0]
    assert len(metrics["parameter_bytes_by_rank"]) == devices
    for held in metrics["parameter_bytes_by_rank"]:
        assert held == pytest.approx(metrics["parameter_bytes"] / devices, rel=0.1)
    assert (metrics["ranks"], metrics["backend"], metrics["layout"]) == (devices, "gloo", "sharded")


FRESH = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, row, adapters, losses = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:], []
ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
for adapter in adapters:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()
    with torch.no_grad():
        out = model(input_ids=ids, labels=labels)
    losses.append((float(out.loss), out.logits))
assert "unsloth" not in sys.modules
(one, logits), (two, others) = losses
print(json.dumps([one, two, torch.allclose(logits, others, atol=1e-4)]))
"""


def test_plain_peft_reads_in_a_fresh_process_what_was_trained(trained, tokenizer):
    from lib.data import chat

    row = json.dumps(chat.encode({"id": "probe", "messages": list(PROBE)}, tokenizer))
    stages = [trained(devices)[0] for devices in (1, 2)]
    arguments = [sys.executable, "-c", FRESH, locate("data/base"), row, *(stage.folder for stage in stages)]
    told = subprocess.check_output(arguments, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    *found, same_logits = json.loads(told)
    assert found == pytest.approx([losses(stage, "eval_loss")[-1] for stage in stages], abs=1e-5)  # as the ranks said
    assert same_logits


def test_a_step_has_as_many_rows_with_any_number_of_devices():
    for per_device, accumulation, devices in ((4, 4, 4), (16, 1, 2), (16, 1, 16), (6, 2, 4), (3, 5, 5), (8, 3, 2)):
        settings = presets.resolve("demo", {"per_device_train_batch_size": per_device, "devices": devices,
                                            "gradient_accumulation_steps": accumulation,
                                            "pretrain_batch_size": devices}).settings  # fmt: skip
        part = fsdp.share(settings)
        rows = part.per_device_train_batch_size * part.gradient_accumulation_steps * devices
        assert rows == per_device * accumulation and part.per_device_train_batch_size <= per_device


@pytest.mark.parametrize(("per_device", "accumulation", "devices"), [(16, 1, 4), (16, 1, 1), (8, 2, 2), (4, 4, 8)])
def test_advice_where_memory_runs_out_halves_a_ranks_rows_and_leaves_the_steps(per_device, accumulation, devices):
    settings = presets.resolve("demo", {
        "per_device_train_batch_size": per_device, "gradient_accumulation_steps": accumulation, "devices": devices,
        "pretrain_batch_size": devices,
    }).settings  # fmt: skip
    told = re.search(r"batch_size \(now (\d+); try (\d+)\)", progress.less_memory("train", settings))
    now, tried = map(int, told.groups())
    assert now == per_device
    changed = {"per_device_train_batch_size": tried, "gradient_accumulation_steps": accumulation * now // tried}
    before, after = fsdp.share(settings), fsdp.share(settings.model_copy(update=changed))
    assert after.per_device_train_batch_size <= before.per_device_train_batch_size / 2 or tried == 1
    assert after.per_device_train_batch_size * after.gradient_accumulation_steps * devices == per_device * accumulation


TOLD = """
Root Cause (first observed failure):
[0]:
  time      : 2026-11-20_10:00:00
  rank      : 1 (local_rank: 1)
  exitcode  : {} (pid: 5)
"""


@pytest.mark.parametrize("stage", ["train", "pretrain"])
def test_a_rank_that_the_system_killed_says_what_to_lower(tmp_path, stage):
    (tmp_path / "none/attempt_0/1").mkdir(parents=True)
    (tmp_path / "none/attempt_0/1/stderr.log").write_text("its last line")
    settings = presets.resolve("demo", {"devices": 2}).settings
    advice = progress.less_memory(stage, settings)
    stage = SimpleNamespace(settings=settings, request=SimpleNamespace(stage=stage))
    told = fsdp.what_failed(TOLD.format(-9), tmp_path, stage)
    assert told.startswith(f"rank 1 was ended by SIGKILL (most often as memory runs out: {advice}), 2 restarts did not")
    assert told.endswith("its last line")
    assert "memory" not in fsdp.what_failed(TOLD.format(1), tmp_path, stage)


# --- faults -----------------------------------------------------------------------------------------------------------
def test_a_killed_and_a_stopped_rank_are_made_good_bit_for_bit(trained, data, tmp_path):
    uninterrupted, _ = trained(2)
    stage = start(tmp_path, "faults", 2)
    faults, began, recovered = {7: (1, signal.SIGKILL), 12: (0, signal.SIGSTOP)}, {}, {}

    def show(line):
        step = line["step"]
        if step in faults:
            rank, what = faults.pop(step)
            rank_of(stage, rank).send_signal(what)
            began[step] = time.monotonic()
        if step - 3 in began:  # so far the other rank cannot have come alone
            recovered[step - 3] = time.monotonic()

    metrics = launch(stage, data, show, step_timeout_seconds=10)
    assert metrics["restarts"] == len(recovered) == 2
    assert max(recovered[step] - began[step] for step in began) < WITHIN_SECONDS
    assert losses(stage) == losses(uninterrupted)
    wanted, got = adapter(uninterrupted), adapter(stage)
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    assert workers(stage) == []


LAUNCH = """
import signal, sys
from pathlib import Path
from tests.train.test_fsdp import launch, start
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background
stage = start(Path(sys.argv[1]), "killed", 2)
launch(stage, Path(sys.argv[2]))
"""


def test_a_killed_launcher_leaves_no_rank_and_is_gone_on_from_the_newest_whole_checkpoint(trained, data, tmp_path):
    uninterrupted, _ = trained(2)
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCH, tmp_path, data], cwd=ROOT,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    folder, deadline = tmp_path / "killed/adapter", time.monotonic() + WITHIN_SECONDS
    while not (folder / "checkpoints/checkpoint-10/trainer_state.json").exists() and time.monotonic() < deadline:
        assert launcher.poll() is None
        time.sleep(0.05)
    launcher.kill()
    launcher.wait()
    stage, deadline = start(tmp_path, "killed", 2), time.monotonic() + 10
    while workers(stage) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert workers(stage) == [] and stage.resumed
    assert not (stage.folder / "adapter_model.safetensors").exists()
    newest, shard = stage.folder / "checkpoints/checkpoint-10", "optimizer-1-of-2.safetensors"
    newer = shutil.copytree(newest, newest.with_name("checkpoint-15"))
    (newer / "rng_state_1.pth").unlink()  # rank 0 does not wait for it
    (newest / shard).write_bytes((newest / shard).read_bytes()[:1000])  # torn: rank 1 was still writing

    metrics = launch(stage, data)
    assert metrics["resumed_from"] == "checkpoint-5"
    assert losses(stage) == losses(uninterrupted)


def test_ranks_stopped_by_ctrl_c_keep_their_step_and_go_on_bit_for_bit(trained, data, tmp_path):
    uninterrupted, _ = trained(2)
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCH, tmp_path, data], cwd=ROOT,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
    metrics, deadline = tmp_path / "killed/adapter/metrics.jsonl", time.monotonic() + WITHIN_SECONDS
    while not (metrics.exists() and metrics.read_text().count("\n") >= 6) and time.monotonic() < deadline:
        assert launcher.poll() is None
        time.sleep(0.02)
    launcher.send_signal(signal.SIGINT)
    told = launcher.communicate(timeout=WITHIN_SECONDS)[0]
    stage = start(tmp_path, "killed", 2)
    assert "KeyboardInterrupt" in told and workers(stage) == [] and stage.resumed
    step = max(int(path.name.split("-")[1]) for path in (stage.folder / "checkpoints").glob("checkpoint-*"))
    assert 6 <= step < 20 and not (stage.folder / "adapter_model.safetensors").exists()

    assert launch(stage, data)["resumed_from"] == f"checkpoint-{step}"
    assert losses(stage) == losses(uninterrupted)
    wanted, got = adapter(uninterrupted), adapter(stage)
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)


def refusal(stage, data) -> str:
    with pytest.raises(fsdp.LaunchError) as caught:
        launch(stage, data)
    assert workers(stage) == []
    assert not (stage.folder / "adapter_model.safetensors").exists()
    return str(caught.value)


def test_a_launch_that_would_train_unsharded_stops_with_the_reason(data, tmp_path, monkeypatch):
    monkeypatch.setenv("UNSLOTH_FSDP2_LAYOUT", "fit")  # Unsloth's default: what fits on a device is kept whole on each
    assert "training would run unsharded: rank" in refusal(start(tmp_path, "unsharded", 2), data)


def test_processes_that_do_not_know_of_each_other_stop_with_the_reason(data, tmp_path, monkeypatch):
    alone = [sys.executable, "-m", "lib.train.fsdp_worker"]
    monkeypatch.setattr(fsdp, "command", lambda settings, plan, worker: [*alone, str(plan)])
    told = refusal(start(tmp_path, "alone", 2), data)
    assert "devices = 2, but 1 process(es) were started" in told


def test_a_rank_that_fails_shows_its_last_lines(data, tmp_path, monkeypatch):
    command = fsdp.command
    monkeypatch.setattr(fsdp, "RESTARTS", 1)
    monkeypatch.setattr(fsdp, "command", lambda settings, plan, worker: command(settings, plan, "no_such_worker"))
    told = refusal(start(tmp_path, "broken", 2), data)
    assert "failed with exit code 1, 1 restarts did not help" in told and "No module named no_such_worker" in told


def test_only_the_last_lines_are_shown():
    assert fsdp.last_lines("\n".join(map(str, range(100)))).splitlines() == [str(i) for i in range(60, 100)]


def test_a_port_in_use_is_named_before_anything_starts(data, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        told = refusal(start(tmp_path, "port", 2, rdzv_endpoint=f"127.0.0.1:{port}"), data)
    assert f"port {port} is in use on this machine: choose another" in told


def test_fewer_devices_than_asked_are_named_before_anything_starts(data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    told = refusal(start(tmp_path, "few", 4), data)
    assert "this machine has 2 of the 4 GPUs: set devices = 2" in told


# --- settings and notebook --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"devices": 3}, "devices = 3 cannot share the rows of a step evenly"),
        ({"devices": 4, "nodes": 3}, "cannot be spread evenly over nodes = 3"),
        ({"devices": 2, "nodes": 2}, "needs rdzv_endpoint"),
        ({"devices": 2, "rdzv_endpoint": "here"}, "rdzv_endpoint = 'here': must be host:port"),
    ],
)
def test_launches_that_cannot_work_are_refused_as_settings(overrides, told):
    with pytest.raises(SettingsError, match=told):
        presets.resolve("demo", overrides)


def test_several_machines_are_started_by_the_same_command():
    settings = presets.resolve("demo", {"devices": 8, "nodes": 2, "rdzv_endpoint": "10.0.0.1:29500"}).settings
    words = fsdp.command(settings, Path("run/plan.json"))
    assert " ".join(words[1:]).startswith("-m torch.distributed.run --nnodes 2 --rdzv-backend=c10d "
                                          "--rdzv-endpoint 10.0.0.1:29500 --nproc-per-node 4 ")  # fmt: skip
    assert words[-3:] == ["-m", "lib.train.fsdp_worker", "run/plan.json"]


def test_lost_ranks_are_ended_after_5_seconds_without_an_option_that_colabs_torchrun_lacks(monkeypatch):
    from torch.distributed.launcher.api import LaunchConfig

    name = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
    monkeypatch.setenv(name, fsdp.environment()[name])
    assert LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=1).shutdown_timeout == 5
    words = fsdp.command(presets.resolve("demo", {"devices": 2}).settings, Path("run/plan.json"))
    assert not any("shutdown" in word for word in words)  # torch 2.11 has neither; it waits 30 seconds


TRACKED = {"report_to": "tensorboard"}


def rehearse(outputs: Path) -> tuple[dict, execute.Summary]:
    """Notebook 22 on the preset's rehearsal, two ranks, by papermill: its manifest, and the pipeline's summary."""
    summary = execute.run("quant_7b_fsdp", None, TRACKED, rehearse=True, outputs=outputs, stages=["prepare", "train"])
    return runs.read(summary.run_folder, "train"), summary


@pytest.mark.notebooks
def test_the_preset_rehearses_on_two_ranks_through_papermill(tmp_path):
    manifest, summary = rehearse(tmp_path)
    metrics, folder = manifest["metrics"], summary.run_folder
    assert summary.stages[1][2] <= WITHIN_SECONDS
    assert (metrics["ranks"], metrics["steps"], manifest["device"]["count"]) == (2, 6, 2)
    report = summary.report.read_text()
    assert 'id="22_train_fsdp"' in report and 'id="21_train_qlora"' not in report
    assert len(list((folder / "adapter/.tracking").glob("events*"))) == 1, "the first rank alone reports"
    workers = provenance.code_of("lib.train.fsdp_worker").keys()
    assert "lib/train/resume.py" in workers and workers <= manifest["code"].keys()
    assert {"adapter_model.safetensors", "adapter_config.json", "metrics.jsonl"} <= manifest["outputs"].keys()
    assert runs.is_current(tmp_path, folder.name, "train", presets.resolve("quant_7b_fsdp", TRACKED, True),
                           execute.notebook_path("22_train_fsdp"))[0]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.notebooks
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_same_notebook_trains_on_gpus(tmp_path):
    manifest, _ = rehearse(tmp_path)
    assert manifest["metrics"]["backend"] == "nccl"
    assert {"cuda:0", "cuda:1"} <= manifest["peak_memory_bytes"].keys()


# --- the plan for scale -----------------------------------------------------------------------------------------------
def test_a_count_on_the_meta_device_is_what_the_ranks_really_held(trained):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(locate("data/base"))
    _, metrics = trained(2)
    counted = scale.simulate(config, 2, four_bit=False)
    single = scale.SINGLE // scale.HALF * counted["weights"] + counted["adapters"] * scale.SINGLE // scale.TRAINED
    assert metrics["parameter_bytes_by_rank"] == [single, single]


@pytest.mark.parametrize("size", ["8B", "14B", "70B"])
@pytest.mark.parametrize("four_bit", [False, True])
def test_the_formula_is_the_count_on_the_meta_device(size, four_bit):
    from transformers import LlamaConfig

    config = LlamaConfig(**scale.SHAPES[size])
    formula, counted = scale.memory(config, 8, four_bit), scale.simulate(config, 8, four_bit)
    assert formula.weights == pytest.approx(counted["weights"], rel=1e-3)
    assert formula.adapter + formula.optimiser == pytest.approx(counted["adapters"], rel=1e-3)


def test_shapes_are_those_of_the_published_models():
    """Parameters as the models' cards give them, in billions."""
    published = {"1B": 1.24, "3B": 3.21, "8B": 8.03, "14B": 14.77, "32B": 32.76, "70B": 70.55}
    for size, billions in published.items():
        config = type("Config", (), scale.SHAPES[size])
        block, _, others = scale.numbers(config)
        assert (config.num_hidden_layers * block + others) / 1e9 == pytest.approx(billions, abs=0.02)
