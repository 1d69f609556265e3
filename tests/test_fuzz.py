"""Settings and run folders that are wrong at random: each is told in words, none is believed, nothing is lost."""

import contextlib
import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import nbformat
import pytest
import yaml
from papermill.cli import _resolve_type
from papermill.iorw import NoDatesSafeLoader

from lib import cli
from lib.judge import compare
from lib.pipeline import report, status
from lib.run import disk, parameters, presets, progress, runs, untrusted
from lib.run.paths import ROOT
from lib.run.presets import PRESETS
from lib.run.settings import FIELDS, SettingsError
from lib.run.stages import STAGES, names_of

SETTINGS, FOLDERS, REPORTS = 200, 500, 50  # a report of a notebook takes the longest, so not every folder has one
ODD = [
    None, True, False, -1, 0, 1, 3, 2**31, 2**63, 10**400, 0.0, -0.5, 0.3, 1e-320, 1e308, float("nan"), float("inf"),
    "", " ", "none", "None", "true", "1e-4", "1e400", "1_000", "0x10", "\uff11\uff12", "\u00b2", "-", "9" * 5000,
    "x" * 100_000, "\u202etxt", "\x1b[2J", "a\nb", "<script>", "~nobody/x", "../../x", "/", "/dev/zero", ".", "[",
    "((((", "all", "own", "mixture", "gsm8k", "gsm8k=1:" + "9" * 5000, "gsm8k=" + "9" * 400, "gsm8k@../..=2",
    "question=", "question=a=b", "host:1", "host:\uff11\uff12", "data/base", "cosine", [], [None], ["gsm8k", "gsm8k"],
    ["finqa=2", "gsm8k"], ["a", 1, [2, [3]]], ["compounding", "compounding"], ["compounding\u0000"], {},
    {"a": {"b": [1, {"c": None}]}}, [[[[[]]]]], [[], {}], "\u0000", "\ud800", "~\u0000", ["\ud800"], b"bytes", (1, 2),
    {1, 2}, 10**5000, -(10**5000), [10**5000], Path("/nope"), frozenset("a"), json,
]  # fmt: skip


# --- settings ---------------------------------------------------------------------------------------------------------
def odd_settings(random: random.Random) -> dict:
    """Some settings: names as they are, misspelt or made up; values that fit, or of any type and size."""
    found = {}
    for _ in range(random.randint(1, 5)):
        name = random.choice(list(FIELDS))
        if random.random() < 0.2:
            at = random.randrange(len(name))
            misspelt = [name[:at] + name[at + 1 :], name.upper(), name + "_", "\u00fc" * 3, "x" * 10_000, "r "]
            name = random.choice(misspelt)
        known = [getattr(preset.settings, name, None) for preset in PRESETS.values()]
        found[name] = random.choice(known) if random.random() < 0.2 else random.choice(ODD)
    return found


def told(call, *names: str):
    """What a call gives, or None where it is refused: in words that name the settings and fit a terminal."""
    try:
        return call()
    except SettingsError as error:
        assert error.problems and all(len(problem) < 25_000 for problem in error.problems)
        assert not untrusted.STEERING.search(untrusted.visible(str(error)))
        for name in names:
            assert any(name[:50] in problem for problem in error.problems), (name, error.problems)
        return None


