"""The stages of a run in order, each a notebook that papermill executes in this very Python."""

import contextlib
import logging
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.pipeline import report, status
from lib.run import disk, processes, progress, runs
from lib.run.paths import ROOT, default_run, in_project, run_name_problems
from lib.run.presets import PRESETS, Resolved, resolve
from lib.run.rules import unread
from lib.run.settings import Settings, SettingsError, full_name
from lib.run.stages import IN_EVERY_RUN, ON_REQUEST, RUN_FIELDS, STAGES, notebook_of
from lib.run.untrusted import redact, visible

NOTEBOOK_FOLDER = ROOT / "notebooks"
FULL_BYTES = 64 * 2**20  # less is left on a full disk
STOP_SECONDS = 600  # after Ctrl-C, for a training step, its held-out rows and its checkpoint
SHARED = (  # with a run that is made first: its data, and what an adapter that goes on must have been made with
    "source", "data_dir", "dataset_revision", "data_seed", "kinds", "validation_rows", "test_rows", "base_model",
    "chat_template", "max_length", "load_in_4bit", "load_in_8bit", "r", "lora_alpha", "target_modules", "use_rslora",
    "use_dora",
)  # fmt: skip
REHEARSAL = "REHEARSAL: a walk through the whole path; its figures are no result"


class StageFailed(RuntimeError):
    """A stage's notebook stopped at an error; the message says which, why, and how to go on."""


@dataclass(frozen=True)
class Summary:
    """What a run left behind; `stages` are (stage, 'done' or 'skipped', elapsed seconds)."""

    run_folder: Path
    settings: Settings
    stages: tuple[tuple[str, str, float], ...]
    headline: dict[str, str]
    report: Path


@dataclass(frozen=True)
class Job:
    """One call of `run`: its folder, its settings, which of them were given, how to go on with it."""

    run_folder: Path
    resolved: Resolved
    given: set[str]
    again: str
    force: bool
    echo: Callable


def run(
    preset: str, run_name: str | None = None, overrides: dict[str, Any] | None = None, rehearse: bool = False,
    outputs: str | Path | None = None, force: bool = False, stages: Iterable[str] | None = None,
    echo: Callable = print, export: bool = False, again: str | None = None, probe: bool = False,
    check: Callable[[Settings], Any] = lambda settings: None,
) -> Summary:  # fmt: skip
    """Execute a preset's stages (all, or those named) into outputs/<run_name>; skip what is unchanged.

    With `export` the tuned model is merged, converted and quantised in the end, with `probe` it is sampled,
    asked in other words and on another task. `again`: the command that
    goes on with it, if not `sharpen run`. `check` raises, before any stage, where later steps would fail.
    SettingsError before any kernel starts; RunError if another process runs the same run; StageFailed when
    a cell fails; KeyboardInterrupt after Ctrl-C, with the kernel and its children ended."""
    overrides, chosen = overrides or {}, list(IN_EVERY_RUN if stages is None else stages)
    asked_for = {"probe": probe, "export": export}
    chosen += [stage for stage in ON_REQUEST if asked_for[stage] and stage not in chosen]
    run_name = default_run(preset, rehearse) if run_name is None else run_name
    run_folder = Path(in_project(outputs or "outputs")).resolve() / run_name
    problems = run_name_problems(run_name)
    if stages is None:  # a stage that is named may have settings of those that follow elsewhere
        problems += _unread(chosen, overrides)
    resolved = _resolved(preset, overrides, rehearse, chosen, run_folder, problems)
    check(resolved.settings)
    if first := _made_first(resolved, chosen, run_folder):
        echo(f"continue_from = {first!r}: there is no such run yet, so its preset is run first")
        shared = {name: value for name, value in overrides.items() if name in SHARED}
        run(first.removesuffix("-rehearsal"), first, shared, rehearse, outputs, echo=echo)
    again = again or command(preset, run_name, overrides, rehearse, outputs, chosen)
    job = Job(run_folder, resolved, set(overrides), again, force, echo)
    prefix = "REHEARSAL of " if rehearse else ""
    echo(f"{prefix}preset {preset}, run {run_name}: {', '.join(chosen)} -> {run_folder}")
    with disk.writing(run_folder):
        (run_folder / "notebooks").mkdir(parents=True, exist_ok=True)
    disk.lock(run_folder, "pipeline")
    try:
        done = []
        for stage in sorted(chosen, key=list(STAGES).index):
            done.append(_do(job, stage, f"[{len(done) + 1}/{len(chosen)}]"))
        written = report.write(run_folder)
        summary = Summary(run_folder, resolved.settings, tuple(done), headline(run_folder), written)
    except StageFailed as error:
        echo(str(error))
        raise
    except KeyboardInterrupt:
        echo(f"\nstopped; what is complete is kept, and this goes on from there:\n  {again}")
        raise
    finally:
        disk.unlock(run_folder, "pipeline")
    _print_summary(summary, rehearse, echo)
    return summary


