"""Fixtures that several files share."""

import contextlib
import os
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow torch down on shared cores
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # several test processes: each has its share of the cores
    threads = os.cpu_count() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads)))

ROOT = Path(__file__).resolve().parents[1]
LONGEST = ["test_notebooks", "test_fsdp", "test_presets_rehearsed", "test_kills", "test_gguf", "test_sweep",
           "test_qlora"]  # fmt: skip


def pytest_collection_modifyitems(items):
    """The longest files first: what is begun last decides how long several test processes wait for one of them."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def tokenizer():
    """The embedded base's tokenizer. Tests that change it work on a copy."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ROOT / "data/base")


@pytest.fixture(scope="session")
def processor():
    """The same tokenizer as SentencePiece itself reads it."""
    from lib.gpt import tokens

    return tokens.load_processor(ROOT / "data/base")


@pytest.fixture(scope="session")
def qlora(tmp_path_factory):
    """lib.train.qlora, imported late: Unsloth patches transformers when it is imported, and writes where that is."""
    with contextlib.chdir(tmp_path_factory.mktemp("unsloth")):
        from lib.train import qlora
    return qlora


@pytest.fixture(scope="session")
def published_data():
    """The folder of published data sets (gsm8k/train.jsonl, ...), which is not part of the project."""
    folder = os.environ.get("SHARPEN_DATA")
    if not folder:
        pytest.skip("SHARPEN_DATA is not set: it names the folder that holds gsm8k/train.jsonl")
    if not (Path(folder) / "gsm8k/train.jsonl").is_file():
        pytest.skip(f"SHARPEN_DATA={folder} holds no gsm8k/train.jsonl")
    return Path(folder)


@pytest.fixture(scope="session")
def write_run():
    """Write the stages of a demo run through lib.run.runs, as notebooks do, with planted figures and real times."""
    import time

    from lib.run import parameters, presets, runs

    usual = ("prepare", "train", "evaluate")

    def write(outputs, name, overrides=None, rehearse=False, stages=usual, **figures) -> Path:
        resolved = presets.resolve("demo", overrides, rehearse)
        figures = {"loss": 0.3, "accuracy": 0.5, "perplexity": 1.5} | figures
        for stage in (runs.begin(parameters.Request(stage, name, Path(outputs), resolved)) for stage in stages):
            match stage.request.stage:
                case "prepare":
                    for split in ("train", "validation", "test"):
                        stage.write_rows(f"{split}.jsonl", [{"id": f"{split}-{stage.settings.data_seed}"}])
                    stage.finish(rows={"train": 1}, headline={"rows": "1"})
                case "train":
                    stage.input("prepare")
                    stage.save_json("adapter_model.safetensors", stage.settings)
                    stage.log(1, loss=1.5)
                    if figures["loss"] is not None:
                        stage.log(1, eval_loss=figures["loss"], eval_runtime=time.perf_counter())
                    stage.finish(steps=1, train_seconds=time.perf_counter(), resumed_from=None)
                case "evaluate":
                    stage.input("prepare"), stage.input("train")
                    stage.write_rows("generations.jsonl", [{"gold": {"value": 1}, "correct": True}])
                    tuned = {"perplexity": figures["perplexity"]}
                    stage.save_json("summary.json", {"perplexity": {"base": {"perplexity": 9.0}, "tuned": tuned}})
                    accuracy = [{"model": model, "split": "test", "calculator": True, "accuracy": share}
                                for model, share in (("tuned", figures["accuracy"]), ("base", 0.0))]  # fmt: skip
                    stage.finish(accuracy=accuracy, headline={"test": f"took {time.perf_counter()} s"})
                case "pretrain":
                    stage.finish()
                case "compare" | "probe" | "export":
                    stage.input("evaluate" if stage.request.stage == "compare" else "train")
                    stage.finish(runs=[name], eval_rows=resolved.settings.eval_rows)
        return Path(outputs) / name

    return write
