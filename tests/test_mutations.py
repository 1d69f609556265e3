"""Would the tests notice? Each seeded bug is planted in a copy of the project, whose own test must then fail."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass

import pytest

from lib.run.paths import ROOT

pytestmark = pytest.mark.slow  # together; each bug has a pytest of its own


@dataclass(frozen=True)
class Bug:
    """In `module`, `right` (which stands there once) becomes `wrong`; `test` must catch it."""

    module: str
    right: str
    wrong: str
    test: str


SCORING, READING, STATS = (f"tests/grade/test_{name}.py::test_" for name in ("scoring", "reading", "stats"))
TASKS = "tests/data/test_tasks.py::test_"
NUMBERS = READING + "a_number_is_read_as_a_person_reads_it"
WORKED = TASKS + "solve_reads_hand_worked_questions"
BUGS = {
    "thousands separated by commas are not read": Bug("grade/numerals", ">[, '\\u2019])", ">[ '\\u2019])", NUMBERS),
    "the minus sign is ignored": Bug("grade/numerals", 'signs.strip(" +") or ', "", NUMBERS),
    "accounting parentheses are ignored": Bug(
        "grade/numerals", ' or accounting', "", NUMBERS
    ),
    "a million is a thousand": Bug("grade/numerals", '"m": 1e6', '"m": 1e3', NUMBERS),
    "the first marker counts, not the last": Bug(
        "grade/reading", "reversed(deque(MARKER.finditer(text), maxlen=20))", "MARKER.finditer(text)",
        READING + "a_marker_marks",
    ),
    "the tolerance is ten times too wide": Bug(
        "grade/scoring", "tolerance = 0.001", "tolerance = 0.01",
        SCORING + "the_relative_tolerance_passes_and_no_more",
    ),
    "half a unit of the last digit is a whole unit": Bug(
        "grade/scoring", "step / 2, tolerance)", "step, tolerance)",
        SCORING + "half_a_unit_of_the_last_shown_digit_passes_and_no_more",
    ),
    "a percentage is taken for a ratio in silence": Bug(
        "grade/scoring", 'flag = f"{shown} as {unit}"', "flag = None",
        SCORING + "a_written_unit_is_converted_to_the_golds_and_flagged",
    ),
    "the last number of an unmarked text counts": Bug(
        "grade/scoring", 'Verdict(False, verdict.value, "last number"',
        'Verdict(verdict.correct, verdict.value, "last number"',
        SCORING + "the_last_number_is_a_separate_reading_that_is_never_correct",
    ),
    "McNemar's test has one side": Bug(
        "grade/stats", "binomtest(right_to_wrong, changed)", 'binomtest(right_to_wrong, changed, alternative="less")',
        STATS + "mcnemar_is_the_exact_test_of_statsmodels",
    ),
    "clusters are taken for independent rows": Bug(
        "grade/stats", 'cov_type="cluster", cov_kwds={"groups": codes}', 'cov_type="HC0"',
        STATS + "rows_that_repeat_their_group_add_no_information",
    ),
    "the random stream ignores the split": Bug(
        "data/tasks", "[seed, SPLITS[split], ", "[seed, 0, ", TASKS + "streams_of_split_kind_seed_and_index_differ"
    ),
    "volatility grows with time, not with its root": Bug(
        "data/kinds", "*sqrt({s['calendar'].split()[0]})", "*({s['calendar'].split()[0]})", WORKED
    ),
    "the drawdown is from the global peak": Bug(
        "data/kinds", 'peak, worst, falls, steps = s["series"][0]',
        'peak, worst, falls, steps = max(s["series"], key=float)', WORKED,
    ),
    "the gold has digits that it does not show": Bug(
        "data/kinds", "show(calculate(exact or final), decimals)", "calculate(exact or final)", WORKED
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The project's modules and the tests that the bugs name, in a folder of their own."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "lib", folder / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in {"tests/conftest.py", "pyproject.toml"} | {bug.test.partition("::")[0] for bug in BUGS.values()}:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def run(folder, *tests):
    """Run the folder's own tests, on the folder's own modules."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=line", "-p", "no:cacheprovider", *tests]
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # importing plugins that these tests do not need is half the time
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"} | alone
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_copy_without_a_bug_passes(copy):
    done = run(copy, *sorted({bug.test for bug in BUGS.values()}))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", BUGS)
def test_a_seeded_bug_is_caught(copy, name):
    bug = BUGS[name]
    module = copy / "lib" / f"{bug.module}.py"
    source = module.read_text(encoding="utf-8")
    assert source.count(bug.right) == 1, f"{bug.right!r} must stand once in {bug.module}.py: mend this list"
    module.write_text(source.replace(bug.right, bug.wrong), encoding="utf-8")
    try:
        done = run(copy, bug.test)
    finally:
        module.write_text(source, encoding="utf-8")
    assert done.returncode == 1 and f"FAILED {bug.test}" in done.stdout, done.stdout
