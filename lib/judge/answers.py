"""Graded answers -> tables, models paired on the same questions, and answers as HTML. No torch."""

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
from lib.grade.calculator import count_marks

MODELS = ("base", "tuned")
NUMBER = re.compile(r"[+-]?[\d,.]+|-|")  # of a table's cell; "-" and nothing stand for none


# ---- tables


def summarise(results: list[dict], by: str = "kind") -> list[dict]:
    """A row for each model, split, calculator and kind (and "all"), or for each level if `by` is "level".

    n, accuracy with its Wilson interval, shares within the grader's tolerances, format rate; "all" also
    has "clustered", the interval over groups. Results without a level are in no row by level."""
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
            row["clustered"] = _clustered(column(members, "correct"), column(members, "group"))
        table.append(row)
    if by == "level":
        table.sort(key=itemgetter("level"))
    return table


def share(results: Sequence[dict], verdict: str = "correct") -> dict:
    """{"n", "accuracy", "low", "high"}: the share of right answers with its Wilson interval."""
    interval = stats.wilson(sum(bool(right) for right in column(results, verdict)), len(results))
    return {"n": interval.n, "accuracy": interval.estimate, "low": interval.low, "high": interval.high}


def conversations(results: list[dict]) -> list[dict]:
    """A row for each model, split and calculator: the share of conversations of which every turn is answered right.

    Each turn was asked with the right answers before it. Conversations of which not all turns were asked are left
    out; where there is none, so is the row."""
    talks, table = [row for row in results if "conversation" in row], []
    for (split, model, calculator), members in grouped(talks, "split", "model", "calculator").items():
        turns = grouped(members, "conversation").values()
        right = [{"correct": all(column(own, "correct"))} for own in turns if len(own) == own[0]["turns"]]
        if right:
            table.append({"split": split, "model": model, "calculator": calculator} | share(right))
    return table


def conversations_text(table: list[dict]) -> list[dict[str, str]]:
    """Rows of `conversations` in words."""
    return [{"asked": asked(row["split"], row["calculator"]), "model": row["model"], "conversations": str(row["n"]),
             "every turn right [95 %]": percent(row)} for row in table]  # fmt: skip


def talks_headline(table: list[dict], rehearse: bool) -> dict[str, str]:
    """The same as lines of a headline."""
    lines = {}
    for (split, calculator), rows in grouped(table, "split", "calculator").items():
        name = f"whole conversations, {asked(split, calculator)}{' (rehearsal, no result)' if rehearse else ''}"
        lines[name] = "; ".join(f"{row['model']} {percent(row)}, n = {row['n']}" for row in rows)
    return lines


def _shares(members: list[dict]) -> dict:
    within = Counter()
    for answer in members:
        within.update(answer.get("within", {}))
    n = len(members)
    return share(members) | {
        "within": {tolerance: right / n for tolerance, right in within.items()},
        "format_rate": column(members, "reading").count("marker") / n,
        "finished": fmean(column(members, "finished")),
        "accuracy_last_number": fmean(column(members, "correct_lenient")),
        "tokens": fmean(column(members, "tokens")),
    }  # fmt: skip


def column(rows: Iterable[dict], name: str) -> list:
    """What every row has under a name."""
    return [row[name] for row in rows]


def _clustered(values: Sequence[float], groups: Sequence[str]) -> dict:
    """{"low", "high", "groups", "warning"}: the interval over groups; one group has no limits."""
    count = len(set(groups))
    if count < 2:
        return _unlimited(groups, "one group shows no spread between groups")
    interval = stats.clustered(values, groups)
    return {"low": interval.low, "high": interval.high, "groups": count, "warning": interval.warning}


def _unlimited(groups: Sequence[str], warning: str) -> dict:
    return {"low": None, "high": None, "groups": len(set(groups)), "warning": warning}


