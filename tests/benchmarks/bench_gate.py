"""Does the gate find planted leaks alone? `python -m tests.benchmarks.bench_gate [folder with gsm8k/ | costs]`

In place of 1 % of the training rows stand paraphrases of test rows, each edited in several ways. Reported are the share
of planted rows found (wanted: 95 % or more) and of the other training rows that are called leaks (1 % or less).
Without golds (`golds: no`) a benchmark gives no answers, and wording and numbers alone decide. Before that come sets
without duplicates, with their findings and the share that is found of rewordings of every tenth row. With `costs`: what
a growing number of rows costs.
"""

import re
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from lib.data import gate, questions, sources, tasks
from lib.run import presets
from tests.benchmarks.gate_rows import MADE, row

SHARE = 0.01
SYNONYMS = dict(pair.split("/") for pair in """
    sells/vends buys/purchases bought/purchased buy/purchase has/owns had/owned gives/hands gave/handed makes/produces
    made/produced costs/is-priced-at cost/price pays/spends paid/spent earns/gains gets/receives got/received
    eats/consumes ate/consumed wants/wishes needs/requires uses/employs takes/requires total/overall money/cash
    dollars/bucks number/amount many/numerous each/every per/for-each friends/pals children/kids house/home store/shop
    car/vehicle day/date left/remaining more/additional fewer/less twice/two-times half/one-half bag/sack box/carton
    boxes/cartons books/volumes start/begin starts/begins find/determine compute/calculate calculate/work-out
    annual/yearly annually/yearly quarterly/every-quarter monthly/every-month grows/increases grow/increase
    invested/deposited worth/value return/yield returned/yielded volatility/standard-deviation fund/portfolio
    stock/share trader/investor account/balance risks/stakes higher/greater largest/biggest highest/greatest
    interest/growth compounded/compounding share/stake shares/stakes rank/order compare/contrast starting/beginning
""".split())  # fmt: skip
NAMES = "Priya Tomas Ingrid Kwame Yuki Leila Bruno Sadie Omar Freya Nadia Hugo Amara Felix Greta Ravi".split()
FILLER = "lorem ipsum dolor amet consectetur adipiscing elit tempor incididunt labore magna aliqua".split()
NUMBER_WORDS = {*questions.VALUES, *questions.SCALES}
SMALL = dict(enumerate("zero one two three four five six seven eight nine ten eleven twelve".split()))


# --- ways to say the same: (text, rng) -> text ------------------------------------------------------------------------
def synonyms(text: str, rng) -> str:
    return re.sub(r"[A-Za-z]+", lambda m: SYNONYMS.get(m[0].lower(), m[0]).replace("-", " "), text)


def other_words(share: float) -> Callable:
    """A share of the long words becomes other ones: harder than synonyms, since no word of the meaning is left."""

    def other(match, rng) -> str:
        kept = match[0] in NUMBER_WORDS or rng.random() >= share
        return match[0] if kept else str(rng.choice(FILLER)) + match[0][-2:]

    def edit(text: str, rng) -> str:
        return re.sub(r"(?<![\w.])[a-z]{4,}\b", lambda match: other(match, rng), text)

    return edit


def order(text: str, rng) -> str:
    """The sentences before the question in another order, and the clauses of a single one."""
    sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z])", text)
    if len(sentences) > 2:
        return " ".join([*rng.permutation(sentences[:-1]), sentences[-1]])
    clauses = re.split(r"(?<=[a-z%]), (?=[a-z])", text.rstrip(".?"))
    return ", ".join([*clauses[1:], clauses[0]]) + "?"


def names(text: str, rng) -> str:
    """Every capitalised word inside a sentence, wherever it stands, becomes another name."""
    found = list(dict.fromkeys(re.findall(r"(?<=[a-z,] )[A-Z][a-z]+", text)))
    new = dict(zip(found, rng.permutation(NAMES).tolist()))
    return re.sub(r"\b[A-Z][a-z]+\b", lambda m: new.get(m[0], m[0]), text)


