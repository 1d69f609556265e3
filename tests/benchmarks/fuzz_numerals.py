"""Does the grader misread a spelling of a known value? `python tests/benchmarks/fuzz_numerals.py [SPELLINGS]`

Spellings are drawn by currency, grouping, sign, scale, unit, marker and language. How a language writes them is
Unicode's CLDR (by babel), never the grader's own tables. Reach: of 100,000 spellings none is misread, and of the
unambiguous ones at most 1 % are no answer.

Ambiguous is, by CLDR alone: a number that English writes for another value (`1.234` in German), one comma that no
English number has (`3,5`), and a scale that CLDR, or English finance (FINANCE), also has for another power
(`bn` is 1e12 in Swedish). These may give no answer, or what they are in English.
"""

import math
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cache

from babel import Locale
from babel.numbers import format_currency, format_decimal, format_percent

from lib.grade.reading import parse

LOCALES = "en en_IN de de_CH fr es it pt nl sv nb da fi pl cs ru uk tr hu ro zh zh_Hant ja ko id".split()
CURRENCIES = "USD EUR GBP JPY CHF SEK NOK DKK PLN CZK HUF RUB TRY BRL INR CNY KRW AUD CAD".split()
FINANCE = {  # the powers of ten that English has for a scale; 0: it is a unit, as in 5 t and 5 mi
    "mn": [6], "bn": [9], "bln": [9], "bil": [9], "bill": [9], "tn": [12], "mm": [6], "mil": [6], "cr": [7], "k": [3],
    "m": [6, 0], "b": [9], "t": [12, 0], "billion": [9], "trillion": [12], "million": [6], "mi": [6, 0],
    "n": [0], "e": [0], "l": [0], "billions": [9], "trillions": [12],
}  # fmt: skip
MARKERS = [
    "#### {}", "####\n{}", "Final answer: {}", "**Final answer:** {}", "Answer: {}", "### Answer\n{}",
    "The answer is {}.",
    "**Answer:** {}\n\n(Note that the answer is rounded.)", "<think>the answer is 7</think>\n#### {}", "#### x = {}",
    "Answer: {} (n = 100)", "Final answer: ```\n{}\n```", "Answer: approximately {}", "#### {}<|im_end|>",
    "The answer is: After 4 years, {}.", "Final answer: {}, as of 2022", r"$\boxed{{{}}}$",
]  # fmt: skip
UNITS = {"{}%": "percent", "{} percent": "percent", "{} bps": "basis points", "{}x": "multiple", "{}": "none"}


@dataclass(frozen=True)
class Spelling:
    """A text that states a value in a unit; `english`: what it may be in English, if it is ambiguous."""

    text: str
    value: float
    unit: str
    ambiguous: bool = False
    english: tuple[float, ...] = ()


@cache
def scales(locale: str) -> list[tuple[str, int]]:
    """(what stands around a number, as `{} Mio.`; its power of ten) of a language's compact numbers."""
    found = set()
    for plurals in Locale.parse(locale).compact_decimal_formats.values():
        for power, pattern in plurals["other"].items():
            affixes = re.fullmatch(r"(\D*)0+(\D*)", pattern.pattern.replace("'", ""))
            if affixes and affixes[2].strip():
                zeros = pattern.pattern.count("0")
                found.add(("{}" + affixes[2], len(power) - zeros))
    return sorted(found)


@cache
def powers(word: str) -> frozenset[int]:
    """The powers of ten that a scale stands for, in any of the languages or in English finance."""
    table = defaultdict(set)
    for locale in LOCALES:
        for around, power in scales(locale):
            table[bare(around)].add(power)
    return frozenset(table[word]) | frozenset(FINANCE.get(word, []))


def bare(around: str) -> str:
    return around.replace("{}", "").strip(" .\u00a0").lower()


def in_english(shown: str) -> float | None:
    """The value of digits as English writes them."""
    if re.fullmatch(r"\d{1,3}(,\d{3})*(\.\d+)?|\d+(\.\d+)?", shown):
        return float(shown.replace(",", ""))
    return None


