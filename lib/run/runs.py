"""Run folders: each stage writes its own folder and, last, a manifest that says what came in, what came out and how."""

import hashlib
import html
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from lib.run import disk, packages, progress, provenance, untrusted
from lib.run.disk import Form, RunError, sha256, to_json
from lib.run.parameters import Request, from_notebook
from lib.run.paths import ROOT, in_project, locate, made_from, run_name_problems
from lib.run.presets import Resolved
from lib.run.settings import flat
from lib.run.stages import STAGES, YOURS, notebook_of

NOT_COMPLETE = "not complete yet"
DRIVE = Path("/content/drive")  # where Colab mounts it
_CONTROL = ("manifest.json", "started.json")

Hashes = dict[str, str]
Modules = dict[Annotated[str, Field(pattern=r"^lib/(\w+/)?\w+\.(py|json)$")], str]
Inputs = dict[Annotated[str, Field(pattern=r"^(\.\./[A-Za-z0-9_][A-Za-z0-9._-]*/)?[a-z]+$")], Hashes]


class _Metrics(Form):
    headline: dict[str, Any] | None = None


class _Git(Form):
    commit: str | None
    dirty: bool | None


class _Manifest(Form):
    """What others read in a manifest; one from elsewhere may name only this project's files and runs beside it."""

    stage: str
    preset: str
    rehearse: bool
    settings: dict[str, Any]
    origins: dict[str, str]
    git: _Git
    code: Modules
    inputs: Inputs
    external: dict[str, Hashes]
    outputs: Hashes
    versions: dict[str, str | None]
    device: dict[str, Any]
    peak_memory_bytes: dict[str, Annotated[int, Field(ge=0, lt=2**63)]]
    ended_at: str
    elapsed_seconds: float
    metrics: _Metrics


class _Started(Form):
    """What an unfinished attempt says of itself."""

    plan: dict[str, Any]
    code: Modules
    made_from: dict[str, Hashes]