def _unread(chosen: list[str], overrides: Iterable[str]) -> list[str]:
    """Which settings would change nothing, as no stage chosen reads them."""
    problems = []
    for name, owners in unread(chosen, overrides).items():
        if name in RUN_FIELDS:
            continue
        options = [f"add --{stage}" for stage in ON_REQUEST if STAGES[stage].notebook in owners]
        remedy = ", or ".join([*options, "leave it out"])
        problems.append(f"{name!r} belongs to {owners}, which this run does not execute: {remedy}")
    return problems


def _resolved(
    preset: str, overrides: dict[str, Any], rehearse: bool, chosen: list[str], run_folder: Path,
    problems: list[str],
) -> Resolved:  # fmt: skip
    """The settings; SettingsError names, after `problems`, what would stop one of the stages."""
    problems += [f"unknown stage {stage!r}; choose from {', '.join(STAGES)}"
                 for stage in chosen if stage not in STAGES]  # fmt: skip
    try:
        alone = chosen[0] if len(chosen) == 1 and chosen[0] in STAGES else None
        resolved = resolve(preset, overrides, rehearse, alone)
        if rehearse and resolved.settings.push_to_hub:
            problems.append("push_to_hub: a rehearsal is no result, and is not uploaded: leave one of them out")
        if "export" in chosen and resolved.settings.peft_type == "prefix_tuning":
            problems.append("peft_type = 'prefix_tuning': a prefix changes no weights, so it cannot be merged: "
                            "leave the export out, or choose 'lora' or 'ia3'")  # fmt: skip
        problems += _missing(resolved, chosen, run_folder)
    except SettingsError as error:
        problems += error.problems
    if problems:
        raise SettingsError(problems)
    return resolved


def _made_first(resolved: Resolved, chosen: list[str], run_folder: Path) -> str | None:
    """The run that training goes on from, where it is a preset's own and not there yet."""
    name, own = resolved.settings.continue_from, PRESETS[resolved.preset].settings.continue_from
    if "train" not in chosen or own not in PRESETS or name != default_run(own, resolved.rehearse):
        return None
    if name == run_folder.name or runs.is_complete(run_folder.with_name(name), "train"):
        return None
    return name


def _missing(resolved: Resolved, chosen: list[str], run_folder: Path) -> list[str]:
    """The other runs that the stages chosen would miss."""
    needed, settings = [], resolved.settings
    if "compare" in chosen:
        needed += [("others", name, "evaluate") for name in settings.others]
    if "train" in chosen and settings.continue_from is not None:
        needed.append(("continue_from", settings.continue_from, "train"))
    if _made_first(resolved, chosen, run_folder):
        needed.pop()
    problems = []
    for field, name, stage in needed:
        if name == run_folder.name:
            problems.append(f"{field}: {name!r} is this very run: name another")
            continue
        try:
            runs.read(runs.run_folder_of(run_folder.parent, name), stage)
        except runs.RunError as error:
            problems.append(f"{field}: {error}")
    return problems


def notebook_path(notebook: str) -> Path:
    """A stage's notebook in the project."""
    return NOTEBOOK_FOLDER / f"{notebook}.ipynb"


