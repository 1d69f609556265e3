"""Graded answers -> tables by kind and level, models paired on the same questions, and answers as HTML. No torch."""

import html
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from numbers import Real
from operator import itemgetter
from statistics import fmean
from typing import Any

from lib.grade import stats

MODELS = ("base", "tuned")


# ---- tables


def summarise(results: list[dict], by: str = "kind") -> list[dict]:
    """A row for each model, split, calculator and kind (and "all"), or each level where `by` is "level".

    n, accuracy with its Wilson interval, shares within the grader's tolerances, format rate; "all" also has
    "clustered", the interval over groups. Results without a level are in no row by level."""
    cells = defaultdict(list)
    for result in results:
        way = result["split"], result["model"], result["calculator"]
        if result.get(by) is not None:
            cells[*way, result[by]].append(result)
        if by == "kind":
            cells[*way, "all"].append(result)
    table = []
    for (split, model, calculator, name), members in cells.items():
        row = {"split": split, "model": model, "calculator": calculator, by: name} | _shares(members)
        if name == "all":
            row["clustered"] = _clustered(_values(members, "correct"), _values(members, "group"))
        table.append(row)
    if by == "level":
        table.sort(key=itemgetter("level"))
    return table


def _shares(members: list[dict]) -> dict:
    interval = stats.wilson(sum(_values(members, "correct")), len(members))
    within = _values(members, "within") if "within" in members[0] else []
    return {
        "n": len(members), "accuracy": interval.estimate, "low": interval.low, "high": interval.high,
        "within": {tolerance: fmean(_values(within, tolerance)) for tolerance in next(iter(within), ())},
        "format_rate": _values(members, "reading").count("marker") / len(members),
        "finished": fmean(_values(members, "finished")),
        "accuracy_last_number": fmean(_values(members, "correct_lenient")),
        "tokens": fmean(_values(members, "tokens")),
    }  # fmt: skip


def _values(rows: Sequence[dict], name: str) -> list:
    return [row[name] for row in rows]


def _clustered(values: Sequence[float], groups: Sequence[str]) -> dict:
    """{"low", "high", "groups", "warning"}: the interval over groups; no limits where there is only one group."""
    count = len(set(groups))
    if count < 2:
        return {"low": None, "high": None, "groups": count, "warning": "one group shows no spread between groups"}
    interval = stats.clustered(values, groups)
    return {"low": interval.low, "high": interval.high, "groups": count, "warning": interval.warning}


def _clustered_change(changes: Sequence[int], groups: Sequence[str]) -> dict:
    """`_clustered` of verdicts' changes (-1, 0 or 1), which may go below zero even where all that changed rose."""
    if len(set(changes)) == 1:
        return {"low": None, "high": None, "groups": len(set(groups)), "warning": "every question changed alike"}
    half = _clustered([(change + 1) / 2 for change in changes], groups)  # 0 and 1 alone would be taken for a share
    if half["low"] is None:
        return half
    return half | {"low": max(-1.0, 2 * half["low"] - 1), "high": min(1.0, 2 * half["high"] - 1)}


def accuracies(table: list[dict]) -> list[dict]:
    """{"model", "split", "calculator", "accuracy"} over all kinds: what the evaluation's manifest keeps of `table`."""
    names = ("model", "split", "calculator", "accuracy")
    return [{name: row[name] for name in names} for row in table if row["kind"] == "all"]


def errors_by_model(results: list[dict]) -> dict[str, list[float]]:
    """`relative_errors` of each model, in the order in which the models come."""
    return {model: relative_errors(own) for model, own in grouped(results, "model").items()}


def relative_errors(results: list[dict]) -> list[float]:
    """How far each answer to a numeric gold is from it, as a share of the gold; math.inf where no number was marked.

    Within half a unit of the gold's last shown digit an answer is right at every tolerance, as it is for the grader:
    its error counts as 0. An answer in another unit is as far away as none."""
    return [_relative_error(result, result["gold"]) for result in results if is_number(result["gold"]["value"])]


def _relative_error(result: dict, gold: dict) -> float:
    if not is_number(result["value"]) or result["reading"] != "marker" or result["error"] == "unit":
        return math.inf
    half_step = 0.0
    if gold.get("unit") != "count" and gold.get("decimals") is not None:
        half_step = 10.0 ** -gold["decimals"] / 2
    distance = abs(result["value"] - gold["value"])
    if distance <= half_step * (1 + 1e-9):
        return 0.0
    if gold["value"] == 0:
        return math.inf
    return distance / abs(gold["value"])


