"""What training brought, beyond one greedy answer: sampled answers, other wordings, and what was forgotten."""

import hashlib
import json
import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from lib.data import chat, sources, texts
from lib.grade import stats
from lib.judge import answers, evaluate, sampling, shots
from lib.judge.answers import column, grouped
from lib.run import runs
from lib.run.settings import ProbeSettings, SettingsError

# Lines before the question, in its own turn: not every chat template has a place for a system's. All three ask for the
# marker, so that what differs is the wording alone.
WORDINGS = {
    "no instruction": "",
    "instruction 1": "Solve the problem. Show each step, and end with #### and the answer.",
    "instruction 2": "Think step by step. Then write the final answer on the last line, after ####.",
    "instruction 3": "You are a careful analyst. Give your reasoning first and then, on a line of its own that begins "
                     "with ####, nothing but the result.",
}  # fmt: skip
PIECES, PIECE, SHORTEST = 100, 400, 150  # of the general text: how many are read, of how many characters
MANUAL = "Python's manual (pydoc_data.topics of the standard library, PSF licence)"


# ---- what is asked


@dataclass(frozen=True)
class Asked:
    """What an arm (a model, asked in one way) is asked: rows for greedy and for sampled answers, text to read.

    All prompts come of these rows: another way to ask is `dataclasses.replace(asked, sampled=...)`, an arm more."""

    greedy: list[dict]  # each row's "split" says the wording, or the second task
    sampled: list[dict]  # each row with its "sample", from 0
    pieces: list[str]
    about: dict[str, str]  # in words, and of the general text its hash


def questions(stage: runs.Stage, data: Path, tokenizer) -> Asked:
    """The test rows that the settings ask for in each wording and as often as they are sampled, the second task's
    rows, and the general text; all files that are read are inputs of the stage."""
    settings = stage.settings
    rows = runs.read_rows(data / "test.jsonl", settings.probe_rows, gold=True)
    if len(rows) < 2:  # of one there is no interval
        rows = []
    sampled = [row | {"sample": number} for row in rows for number in range(settings.samples)]
    greedy, about = [], {"test": f"{len(rows)} questions with a gold"}
    if settings.wordings:
        greedy += [_worded(row, name) for name in WORDINGS for row in rows]
    if settings.also_ask:
        second, left_out = _second_task(stage, tokenizer)
        greedy += second
        about["second task"] = f"{len(second)} questions of {settings.also_ask.partition(':')[0]}"
        if left_out:
            about["second task"] += f"; {left_out} over max_length = {settings.max_length} tokens are left out"
    pieces, about["general text"] = _general_text(stage, tokenizer)
    about["sha256 of the general text"] = hashlib.sha256("\n".join(pieces).encode()).hexdigest()
    return Asked(greedy, sampled, pieces, about)


def prompted(stage: runs.Stage, data: Path, asked: Asked) -> dict[str, Asked]:
    """{"base, 8 shots": what is sampled, after the examples that 30 asked the base with}; none where it had none."""
    if not asked.sampled or not runs.is_complete(stage.run_folder, "evaluate"):
        return {}
    summary = json.loads((stage.input("evaluate") / "summary.json").read_text(encoding="utf-8"))
    then = summary.get("few_shot") or {"shots": 0}  # evaluations of before few_shot say nothing of it
    if not then["shots"]:
        return {}
    train, rows = {row["id"]: row for row in runs.read_rows(data / "train.jsonl", gold=True)}, []
    for row in asked.sampled:
        pool = [train[id] for id in then["others"].get(row["id"], then["examples"])]
        rows += shots.Prompting(pool=pool, plain=then["plain"]).before([row], then["shots"])
    return {shots.label("base", then["shots"]): replace(asked, greedy=[], sampled=rows, pieces=[])}


def _worded(row: dict, name: str) -> dict:
    """The row with an instruction before its question."""
    *before, question, answer = row["messages"]
    if WORDINGS[name]:
        question = question | {"content": f"{WORDINGS[name]}\n\n{question['content']}"}
    return row | {"split": name, "messages": [*before, question, answer]}


