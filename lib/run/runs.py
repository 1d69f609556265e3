"""Run folders: each stage writes its own folder and, last, a manifest that says what came in, what came out and how."""

import ast
import dataclasses
import hashlib
import html
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from lib.run import disk, progress, untrusted
from lib.run.disk import Form, RunError, sha256, to_json
from lib.run.parameters import Request
from lib.run.paths import ROOT, in_project, run_name_problems
from lib.run.presets import Resolved
from lib.run.stages import STAGES, YOURS, notebook_of

PACKAGES = (
    "accelerate", "bitsandbytes", "datasets", "numpy", "papermill", "peft", "safetensors", "tokenizers", "torch",
    "transformers", "trl", "unsloth", "unsloth_zoo",
)
NOT_COMPLETE = "not complete yet"
SETTLED = {  # modules whose effect is the settings, which a manifest holds
    f"lib/run/{name}.py" for name in ("parameters", "paths", "presets", "published", "rules", "settings", "stages")
}
_CONTROL = ("manifest.json", "started.json")


Hashes = dict[str, str]
Modules = dict[Annotated[str, Field(pattern=r"^lib/(\w+/)?\w+\.py$")], str]
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
        own = request.resolved.settings.model_dump(include=set(STAGES[request.stage].settings))
        self.settings = dataclasses.make_dataclass(f"{request.stage.title()}Settings", own, frozen=True)(**own)
        self.request, self.resumed, self.finished = request, resumed, False
        self.rehearse = request.resolved.rehearse
        self.run_folder = request.outputs / request.run
        self.folder = self.run_folder / STAGES[request.stage].folder
        self.started_at, self._clock = disk.utc_now(), time.monotonic()
        self.inputs: dict[str, dict[str, str]] = {}  # folder relative to the run -> {file: sha256}
        self.external: dict[str, dict[str, str]] = {}  # path outside the outputs -> {file: sha256}
        self._log = disk.Log(self.folder / "metrics.jsonl")
        self._made_from = made_from  # the inputs of the attempt that is gone on from
        self._code = code()  # as loaded: a module that is edited while the stage runs must not pass for what ran

    def input(self, stage: str, run: str | None = None) -> Path:
        """The folder of a complete earlier stage (of another run, if named), remembered as an input.

        RunError if it is incomplete, was changed since, or belongs to another setup than this notebook's.
        """
        run_folder = self.run_folder if run is None else run_folder_of(self.request.outputs, run)
        manifest, folder = read(run_folder, stage), run_folder / STAGES[stage].folder
        if problems := changes(run_folder, stage):
            raise RunError(f"{folder}: {'; '.join(problems)}: run {STAGES[stage].notebook} again")
        ours = self.request.resolved
        if run is None:
            shared = {k: v for k, v in ours.of_stage(self.request.stage).items() if k in manifest["settings"]}
            now = {"preset": ours.preset, "rehearse": ours.rehearse} | shared
            then = {"preset": manifest["preset"], "rehearse": manifest["rehearse"]} | manifest["settings"]
            if different := differences(then, now):
                raise RunError(f"run {self.request.run!r}, stage {stage!r}: {different} in this notebook; "
                               f"use the same values, or another run name, or run {STAGES[stage].notebook} again")
        self._remember(self.inputs, Path(os.path.relpath(folder, self.run_folder)).as_posix(), manifest["outputs"])
        return folder

    def uses(self, path: str | Path) -> Path:
        """A file or folder from outside the outputs (a base model, a local data set), remembered by its hashes."""
        found = Path(in_project(path)).resolve()
        if not found.exists():
            raise RunError(f"{path}: no such file or folder")
        self._remember(self.external, _relative(found), without_card(hashes_of(found)))
        return found

    def uses_code(self, module: str) -> None:
        """A module of lib that other processes run, with all that it imports: a part of this stage's code."""
        self._code |= _code_hashes(loaded_with(module))
        self._write_started()

    def log(self, step: int, **metrics: Any) -> None:
        """Append a line to metrics.jsonl, whole or not at all; a NaN or infinite metric is written as null."""
        assert not self.finished, "the stage is finished: its outputs are hashed"
        self._log(step, **metrics)

    def save_json(self, name: str, value: Any) -> Path:
        """Write one JSON file into the stage's folder, whole or not at all."""
        assert not self.finished, "the stage is finished: its outputs are hashed"
        return disk.write_atomically(self.folder / name, [to_json(value, indent=2) + "\n"])

    def write_rows(self, name: str, rows: Iterable[Any]) -> Path:
        """Write rows (dictionaries) as JSON lines into the stage's folder, all or none."""
        assert not self.finished, "the stage is finished: its outputs are hashed"
        return disk.write_atomically(self.folder / name, (to_json(row) + "\n" for row in rows))

    def finish(self, workers: dict[str, Any] | None = None, **metrics: Any) -> dict[str, Any]:
        """Hash the outputs, write manifest.json last, give the lock back, and return the manifest.

        `headline={label: text}` among the metrics is what the pipeline prints and the report shows first. Where other
        processes did the work, `workers` holds their device and peak_memory_bytes, which take the place of ours.
        """
        assert not self.finished, "the stage is finished already"
        resolved, own = self.request.resolved, STAGES[self.request.stage].settings
        manifest = {
            "stage": self.request.stage, "run": self.request.run, "preset": resolved.preset,
            "rehearse": resolved.rehearse, "resumed": self.resumed,
            "settings": resolved.of_stage(self.request.stage), "origins": {f: resolved.origins[f] for f in own},
            "seeds": {f: v for f, v in resolved.of_stage(self.request.stage).items() if f.endswith("seed")},
            "git": git(), "code": code() | self._code, "notebook": notebook_hash(_notebook(self.request)),
            "inputs": self.inputs, "external": self.external, "outputs": hashes_of(self.folder),
            "versions": versions(), "started_at": self.started_at, "ended_at": disk.utc_now(),
            "elapsed_seconds": round(time.monotonic() - self._clock, 3), "metrics": metrics,
        } | (workers or {"device": device(), "peak_memory_bytes": peak_memory_bytes()})
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

    def _table(self) -> tuple[str, list[tuple[str, str, str]]]:
        resolved, own = self.request.resolved, STAGES[self.request.stage].settings
        note = "REHEARSAL (a walk through, no result): " if resolved.rehearse else ""
        place = self.folder.relative_to(self.request.outputs.parent).as_posix()  # reports are shared: no path of ours
        title = f"{note}preset {resolved.preset}, stage {self.request.stage}, writing to {place}"
        title += ", going on from an unfinished attempt" if self.resumed else ""
        return title, [(f, repr(getattr(resolved.settings, f)), resolved.origins[f]) for f in own]

    def __repr__(self) -> str:
        title, rows = self._table()
        return "\n".join([title, *(f"  {field:<28} {value:<40} {origin}" for field, value, origin in rows)])

    def _repr_html_(self) -> str:
        title, rows = self._table()
        lines = [f"<th style='text-align:left'>{name}</th>" for name in ("setting", "value", "from")], *(
            [f"<td style='text-align:left'>{html.escape(text)}</td>" for text in row] for row in rows
        )
        body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in lines)
        return f"<p><b>{html.escape(title)}</b></p><table>{body}</table>"

    def _remember(self, kept: dict[str, dict[str, str]], key: str, hashes: dict[str, str]) -> None:
        """Note an input; what an unfinished attempt made from other inputs must not be gone on from."""
        if self.resumed and self._made_from.get(key, hashes) != hashes:
            _put_aside(self.folder, "abandoned")
            self.resumed, self._made_from = False, {}
        kept[key] = hashes
        self._write_started()

    def _write_started(self) -> None:
        made_from = self._made_from | self.inputs | self.external
        _write_started(self.folder, _plan(self.request), code() | self._code, made_from)


