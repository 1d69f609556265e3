"""Claims about the house: its rooms, who imports whom, and that every name of a place is that of a place."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from setuptools import find_packages

from lib.data import kinds
from lib.run import settings
from lib.run.paths import ROOT
from lib.run.stages import IN_EVERY_RUN, STAGES
from lib.ship import cloud

ROOMS = ("data", "engine", "front", "gpt", "grade", "judge", "pipeline", "run", "ship", "train")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PATTERNS = ("lib/**/*.py", "notebooks/*.ipynb", "*.md", "docs/*.md", "data/**/*.md", "outputs/*.md",
            ".github/**/*.yml", "Makefile", ".ci/run")  # fmt: skip
TEXTS = sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern))


def lint(folder) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    return subprocess.run([*command, "--no-logo"], cwd=folder, capture_output=True, text=True)


def test_lib_holds_rooms_and_three_files():
    there = {path.name for path in (ROOT / "lib").iterdir() if path.name != "__pycache__"}
    assert there == {*ROOMS, "__init__.py", "cli.py", "doctor.py"}
    assert {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()} >= set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_in_one_sentence_what_it_is_for_and_hands_nothing_on(room):
    (said,) = ast.parse((ROOT / f"lib/{room}/__init__.py").read_text(encoding="utf-8")).body
    assert re.fullmatch(r"[A-Z](?:[^.]|\.\w){20,150}\.", said.value.value)


@pytest.mark.parametrize(
    ("module", "planted", "told"),
    [
        ("grade/stats", "", "2 kept, 0 broken"),
        ("grade/stats", "from lib.judge import evaluate", "lib.grade is not allowed to import lib.judge"),
        ("run/rules", "def late():\n    from lib.data.kinds import KINDS", "lib.run is not allowed to import lib.data"),
        ("data/gate", "from lib.engine import client", "lib.data is not allowed to import lib.engine"),
        ("run/disk", "from lib.run import runs", "Nothing imports in a circle BROKEN"),
        ("new/thing", "VALUE = 1", "lib.new"),
    ],
)
def test_the_contract_holds_and_fails_on_a_planted_import(tmp_path, module, planted, told):
    shutil.copytree(ROOT / "lib", tmp_path / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path = tmp_path / f"lib/{module}.py"
    if not path.parent.exists():  # a room that no line of the contract names
        path.parent.mkdir()
        (path.parent / "__init__.py").touch()
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"\n{planted}\n")
    done = lint(tmp_path)
    assert told in done.stdout.replace("\n", " "), done.stdout + done.stderr
    assert (done.returncode == 0) == (planted == "")


def test_packaging_and_a_cloud_job_carry_every_file_of_lib():
    there = {path for path in (ROOT / "lib").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path for pattern in cloud.SOURCES for path in ROOT.glob(pattern)} >= there
    patterns = ["*.py", *PROJECT["tool"]["setuptools"]["package-data"]["*"]]
    folders = [ROOT / "lib", *(ROOT / "lib" / room for room in ROOMS)]
    assert {path for folder in folders for pattern in patterns for path in folder.glob(pattern)} == there


def test_packaging_and_linting_know_the_rooms():
    (wanted,) = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {*find_packages(ROOT, include=[wanted])} == {"lib", *(f"lib.{room}" for room in ROOMS)}
    ignored = PROJECT["tool"]["ruff"]["lint"]["per-file-ignores"]
    assert [name for name in ignored if not list(ROOT.glob(f"**/{name}" if "*" in name else name))] == []


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_place_that_is_named_exists(path):
    """Files as lib/run/runs.py, and modules as lib.train.fsdp_worker, which other processes start by their names."""
    text = path.read_text(encoding="utf-8")
    files = {name for name in re.findall(r"(?<![\w/])(?:lib|tests)/[\w/]+\.(?:py|json)\b", text)}
    modules = set(re.findall(rf"(?<![\w.])lib\.(?:{'|'.join(ROOMS)})\.[a-z_]+", text))
    files |= {f"{name.replace('.', '/')}.py" for name in modules}
    assert [name for name in sorted(files) if not (ROOT / name).is_file()] == []
    assert {*re.findall(r"(?<![\w.])lib\.([a-z_]+)", text)} <= {*ROOMS, "cli", "doctor"}


def test_the_architecture_names_every_module_of_every_room_and_no_other():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    for room in ROOMS:
        (row,) = re.findall(rf"^\| `{room}` \|.*\|(.*)\|$", text, flags=re.MULTILINE)
        named = re.findall(r"`([a-z_]+)`", row)
        there = [path.stem for path in (ROOT / f"lib/{room}").glob("*.py") if path.stem != "__init__"]
        assert sorted(named) == sorted(there)


def test_kinds_are_named_where_settings_are_read_as_they_are_defined():
    assert settings.KIND_NAMES == tuple(kinds.KINDS)


def test_the_table_of_stages_names_what_is_there():
    numbers = [row.notebook[:2] for row in STAGES.values()]
    assert numbers == sorted(numbers) and len({row.folder for row in STAGES.values()}) == len(STAGES)
    assert IN_EVERY_RUN == ("prepare", "train", "evaluate", "compare")
    for row in STAGES.values():
        levers = {*(row.memory or ()), *filter(None, [row.accumulation])}
        assert levers <= row.settings.model_fields.keys() and row.settings.__doc__