def _clustered_change(changes: Sequence[int], groups: Sequence[str]) -> dict:
    """`_clustered` of verdicts' changes (-1, 0 or 1): it may go below zero even where all changes rise."""
    if len(set(changes)) == 1:
        return _unlimited(groups, "every question changed alike")
    half = _clustered([(change + 1) / 2 for change in changes], groups)  # 0 and 1 would pass for a share
    if half["low"] is None:
        return half
    return half | {"low": max(-1.0, 2 * half["low"] - 1), "high": min(1.0, 2 * half["high"] - 1)}


def accuracies(table: list[dict]) -> list[dict]:
    """{"model", "split", "calculator", "accuracy"} over all kinds, for the evaluation's manifest."""
    return [{"model": model, "split": split, "calculator": calculator, "accuracy": row["accuracy"]}
            for (split, calculator, model), row in overall(table).items()]  # fmt: skip


def errors_by_model(results: list[dict]) -> dict[str, list[float]]:
    """`relative_errors` of each model, in the order in which the models come."""
    return {model: relative_errors(own) for model, own in grouped(results, "model").items()}


def relative_errors(results: list[dict]) -> list[float]:
    """How far each answer to a numeric gold is from it, as a share of the gold; inf if no number was marked.

    Within half a unit of the gold's last shown digit an answer is right at every tolerance, as it is for
    the grader: its error counts as 0. An answer in another unit is as far away as none."""
    return [_relative_error(row, row["gold"]) for row in results if is_number(row["gold"]["value"])]


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


def marks(results: list[dict]) -> list[dict]:
    """What became of the calculator's marks: `count_marks` of each model's answers that it was on for."""
    by_model = grouped([result for result in results if result["calculator"]], "model")
    return [{"model": model} | total_marks(own) for model, own in by_model.items()]


def total_marks(results: Iterable[dict]) -> dict[str, int]:
    """`count_marks` summed over answers."""
    total = count_marks("")
    for result in results:
        counted = count_marks(result["completion"])
        total = {name: total[name] + counted[name] for name in total}
    return total


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
    """`after` against `before` on the same questions in the same order.

    Flips, exact McNemar p, interval of the difference in accuracy, the same over groups, and the smallest
    difference that this many questions detect (with 80 % power, if as many answers change their verdict as
    did here; None: even that many are too few)."""
    changes = [b["correct"] - a["correct"] for a, b in _in_pairs(before, after)]
    lost, won, n = changes.count(-1), changes.count(1), len(changes)
    interval = stats.paired_interval(column(before, "correct"), column(after, "correct"))
    detectable = stats.detectable(n, (lost + won) / n) if lost + won else math.inf
    return {
        "n": n, "right_to_wrong": lost, "wrong_to_right": won, "p_value": stats.mcnemar(lost, won),
        "difference": interval.estimate, "low": interval.low, "high": interval.high,
        "clustered": _clustered_change(changes, column(before, "group")),
        "detectable": detectable if math.isfinite(detectable) else None,
    }  # fmt: skip


def _in_pairs(before: list[dict], after: list[dict]) -> list[tuple[dict, dict]]:
    assert column(before, "id") == column(after, "id"), "both models must answer the same questions"
    return list(zip(before, after))


def compared(rows: Iterable[dict]) -> tuple[str, str]:
    """The models that answers (or rows of `summarise`) compare: the base at its best prompt, and the tuned one."""
    prompted = [row["model"] for row in rows if row["model"].startswith("base, ")]
    return next(iter(prompted), "base"), "tuned"


def paired(results: list[dict], split: str, calculator: bool) -> dict:
    """Tuned against base at its best prompt on one split, asked in one way: what `pair` gives."""
    return pair(*(arm(results, model, split, calculator) for model in compared(results)))


def since_text(row: dict, whole: dict) -> str:
    """Tuned against the model that rewards began with ("before"), a result of `pair`, in words; `whole`: the rows of
    `summarise` over all kinds, by model."""
    before, after = (percent(whole[name]) for name in ("before", "tuned"))
    return f"{before} -> {after}: {change(row)}, n = {row['n']}, McNemar {p_text(row['p_value'])}"