def start(request: Request) -> Stage:
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
        plan, made_from, resumed = _plan(request), {}, False
        if (folder / "manifest.json").exists():
            _put_aside(folder, "former")
        elif (folder / "started.json").exists():
            attempt = disk.load(folder / "started.json", _Started)
            made_from = attempt["made_from"]
            resumed = attempt["plan"] == plan and not _code_changes(attempt["code"])
            if not resumed:
                _put_aside(folder, "abandoned")
        elif folder.exists() and not (folder.is_dir() and all(file.name.startswith(".") for file in folder.iterdir())):
            raise RunError(f"{folder} holds files that no stage of Sharpen wrote: name another run, or move them away")
        if not resumed:
            made_from = {}
            _write_started(folder, plan, code(), made_from)
        with disk.writing(run_folder):
            progress.begin(run_folder, request.stage)
        return Stage(request, resumed, made_from)
    except BaseException:
        disk.unlock(run_folder, "writer")
        raise


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


def output(run_folder: Path, stage: str, name: str) -> Path:
    """A file that a complete stage wrote; RunError where it is not as the manifest says."""
    path, recorded = run_folder / STAGES[stage].folder / name, read(run_folder, stage)["outputs"]
    if problems := _file_changes({name: recorded.get(name, "")}, hashes_of(path) if path.exists() else {}):
        raise RunError(f"{path.parent}: {problems[0]}: run {STAGES[stage].notebook} again")
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
        then = {"preset": manifest["preset"], "rehearse": manifest["rehearse"]} | manifest["settings"]
        now = {"preset": resolved.preset, "rehearse": resolved.rehearse} | resolved.of_stage(stage)
        if different := differences(then, now):
            return False, different
        for key, recorded in manifest["inputs"].items():
            made = run_folder / key / "manifest.json"
            if not made.exists() or disk.load(made).get("outputs") != recorded:
                return False, f"input {key} changed"
        for key, recorded in manifest["external"].items():
            now = without_card(hashes_of(ROOT / key, recorded))
            if found := _file_changes(without_card(recorded), now):
                return False, f"{key}: {found[0]}"
        if found := changes(run_folder, stage):
            return False, found[0]
    except (RunError, OSError) as error:
        return False, str(error)
    if edited := _code_changes(manifest["code"]):
        return False, f"{edited[0]} changed"
    if manifest.get("notebook") != notebook_hash(notebook):
        return False, f"{notebook.name} changed"
    return True, "settings, inputs and code are unchanged"