def command(
    preset: str, run_name: str, overrides: dict[str, Any], rehearse: bool, outputs: str | Path | None,
    stages: Iterable[str] = (),
) -> str:  # fmt: skip
    """The shell command that goes on with a run of these stages."""
    words = ["sharpen", "run", preset, "--run", run_name]
    for name, value in overrides.items():
        text = str(value)
        if value is None:
            text = "none"
        elif isinstance(value, list | tuple):
            text = ",".join(map(str, value))
        words += ["--set", f"{name}={text}"]
    if rehearse:
        words.append("--rehearse")
    words += [f"--{stage}" for stage in ON_REQUEST if stage in stages]
    if outputs:
        words += ["--outputs", str(outputs)]
    return shlex.join(words)


def headline(run_folder: Path) -> dict[str, str]:
    """The figures that the stages' notebooks put first: label -> text."""
    figures = {}
    for stage in STAGES:
        if runs.is_complete(run_folder, stage):
            figures |= runs.read(run_folder, stage)["metrics"].get("headline") or {}
    return figures


def _do(job: Job, stage: str, place: str) -> tuple[str, str, float]:
    """One stage, skipped where nothing changed: its row of the summary."""
    notebook, began = notebook_of(stage, job.resolved.settings), time.monotonic()
    place = f"{place} {notebook:<16}"
    current, reason = runs.is_current(
        job.run_folder.parent, job.run_folder.name, stage, job.resolved, notebook_path(notebook))
    if current and not job.force:
        job.echo(visible(f"{place} skipped: {reason}"))
        return stage, "skipped", time.monotonic() - began
    with _telling(job, stage, place):
        _execute(job, stage)
    elapsed, why = time.monotonic() - began, ""
    if current:
        why = " (forced)"
    elif reason != runs.NOT_COMPLETE:
        why = f" (again, as {reason})"
    job.echo(visible(f"{place} done in {elapsed:.1f} s{why}"))
    return stage, "done", elapsed


def _execute(job: Job, stage: str) -> None:
    """One notebook in a fresh kernel; its executed copy is saved after each cell, and kept."""
    import papermill
    from papermill.iorw import LocalHandler, papermill_io

    class Executed(LocalHandler):
        """Writes the executed copy whole or not at all, without the values of tokens and keys."""

        def write(self, buf: str, path: str) -> None:
            disk.write_atomically(Path(path), [redact(buf)])
            if stopping and '"status": "running"' not in buf:  # between cells none is heard
                raise KeyboardInterrupt

    logging.getLogger("papermill").setLevel(logging.ERROR)  # it warns of settings that none names
    name = f"{notebook_of(stage, job.resolved.settings)}.ipynb"
    executed = job.run_folder / "notebooks" / name
    papermill_io.register(str(executed), Executed())
    (job.run_folder / "progress.json").unlink(missing_ok=True)  # of an attempt that was killed
    # papermill formats paths: braces in a folder's name would be taken for its placeholders
    paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (NOTEBOOK_FOLDER / name, executed)]
    try:
        with _children_end_with_us() as stopping:
            papermill.execute_notebook(
                *paths, parameters=_parameters(job, stage), kernel_name="python3", language="python",
                cwd=str(NOTEBOOK_FOLDER), progress_bar=False, log_output=False,
                kernel_manager_class=_this_python(),
            )  # fmt: skip
        runs.read(job.run_folder, stage)  # a notebook without stage.finish() has not done its stage
    except Exception as error:  # a cell's error, a dead kernel, a full disk: each is told alike
        lines = [
            f"stage {stage!r} failed: {_reason(job, stage, error)}",
            f"the notebook as far as it came: {executed}",
            f"to go on after the cause is mended: {job.again}",
        ]
        if shutil.disk_usage(job.run_folder).free < FULL_BYTES:
            lines.insert(1, f"the disk that holds {job.run_folder} is full: make room (`sharpen clean`), "
                            "or use --outputs")  # fmt: skip
        raise StageFailed("\n".join(lines)) from error


def _parameters(job: Job, stage: str) -> dict[str, Any]:
    """What papermill hands to the notebook: the run, and the settings that were given."""
    given = set(map(full_name, job.given))
    changes = {name: value for name, value in job.resolved.of_stage(stage).items() if name in given}
    return {"preset": job.resolved.preset, "run": job.run_folder.name, "outputs": str(job.run_folder.parent),
            "rehearse": job.resolved.rehearse, "changes": changes}  # fmt: skip