def _second_task(stage: runs.Stage, tokenizer) -> tuple[list[dict], int]:
    """(test rows with a gold of the source that `also_ask` names, how many others are too long)."""
    settings = stage.settings
    source, _, count = settings.also_ask.partition(":")
    own = {"source": source, "data_dir": settings.also_ask_dir, "test_rows": int(count), "kinds": None,
           "dataset_revision": None}  # fmt: skip
    loaded = sources.load(SimpleNamespace(**vars(stage.request.resolved.settings) | own), ("test",))["test"]
    for file in loaded.files:
        stage.uses(file)
    graded = [row | {"split": source} for row in loaded.rows if row["gold"]]
    lengths = [len(chat.asked_ids(row, tokenizer)) for row in graded]
    fitting = [row for row, length in zip(graded, lengths) if length <= settings.max_length]
    if not fitting:
        raise SettingsError([f"also_ask = {settings.also_ask!r}: none of {len(loaded.rows)} rows has a gold and fits "
                             f"max_length = {settings.max_length} tokens: ask another source"])  # fmt: skip
    return fitting, len(graded) - len(fitting)


def _general_text(stage: runs.Stage, tokenizer) -> tuple[list[str], str]:
    """(pieces, evenly spread over the general text, what it is)."""
    path, most = stage.settings.general_text, stage.settings.max_length
    if path is None:
        from pydoc_data.topics import topics  # it comes with every Python

        documents, name = [topics[topic] for topic in sorted(topics)], MANUAL
    else:
        documents, name = texts.documents(stage.uses(path)), Path(path).name
    pieces = [piece for document in documents for piece in pieces_of(document)]
    fitting = [piece for piece in pieces if len(tokenizer.encode(piece)) < most]
    if len(fitting) < 2:
        raise SettingsError([f"general_text = {path!r}: has no two paragraphs of {SHORTEST} characters that fit "
                             f"max_length = {most} tokens: name another"])  # fmt: skip
    places = np.linspace(0, len(fitting) - 1, min(PIECES, len(fitting))).round().astype(int)
    return [fitting[place] for place in places], f"{len(places)} of {len(pieces)} pieces of {name}"


def pieces_of(document: str) -> list[str]:
    """The paragraphs of a text on one line each, cut at PIECE characters; no code, lists or short ones, as headings."""
    pieces = []
    for paragraph in re.split(r"\n\s*\n", document):
        if not paragraph.startswith((" ", "\t", "*")):  # as code and lists do
            pieces += textwrap.wrap(" ".join(paragraph.split()), PIECE)
    return [piece for piece in pieces if len(piece) >= SHORTEST]


# ---- asking


def ask(model, tokenizer, asked: Asked, settings: ProbeSettings, arm: str, folder: Path | None = None) -> dict:
    """{"greedy": results, "sampled": results, "bits": of each piece} of one arm: results as of `evaluate.ask`, each
    with "model", the arm's name, and those sampled with "sample". In `folder` journals are kept, as there."""
    calculator, found = settings.calculator != "off", {}
    for way in ("greedy", "sampled"):
        rows, drawn = getattr(asked, way), None
        if way == "sampled":
            how = settings.max_new_tokens, settings.temperature, settings.top_p
            drawn = sampling.draws(rows, [settings.sample_seed], *how)
        found[way] = []
        if rows:
            labels = {"model": arm, "way": way}
            found[way] = evaluate.ask(model, tokenizer, rows, settings, calculator, labels, folder, drawn)
    for row, result in zip(asked.sampled, found["sampled"], strict=True):
        result["sample"] = row["sample"]
    return found | {"bits": bits(model, tokenizer, asked.pieces, settings)}


def together(found: Iterable[dict], way: str) -> list[dict]:
    """The "greedy" or "sampled" results of several arms, one after the other."""
    return [result for arm in found for result in arm[way]]