def notebook_hash(path: Path) -> str | None:
    """SHA-256 of a notebook's code without its outputs and parameters (which the settings hold); None if absent."""
    if not path.exists():
        return None
    cells = disk.load(path)["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"
               and not {"parameters", "injected-parameters"} & set(cell["metadata"].get("tags", ()))]
    return hashlib.sha256(to_json(sources).encode()).hexdigest()


def code() -> dict[str, str]:
    """SHA-256 of every module of `lib` loaded by now, but for `SETTLED`."""
    modules = [module for name, module in sys.modules.items() if name.startswith("lib.")]
    return _code_hashes(Path(module.__file__).resolve() for module in modules if getattr(module, "__file__", None))


def loaded_with(module: str) -> set[Path]:
    """The files of lib that a module loads when it is imported, its own included, as their sources say."""
    found, todo = set(), {module}
    while todo:
        paths = {ROOT / f"{name.replace('.', '/')}.py" for name in todo}
        new = {path for path in paths if path.exists()} - found
        imports = [line for path in new for line in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                   if isinstance(line, ast.ImportFrom) and (line.module or "").startswith("lib.")]  # fmt: skip
        found |= new
        todo = {line.module for line in imports}
        todo |= {f"{line.module}.{name.name}" for line in imports for name in line.names}
    return found


def _code_hashes(paths: Iterable[Path]) -> Hashes:
    return {_relative(path): sha256(path) for path in paths if _relative(path) not in SETTLED}