class Stage:
    """One stage of a run at work. Its settings are only those that it reads, so that the manifest leaves out none.

    `resumed` is True where an unfinished attempt with the same settings, code and inputs left files to go on from.
    """

    def __init__(self, request: Request, resumed: bool, made_from: dict[str, dict[str, str]]):
        self.request, self.resumed, self.finished = request, resumed, False
        self.settings = request.resolved.for_stage(request.stage)
        self.rehearse = request.resolved.rehearse
        self.run_folder = request.outputs / request.run
        self.folder = self.run_folder / STAGES[request.stage].folder
        self.started_at, self._clock = disk.utc_now(), time.monotonic()
        self.inputs: dict[str, dict[str, str]] = {}  # folder relative to the run -> {file: sha256}
        self.external: dict[str, dict[str, str]] = {}  # path outside the outputs -> {file: sha256}
        self._log = disk.Log(self.folder / "metrics.jsonl")
        self._made_from = made_from  # the inputs of the attempt that is gone on from
        self._code = provenance.code()  # as loaded: what is edited while the stage runs is not what ran

    def input(self, stage: str, run: str | None = None) -> Path:
        """The folder of a complete earlier stage (of another run, if named), remembered as an input.

        RunError if it is incomplete, was changed since, or belongs to another setup than this notebook's.
        """
        run_folder, notebook = self.run_folder, STAGES[stage].notebook
        if run is not None:
            run_folder = run_folder_of(self.request.outputs, run)
        manifest, folder = read(run_folder, stage), run_folder / STAGES[stage].folder
        if problems := changes(run_folder, stage):
            raise RunError(f"{folder}: {'; '.join(problems)}: run {notebook} again")
        if run is None:
            then, now = _setup(manifest), _wanted(self.request.resolved, self.request.stage)
            shared = {name: value for name, value in now.items() if name in then}
            if different := differences(then, shared):
                raise RunError(f"run {self.request.run!r}, stage {stage!r}: {different} in this notebook; "
                               f"use the same values, or another run name, or run {notebook} again")  # fmt: skip
        self._remember(self.inputs, Path(os.path.relpath(folder, self.run_folder)).as_posix(), manifest["outputs"])
        return folder

    def uses(self, path: str | Path) -> Path:
        """A file or folder from outside the outputs (a base model, a local data set), remembered by its hashes."""
        if pinned := packages.hashes(str(path)):
            self._remember(self.external, str(path), pinned)
            return Path(locate(str(path)))
        found = Path(in_project(path)).resolve()
        if not found.exists():
            raise RunError(f"{path}: no such file or folder")
        self._remember(self.external, provenance.relative(found), without_card(hashes_of(found)))
        return found

    def uses_code(self, module: str) -> None:
        """A module of lib that other processes run, with all that it imports: a part of this stage's code."""
        self._code |= provenance.code_of(module)
        self._write_started()

    def log(self, step: int, **metrics: Any) -> None:
        """Append a line to metrics.jsonl, whole or not at all; a NaN or infinite metric is written as null."""
        assert not self.finished, "the stage is finished: its outputs are hashed"
        self._log(step, **metrics)

    def save_json(self, name: str, value: Any) -> Path:
        """Write one JSON file into the stage's folder, whole or not at all."""
        return self._write(name, [to_json(value, indent=2) + "\n"])

    def write_rows(self, name: str, rows: Iterable[Any]) -> Path:
        """Write rows (dictionaries) as JSON lines into the stage's folder, all or none."""
        return self._write(name, (to_json(row) + "\n" for row in rows))

    def _write(self, name: str, parts: Iterable[str]) -> Path:
        assert not self.finished, "the stage is finished: its outputs are hashed"
        return disk.write_atomically(self.folder / name, parts)

    def finish(self, workers: dict[str, Any] | None = None, **metrics: Any) -> dict[str, Any]:
        """Hash the outputs, write manifest.json last, give the lock back, and return the manifest.

        `headline={label: text}` among the metrics is what the pipeline prints and the report folds away. Where other
        processes did the work, `workers` holds their device and peak_memory_bytes, which take the place of ours.
        """
        assert not self.finished, "the stage is finished already"
        resolved, settings = self.request.resolved, flat(self.settings, "json")
        manifest = {
            "stage": self.request.stage, "run": self.request.run, "preset": resolved.preset,
            "rehearse": resolved.rehearse, "resumed": self.resumed,
            "base": made_from(getattr(self.settings, "base_model", "")),
            "settings": settings, "origins": {name: resolved.origins[name] for name in settings},
            "seeds": {name: value for name, value in settings.items() if name.endswith("seed")},
            "git": provenance.git(), "code": provenance.code() | self._code,
            "notebook": notebook_hash(_notebook(self.request)),
            "inputs": self.inputs, "external": self.external, "outputs": hashes_of(self.folder),
            "versions": provenance.versions(), "started_at": self.started_at, "ended_at": disk.utc_now(),
            "elapsed_seconds": round(time.monotonic() - self._clock, 3), "metrics": metrics,
        } | (workers or {"device": provenance.device(), "peak_memory_bytes": provenance.peak_memory_bytes()})
        disk.write_atomically(self.folder / "manifest.json", [untrusted.redact(to_json(manifest, indent=2)) + "\n"])
        self.finished = True
        # an evaluation's journals, and what an attempt that was killed had begun to write
        for done_with in (self.folder / "started.json", *self.folder.glob(".*.jsonl"), *self.folder.glob(".*.part")):
            done_with.unlink(missing_ok=True)
        for aside in (f"{self.folder.name}.former", f"{self.folder.name}.abandoned", f"{self.folder.name}/checkpoints"):
            shutil.rmtree(self.run_folder / aside, ignore_errors=True)
        progress.end()
        disk.unlock(self.run_folder, "writer")
        return json.loads(to_json(manifest))

    def _title(self) -> str:
        place = self.folder.relative_to(self.request.outputs.parent).as_posix()  # reports are shared: no path of ours
        title = f"preset {self.request.resolved.preset}, stage {self.request.stage}, writing to {place}"
        if self.rehearse:
            title = f"REHEARSAL (a walk through, no result): {title}"
        if self.resumed:
            title += ", going on from an unfinished attempt"
        return title

    def _table(self):
        """The settings, each with where it came from."""
        import pandas as pd

        origins = self.request.resolved.origins
        rows = [(name, repr(value), origins[name]) for name, value in flat(self.settings).items()]
        return pd.DataFrame(rows, columns=["setting", "value", "from"])

    def __repr__(self) -> str:
        return f"{self._title()}\n{self._table().to_string(index=False, justify='left')}"

    def _repr_html_(self) -> str:
        import pandas as pd

        with pd.option_context("display.max_colwidth", None):
            table = self._table().to_html(index=False, border=0, justify="left")
        return f"<details><summary><b>{html.escape(self._title())}</b>: its settings</summary>{table}</details>"

    def _remember(self, kept: dict[str, dict[str, str]], key: str, hashes: dict[str, str]) -> None:
        """Note an input; what an unfinished attempt made from other inputs must not be gone on from."""
        if self.resumed and self._made_from.get(key, hashes) != hashes:
            _put_aside(self.folder, "abandoned")
            self.resumed, self._made_from = False, {}
        kept[key] = hashes
        self._code = provenance.code() | self._code  # modules are imported after the start too
        self._write_started()

    def _write_started(self) -> None:
        made_from = self._made_from | self.inputs | self.external
        _write_started(self.folder, _plan(self.request), self._code, made_from)