def paired_kinds(results: list[dict], split: str, calculator: bool) -> list[dict]:
    """`paired` for each kind; "p_holm" is the p-value adjusted for asking it of every kind."""
    kinds = grouped(alike(results, split, calculator), "kind")
    return adjusted([{"kind": kind} | paired(own, split, calculator) for kind, own in kinds.items()])


def adjusted(rows: list[dict]) -> list[dict]:
    """Results of `pair` with "p_holm", their p-values adjusted by Holm for asking all of them."""
    if not rows:
        return []
    p_values = stats.holm(column(rows, "p_value"))
    return [row | {"p_holm": p_value} for row, p_value in zip(rows, p_values, strict=True)]


# ---- for readers


def percent(row: dict) -> str:
    """`61.3 % [55.7, 66.7]`: an accuracy with its 95 % interval."""
    return f"{100 * row['accuracy']:.1f} % {_limits(row)}"


def change(row: dict) -> str:
    """`+58.0 points [+52.1, +63.4]`: a paired difference with its 95 % interval."""
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
    """How questions were asked; "unseen" is said only beside a split of trained phrasings."""
    names = {"test_seen": "trained phrasings"}
    if "test_seen" in splits:
        names["test"] = "unseen phrasings and ranges"
    return f"{names.get(split, split)}, {calculator_text(calculator)}"


def calculator_text(calculator: bool) -> str:
    """`calculator on`, or `calculator off`."""
    return "calculator on" if calculator else "calculator off"


def table_text(rows: Sequence[dict]) -> list[dict[str, str]]:
    """Rows of `summarise` in words, for readers."""
    splits, texts = {row["split"] for row in rows}, []
    for row in rows:
        by = "level" if "level" in row else "kind"
        text = {"asked": asked(row["split"], row["calculator"], splits), "model": row["model"],
                by: str(row[by]), "n": str(row["n"]), "accuracy [95 %]": percent(row)}  # fmt: skip
        if "clustered" in row:
            text["95 % over groups"] = over_groups(row["clustered"])
        if row["within"]:
            tolerances = ", ".join(row["within"]).replace(" %", "")
            shares = ", ".join(f"{100 * share:.0f}" for share in row["within"].values())
            text[f"within {tolerances} %"] = f"{shares} %"
        texts.append(text | {
            "format rate": f"{100 * row['format_rate']:.0f} %",
            "finished": f"{100 * row['finished']:.0f} %",
            "last number": f"{100 * row['accuracy_last_number']:.1f} %",
            "tokens an answer": f"{row['tokens']:.0f}",
        })
    return texts


def pairs_text(rows: Sequence[dict]) -> list[dict[str, str]]:
    """Results of `pair` (with their split and calculator) or of `paired_kinds` in words."""
    splits, texts = {row.get("split") for row in rows}, []
    for row in rows:
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
        texts.append(text)
    return texts


def html_lines(lines: Iterable[str]) -> Any:
    """Sentences as HTML, a paragraph each; all are escaped."""
    from IPython.display import HTML

    return HTML("".join(f"<p>{html.escape(line)}</p>" for line in lines))


def html_table(rows: Sequence[dict[str, str]]) -> Any:
    """Rows of text as an HTML table, none where there are none; every cell is escaped.

    Columns of numbers alone are set right, so that their digits stand below each other."""
    from IPython.display import HTML

    if not rows:
        return HTML("")
    sides = {name: "left" for row in rows for name in row}
    for name in sides:
        if all(NUMBER.fullmatch(row.get(name, "")) for row in rows):
            sides[name] = "right"
    lines = [_line("th", dict(zip(sides, sides)), sides)]
    lines += [_line("td", row, sides) for row in rows]
    return HTML(f"<table>{''.join(lines)}</table>")