def bits(model, tokenizer, pieces: list[str], settings: ProbeSettings) -> list[dict]:
    """{"loss": bits, "tokens": bytes} of each piece of text; its first token is read after the token that begins a
    text, or (as lm-evaluation-harness does) after the end token where there is no such."""
    begin, encoded = tokenizer.bos_token_id, []
    if begin is None:
        begin = tokenizer.eos_token_id
    for piece in pieces:
        ids = tokenizer.encode(piece, add_special_tokens=False)
        encoded.append({"input_ids": [begin, *ids], "labels": [chat.IGNORED, *ids]})
    found = evaluate.losses_of(model, tokenizer, encoded, settings, "probe")
    sizes = [len(piece.encode()) for piece in pieces]
    return [{"loss": row["loss"] / math.log(2), "tokens": size} for row, size in zip(found, sizes)]


# ---- sampled answers


def counts_of(samples: int) -> list[int]:
    """The k of pass@k: 1, 2, 4, ... and the number of samples."""
    return sorted({*(2**power for power in range(9) if 2**power < samples), samples})


def _scores(results: list[dict], k: int) -> dict[str, list[float]]:
    """{"pass": each question's pass@k, "majority": its maj@k} of one arm."""
    by_question = grouped(results, "id").values()
    samples = len(results) // len(by_question)
    right = [sum(column(own, "correct")) for own in by_question]
    majorities = []
    for own in by_question:
        votes = [_vote(result) for result in own]
        wins = {vote for vote, result in zip(votes, own) if result["correct"]}
        majorities.append(stats.majority_at_k(votes, wins, k))
    return {"pass": stats.pass_at_k(right, samples, k), "majority": majorities}


def _vote(result: dict) -> tuple | None:
    """The value that the grader read at a marker; the same number in a wrong unit is another answer."""
    if result["reading"] != "marker":
        return None
    return result["value"], result["correct"]


def curves(sampled: list[dict]) -> list[dict]:
    """pass@k and maj@k of each arm: {"model", "score", "k", "samples", "n", "estimate", "low", "high", "clustered"}.

    The intervals are over questions, and (clustered) over groups of them. pass@1 is the mean accuracy."""
    rows = []
    for arm, results in grouped(sampled, "model").items():
        firsts = [result for result in results if result["sample"] == 0]
        samples = len(results) // len(firsts)
        for k in counts_of(samples):
            for score, values in _scores(results, k).items():
                row = {"model": arm, "score": score, "k": k, "samples": samples, "n": len(firsts)}
                rows.append(row | _interval(values, column(firsts, "group"), samples / k))
    return rows


def _interval(values: list[float], groups: list[str], tries: float) -> dict:
    found = stats.mean_share(values, tries=tries)
    limits = {"estimate": found.estimate, "low": found.low, "high": found.high}
    count = len(set(groups))
    if count < 2:
        none = {"low": None, "high": None, "groups": count, "warning": "one group shows no spread between groups"}
        return limits | {"clustered": none}
    over = stats.mean_share(values, groups, tries)
    return limits | {"clustered": {"low": over.low, "high": over.high, "groups": count, "warning": over.warning}}


def differences(sampled: list[dict]) -> list[dict]:
    """The tuned model's pass@k and maj@k against each other arm's, paired by question: {"against", "score", "k", "n",
    "difference", "low", "high"}."""
    arms, rows = grouped(sampled, "model"), []
    for arm in _others(arms):
        assert column(arms[arm], "id") == column(arms["tuned"], "id"), "all arms must answer the same questions"
        for k in counts_of(1 + max(column(arms[arm], "sample"))):
            before, after = _scores(arms[arm], k), _scores(arms["tuned"], k)
            for score in before:
                found = stats.paired_means(before[score], after[score])
                rows.append({"against": arm, "score": score, "k": k, "n": found.n, "difference": found.estimate,
                             "low": found.low, "high": found.high})  # fmt: skip
    return rows