def start(stage: str, namespace: Mapping[str, Any]) -> Stage:
    """The stage that a notebook is, by its parameters (its `globals()`): SettingsError names all that is wrong.

    In Colab, outputs in Google Drive are there when the machine is gone: Drive is mounted (it asks) where they lie."""
    request = from_notebook(stage, namespace)
    if "google.colab" in sys.modules and request.outputs.is_relative_to(DRIVE):
        from google.colab import drive

        drive.mount(str(DRIVE))
    return begin(request)


def begin(request: Request) -> Stage:
    """Open the stage's folder for writing: lock the run, put aside a finished result, go on from a fitting attempt.

    Until the new result is complete, a finished one stays beside as `<folder>.former`, and an unfinished attempt that
    had other settings, code or inputs as `<folder>.abandoned`. RunError where another process writes to the run, the
    folder cannot be written to, or it holds what no stage wrote.
    """
    run_folder = run_folder_of(request.outputs, request.run)
    folder = run_folder / STAGES[request.stage].folder
    with disk.writing(run_folder):
        run_folder.mkdir(parents=True, exist_ok=True)
    disk.lock(run_folder, "writer")
    try:
        made_from = _attempt(folder, _plan(request))
        if made_from is None:
            _write_started(folder, _plan(request), provenance.code(), {})
        with disk.writing(run_folder):
            progress.begin(run_folder, request.stage)
        return Stage(request, made_from is not None, made_from or {})
    except BaseException:
        disk.unlock(run_folder, "writer")
        raise


def _attempt(folder: Path, plan: dict[str, Any]) -> dict[str, Hashes] | None:
    """The inputs of an unfinished attempt with the same plan and code; without one, None and a folder to begin in."""
    if (folder / "manifest.json").exists():
        _put_aside(folder, "former")
    elif (folder / "started.json").exists():
        attempt = disk.load(folder / "started.json", _Started)
        if attempt["plan"] == plan and not provenance.code_changes(attempt["code"]):
            return attempt["made_from"]
        _put_aside(folder, "abandoned")
    elif folder.exists():
        if not folder.is_dir() or any(not file.name.startswith(".") for file in folder.iterdir()):
            raise RunError(f"{folder} holds files that no stage of Sharpen wrote: name another run, or move them away")
    return None