def test_200_odd_settings_are_each_taken_or_refused_in_words():
    refused = 0
    for number in range(SETTINGS):
        chance = random.Random(number)
        preset, found = chance.choice([*PRESETS, *PRESETS, "gsm9k", "", 7, None, ["demo"]]), odd_settings(chance)
        unknown = [name for name in found if name not in FIELDS]
        resolved = told(lambda: presets.resolve(preset, found, chance.random() < 0.3), *unknown)  # noqa: B023
        assert resolved is None or not unknown and json.dumps(resolved.of_stage("train"), allow_nan=False)
        refused += resolved is None

        texts = {name: str(value)[:200_000] for name, value in found.items() if not has_huge_number(value)}
        # as `sharpen run --set`; no shell can give a zero byte or half a character
        pairs = [f"{name}={value}" for name, value in texts.items() if not {"\0", "\ud800"} & set(value)]
        told(lambda: presets.resolve("demo", cli._overrides(pairs, None)))  # noqa: B023

        stage = chance.choice(list(STAGES))
        own = {name: value for name, value in found.items() if name in names_of(stage) and value is not None}
        request = told(lambda: parameters.from_notebook(stage, {"preset": "demo"} | own))  # noqa: B023
        assert request is None or {request.resolved.origins[name] for name in own} <= {"override"}, "one was ignored"
        typed = {name: _resolve_type(value) for name, value in texts.items()}  # as `papermill -p`
        told(lambda: parameters.from_notebook(stage, typed | {"preset": preset, "run": chance.choice(ODD)}))  # noqa: B023
        with contextlib.suppress(yaml.YAMLError, UnicodeEncodeError):  # as `papermill -f`
            typed = yaml.load(yaml.safe_dump(texts, allow_unicode=True), NoDatesSafeLoader)
            told(lambda: parameters.from_notebook(stage, typed | {"outputs": chance.choice(ODD), "rehearse": "maybe"}))  # noqa: B023
    assert SETTINGS * 0.8 < refused < SETTINGS, "the settings are too odd, or not odd enough"


def has_huge_number(value) -> bool:
    """Has Python no text for it (over 4,300 digits)?"""
    parts = value if isinstance(value, list) else [value]
    return any(isinstance(part, int) and abs(part) > 10**4000 for part in parts)


@pytest.mark.parametrize("value", ODD, ids=lambda value: ascii(type(value)))
def test_an_odd_run_preset_or_folder_is_refused_in_words(value):
    for names in ({"preset": value}, {"run": value}, {"outputs": value}, {"rehearse": value}):
        told(lambda: parameters.from_notebook("train", {"preset": "demo", "outputs": "out"} | names))  # noqa: B023
    if isinstance(value, str) and value:
        told(lambda: presets.resolve(value))
        with contextlib.suppress(runs.RunError):
            runs.run_folder_of(Path("outputs"), value)


# --- run folders ------------------------------------------------------------------------------------------------------
def start(outputs: Path, stage: str) -> runs.Stage:
    return runs.begin(parameters.from_notebook(stage, {"preset": "demo", "run": "trial", "outputs": str(outputs)}))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """outputs/ with one run: three complete stages, one at work, notebooks, and what `clean` would free."""
    outputs = tmp_path_factory.mktemp("fuzz") / "outputs"
    prepare = start(outputs, "prepare")
    prepare.write_rows("train.jsonl", [{"id": number, "text": "row"} for number in range(20)])
    prepare.finish(headline={"rows": "train 20"})
    train = start(outputs, "train")
    train.input("prepare")
    for step in range(1, 6):
        train.log(step, loss=3.0 / step, learning_rate=1e-3)
    train.save_json("adapter_config.json", {"r": 32})
    train.finish(rows=20, steps=5, train_seconds=1.5, tokens_per_second=900.0, headline={"training": "5 steps"})
    evaluate = start(outputs, "evaluate")
    evaluate.input("train")
    alike = {"kind": "compounding", "group": "g", "split": "test", "calculator": True, "question": "?", "tokens": 3,
             "finished": True, "reading": "marker", "error": None, "correct_lenient": True}  # fmt: skip
    rows = [alike | {"id": f"{n}", "model": model, "gold": {"value": n, "unit": "none"}, "completion": f"#### {n}",
                     "correct": model == "tuned", "value": float(n)}
            for n in range(4) for model in ("base", "tuned")]  # fmt: skip
    share = {"split": "test", "calculator": True, "kind": "all", "n": 4, "accuracy": 0.5, "low": 0.2, "high": 0.8,
             "format_rate": 1.0}  # fmt: skip
    paired = {"split": "test", "calculator": True, "n": 4, "right_to_wrong": 0, "wrong_to_right": 4, "p_value": 0.1,
              "difference": 1.0, "low": 0.4, "high": 1.0}  # fmt: skip
    evaluate.save_json("summary.json", {"table": [share | {"model": m} for m in ("base", "tuned")], "paired": [paired],
                                        "perplexity": {}})  # fmt: skip
    evaluate.write_rows("generations.jsonl", rows)
    evaluate.finish(headline={"accuracy": "50 %"})
    at_work = start(outputs, "pretrain")
    at_work.log(3, loss=2.5, tokens=4096)
    told = (outputs / "trial" / "progress.json").read_text()
    progress.end()  # so that it does not beat while it is copied
    (outputs / "trial" / "progress.json").write_text(told)
    folder = outputs / "trial"
    disk.unlock(folder, "writer")
    for spare in ("data.former/train.jsonl", "adapter/checkpoints/checkpoint-5/weights"):
        (folder / spare).parent.mkdir(parents=True)
        (folder / spare).write_text("spare")
    (folder / "notebooks").mkdir()
    shown = nbformat.v4.new_output("execute_result", {"text/plain": "2", "text/html": "<b>2</b>"})
    cells = [nbformat.v4.new_markdown_cell("# Title"), nbformat.v4.new_code_cell("1 + 1", outputs=[shown])]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "notebooks" / "30_evaluate.ipynb")
    return outputs