def _line(tag: str, texts: dict[str, str], sides: dict[str, str]) -> str:
    """A row of an HTML table: the text of each column that has a side."""
    cells = ""
    for name, side in sides.items():
        text = html.escape(_unbroken(texts.get(name, "")))
        cells += f"<{tag} style='text-align:{side}'>{text}</{tag}>"
    return f"<tr>{cells}</tr>"


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
    whole = [row for row in table if row["kind"] == "all"]
    return {(row["split"], row["calculator"], row["model"]): row for row in whole}


def headline(
    table: list[dict], pairs: list[dict], perplexity: dict, loss: dict, rehearse: bool
) -> dict[str, str]:
    """The figures that a reader wants first, each with n, interval and setting."""
    whole, lines = overall(table), {}
    for row in pairs:
        base, tuned = (whole[row["split"], row["calculator"], model] for model in compared(table))
        name = f"{row['split'].replace('_', ' ')}, {calculator_text(row['calculator'])}"
        lines[name] = (f"{base['model']} {percent(base)} -> tuned {percent(tuned)}, n = {row['n']}, "
                       f"McNemar {p_text(row['p_value'])}")  # fmt: skip
    perplexities = " -> ".join(
        f"{model} {perplexity_text(row)}" for model, row in sorted(perplexity.items())
    )
    lines["perplexity"] = f"{perplexities}, {perplexity['base']['rows']} answers"
    lines["held-out loss"] = f"{loss_text(loss)}, paired"
    if rehearse:
        return {f"{name} (rehearsal, no result)": line for name, line in lines.items()}
    return lines


def perplexity_text(row: dict) -> str:
    """`3.56 [3.34, 3.79]`, of `evaluate.perplexity`."""
    return f"{row['perplexity']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def loss_text(loss: dict) -> str:
    """`base 2.310 -> tuned 2.050 nats a token: -0.260 [-0.280, -0.240]`, of `evaluate.loss_change`."""
    means = f"base {loss['base']:.3f} -> tuned {loss['tuned']:.3f}"
    return f"{means} nats a token: {loss_difference(loss)}"


def loss_difference(loss: dict) -> str:
    """`-0.260 [-0.280, -0.240]`: the paired difference in nats a token."""
    return f"{loss['difference']:+.3f} [{loss['low']:+.3f}, {loss['high']:+.3f}]"


# ---- answers themselves

CELL = "<td style='text-align:left;vertical-align:top'>"
LONG = 300  # characters; a longer text of `one_of_each` unfolds
VERDICTS = {  # (base is right, tuned is right): what it is called, and that there is none
    (False, True): ("Mended", "Training mended none of the"),
    (True, False): ("Broken", "Training broke none of the"),
    (False, False): ("Still wrong", "Wrong before and after is none of the"),
}