def spelling(chance: random.Random) -> Spelling:
    """One spelling by chance."""
    locale = chance.choice(LOCALES)
    decimals = chance.choice([0, 0, 1, 2, 2, 3])
    value = Decimal(chance.randrange(1, 10 ** chance.randint(1, 9))).scaleb(-decimals)
    kind = chance.choice(["number", "currency", "scale", "scale", "unit"])
    unit, power, word = "none", 0, ""
    if kind == "currency":
        code, unit = chance.choice(CURRENCIES), "currency"
        value = round(value, 0 if code in ("JPY", "KRW", "HUF") else 2)
        text = format_currency(value, code, locale=locale, format=None)
    elif kind == "scale":
        around, power = chance.choice(scales(locale))
        value, word = Decimal(chance.randrange(1, 9999)).scaleb(-chance.choice([0, 1, 2])), bare(around)
        text = around.format(format_decimal(value, format="#,##0.###", locale=locale))
        if chance.random() < 0.5:
            sign = chance.choice(["$", "\u20ac", "\u00a3", "EUR", "USD"])
            unit = "currency"
            text = f"{sign} {text}" if chance.random() < 0.3 else f"{text} {sign}"
    elif kind == "unit" and chance.random() < 0.5:
        text, unit = format_percent(value / 100, format=None, locale=locale), "percent"
        pattern = Locale.parse(locale).percent_formats[None].pattern.replace("#,##0", "#,##0.###")
        text = format_percent(value / 100, format=pattern, locale=locale)
    else:
        around = chance.choice(list(UNITS)) if kind == "unit" else "{}"
        unit = UNITS[around]
        text = around.format(format_decimal(value, format="#,##0.###", locale=locale))
    shown = re.search(r"\d(?:[\d.,'\u2019\u00a0\u202f]*\d)?", text)[0]
    english = in_english(shown)
    lone_comma = "," in shown and english is None and not re.search(r"[.'\u2019\u00a0\u202f]", shown)
    ambiguous = lone_comma or english is not None and not math.isclose(english, value) or len(powers(word)) > 1
    others = [(english or float(value)) * 10.0**other for other in FINANCE.get(word, [power])]
    sign = 1
    if chance.random() < 0.25:
        signs = ["-{}", "\u2212{}", "minus {}", "({})"][: 3 if 0 in FINANCE.get(word, []) else 4]  # (5 t) is a note
        sign, text = -1, chance.choice(signs).format(text)
    marker = chance.choice(MARKERS)
    if "boxed" in marker:
        text = re.sub(r"([$%])", r"\\\1", text)
    value = sign * float(value) * 10.0**power
    return Spelling(marker.format(text), value, unit, ambiguous, tuple(sign * other for other in others))


def spellings(count: int, seed: int = 0) -> Iterator[Spelling]:
    chance = random.Random(seed)
    return (spelling(chance) for _ in range(count))


def outcome(one: Spelling) -> str:
    """What became of one: "right", "no answer", "in English" (if it is ambiguous) or "misread"."""
    reading = parse(one.text)
    if reading is None:
        return "no answer"
    right = math.isclose(reading.value, one.value, rel_tol=1e-9) and reading.unit in (one.unit, "currency")
    if right:
        return "right"
    if one.ambiguous and any(math.isclose(reading.value, other, rel_tol=1e-9) for other in one.english):
        return "in English"
    return "misread"


if __name__ == "__main__":
    counts, shown = Counter(), Counter()
    for one in spellings(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000):
        found = (one.ambiguous, outcome(one))
        counts[found] += 1
        if found[1] == "misread" or found == (False, "no answer"):
            shown[found] += 1
            if shown[found] <= 60:
                print(found[1], repr(one.text), one.value, one.unit, parse(one.text))
    for (ambiguous, found), count in sorted(counts.items()):
        print(f"{'ambiguous' if ambiguous else 'unambiguous':12} {found:10} {count:7,}")