def files_of(folder: Path) -> dict[str, str]:
    """What is in a folder: each file by its hash, each link by its target, each other thing by its kind."""
    found = {}
    for place, folders, names in os.walk(folder):
        for name in folders + names:
            path = Path(place, name)
            if path.is_symlink():
                found[str(path)] = os.readlink(path)
            elif path.is_file():
                found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                found[str(path)] = "folder" if path.is_dir() else "pipe"
    return found


def flip(random, path):
    content = bytearray(path.read_bytes() or b" ")
    for _ in range(random.randint(1, 4)):
        content[random.randrange(len(content))] = random.randrange(256)
    path.write_bytes(content)


def cut(random, path):
    path.write_bytes(path.read_bytes()[: random.randrange(path.stat().st_size + 1)])


def odd_json(random, path):
    """A JSON file with a key gone, or with another value at a random place."""
    try:
        value = json.loads(path.read_text().splitlines()[0] if path.suffix == ".jsonl" else path.read_text())
    except (ValueError, IndexError, RecursionError):
        value = {}
    place = value
    while isinstance(place, dict) and place:
        key = random.choice(list(place))
        if isinstance(place[key], dict) and place[key] and random.random() < 0.6:
            place = place[key]
        elif random.random() < 0.3:
            del place[key]
            break
        else:
            place[key] = random.choice(JSON)
            break
    path.write_text(random.choice([json.dumps(value), json.dumps(value) + "\n", json.dumps([value]), "[" * 100_000]))


def foreign(random, path):
    """A file or folder that no stage wrote."""
    name = random.choice(["thesis.txt", "\x1b[2J", "[red]x", "\u202e", "\udcff", "manifest.json", "started.json",
                          "a" * 200, ".writer.lock", "metrics.jsonl", "eval.former", "thesis.former", "x.ipynb"])
    target = path.parent / name
    if not target.exists():
        target.mkdir() if random.random() < 0.3 else target.write_bytes(random.randbytes(40))


def replaced(random, path):
    """A folder, a pipe, an empty file or nothing in the place of a file."""
    path.unlink()
    random.choice([lambda: path.mkdir(), lambda: os.mkfifo(path), lambda: path.touch(), lambda: None])()


def link(random, path):
    """The file or its folder becomes a link: to itself, round in a circle, nowhere, or out of the run."""
    path = random.choice([path, path.parent]) if path.parent.parent.name == "trial" else path
    if not path.with_name("moved").exists():
        path.rename(path.with_name("moved"))
        target = random.choice([path.name, ".", "..", "nowhere", "/etc/passwd", "/dev/zero", "/etc", "moved", "../.."])
        path.symlink_to(target)