def git() -> dict[str, Any]:
    """The project's commit, and whether files differ from it; both None outside a git clone."""
    import subprocess

    def ask(*arguments: str) -> str | None:
        try:
            asked = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return asked.stdout.strip() if asked.returncode == 0 else None

    status = ask("status", "--porcelain")
    return {"commit": ask("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def versions() -> dict[str, str | None]:
    """Versions of python and of the packages that results hang on."""
    import importlib.metadata as metadata
    import platform

    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def device() -> dict[str, Any]:
    """What computed: a GPU's name where torch used one, else the CPU's; and its threads."""
    import platform

    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else os.cpu_count()
    if torch and torch.cuda.is_available():
        kind, name, count = "cuda", torch.cuda.get_device_name(0), torch.cuda.device_count()
    else:
        cpuinfo = Path("/proc/cpuinfo")  # Linux only
        lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        kind, name, count = "cpu", names[0] if names else platform.processor(), 1
    return {"kind": kind, "name": name, "count": count, "cpu_threads": threads, "platform": platform.platform()}


def peak_memory_bytes() -> dict[str, int]:
    """The most memory that this process held so far: resident, and on each GPU that torch allocated on."""
    peak = {"resident": progress.resident_bytes()}
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available() and torch.cuda.is_initialized():
        peak |= {f"cuda:{i}": torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())}
    return peak


def run_folder_of(outputs: Path, run: str) -> Path:
    """outputs/<run>, wherever `run` may name a folder there (else RunError)."""
    if problems := run_name_problems(run):
        raise RunError(problems[0])
    return outputs / run


def _notebook(request: Request) -> Path:
    """The notebook that runs: Jupyter and the pipeline work in its folder; papermill alone may work anywhere."""
    name = f"{notebook_of(request.stage, request.resolved.settings)}.ipynb"
    return Path(name) if Path(name).exists() else ROOT / "notebooks" / name


def _plan(request: Request) -> dict[str, Any]:
    """What an attempt must share with the one it goes on from."""
    resolved = request.resolved
    return json.loads(to_json({
        "preset": resolved.preset, "rehearse": resolved.rehearse, "settings": resolved.of_stage(request.stage),
        "notebook": notebook_hash(_notebook(request)),
    }))


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
    """SHA-256 of each file in a folder (or of one file), but for manifests, hidden files and checkpoints.

    Files of names that are not `known` are told without being read: a manifest from elsewhere may name any folder."""
    disk.check_links(path)
    files = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file())
    files = [(name, file) for name, file in files if name not in _CONTROL
             and not any(part.startswith((".", "checkpoint")) for part in name.split("/"))]  # fmt: skip
    try:
        return {name: sha256(file) if known is None or name in known else ""
                for name, file in ([(path.name, path)] if path.is_file() else files)}  # fmt: skip
    except OSError as error:
        raise RunError(f"{error.filename or path} cannot be read ({error.strerror}): make it readable") from None


def without_card(hashes: Hashes) -> Hashes:
    """A model's files but for its card, which tells of it and is not read by any stage."""
    return {name: value for name, value in hashes.items() if name != "README.md"}


def _file_changes(then: dict[str, str], now: dict[str, str]) -> list[str]:
    lost = [f"{name} is missing" for name in then if name not in now]
    new = [f"{name} was added" for name in now if name not in then]
    return lost + new + [f"{name} was changed" for name in then if name in now and then[name] != now[name]]


def differences(then: dict[str, Any], now: dict[str, Any]) -> str:
    """`learning_rate was 0.1 and is 0.2`, for every value that differs."""
    other = [name for name in now if name not in then or then[name] != now[name]]
    return ", ".join(f"{name} was {then.get(name)!r} and is {now[name]!r}" for name in other)


def _code_changes(recorded: dict[str, str]) -> list[str]:
    return [name for name, then in recorded.items() if not (ROOT / name).exists() or sha256(ROOT / name) != then]


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)