def shape(text: str, rng) -> str:
    """Case and punctuation."""
    text = [str.lower, str.upper, str.title, str][rng.integers(4)](text)
    return re.sub(r"[!?;:]|,(?!\d)|(?<!\d)\.|\.(?!\d)", " ", text)


def spelling(text: str, rng) -> str:
    """Small numbers in words, percent signs as words, a polite opening."""
    text = re.sub(r"(?<![\d.,$-])\d{1,2}(?![\d,.%]\d|\d|%|-)", lambda m: SMALL.get(int(m[0]), m[0]), text)
    return "Please solve this problem. " + text.replace("%", " percent")


RECIPES = {
    "synonyms, order": (synonyms, order),
    "synonyms, names, shape": (synonyms, names, shape),
    "spelling, order, names": (spelling, order, names),
    "a third other words, order": (other_words(0.33), order, shape),
    "half other words, names": (other_words(0.5), names),
    "all of it": (synonyms, spelling, other_words(0.3), order, names, shape),
}


def paraphrase(row: dict, rng, id: str, recipe: tuple[Callable, ...]) -> dict:
    """The row with its question edited; names in a gold stay as they are, so that it keeps its gold."""
    question = row["messages"][-2]["content"]
    for edit in recipe:
        if edit is not names or not isinstance(row["gold"]["value"], str):
            question = edit(question, rng)
    messages = [{"role": "user", "content": question}, row["messages"][-1]]
    return row | {"id": id, "group": id, "messages": messages}


def rephrase(row: dict, rng, id: str) -> dict:
    """A generated row's parameters in another phrasing of its kind; edited words and order where no other fits."""
    phrasings, question = tasks.KINDS[row["kind"]].phrasings, row["messages"][-2]["content"]
    for template in phrasings:
        slots = re.findall(r"{(\w+)}", template)
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+?)", re.escape(template))
        match = len(slots) == len(set(slots)) and re.fullmatch(pattern, question, flags=re.IGNORECASE)
        fitting = [
            other for other in phrasings if other != template and set(re.findall(r"{(\w+)}", other)) <= set(slots)
        ]
        if match and fitting:
            text = fitting[rng.integers(len(fitting))].format(**match.groupdict())
            return paraphrase(row, rng, id, (lambda _, __, text=text: text,))
    return paraphrase(row, rng, id, RECIPES["synonyms, order"])


def planted(splits: dict[str, list[dict]], plant: Callable, rng, share: float = SHARE) -> tuple[dict, dict[str, str]]:
    """(splits in which a share of the training rows was replaced by paraphrases of test rows, {planted id: source})."""
    train = list(splits["train"])
    count = min(max(1, round(share * len(train))), len(splits["test"]))
    places = rng.choice(len(train), count, replace=False)
    chosen = rng.choice(len(splits["test"]), count, replace=False)
    made = {}
    for place, source in zip(places, chosen, strict=True):
        row = plant(splits["test"][source], rng, f"planted-{place}")
        train[place], made[row["id"]] = row, splits["test"][source]["id"]
    return splits | {"train": train}, made


def found(splits: dict[str, list[dict]], made: dict[str, str]) -> tuple[float, float]:
    """(share of the planted rows found as what they are, share of the other training rows called leaks)."""
    leaks = {(f.row, f.other) for f in gate.duplicates(splits) if f.matters and f.split == "train"}
    alarms = {row for row, _ in leaks} - made.keys()
    return sum(pair in leaks for pair in made.items()) / len(made), len(alarms) / (len(splits["train"]) - len(made))


def without_golds(splits: dict[str, list[dict]]) -> dict[str, list[dict]]:
    return splits | {"test": [row | {"gold": None} for row in splits["test"]]}