DAMAGES = (flip, cut, odd_json, foreign, replaced, link)
JSON = [None, True, -1, 0, 10**400, 1e308, float("nan"), "", "text", "\x1b[2J", "\ud800", "[red]x", "x" * 10_000, [],
        [[]], {}, {"a": None}, {"../../x": {"b": 1}}, {"/dev/zero": "0"}, {"/dev/zero": {"0": "0"}}, "/", "1e400"]


def asked(call, name: str):
    """What a call gives, or None where it refuses; the message names the run's folder or the run."""
    try:
        return call()
    except runs.RunError as error:
        assert name in str(error), error
        assert len(str(error)) < 3000
        return None


def damaged(whole: Path, place: Path, number: int) -> Path:
    """A copy of the run with one damage or several; most are without notebooks, which take the report its time."""
    chance = random.Random(number)
    shutil.copytree(whole, place)
    if number % (FOLDERS // REPORTS):
        shutil.rmtree(place / "trial" / "notebooks")
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        files = [Path(path) for path in sorted(files_of(place / "trial"))]
        chance.choice(DAMAGES)(chance, chance.choice([f for f in files if f.is_file() and not f.is_symlink()]))
    return place


@pytest.mark.slow
def test_500_damaged_run_folders_are_told_in_words_and_nothing_is_lost(whole, tmp_path, capsys):
    resolved, noticed = presets.resolve("demo"), 0
    stages = {stage: STAGES[stage].folder for stage in ("prepare", "train", "evaluate")}
    assert all(runs.is_current(whole, "trial", stage, resolved, notebook_of(stage))[0] for stage in stages)
    for number in range(FOLDERS):
        outputs = damaged(whole, tmp_path / str(number), number)
        folder, before = outputs / "trial", files_of(outputs)
        for stage, name in stages.items():
            asked(lambda: runs.read(folder, stage), "trial")  # noqa: B023
            current, reason = runs.is_current(outputs, "trial", stage, resolved, notebook_of(stage))
            assert reason and (not current or outputs_of(folder / name) == outputs_of(whole / "trial" / name))
            noticed += not current
            status.line(folder, stage)
        if finished := asked(lambda: compare.load(folder), "trial"):  # noqa: B023
            assert compare.table_text(compare.table([finished])) and compare.costs_text(compare.costs([finished]))
            assert compare.about([finished]) and compare.scores_text([finished], compare.table([finished]))
            compare.settings_text([finished]), compare.interrupted([finished])
        cli.status(outputs)
        for named in (None, ["trial"]):
            asked(lambda: cli.clean(named, False, outputs), "trial")  # noqa: B023
        if asked(lambda: report.write(folder), "trial"):  # noqa: B023
            page = (folder / "report.html").read_text(encoding="utf-8")
            assert "<script" not in page and not untrusted.STEERING.search(page)
        assert not untrusted.STEERING.search(capsys.readouterr().out)
        after = files_of(outputs)
        lost = {path for path in before if after.get(path) != before[path]}
        assert not {path for path in lost if not path.endswith((".lock", "report.html"))}
        assert not [path for path in after if path.endswith(".part")]
        asked(lambda: start(outputs, "train"), "trial")  # noqa: B023
        progress.end()
        disk.unlock(folder, "writer")
        kept = {value for path, value in after.items() if not path.endswith("progress.json")}
        assert kept - set(files_of(outputs).values()) <= {"folder"}, "a result was not put aside"
        shutil.rmtree(outputs)
    assert noticed > 0.9 * FOLDERS, "the damage is too small to be noticed"


def notebook_of(stage: str) -> Path:
    return ROOT / "notebooks" / f"{STAGES[stage].notebook}.ipynb"


def outputs_of(folder: Path) -> dict[str, bytes]:
    """The files of a stage that are its outputs, as they are."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name not in ("manifest.json", "started.json")
            and not name.startswith((".", "checkpoint"))}  # fmt: skip
