"""Is a run's exported task the run's test? lm-evaluation-harness against Sharpen on it, calculator off.

    python -m venv /tmp/lmeval && /tmp/lmeval/bin/pip install 'lm_eval[hf]==0.4.13'
    python tests/benchmarks/bench_export_task.py outputs/demo --harness /tmp/lmeval/bin/python [--questions 300]

Both ask the tuned model, greedily: Sharpen base and adapter as in an evaluation, the harness the same weights merged
into one folder in fp32. Told are the share of the harness's answers on which its verdict is Sharpen's, and of the
questions that either has right those that both have right. As the last line, JSON."""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--harness", required=True, help="the Python of an environment with lm_eval and torch")
    parser.add_argument("--questions", type=int, default=300)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours, batch_size = sharpen(given, folder / "model")
        theirs = lm_eval(given, folder, batch_size)
    print(json.dumps(compared(ours, theirs)))


def sharpen(given: argparse.Namespace, merged: Path) -> tuple[dict[str, dict], int]:
    """({id: Sharpen's result}, rows asked at once), and the same model as one folder for the harness."""
    from lib.train import qlora  # isort: skip  (first: Unsloth patches transformers)
    from lib.data import chat
    from lib.judge import decode, evaluate
    from lib.run import presets, runs

    manifest = runs.read(given.run, "evaluate")
    settings = presets.resolve(manifest["preset"], manifest["settings"], stage="evaluate").for_stage("evaluate")
    rows = runs.read_rows(given.run / "data/test.jsonl", given.questions, gold=True)
    model, tokenizer = qlora.load(settings, given.run / "adapter")
    qlora.FastLanguageModel.for_inference(model)
    results = evaluate.ask(model, tokenizer, rows, settings, False, {"model": "tuned"})
    decode.PACKS = False  # weights laid out for oneDNN cannot be saved
    plain = decode.folded(model)
    plain.generation_config.eos_token_id = chat.end_ids(tokenizer)
    plain.save_pretrained(merged)
    tokenizer.save_pretrained(merged)
    config = json.loads((merged / "config.json").read_text())
    config.pop("quantization_config", None)  # it is none any more
    (merged / "config.json").write_text(json.dumps(config))
    return {result["id"]: result for result in results}, settings.eval_batch_size


def lm_eval(given: argparse.Namespace, folder: Path, batch_size: int) -> list[dict]:
    """What the harness logs of each question of the exported task."""
    from lib.ship import task

    task.export(given.run, folder / "task")
    command = [
        given.harness, "-m", "lm_eval", "--model", "hf", "--device", "cpu", "--batch_size", str(batch_size),
        "--model_args", f"pretrained={folder / 'model'},dtype=float32", "--apply_chat_template",
        "--tasks", f"sharpen_{given.run.name}", "--include_path", str(folder / "task"),
        "--limit", str(given.questions), "--log_samples", "--output_path", str(folder / "logged"),
    ]  # fmt: skip
    subprocess.run(command, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    (logged,) = (folder / "logged").rglob("samples_*.jsonl")
    with open(logged, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def compared(ours: dict[str, dict], theirs: list[dict]) -> dict:
    from lib.grade import scoring

    equal = both = either = same = 0
    for sample in theirs:
        doc, (answer,) = sample["doc"], sample["filtered_resps"]
        verdict = bool(sample["correct"])
        equal += verdict == scoring.grade(answer, json.loads(doc["gold"])).correct
        result = ours[doc["id"]]
        both += verdict and result["correct"]
        either += verdict or result["correct"]
        same += answer == result["completion"]
    assert len(ours) == len(theirs), "they were asked different questions"
    return {
        "questions": len(theirs), "equal verdicts": equal / len(theirs), "right by either": either,
        "right by both": both, "of these": both / either if either else None, "equal answers": same / len(theirs),
        "sharpen right": sum(result["correct"] for result in ours.values()),
        "harness right": sum(sample["correct"] for sample in theirs),
    }  # fmt: skip


if __name__ == "__main__":
    main()