def generated(kinds: tuple[str, ...], rows: int, seed: int = 0) -> dict[str, list[dict]]:
    counts = {"train": rows, "validation": rows // 15, "test": rows // 3, "test_seen": rows // 15}
    return {
        split: [problem.row() for problem in tasks.generate(split, count, seed, kinds)]
        for split, count in counts.items()
    }


def gsm8k(data_dir: str) -> dict[str, list[dict]]:
    local = {"data_dir": data_dir, "base_model": "data/base", "chat_template": None}
    settings = presets.resolve("llama32_3b_gsm8k", local).settings
    return {split: part.rows for split, part in sources.load(settings, ("train", "test")).items()}


def many(count: int, rng) -> list[dict]:
    """Short questions with golds: a vocabulary as skewed as a language's, and a few templates."""
    words = rng.zipf(1.3, (count, 12)).clip(max=50_000)
    rows = []
    for number, (drawn, amount) in enumerate(zip(words.tolist(), rng.integers(2, 900, (count, 3)).tolist())):
        text = " ".join("bdfgklmnprstvz"[word % 14] + "aeiou"[word % 5] + np.base_repr(word, 26) for word in drawn)
        question = f"{text}: {amount[0]} at {amount[1]} dollars each, less {amount[2]}. How much is left?"
        rows.append(row(str(number), question, round(float(rng.lognormal(5, 2)), 2)))
    return rows


def costs() -> None:
    line = "{:>12}{:>8}{:>12}{:>10}".format
    print(line("rows", "CPU s", "peak MiB", "findings"))
    for count in (10_000, 100_000, 1_000_000):
        rows = many(count, np.random.default_rng(0))
        start = time.process_time()
        findings = len(gate.duplicates({"test": rows[: count // 20], "train": rows[count // 20 :]}))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        print(line(f"{count:,}", f"{time.process_time() - start:.0f}", f"{peak:,}", findings), flush=True)


def clean_sets() -> None:
    print("{:<26}{:>6}{:>10}{:>8}".format("set without duplicates", "rows", "findings", "found"))
    for name, make in MADE.items():
        rows, said = make(1000, np.random.default_rng(3))
        leaks = gate.duplicates({"test": rows[:100], "train": rows[100:] + said[:100]})
        recall = len({f.row for f in leaks if f.matters} & {one["id"] for one in said[:100]})
        print(f"{name:<26}{len(rows):>6}{len(gate.duplicates({'train': rows})):>10}{recall:>7}%", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["costs"]:
        sys.exit(costs())
    clean_sets()
    data = {"demo kinds": generated(tasks.DEMO_KINDS, 900), "all kinds": generated(tuple(tasks.KINDS), 1900)}
    if len(sys.argv) > 1 and (Path(sys.argv[1]) / "gsm8k/train.jsonl").is_file():
        data["gsm8k"] = gsm8k(sys.argv[1])
    line = "{:<12}{:<7}{:<30}{:>8}{:>8}{:>14}{:>7}".format
    print(line("data", "golds", "paraphrase", "planted", "found", "false alarms", "CPU s"))
    for name, splits in data.items():
        recipes = {label: partial(paraphrase, recipe=recipe) for label, recipe in RECIPES.items()}
        if name != "gsm8k":
            recipes["another phrasing"] = rephrase
        for golds, (label, plant) in product((True, False), recipes.items()):
            rounds, start = [], time.process_time()
            for seed in range(1 if name == "gsm8k" else 5):  # 1 % of 900 rows are 9: too few to tell 95 % from 90 %
                rows, made = planted(splits, plant, np.random.default_rng([seed, len(label)]))
                rounds.append((len(made), *found(rows if golds else without_golds(rows), made)))
            cpu_seconds = (time.process_time() - start) / len(rounds)
            count = sum(n for n, _, _ in rounds)
            recall, alarms = sum(n * share for n, share, _ in rounds) / count, max(alarm for *_, alarm in rounds)
            shown = f"{recall:.1%}", f"{alarms:.2%}", f"{cpu_seconds:.1f}"
            print(line(name, "yes" if golds else "no", label, count, *shown), flush=True)