def is_number(value: Any) -> bool:
    """A finite number, and no truth value."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


# ---- pairs


def grouped(rows: Iterable[dict], *names: str) -> dict[Any, list[dict]]:
    """The rows by what they have under these names, in the order in which they come."""
    groups = defaultdict(list)
    for row in rows:
        groups[itemgetter(*names)(row)].append(row)
    return groups


def alike(rows: Sequence[dict], split: str, calculator: bool) -> list[dict]:
    """The answers to one split (or rows of `summarise`), asked in one way."""
    return [row for row in rows if row["split"] == split and row["calculator"] == calculator]


def arm(results: list[dict], model: str, split: str, calculator: bool) -> list[dict]:
    """The answers of one model to one split, asked in one way."""
    return [result for result in alike(results, split, calculator) if result["model"] == model]


def pair(before: list[dict], after: list[dict]) -> dict:
    """`after` against `before` on the same questions in the same order: flips, exact McNemar p, interval of the
    difference in accuracy, the same over groups, and the smallest difference that this many questions detect (with
    80 % power, if as many answers change their verdict as did here; None: even that many are too few)."""
    _same_questions(before, after)
    first, second = _values(before, "correct"), _values(after, "correct")
    changes = [b - a for a, b in zip(first, second)]
    lost, won, n = changes.count(-1), changes.count(1), len(changes)
    interval = stats.paired_interval(first, second)
    detectable = math.inf
    if lost + won:
        detectable = stats.detectable(n, (lost + won) / n)
    return {
        "n": n, "right_to_wrong": lost, "wrong_to_right": won, "p_value": stats.mcnemar(lost, won),
        "difference": interval.estimate, "low": interval.low, "high": interval.high,
        "clustered": _clustered_change(changes, _values(before, "group")),
        "detectable": detectable if math.isfinite(detectable) else None,
    }  # fmt: skip


def _same_questions(before: list[dict], after: list[dict]) -> None:
    assert _values(before, "id") == _values(after, "id"), "both models must answer the same questions"


def paired(results: list[dict], split: str, calculator: bool) -> dict:
    """Tuned against base on one split, asked in one way: what `pair` gives."""
    return pair(arm(results, "base", split, calculator), arm(results, "tuned", split, calculator))


def paired_ways(results: list[dict], splits: Iterable[str], calculators: Sequence[bool]) -> list[dict]:
    """`paired` of each split in each way, with the "split" and "calculator" that it is of."""
    return [{"split": split, "calculator": calculator, **paired(results, split, calculator)}
            for split in splits for calculator in calculators]  # fmt: skip


def paired_kinds(results: list[dict], split: str, calculator: bool) -> list[dict]:
    """`paired` for each kind; "p_holm" is the p-value adjusted for asking it of every kind."""
    kinds = grouped(alike(results, split, calculator), "kind")
    return adjusted([{"kind": kind} | paired(own, split, calculator) for kind, own in kinds.items()])


def adjusted(rows: list[dict]) -> list[dict]:
    """Results of `pair` with "p_holm", their p-values adjusted by Holm for asking all of them."""
    if not rows:
        return []
    p_values = stats.holm(_values(rows, "p_value"))
    return [row | {"p_holm": p_value} for row, p_value in zip(rows, p_values, strict=True)]


# ---- for readers


def percent(row: dict) -> str:
    """`61.3 % [55.7, 66.7]`: an accuracy with its 95 % interval."""
    return f"{100 * row['accuracy']:.1f} % {_limits(row)}"


def change(row: dict) -> str:
    """`+58.0 points [+52.1, +63.4]`: a paired difference with its 95 % interval, in percentage points."""
    return f"{100 * row['difference']:+.1f} points {_limits(row, '+.1f')}"


def over_groups(clustered: dict | None, form: str = ".1f") -> str:
    """`[54.2, 70.1] over 18 groups`, or with the warning instead of the count; `-` for none."""
    if not clustered:
        return "-"
    if clustered["low"] is None:
        return clustered["warning"]
    if clustered["warning"]:
        return f"{_limits(clustered, form)} ({clustered['warning']})"
    return f"{_limits(clustered, form)} over {clustered['groups']} groups"


def _limits(row: dict, form: str = ".1f") -> str:
    return f"[{100 * row['low']:{form}}, {100 * row['high']:{form}}]"


def won_lost(row: dict) -> str:
    """`11, 4`: questions that went from wrong to right, and from right to wrong."""
    return f"{row['wrong_to_right']}, {row['right_to_wrong']}"


def p_text(p_value: float) -> str:
    """`p = 0.031`, or `p < 0.001`."""
    if p_value < 0.001:
        return "p < 0.001"
    if p_value >= 0.995:
        return "p = 1"
    return f"p = {p_value:.2g}"


def asked(split: str, calculator: bool, splits: Iterable[str] = ()) -> str:
    """How questions were asked, in words; "unseen" is said only beside a split of trained phrasings."""
    names = {"test_seen": "trained phrasings"}
    if "test_seen" in splits:
        names["test"] = "unseen phrasings and ranges"
    return f"{names.get(split, split)}, {calculator_text(calculator)}"


def calculator_text(calculator: bool) -> str:
    """`calculator on`, or `calculator off`."""
    return "calculator on" if calculator else "calculator off"


def table_text(rows: Sequence[dict]) -> list[dict[str, str]]:
    """Rows of `summarise` in words, for readers."""
    splits = {row["split"] for row in rows}
    return [_row_text(row, splits) for row in rows]


def _row_text(row: dict, splits: set[str]) -> dict[str, str]:
    by = "level" if "level" in row else "kind"
    text = {"asked": asked(row["split"], row["calculator"], splits), "model": row["model"], by: str(row[by]),
            "n": str(row["n"]), "accuracy [95 %]": percent(row)}  # fmt: skip
    if "clustered" in row:
        text["95 % over groups"] = over_groups(row["clustered"])
    if row["within"]:
        tolerances = ", ".join(row["within"]).replace(" %", "")
        shares = ", ".join(f"{100 * share:.0f}" for share in row["within"].values())
        text[f"within {tolerances} %"] = f"{shares} %"
    return text | {
        "format rate": f"{100 * row['format_rate']:.0f} %", "finished": f"{100 * row['finished']:.0f} %",
        "last number": f"{100 * row['accuracy_last_number']:.1f} %", "tokens an answer": f"{row['tokens']:.0f}",
    }  # fmt: skip


def pairs_text(rows: Sequence[dict]) -> list[dict[str, str]]:
    """Results of `pair` (with the split and calculator that they are of) or of `paired_kinds` in words, for readers."""
    splits = {row.get("split") for row in rows}
    return [_pair_text(row, splits) for row in rows]


def _pair_text(row: dict, splits: set[str]) -> dict[str, str]:
    text = {}
    if "kind" in row:
        text["kind"] = row["kind"]
    if "split" in row:
        text["asked"] = asked(row["split"], row["calculator"], splits)
    text |= {"n": str(row["n"]), "won, lost": won_lost(row), "difference": change(row)}
    if "kind" not in row:
        text["95 % over groups"] = over_groups(row["clustered"], "+.1f")
    text["McNemar"] = p_text(row["p_value"])
    if "p_holm" in row:
        text["Holm"] = p_text(row["p_holm"])
    text["detectable"] = "-"
    if row["detectable"] is not None:
        text["detectable"] = f"{100 * row['detectable']:.1f} points"
    return text


def html_table(rows: Sequence[dict[str, str]], upright: bool = False) -> Any:
    """Rows of text as an HTML table (`upright`: a column each); every cell is escaped, for names are others' text."""
    import pandas as pd
    from IPython.display import HTML

    table = pd.DataFrame(rows).map(_unbroken).rename(columns=_unbroken)
    with pd.option_context("display.max_colwidth", None):
        if upright:
            return HTML(table.T.to_html(header=False, border=0))
        return HTML(table.to_html(index=False, border=0, justify="left"))