def _others(arms: Iterable[str]) -> list[str]:
    return [arm for arm in arms if arm != "tuned"]


def solved(sampled: list[dict]) -> list[dict]:
    """Questions that some sample answers right, tuned model against each other arm: {"against", "both", "neither"}
    beside what `answers.pair` gives, where "wrong_to_right" are those that the other's samples never found."""
    ever = {}
    for arm, results in grouped(sampled, "model").items():
        ever[arm] = [
            {"id": id, "group": own[0]["group"], "correct": any(column(own, "correct"))}
            for id, own in grouped(results, "id").items()
        ]
    rows = []
    for arm in _others(ever):
        found = answers.pair(ever[arm], ever["tuned"])
        both = sum(column(ever["tuned"], "correct")) - found["wrong_to_right"]
        neither = found["n"] - both - found["wrong_to_right"] - found["right_to_wrong"]
        rows.append({"against": arm, "both": both, "neither": neither} | found)
    return rows


# ---- greedy answers


def spreads(greedy: list[dict]) -> list[dict]:
    """How far each arm's accuracy moves with the wording: {"model", "n", "lowest", "highest", "spread", "width" (of the
    interval without an instruction), "p_value"}; the last is of Cochran's Q over the four."""
    worded = [result for result in greedy if result["split"] in WORDINGS]
    rows = []
    for arm, results in grouped(worded, "model").items():
        by_wording = {name: column(own, "correct") for name, own in grouped(results, "split").items()}
        shares = [sum(verdicts) / len(verdicts) for verdicts in by_wording.values()]
        plain = by_wording["no instruction"]
        interval = stats.wilson(sum(plain), len(plain))
        rows.append({
            "model": arm, "n": len(plain), "lowest": min(shares), "highest": max(shares),
            "spread": max(shares) - min(shares), "width": interval.high - interval.low,
            "p_value": stats.cochran(list(zip(*by_wording.values()))),
        })  # fmt: skip
    return rows


def second_task(greedy: list[dict]) -> list[dict]:
    """The tuned model against each other arm on the second task, paired: what `answers.pair` gives, its accuracies."""
    second = grouped([result for result in greedy if result["split"] not in WORDINGS], "model")
    rows = []
    for arm in _others(second):
        shares = [stats.wilson(sum(column(second[name], "correct")), len(second[name])) for name in (arm, "tuned")]
        base, tuned = ({"accuracy": share.estimate, "low": share.low, "high": share.high} for share in shares)
        task = {"task": second[arm][0]["split"], "against": arm, "base": base, "tuned": tuned}
        rows.append(task | answers.pair(second[arm], second["tuned"]))
    return rows


# ---- for readers


def curves_text(rows: Sequence[dict]) -> list[dict[str, str]]:
    """Rows of `curves` as a table: a row an arm and k."""
    texts = []
    for (arm, k), own in grouped(rows, "model", "k").items():
        scores = {row["score"]: row for row in own}
        texts.append({
            "model": arm, "k": str(k), "n": str(own[0]["n"]), "pass@k [95 %]": share_text(scores["pass"]),
            "95 % over groups": answers.over_groups(scores["pass"]["clustered"]),
            "majority of k [95 %]": share_text(scores["majority"]),
        })  # fmt: skip
    return texts


def share_text(row: dict) -> str:
    """`61.3 % [55.7, 66.7]`, of a row of `curves`."""
    return answers.percent({"accuracy": row["estimate"], "low": row["low"], "high": row["high"]})


def differences_text(rows: Sequence[dict]) -> list[dict[str, str]]:
    """Rows of `differences` as a table: a row a k."""
    texts = []
    for (arm, k), own in grouped(rows, "against", "k").items():
        scores = {row["score"]: row for row in own}
        texts.append({"tuned against": arm, "k": str(k), "n": str(own[0]["n"]),
                      "pass@k": answers.change(scores["pass"]),
                      "majority of k": answers.change(scores["majority"])})  # fmt: skip
    return texts