def side_by_side(results: list[dict], split: str, calculator: bool, count: int) -> str:
    """HTML: base and tuned answers to the same question; by kind in turn, half right and half wrong."""
    names = compared(results)
    pairs = _in_pairs(*(arm(results, model, split, calculator) for model in names))
    right = [(base, tuned) for base, tuned in pairs if tuned["correct"]]
    wrong = [(base, tuned) for base, tuned in pairs if not tuned["correct"]]
    half = max(count // 2, count - len(wrong))
    return _table(_in_turn(right, half) + _in_turn(wrong, count - min(half, len(right))), names)


def ungraded(results: list[dict]) -> str:
    """HTML: base and tuned answers to questions that nothing grades, beside their rows' own answers."""
    by_model = grouped((row for row in results if not row["gold"] and not row.get("published")), "model")
    return _table(_in_pairs(by_model["base"], by_model["tuned"]), MODELS)


def flips(before: list[dict], after: list[dict], names: Sequence[str] = MODELS, most: int = 10) -> str:
    """HTML: the questions whose verdict changed, with gold and both answers, which unfold to their whole text.

    Every question that went from right to wrong is listed; of those from wrong to right `most`, kinds in
    turn, and the rest is counted. `before` and `after`: answers to the same questions in the same order."""
    pairs = _in_pairs(before, after)
    lost = [(a, b) for a, b in pairs if a["correct"] and not b["correct"]]
    won = [(a, b) for a, b in pairs if b["correct"] and not a["correct"]]
    shown = _in_turn(won, most)
    hidden = f", {len(won) - len(shown)} of them not shown" if len(shown) < len(won) else ""
    return (
        f"<h3>Right, then wrong: {len(lost)} of {len(pairs)} questions</h3>"
        + _table(lost, names, folded=True)
        + f"<h3>Wrong, then right: {len(won)} of {len(pairs)} questions{hidden}</h3>"
        + _table(shown, names, folded=True)
    )  # fmt: skip


def one_of_each(base: list[dict], tuned: list[dict]) -> str:
    """HTML: the first question that training mended, that it broke, and that is still wrong.

    Each with its gold, both answers and how many such there are; long texts unfold. `base` and `tuned`:
    answers to the same questions in the same order."""
    pairs, shown, none = _in_pairs(base, tuned), "", ""
    for verdict, (title, nothing) in VERDICTS.items():
        own = [(a, b) for a, b in pairs if (a["correct"], b["correct"]) == verdict]
        if own:
            shown += f"<div><h3>{title}: {len(own)} of {len(pairs)}</h3>{_one(own[0])}</div>"
        else:
            none += f"<p>{nothing} {len(pairs)}.</p>"
    return f"<div class='examples'>{shown}</div>{none}"


def _one(pair: tuple[dict, dict]) -> str:
    """A question with both models' answers below it."""
    page = _question(pair[0], LONG)
    for answer in pair:
        page += f"<h4>{html.escape(answer['model'])}</h4>{_answer(answer, len(answer['completion']) > LONG)}"
    return page


def _in_turn(pairs: list[tuple[dict, dict]], count: int) -> list[tuple[dict, dict]]:
    """The first `count` pairs, one of each kind in turn."""
    seen, turns = Counter(), []
    for pair in pairs:
        kind = pair[0]["kind"]
        seen[kind] += 1
        turns.append((seen[kind], pair))
    turns.sort(key=itemgetter(0))
    return [pair for _, pair in turns[:count]]


def _table(pairs: Sequence[tuple[dict, dict]], names: Sequence[str], folded: bool = False) -> str:
    """Questions with their golds and two answers; every text in it is escaped."""
    if not pairs:
        return ""
    first, second = map(html.escape, names)
    rows = "<tr><th style='width:34%'>question</th>"
    rows += f"<th style='width:33%'>{first}</th><th>{second}</th></tr>"
    for before, after in pairs:
        cells = _question(after), _answer(before, folded), _answer(after, folded)
        rows += f"<tr>{CELL}{f'</td>{CELL}'.join(cells)}</td></tr>"
    return f"<table>{rows}</table>"


def _question(answer: dict, longest: float = math.inf) -> str:
    """Kind, question and gold; a question of more characters than `longest` unfolds."""
    if answer["gold"]:
        known = f"gold: {answer['gold']['value']}"
    else:
        known = f"its row's answer: {answer['reference']}"
    kind, question, known = map(html.escape, (answer["kind"], answer["question"], known))
    if len(answer["question"]) > longest:
        begin = html.escape(answer["question"][:100])
        question = f"<details><summary>{begin} ...</summary>{question}</details>"
    return f"<b>{kind}</b><br>{question}<br>{known}"


def _answer(answer: dict, folded: bool) -> str:
    text = f"<pre style='white-space:pre-wrap'>{html.escape(answer['completion'])}</pre>"
    if folded:
        text = f"<details><summary>{html.escape(_reading(answer))}</summary>{text}</details>"
    return f"<b>{html.escape(_verdict(answer))}</b>{text}"


def _verdict(answer: dict) -> str:
    if not answer["gold"]:
        return "not graded"
    if answer["correct"]:
        return "right"
    return f"wrong: {answer['error']}"


def _reading(answer: dict) -> str:
    read = "nothing read" if answer["value"] is None else f"read {answer['value']}"
    if answer["reading"] == "last number":
        read += ", unmarked"
    return read
