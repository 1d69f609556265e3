"""How long grading takes: `python tests/benchmarks/bench_grade.py`.

Reach: 100,000 completions of 200 characters in 10 s on one core, and at most a millisecond a kilobyte of any text.
Seconds are of processor time, so that another job on the machine does not count.
"""

import random
import time

from lib.grade.scoring import grade

COMPLETIONS = 100_000
CHARACTERS = 200
ENDINGS = [
    ("#### {value:,.2f}", "none"),
    ("**Final answer:** ${value:,.2f}", "currency"),
    ("The answer is {value:.2f}%.", "percent"),
    (r"so the ratio is $\boxed{{{value:.2f}}}$", "ratio"),
    ("#### \u2212{value:.2f}", "none"),
    ("which leaves {value:.2f} in the end.", "none"),
    ("Final answer: Fund B, Fund A and Fund C", "choice"),
]
PROSE = "We multiply 1,200 by 1.05 = 1,260 and take away 35.5, since the fee is 2.8% of the whole. "


def rows(count: int) -> list[tuple[str, dict]]:
    generator = random.Random(0)
    made = []
    for index in range(count):
        ending, unit = ENDINGS[index % len(ENDINGS)]
        value = generator.uniform(0, 1e6)
        end = ending.format(value=value)
        text = (PROSE * 3)[: CHARACTERS - len(end) - 1] + "\n" + end
        made.append((text, {"value": "B, A, C" if unit == "choice" else round(value, 2), "unit": unit}))
    return made


if __name__ == "__main__":
    graded = rows(COMPLETIONS)
    start = time.process_time()
    correct = sum(grade(completion, gold).correct for completion, gold in graded)
    elapsed_seconds = time.process_time() - start
    print(f"{COMPLETIONS:,} completions of {CHARACTERS} characters: {elapsed_seconds:.2f} s, {correct:,} correct")
    for name, text in [
        ("markers", "####" * 25_000),
        ("digits", "#### " + "1" * 100_000),
        ("groups", "1 234" + " 234" * 25_000),
        ("combining marks", "a" + "\u0300\u0316" * 50_000),
        ("open boxes", r"\boxed{" * 14_000),
        ("parentheses", "#### B" + " (1" * 33_000),
        ("spaces", "Final answer:" + " " * 100_000),
    ]:
        start = time.process_time()
        for unit, value in [("none", 5), ("choice", "B"), ("bool", True)]:
            grade(text, {"value": value, "unit": unit})
        print(f"100 kB of {name}: {(time.process_time() - start) * 1e3 / 3:.1f} ms a grade")