def solved_text(rows: Sequence[dict]) -> list[dict[str, str]]:
    """Rows of `solved` as a table."""
    return [{
        "tuned against": row["against"], "n": str(row["n"]), "found by both": str(row["both"]),
        "by tuned alone": str(row["wrong_to_right"]), f"by {row['against']} alone": str(row["right_to_wrong"]),
        "by neither": str(row["neither"]), "McNemar": answers.p_text(row["p_value"]),
    } for row in rows]  # fmt: skip


def wordings_text(greedy: list[dict]) -> list[dict[str, str]]:
    """Accuracy by wording and arm, as a table."""
    cells, texts = answers.overall(answers.summarise(greedy)), {}
    for (split, _, arm), row in cells.items():
        if split in WORDINGS:
            texts.setdefault(split, {"asked with": split, "n": str(row["n"])})[arm] = answers.percent(row)
    return list(texts.values())


def spreads_text(rows: Sequence[dict]) -> list[dict[str, str]]:
    """Rows of `spreads` as a table."""
    return [{
        "model": row["model"], "lowest": f"{100 * row['lowest']:.1f} %", "highest": f"{100 * row['highest']:.1f} %",
        "spread": f"{100 * row['spread']:.1f} points",
        "width of the 95 % interval": f"{100 * row['width']:.1f} points",
        "Cochran's Q": answers.p_text(row["p_value"]),
    } for row in rows]  # fmt: skip


def second_task_text(rows: Sequence[dict]) -> list[dict[str, str]]:
    """Rows of `second_task` as a table."""
    return [{
        "task": row["task"], "n": str(row["n"]), "tuned against": row["against"],
        "before": answers.percent(row["base"]), "tuned": answers.percent(row["tuned"]),
        "won, lost": answers.won_lost(row), "difference": answers.change(row),
        "McNemar": answers.p_text(row["p_value"]),
    } for row in rows]  # fmt: skip


def bits_text(row: dict) -> str:
    """`base 1.213 -> tuned 1.250 bits a byte: +0.037 [+0.031, +0.043], 100 pieces, 28,110 bytes`."""
    return (f"base {row['base']:.3f} -> tuned {row['tuned']:.3f} bits a byte: {answers.loss_difference(row)}, "
            f"{row['rows']} pieces, {row['tokens']:,} bytes")  # fmt: skip


def headline(summary: dict, settings: ProbeSettings, rehearse: bool) -> dict[str, str]:
    """The figures that a reader wants first, each with n, interval and setting."""
    lines = {}
    for score, name in (("pass", "pass@"), ("majority", "majority of ")):
        last = [row for row in summary["curves"] if row["score"] == score and row["k"] == settings.samples]
        if last:
            told = " -> ".join(f"{row['model']} {share_text(row)}" for row in sorted(last, key=_tuned_last))
            lines[f"{name}{settings.samples}"] = (f"{told}, n = {last[0]['n']}, temperature {settings.temperature:g}, "
                                                  f"top_p {settings.top_p:g}")  # fmt: skip
    for row in summary["spreads"]:
        lines[f"wordings, {row['model']}"] = (
            f"{100 * row['lowest']:.1f} to {100 * row['highest']:.1f} % with {len(WORDINGS) - 1} instructions and none "
            f"(the interval is {100 * row['width']:.1f} points wide), n = {row['n']}, Cochran's Q "
            f"{answers.p_text(row['p_value'])}"
        )
    for row in summary["second_task"]:
        lines[f"also {row['task']}, against {row['against']}"] = (
            f"{answers.percent(row['base'])} -> tuned {answers.percent(row['tuned'])}, n = {row['n']}, "
            f"McNemar {answers.p_text(row['p_value'])}"
        )
    lines["general text"] = bits_text(summary["general_text"])
    if rehearse:
        return {f"{name} (rehearsal, no result)": line for name, line in lines.items()}
    return lines


def _tuned_last(row: dict) -> bool:
    return row["model"] == "tuned"
