"""Claims about pretraining on several devices: real ranks on this machine's cores (gloo), against one process."""

import json

import psutil
import pytest
import torch

from lib.gpt import pretrain, tokens
from lib.run import parameters, presets, runs
from lib.run.settings import SettingsError
from lib.train import fsdp

pytestmark = pytest.mark.slow
SMALL = {"pretrain_tokens": 16 * 4 * 128, "pretrain_batch_size": 4, "block_size": 128, "model_size": "tiny",
         "torch_compile": False}  # fmt: skip
OFTEN = {"log_every": 1, "save_every": 6}


@pytest.fixture(scope="module")
def streams(tmp_path_factory, processor):
    folder = tmp_path_factory.mktemp("streams")
    tokens.prepare(presets.resolve("demo", SMALL).settings, folder, processor)
    return folder


def launched(streams, outputs, run: str, devices: int, show=lambda line: None):
    """(stage, metrics) of 16 steps in float32, so that what is compared is arithmetic and not rounding."""
    resolved = presets.resolve("demo", SMALL | {"devices": devices})
    stage = runs.begin(parameters.Request("pretrain", run, outputs, resolved))
    return stage, fsdp.launch(stage, streams, show, worker="lib.gpt.pretrain_worker", recipe={"bf16": False}, **OFTEN)


def losses(stage) -> list[float]:
    return [json.loads(line)["loss"] for line in (stage.folder / "metrics.jsonl").read_text().splitlines()]


def weights(stage) -> dict[str, torch.Tensor]:
    return pretrain.trained(stage.settings, stage.folder).state_dict()


def test_two_ranks_train_what_one_process_trains_also_after_one_was_killed(streams, tmp_path):
    """Bit for bit as two uninterrupted ranks do, and as near to one process as sums in another order are."""
    killed = []

    def kill(line):
        if line["step"] == 9 and not killed:
            ranks = [p for p in psutil.Process().children(recursive=True) if p.environ().get("RANK") == "1"]
            killed.append(ranks[0].pid)
            ranks[0].kill()

    one, _ = launched(streams, tmp_path, "one", 1)
    two, metrics = launched(streams, tmp_path, "two", 2)
    again, _ = launched(streams, tmp_path, "killed", 2, kill)
    assert (metrics["ranks"], metrics["backend"], metrics["steps"]) == (2, "gloo", 16) and killed
    assert len(losses(one)) == 16 and losses(one)[-1] < losses(one)[0] - 1
    assert losses(two) == pytest.approx(losses(one), rel=3e-4)  # Muon orthogonalises in bfloat16
    assert losses(again) == losses(two)
    for name, wanted in weights(two).items():
        assert torch.equal(weights(again)[name], wanted), name


def test_blocks_that_ranks_cannot_share_evenly_are_refused_as_settings():
    with pytest.raises(SettingsError, match="devices = 3 cannot share pretrain_batch_size = 4 blocks evenly"):
        presets.resolve("demo", SMALL | {"devices": 3, "gradient_accumulation_steps": 3})
