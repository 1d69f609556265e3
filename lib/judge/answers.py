"""Graded answers -> tables by kind and level, models paired on the same questions, and answers as HTML. No torch."""

import html
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from numbers import Real
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
        for name in (result["kind"], "all") if by == "kind" else (result.get(by),):
            if name is not None:
                cells[result["split"], result["model"], result["calculator"], name].append(result)
    table = []
    for (split, model, calculator, name), members in cells.items():
        n = len(members)
        interval = stats.wilson(sum(m["correct"] for m in members), n)
        table.append({
            "split": split, "model": model, "calculator": calculator, by: name, "n": n,
            "accuracy": interval.estimate, "low": interval.low, "high": interval.high,
            "within": {share: sum(m["within"][share] for m in members) / n for share in members[0].get("within", ())},
            "format_rate": sum(m["reading"] == "marker" for m in members) / n,
            "finished": sum(m["finished"] for m in members) / n,
            "accuracy_last_number": sum(m["correct_lenient"] for m in members) / n,
            "tokens": sum(m["tokens"] for m in members) / n,
        })  # fmt: skip
        if name == "all":
            table[-1]["clustered"] = _clustered([m["correct"] for m in members], [m["group"] for m in members])
    return sorted(table, key=lambda row: row[by]) if by == "level" else table


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
    found = _clustered([(change + 1) / 2 for change in changes], groups)  # 0 and 1 alone would be taken for a share
    if found["low"] is None:
        return found
    return found | {"low": max(-1.0, 2 * found["low"] - 1), "high": min(1.0, 2 * found["high"] - 1)}


def relative_errors(results: list[dict]) -> list[float]:
    """How far each answer to a numeric gold is from it, as a share of the gold; math.inf where no number was marked.

    Within half a unit of the gold's last shown digit an answer is right at every tolerance, as it is for the grader:
    its error counts as 0. An answer in another unit is as far away as none."""
    errors = []
    for result in results:
        gold, value = result["gold"]["value"], result["value"]
        if not _number(gold):
            continue
        if not _number(value) or result["reading"] != "marker" or result["error"] == "unit":
            errors.append(math.inf)
            continue
        exact = result["gold"].get("unit") == "count" or result["gold"].get("decimals") is None
        half_step = 0.0 if exact else 10.0 ** -result["gold"]["decimals"] / 2
        distance = abs(value - gold)
        close = distance <= half_step * (1 + 1e-9)
        errors.append(0.0 if close else distance / abs(gold) if gold else math.inf)
    return errors