def _reason(job: Job, stage: str, error: Exception) -> str:
    """Why a notebook failed; of a dead kernel, what it held and how to need less."""
    name, message = type(error).__name__, str(error)
    if hasattr(error, "ename"):  # of a cell
        name, message = error.ename, error.evalue
    if name == "DeadKernelError":
        last = progress.read(job.run_folder, stage)
        held = f"{last.memory_bytes / 2**30:.1f} GiB" if last else "an unknown amount of memory"
        message = (f"the kernel died holding {held}; most often the system ends it as memory runs out: "
                   f"{progress.less_memory(stage, job.resolved.settings)}")  # fmt: skip
    return f"{name}: {visible(redact(message)).strip()[:2000]}"


def _this_python() -> type:
    """A kernel manager that starts this interpreter, whatever kernels are registered."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class ThisPython(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
            quiet = "--IPKernelApp.log_level=CRITICAL"  # a cell's errors are in the notebook
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", quiet]
            environment = {"PYTHONPATH": path, "TQDM_DISABLE": "1"}  # bars make no sense in a file
            return KernelSpec(argv=argv, display_name="Python 3", language="python", env=environment)

    return ThisPython


@contextlib.contextmanager
def _children_end_with_us() -> Iterator[Sequence]:
    """On Ctrl-C or SIGTERM interrupt the kernel: it ends at once, or in training after the step, with a
    checkpoint. Yields what is empty until then.

    After STOP_SECONDS, or asked again, all processes under us are ended, whatever their session."""
    import psutil

    family: list[psutil.Process] = []

    def stop(signum: int, frame: Any) -> None:
        again = bool(family)
        family.extend(psutil.Process().children(recursive=True))  # now, while the tree is whole
        kernels = []
        for process in family:
            with contextlib.suppress(psutil.Error):  # it ends in this moment, or has ended
                if "ipykernel_launcher" in process.cmdline():
                    kernels.append(process)
        if again or not kernels:
            raise KeyboardInterrupt
        print("\nstopping; in training after the step at hand (again: at once)", file=sys.stderr, flush=True)
        kernels[0].send_signal(signal.SIGINT)
        deadline.start()

    if threading.current_thread() is not threading.main_thread():  # no signal reaches it
        yield ()
        return
    deadline = threading.Timer(STOP_SECONDS, processes.kill, [family])
    deadline.daemon = True
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield family
    except Exception as error:
        if family:
            raise KeyboardInterrupt from error
        raise
    finally:
        deadline.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
        processes.kill(family)
    if family:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _telling(job: Job, stage: str, place: str) -> Iterator[None]:
    """Says how far a stage at work is: on a terminal in one line over and over, else as it moves."""
    terminal, over = job.echo is print and sys.stdout.isatty(), threading.Event()
    every_seconds = 2 if terminal else 10

    def tell() -> None:
        said = ""
        while not over.wait(every_seconds):
            text = visible(f"{place} {status.line(job.run_folder, stage)}")
            if terminal:
                print(f"\r\x1b[K{text}", end="", flush=True)
            elif text != said:
                job.echo(text)
            said = text

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if terminal:
            print("\r\x1b[K", end="", flush=True)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of words as lines in which the words of a column begin below each other."""
    widths = [max(map(len, words)) for words in zip(*rows)]
    lines = []
    for row in rows:
        words = [word.ljust(width) for word, width in zip(row, widths)]
        lines.append("  ".join(words).rstrip())
    return lines


def _print_summary(summary: Summary, rehearse: bool, echo: Callable) -> None:
    folder = summary.run_folder
    places = {
        "report": summary.report, "adapter": folder / "adapter", "answers": folder / "eval/generations.jsonl",
        "notebooks": folder / "notebooks", "model files": folder / "export",
    }  # fmt: skip
    rows = [*summary.headline.items(), *((label, str(path)) for label, path in places.items() if path.exists())]
    seconds = sum(elapsed for *_, elapsed in summary.stages)
    lines = [f"  {line}" for line in columns(rows)]
    if rehearse:
        lines.insert(0, REHEARSAL)
    echo(visible("\n" + "\n".join([*lines, f"  finished in {seconds:.0f} s"])))