def read(run_folder: Path, stage: str) -> dict[str, Any]:
    """A stage's manifest; RunError names the notebook to run where the stage is not complete."""
    path = run_folder / STAGES[stage].folder / "manifest.json"
    if not path.exists():
        raise RunError(f"run {run_folder.name!r} has no complete stage {stage!r}: run {STAGES[stage].notebook} first")
    manifest = disk.load(path, _Manifest)
    if manifest["stage"] != stage:
        raise RunError(f"{path} is no manifest of stage {stage!r}: run {STAGES[stage].notebook} again")
    return manifest


def is_complete(run_folder: Path, stage: str) -> bool:
    """Has the run's stage come to its end?"""
    return (run_folder / STAGES[stage].folder / "manifest.json").exists()


def made_with(manifest: dict[str, Any]) -> dict[str, Any]:
    """The settings in a manifest, but for those that only you may give: the run may be another's."""
    return {name: value for name, value in manifest["settings"].items() if name not in YOURS}


def asked_for(run_folder: Path) -> tuple[str, dict[str, Any], bool]:
    """(preset, settings that are no defaults, is it a rehearsal) of a run, from its manifests; but for YOURS."""
    manifests = [read(run_folder, stage) for stage in STAGES if is_complete(run_folder, stage)]
    if not manifests:
        raise RunError(f"{run_folder}: no stage of this run is complete")
    settings = {}
    for manifest in manifests:
        given = {name for name, origin in manifest["origins"].items() if origin in ("preset", "override")}
        settings |= {name: value for name, value in made_with(manifest).items() if name in given}
    return manifests[0]["preset"], settings, manifests[0]["rehearse"]


def output(run_folder: Path, stage: str, name: str) -> Path:
    """A file that a complete stage wrote; RunError where it is not as the manifest says."""
    path, recorded = run_folder / STAGES[stage].folder / name, read(run_folder, stage)["outputs"]
    now = {}
    if path.exists():
        now = hashes_of(path)
    for change in _file_changes({name: recorded.get(name, "")}, now):
        raise RunError(f"{path.parent}: {change}: run {STAGES[stage].notebook} again")
    return path


def read_rows(path: Path, limit: int | None = None, gold: bool = False) -> list[dict]:
    """The rows that a stage wrote, the first `limit` of them; with `gold` only those whose answers can be graded."""
    with open(path, encoding="utf-8") as file:
        rows = (row for row in map(json.loads, file) if not gold or row["gold"] is not None)
        return list(itertools.islice(rows, limit))


def changes(run_folder: Path, stage: str) -> list[str]:
    """What happened to a complete stage's outputs since its manifest was written, a phrase a file."""
    now = hashes_of(run_folder / STAGES[stage].folder)
    return _file_changes(read(run_folder, stage)["outputs"], now)


def is_current(outputs: Path, run: str, stage: str, resolved: Resolved, notebook: Path) -> tuple[bool, str]:
    """Whether a stage is complete and would come out the same again; if not, the first reason why."""
    run_folder = run_folder_of(outputs, run)
    if not is_complete(run_folder, stage):
        return False, NOT_COMPLETE
    try:
        manifest = read(run_folder, stage)
        if different := differences(_setup(manifest), _wanted(resolved, stage)):
            return False, different
        for key, recorded in manifest["inputs"].items():
            made = run_folder / key / "manifest.json"
            if not made.exists() or disk.load(made).get("outputs") != recorded:
                return False, f"input {key} changed"
        for key, recorded in manifest["external"].items():
            now = packages.hashes(key) or without_card(hashes_of(ROOT / key, recorded))
            for change in _file_changes(without_card(recorded), now):
                return False, f"{key}: {change}"
        for change in changes(run_folder, stage):
            return False, change
    except (RunError, OSError) as error:
        return False, str(error)
    if edited := provenance.code_changes(manifest["code"]):
        return False, f"{edited[0]} changed"
    if manifest.get("notebook") != notebook_hash(notebook):
        return False, f"{notebook.name} changed"
    return True, "settings, inputs and code are unchanged"