def _unbroken(text: str) -> str:
    """Intervals, p-values and percentages with spaces at which no line breaks."""
    return re.sub(r"\[.*?\]|p [<=] \S+|\S+ %", lambda part: part[0].replace(" ", "\u00a0"), text)


def markdown_table(rows: Sequence[dict[str, Any]]) -> str:
    """The same in Markdown, for a model's card."""
    if not rows:
        return ""
    lines = [rows[0].keys(), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join(map(_markdown_line, lines))


def _markdown_line(cells: Iterable[Any]) -> str:
    texts = [re.sub(r"\s+", " ", str(cell)).replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(texts)} |"


def overall(table: list[dict]) -> dict[tuple[str, bool, str], dict]:
    """(split, calculator, model) -> the row of `summarise` over all kinds."""
    return {(row["split"], row["calculator"], row["model"]): row for row in table if row["kind"] == "all"}


def headline(table: list[dict], pairs: list[dict], perplexity: dict, loss: dict, rehearse: bool) -> dict[str, str]:
    """The figures that a reader wants first, each with n, interval and setting."""
    whole, lines = overall(table), {}
    for row in pairs:
        base, tuned = (whole[row["split"], row["calculator"], model] for model in MODELS)
        name = f"{row['split'].replace('_', ' ')}, {calculator_text(row['calculator'])}"
        lines[name] = (f"base {percent(base)} -> tuned {percent(tuned)}, n = {row['n']}, "
                       f"McNemar {p_text(row['p_value'])}")  # fmt: skip
    perplexities = " -> ".join(f"{model} {row['perplexity']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
                               for model, row in sorted(perplexity.items()))  # fmt: skip
    lines["perplexity"] = f"{perplexities}, {perplexity['base']['rows']} answers"
    lines["held-out loss"] = f"{loss_text(loss)}, paired"
    if rehearse:
        return {f"{name} (rehearsal, no result)": line for name, line in lines.items()}
    return lines


def loss_text(loss: dict) -> str:
    """`base 2.310 -> tuned 2.050 nats a token: -0.260 [-0.280, -0.240]`: what `evaluate.loss_change` found."""
    return (f"base {loss['base']:.3f} -> tuned {loss['tuned']:.3f} nats a token: "
            f"{loss['difference']:+.3f} [{loss['low']:+.3f}, {loss['high']:+.3f}]")  # fmt: skip


# ---- answers themselves

CELL = "<td style='text-align:left;vertical-align:top'>"


def side_by_side(results: list[dict], split: str, calculator: bool, count: int) -> str:
    """HTML: base and tuned answers to the same question; by kind in turn, half of them right and half wrong."""
    base = {answer["id"]: answer for answer in arm(results, "base", split, calculator)}
    tuned = arm(results, "tuned", split, calculator)
    right = [answer for answer in tuned if answer["correct"]]
    wrong = [answer for answer in tuned if not answer["correct"]]
    half = max(count // 2, count - len(wrong))
    chosen = _in_turn(right, half) + _in_turn(wrong, count - min(half, len(right)))
    return _table([(base[answer["id"]], answer) for answer in chosen], MODELS)


def ungraded(results: list[dict]) -> str:
    """HTML: base and tuned answers to questions without a gold, beside the answers that their rows have."""
    without_gold = [result for result in results if not result["gold"]]
    base, tuned = ([result for result in without_gold if result["model"] == model] for model in MODELS)
    return _table(list(zip(base, tuned)), MODELS)


def flips(before: list[dict], after: list[dict], names: Sequence[str] = MODELS, most: int = 10) -> str:
    """HTML: the questions whose verdict changed, with gold and both answers; each answer unfolds to its whole text.

    Every question that went from right to wrong is listed; of those from wrong to right `most`, kinds in turn, and
    the rest is counted. `before` and `after`: two models' answers to the same questions in the same order."""
    _same_questions(before, after)
    first = {answer["id"]: answer for answer in before}
    lost = [answer for answer in after if first[answer["id"]]["correct"] and not answer["correct"]]
    won = [answer for answer in after if answer["correct"] and not first[answer["id"]]["correct"]]
    shown = _in_turn(won, most)
    hidden = ""
    if len(shown) < len(won):
        hidden = f", {len(won) - len(shown)} of them not shown"
    return (
        f"<h3>Right, then wrong: {len(lost)} of {len(first)} questions</h3>"
        + _table([(first[answer["id"]], answer) for answer in lost], names, folded=True)
        + f"<h3>Wrong, then right: {len(won)} of {len(first)} questions{hidden}</h3>"
        + _table([(first[answer["id"]], answer) for answer in shown], names, folded=True)
    )


def _in_turn(results: Sequence[dict], count: int) -> list[dict]:
    """The first `count` results, one of each kind in turn."""
    seen, turns = Counter(), []
    for result in results:
        seen[result["kind"]] += 1
        turns.append((seen[result["kind"]], result))
    turns.sort(key=itemgetter(0))
    return [result for _, result in turns[:count]]


def _table(pairs: Sequence[tuple[dict, dict]], names: Sequence[str], folded: bool = False) -> str:
    """Questions with their golds and two answers; every text in it is someone's, so all of it is escaped."""
    if not pairs:
        return ""
    first, second = map(html.escape, names)
    rows = f"<tr><th style='width:34%'>question</th><th style='width:33%'>{first}</th><th>{second}</th></tr>"
    for before, after in pairs:
        cells = _question(after), _answer(before, folded), _answer(after, folded)
        rows += f"<tr>{CELL}{f'</td>{CELL}'.join(cells)}</td></tr>"
    return f"<table>{rows}</table>"


def _question(answer: dict) -> str:
    known = f"gold: {answer['gold']['value']}" if answer["gold"] else f"its row's answer: {answer['reference']}"
    return f"<b>{html.escape(answer['kind'])}</b><br>{html.escape(answer['question'])}<br>{html.escape(known)}"


def _answer(answer: dict, folded: bool) -> str:
    text = f"<pre style='white-space:pre-wrap'>{html.escape(answer['completion'])}</pre>"
    if folded:
        text = f"<details><summary>{html.escape(_reading(answer))}</summary>{text}</details>"
    return f"<b>{html.escape(_verdict(answer))}</b>{text}"


def _verdict(answer: dict) -> str:
    if not answer["gold"]:
        return "not graded"
    return "right" if answer["correct"] else f"wrong: {answer['error']}"


def _reading(answer: dict) -> str:
    read = "nothing read" if answer["value"] is None else f"read {answer['value']}"
    if answer["reading"] == "last number":
        read += ", unmarked"
    return read
