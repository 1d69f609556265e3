"""A data set's own protocol beside our grader: how often they agree, and why they do not. No torch."""

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean

from lib.grade import protocols
from lib.judge import answers

ERRORS = {  # of our verdict, where the protocol calls an answer right
    "wrong sign": "sign", "off by 100": "percent or ratio", "off by a power of 1000": "scale", "rounding": "rounded",
    "no answer": "no marker", "truncated": "no marker", "wrong value": "equal as words",
}  # fmt: skip


def verdict(row: dict, completion: str) -> dict:
    """What a result holds of the protocol that its row's `published` names; nothing where it names none."""
    if not row.get("published"):
        return {}
    score = protocols.grade(completion, row["published"], (row["gold"] or {}).get("unit", "none"))
    return {
        "published": row["published"], "published_correct": score.correct, "published_f1": score.f1,
        "published_read": score.read, "published_wanted": score.wanted,
    }  # fmt: skip


def summarise(results: Iterable[dict]) -> list[dict]:
    """A row for each protocol, way of asking and model: shares of right answers by the protocol and by ours.

    "its" is the protocol's share of all its rows ("f1": their mean, None where it knows none); "ours" and "its_here"
    are of the rows that have a gold too (None without any), "ours_alone" and "its_alone" count what one calls right."""
    named = [result | {"protocol": result["published"]["protocol"]} for result in results if result.get("published")]
    table = []
    for way, own in answers.grouped(named, "protocol", "split", "calculator", "model").items():
        both, f1 = [result for result in own if result["gold"]], answers.column(own, "published_f1")
        pairs = Counter((result["correct"], result["published_correct"]) for result in both)
        table.append(dict(zip(("protocol", "split", "calculator", "model"), way)) | {
            "its": answers.share(own, "published_correct"), "f1": None if None in f1 else fmean(f1),
            "ours": answers.share(both) if both else None,
            "its_here": answers.share(both, "published_correct") if both else None,
            "ours_alone": pairs[True, False], "its_alone": pairs[False, True],
        })  # fmt: skip
    return table


def table_text(table: Sequence[dict]) -> list[dict[str, str]]:
    """Rows of `summarise` in words, for readers."""
    texts = []
    for row in table:
        n, both = row["its"]["n"], row["ours"]["n"] if row["ours"] else 0
        text = {
            "protocol": f"{row['protocol']}: {protocols.MEASURES[row['protocol']]}",
            "asked": answers.asked(row["split"], row["calculator"]), "model": row["model"], "n": str(n),
            "right by it [95 %]": answers.percent(row["its"]), "F1": "-",
            "it alone grades": str(n - both), "both grade": str(both), "ours [95 %]": "-", "its": "-",
            "right by ours alone": str(row["ours_alone"]), "by it alone": str(row["its_alone"]),
        }  # fmt: skip
        if row["f1"] is not None:
            text["F1"] = f"{100 * row['f1']:.1f} %"
        if both:
            text |= {"ours [95 %]": answers.percent(row["ours"]), "its": answers.percent(row["its_here"])}
        texts.append(text)
    return texts


def headline(table: Sequence[dict], rehearse: bool) -> dict[str, str]:
    """Each protocol's own score in words, a line for each way of asking."""
    lines = {}
    for (protocol, split, calculator), rows in answers.grouped(table, "protocol", "split", "calculator").items():
        name = f"{protocol}'s own {protocols.MEASURES[protocol]}, {answers.asked(split, calculator)}"
        name += " (rehearsal, no result)" if rehearse else ""
        scores = [f"{row['model']} {answers.percent(row['its'])}, n = {row['its']['n']}" for row in rows]
        lines[name] = "; ".join(scores)
    return lines


def disagreements(results: Iterable[dict], most: int = 10) -> list[dict[str, str]]:
    """The first answers that one grader alone calls right, in words, with the reason."""
    texts = []
    for result in filter(disagree, results):
        texts.append({
            "model": result["model"], "question": result["question"][-200:], "answer": result["completion"][-80:],
            "ours": result["error"] or "right", "gold": str(result["gold"]["value"]),
            "protocol": "right" if result["published_correct"] else "wrong",
            "it compares": " with ".join(str(result[f"published_{side}"])[:80] for side in ("read", "wanted")),
            "why": reason(result),
        })  # fmt: skip
    return texts[:most]


def disagree(result: dict) -> bool:
    """Do both graders judge this answer, and differently?"""
    return bool(result.get("published") and result["gold"] and result["correct"] != result["published_correct"])


def reason(result: dict) -> str:
    """Why the graders differ: of our verdict's error, or of what the protocol compared."""
    if not result["correct"]:
        return ERRORS.get(result["error"], result["error"])
    read, wanted = _number(result["published_read"]), _number(result["published_wanted"])
    if read is None or wanted is None:
        return "words in another order" if result["published_f1"] == 1 else "words beside the answer"
    if read * wanted < 0:
        return "sign"
    low, high = sorted([abs(read), abs(wanted)])
    if high <= 2 * low or low == 0:
        return "rounded"
    return "percent or ratio" if high <= 200 * low else "scale"


def _number(text: float | str | None) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None