def notebook_hash(path: Path) -> str | None:
    """SHA-256 of a notebook's code without its outputs and parameters (which the settings hold); None if absent."""
    if not path.exists():
        return None
    sources = []
    for cell in disk.load(path)["cells"]:
        tags = cell["metadata"].get("tags", ())
        if cell["cell_type"] == "code" and "parameters" not in tags and "injected-parameters" not in tags:
            sources.append("".join(cell["source"]))
    return hashlib.sha256(to_json(sources).encode()).hexdigest()


def run_folder_of(outputs: Path, run: str) -> Path:
    """outputs/<run>, wherever `run` may name a folder there (else RunError)."""
    if problems := run_name_problems(run):
        raise RunError(problems[0])
    return outputs / run


def _notebook(request: Request) -> Path:
    """The notebook that runs: Jupyter and the pipeline work in its folder; papermill alone may work anywhere."""
    name = f"{notebook_of(request.stage, request.resolved.settings)}.ipynb"
    if Path(name).exists():
        return Path(name)
    return ROOT / "notebooks" / name


def _wanted(resolved: Resolved, stage: str) -> dict[str, Any]:
    """The preset and the settings that a stage asks for now."""
    return {"preset": resolved.preset, "rehearse": resolved.rehearse} | resolved.of_stage(stage)


def _setup(manifest: dict[str, Any]) -> dict[str, Any]:
    """The same of a complete stage."""
    return {"preset": manifest["preset"], "rehearse": manifest["rehearse"]} | manifest["settings"]


def _plan(request: Request) -> dict[str, Any]:
    """What an attempt must share with the one it goes on from."""
    resolved = request.resolved
    return {
        "preset": resolved.preset, "rehearse": resolved.rehearse, "settings": resolved.of_stage(request.stage),
        "notebook": notebook_hash(_notebook(request)),
    }  # fmt: skip


def _write_started(folder: Path, plan: dict[str, Any], code: Hashes, made_from: dict[str, Hashes]) -> None:
    started = {"plan": plan, "code": code, "made_from": made_from}
    disk.write_atomically(folder / "started.json", [untrusted.redact(to_json(started, indent=2)) + "\n"])


def _put_aside(folder: Path, name: str) -> None:
    aside = folder.with_name(f"{folder.name}.{name}")
    with disk.writing(aside):
        if aside.exists():
            shutil.rmtree(aside)
        folder.rename(aside)


def hashes_of(path: Path, known: Iterable[str] | None = None) -> Hashes:
    """{name: SHA-256} of each file in a folder (or of one file), but for manifests, hidden files and checkpoints.

    Files whose names are not `known` are not read: a manifest from elsewhere may name any folder."""
    disk.check_links(path)
    files = {path.name: path}
    if not path.is_file():
        files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    hashes = {}
    try:
        for name in sorted(files):
            hidden = any(part.startswith((".", "checkpoint")) for part in name.split("/"))
            if hidden and not path.is_file() or name in _CONTROL:
                continue
            hashes[name] = ""
            if known is None or name in known:
                hashes[name] = sha256(files[name])
    except OSError as error:
        raise RunError(f"{error.filename or path} cannot be read ({error.strerror}): make it readable") from None
    return hashes


def without_card(hashes: Hashes) -> Hashes:
    """A model's files but for its card, which tells of it and is not read by any stage."""
    return {name: value for name, value in hashes.items() if name != "README.md"}


def _file_changes(then: Hashes, now: Hashes) -> list[str]:
    lost = [f"{name} is missing" for name in then if name not in now]
    new = [f"{name} was added" for name in now if name not in then]
    return lost + new + [f"{name} was changed" for name in then if name in now and then[name] != now[name]]


def differences(then: dict[str, Any], now: dict[str, Any]) -> str:
    """`learning_rate was 0.1 and is 0.2`, for every value that differs."""
    other = [name for name in now if name not in then or then[name] != now[name]]
    return ", ".join(f"{name} was {then.get(name)!r} and is {now[name]!r}" for name in other)