def _number(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


# ---- pairs


def arm(results: list[dict], model: str, split: str, calculator: bool) -> list[dict]:
    """The answers of one model to one split, asked in one way."""
    return [r for r in results if (r["model"], r["split"], r["calculator"]) == (model, split, calculator)]


def pair(before: list[dict], after: list[dict]) -> dict:
    """`after` against `before` on the same questions in the same order: flips, exact McNemar p, interval of the
    difference in accuracy, the same over groups, and the smallest difference that this many questions detect (with
    80 % power, if as many answers change their verdict as did here; None: even that many are too few)."""
    assert [r["id"] for r in before] == [r["id"] for r in after], "both models must answer the same questions"
    verdicts = [[bool(r["correct"]) for r in results] for results in (before, after)]
    changes = [b - a for a, b in zip(*verdicts)]
    lost, won, n = changes.count(-1), changes.count(1), len(changes)
    interval = stats.paired_interval(*verdicts)
    detectable = stats.detectable(n, (lost + won) / n) if lost + won else math.inf
    return {
        "n": n, "right_to_wrong": lost, "wrong_to_right": won, "p_value": stats.mcnemar(lost, won),
        "difference": interval.estimate, "low": interval.low, "high": interval.high,
        "clustered": _clustered_change(changes, [r["group"] for r in before]),
        "detectable": detectable if math.isfinite(detectable) else None,
    }  # fmt: skip


def paired(results: list[dict], split: str, calculator: bool) -> dict:
    """Tuned against base on one split, asked in one way: what `pair` gives."""
    return pair(*(arm(results, model, split, calculator) for model in MODELS))


def paired_kinds(results: list[dict], split: str, calculator: bool) -> list[dict]:
    """`paired` for each kind; "p_holm" is the p-value adjusted for asking it of every kind."""
    kinds = dict.fromkeys(r["kind"] for model in MODELS for r in arm(results, model, split, calculator))
    rows = [{"kind": kind} | paired([r for r in results if r["kind"] == kind], split, calculator) for kind in kinds]
    for row, p_value in zip(rows, stats.holm([row["p_value"] for row in rows]) if rows else ()):
        row["p_holm"] = p_value
    return rows


# ---- for readers


def percent(row: dict) -> str:
    """`61.3 % [55.7, 66.7]`: an accuracy with its 95 % interval."""
    return f"{100 * row['accuracy']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def change(row: dict) -> str:
    """`+58.0 points [+52.1, +63.4]`: a paired difference with its 95 % interval, in percentage points."""
    return f"{100 * row['difference']:+.1f} points [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"


def over_groups(clustered: dict | None, form: str = ".1f") -> str:
    """`[54.2, 70.1] over 18 groups`, or with the warning instead of the count; `-` for none."""
    if not clustered:
        return "-"
    if clustered["low"] is None:
        return clustered["warning"]
    limits = f"[{100 * clustered['low']:{form}}, {100 * clustered['high']:{form}}]"
    return (
        f"{limits} ({clustered['warning']})" if clustered["warning"] else f"{limits} over {clustered['groups']} groups"
    )


def table_text(rows: Sequence[dict]) -> list[dict[str, str]]:
    """Rows of `summarise` in words, for readers."""
    splits, found = {row["split"] for row in rows}, []
    for row in rows:
        by = "level" if "level" in row else "kind"
        within = {f"within {', '.join(row['within']).replace(' %', '')} %":
                  ", ".join(f"{100 * share:.0f}" for share in row["within"].values()) + " %"}  # fmt: skip
        found.append({
            "asked": asked(row["split"], row["calculator"], splits), "model": row["model"], by: str(row[by]),
            "n": str(row["n"]), "accuracy [95 %]": percent(row),
            **({"95 % over groups": over_groups(row["clustered"])} if "clustered" in row else {}),
            **(within if row["within"] else {}),
            "format rate": f"{100 * row['format_rate']:.0f} %", "finished": f"{100 * row['finished']:.0f} %",
            "last number": f"{100 * row['accuracy_last_number']:.1f} %", "tokens an answer": f"{row['tokens']:.0f}",
        })  # fmt: skip
    return found


def pairs_text(rows: Sequence[dict]) -> list[dict[str, str]]:
    """Results of `pair` (with the split and calculator that they are of) or of `paired_kinds` in words, for readers."""
    splits = {row.get("split") for row in rows}
    return [
        {
            **({"kind": row["kind"]} if "kind" in row else {}),
            **({"asked": asked(row["split"], row["calculator"], splits)} if "split" in row else {}),
            "n": str(row["n"]), "won, lost": f"{row['wrong_to_right']}, {row['right_to_wrong']}",
            "difference": change(row),
            **({} if "kind" in row else {"95 % over groups": over_groups(row["clustered"], "+.1f")}),
            "McNemar": p_text(row["p_value"]), **({"Holm": p_text(row["p_holm"])} if "p_holm" in row else {}),
            "detectable": "-" if row["detectable"] is None else f"{100 * row['detectable']:.1f} points",
        }
        for row in rows
    ]  # fmt: skip


def html_table(rows: Sequence[dict[str, str]], upright: bool = False) -> Any:
    """Rows of text as an HTML table (`upright`: a column each); every cell is escaped, for names are others' text."""
    from IPython.display import HTML

    def cell(tag: str, text: str) -> str:
        whole = re.sub(r"\[.*?\]|p [<=] \S+|\S+ %", lambda found: found[0].replace(" ", "\u00a0"), text)  # not torn
        return f"<{tag}>{html.escape(whole)}</{tag}>"

    names = list(rows[0]) if rows else []
    if upright:
        lines = [cell("th", name) + "".join(cell("td", row[name]) for row in rows) for name in names]
    else:
        lines = ["".join(cell("th", name) for name in names)]
        lines += ["".join(cell("td", text) for text in row.values()) for row in rows]
    return HTML("<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>")


def markdown_table(rows: Sequence[dict[str, Any]]) -> str:
    """The same in Markdown, for a model's card."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)] if rows else []
    cells = ([re.sub(r"\s+", " ", str(cell)).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def headline(table: list[dict], pairs: list[dict], perplexity: dict, loss: dict, rehearse: bool) -> dict[str, str]:
    """The figures that a reader wants first, each with n, interval and setting."""
    note, lines = " (rehearsal, no result)" if rehearse else "", {}
    for one in pairs:
        base, tuned = (next(r for r in table if (r["model"], r["split"], r["calculator"], r["kind"]) ==
                            (m, one["split"], one["calculator"], "all")) for m in MODELS)  # fmt: skip
        name = f"{one['split'].replace('_', ' ')}, calculator {'on' if one['calculator'] else 'off'}{note}"
        lines[name] = (f"base {percent(base)} -> tuned {percent(tuned)}, n = {one['n']}, "
                       f"McNemar {p_text(one['p_value'])}")  # fmt: skip
    lines["perplexity" + note] = " -> ".join(
        f"{m} {p['perplexity']:.2f} [{p['low']:.2f}, {p['high']:.2f}]" for m, p in sorted(perplexity.items())
    ) + f", {perplexity['base']['rows']} answers"  # fmt: skip
    lines["held-out loss" + note] = f"{loss_text(loss)}, paired"
    return lines


def loss_text(loss: dict) -> str:
    """`base 2.310 -> tuned 2.050 nats a token: -0.260 [-0.280, -0.240]`: what `evaluate.loss_change` found."""
    return (f"base {loss['base']:.3f} -> tuned {loss['tuned']:.3f} nats a token: "
            f"{loss['difference']:+.3f} [{loss['low']:+.3f}, {loss['high']:+.3f}]")  # fmt: skip


# ---- answers themselves

CELL = "<td style='text-align:left;vertical-align:top'>"


def side_by_side(results: list[dict], split: str, calculator: bool, count: int) -> str:
    """HTML: base and tuned answers to the same question; by kind in turn, half of them right and half wrong."""
    base, tuned = ({r["id"]: r for r in arm(results, model, split, calculator)} for model in MODELS)
    right, wrong = ([r for r in tuned.values() if r["correct"] == verdict] for verdict in (True, False))
    half = max(count // 2, count - len(wrong))
    chosen = _in_turn(right, half) + _in_turn(wrong, count - min(half, len(right)))
    return _table([(base[answer["id"]], answer) for answer in chosen], MODELS)


def ungraded(results: list[dict]) -> str:
    """HTML: base and tuned answers to questions without a gold, beside the answers that their rows have."""
    base, tuned = ([r for r in results if r["model"] == model and not r["gold"]] for model in MODELS)
    return _table(list(zip(base, tuned)), MODELS)


def flips(before: list[dict], after: list[dict], names: Sequence[str] = MODELS, most: int = 10) -> str:
    """HTML: the questions whose verdict changed, with gold and both answers; each answer unfolds to its whole text.

    Every question that went from right to wrong is listed; of those from wrong to right `most`, kinds in turn, and
    the rest is counted. `before` and `after`: two models' answers to the same questions in the same order."""
    assert [r["id"] for r in before] == [r["id"] for r in after], "both models must answer the same questions"
    both = {b["id"]: (a, b) for a, b in zip(before, after)}
    lost = [b for a, b in both.values() if a["correct"] and not b["correct"]]
    won = [b for a, b in both.values() if b["correct"] and not a["correct"]]
    page = ""
    for title, found, shown in (("Right, then wrong", lost, lost), ("Wrong, then right", won, _in_turn(won, most))):
        hidden = f", {len(found) - len(shown)} of them not shown" if len(shown) < len(found) else ""
        page += f"<h3>{title}: {len(found)} of {len(both)} questions{hidden}</h3>"
        page += _table([both[answer["id"]] for answer in shown], names, folded=True) if shown else ""
    return page


def _table(pairs: Sequence[tuple[dict, dict]], names: Sequence[str], folded: bool = False) -> str:
    """Questions with their golds and two answers; every text in it is someone's, so all of it is escaped."""
    first, second = map(html.escape, names)
    head = f"<tr><th style='width:34%'>question</th><th style='width:33%'>{first}</th><th>{second}</th></tr>"
    rows = ""
    for answers in pairs:
        last = answers[1]
        rows += f"<tr>{CELL}<b>{html.escape(last['kind'])}</b><br>{html.escape(last['question'])}<br>"
        known = f"gold: {last['gold']['value']}" if last["gold"] else f"its row's answer: {last['reference']}"
        rows += f"{html.escape(known)}</td>"
        for answer in answers:
            graded = "right" if answer.get("correct") else f"wrong: {answer.get('error')}"
            verdict = html.escape(graded if answer["gold"] else "not graded")
            text = f"<pre style='white-space:pre-wrap'>{html.escape(answer['completion'])}</pre>"
            if folded:
                read = "nothing read" if answer["value"] is None else html.escape(f"read {answer['value']}")
                read += ", unmarked" if answer["reading"] == "last number" else ""
                text = f"<details><summary>{read}</summary>{text}</details>"
            rows += f"{CELL}<b>{verdict}</b>{text}</td>"
        rows += "</tr>"
    return f"<table>{head}{rows}</table>"


def _in_turn(results: Sequence[dict], count: int) -> list[dict]:
    """The first `count` results, one of each kind in turn."""
    seen, ranked = defaultdict(int), []
    for place, result in enumerate(results):
        seen[result["kind"]] += 1
        ranked.append((seen[result["kind"]], place))
    return [results[place] for _, place in sorted(ranked)[:count]]


def asked(split: str, calculator: bool, splits: Iterable[str] = ()) -> str:
    """How questions were asked, in words; "unseen" is said only beside a split of trained phrasings."""
    names = {"test_seen": "trained phrasings"}
    if "test_seen" in splits:
        names["test"] = "unseen phrasings and ranges"
    return f"{names.get(split, split)}, calculator {'on' if calculator else 'off'}"


def p_text(p_value: float) -> str:
    """`p = 0.031`, or `p < 0.001`."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}" if p_value < 0.995 else "p = 1"
