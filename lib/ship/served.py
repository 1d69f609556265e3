"""The last link of the chain: what is served, beside what was evaluated, on the same questions."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import ModelCard

from lib.judge import answers, evaluate
from lib.ship import chain, deploy, share

Earlier = Mapping[str, list[dict]]  # who answered before -> graded answers


def results(rows: Sequence[dict], found: Sequence[dict], calculator: bool, engine: str) -> list[dict]:
    """A served model's answers with their verdicts, as notebooks 30 and 40 keep theirs. DeployError if one failed."""
    labels = {"model": "served", "calculator": calculator, "engine": engine}
    return [evaluate.graded(row, answer, labels) for row, answer in zip(rows, deploy.answered(found), strict=True)]


def links(served: list[dict], earlier: Earlier) -> list[dict]:
    """A row for the served model, and for each that answered the same questions before: accuracy with its interval,
    and of those the served one's difference, paired, and how many verdicts and texts are the same."""
    way = {"calculator": served[0]["calculator"]}
    table = [{"asked by": "served"} | way | answers.share(served)]
    for label, rows in earlier.items():
        before = same_questions(rows, served)
        change = answers.pair(before, served)
        kept = {name: change[name] for name in ("difference", "low", "high", "right_to_wrong", "wrong_to_right")}
        same = {f"same {what}": sum(a[name] == b[name] for a, b in zip(before, served))
                for what, name in (("verdicts", "correct"), ("texts", "completion"))}  # fmt: skip
        table.append({"asked by": label} | way | answers.share(before) | {"served": kept} | same)
    return table


def same_questions(rows: Sequence[dict], served: Sequence[dict]) -> list[dict]:
    """The earlier answers to what the served model was asked, in its order."""
    by_id = {row["id"]: row for row in rows}
    return [by_id[row["id"]] for row in served]


def printable(row: dict) -> dict:
    """A row of `links` for a table that people read."""
    change = "-"
    if "served" in row:
        change = answers.change(row["served"])
    return {
        "asked by": row["asked by"], "calculator": "on" if row["calculator"] else "off", "n": row["n"],
        "accuracy [95 %]": answers.percent(row), "served, against it": change,
        "same verdicts": str(row.get("same verdicts", "-")), "same texts": str(row.get("same texts", "-")),
    }  # fmt: skip


def gate(served: list[dict], earlier: Earlier, margin: float) -> dict | None:
    """`chain.gate` of the served model against the model that was evaluated; None where none was."""
    if not earlier:
        return None
    label, rows = next(iter(earlier.items()))
    return chain.gate(same_questions(rows, served), served, margin, f"the model of {label}")


def commands(run: str, artefact: str, calculator: bool) -> str:
    """What serves with the calculator, or without."""
    if calculator:
        return f"`sharpen serve {run}`"
    alone = ", `llama-server` and Ollama with the file alone" if artefact.endswith(".gguf") else ""
    return f"`sharpen serve {run} --set calculator=off`{alone}"


def section(run: str, summary: dict) -> str:
    """Of a card: both scores of the served model, which command gives which, and the gate's verdict."""
    scores = [
        {"served": commands(run, summary["artefact"], row["calculator"]),
         "calculator": "on" if row["calculator"] else "off", "n": row["n"], "accuracy [95 %]": answers.percent(row)}
        for row in deploy.of_served(summary["links"])
    ]  # fmt: skip
    verdict = ""
    if summary["gate"]:
        verdict = f"\n\nGate: what is served {summary['gate']['reason']}."
    return f"""## Served

{summary["artefact"]} by {summary["engine"]}, asked through OpenAI's protocol, greedy. Without the calculator the model
does its arithmetic itself; with it, the values of `<<expression=value>>` are filled in while it writes.

{answers.markdown_table(scores)}{verdict}
"""


def card(run_folder: Path, summary: dict) -> ModelCard:
    """The export's card, with what its model scored when it was served."""
    text = ModelCard.load(run_folder / "export" / "README.md")
    evaluations = [share.evaluation(f"served, {answers.calculator_text(row['calculator'])}", "sharpen", "test", row)
                   for row in deploy.of_served(summary["links"])]  # fmt: skip
    text.data.eval_results = [*(text.data.eval_results or []), *evaluations]
    body, use, rest = text.text.partition("\n## Use\n")
    return ModelCard(f"---\n{text.data.to_yaml()}\n---\n{body}\n{section(run_folder.name, summary)}{use}{rest}")
