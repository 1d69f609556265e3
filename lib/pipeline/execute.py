"""The stages of a run in order, each a notebook executed by papermill in this very Python; strict and resumable."""

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
from lib.run.presets import Resolved, resolve
from lib.run.rules import unread
from lib.run.settings import Settings, SettingsError
from lib.run.stages import IN_EVERY_RUN, RUN_FIELDS, STAGES, names_of, notebook_of
from lib.run.untrusted import redact, visible

NOTEBOOK_FOLDER = ROOT / "notebooks"
FULL_BYTES = 64 * 2**20  # less is left on a full disk
STOP_SECONDS = 600  # that a training step, its held-out rows and its checkpoint may take after Ctrl-C


class StageFailed(RuntimeError):
    """A stage's notebook stopped at an error; the message says which, why, where to look and how to go on."""


@dataclass(frozen=True)
class Summary:
    """What a run left behind: (stage, 'done' or 'skipped', elapsed seconds) rows, headline figures, and the report."""

    run_folder: Path
    settings: Settings
    stages: tuple[tuple[str, str, float], ...]
    headline: dict[str, str]
    report: Path


def run(
    preset: str,
    run_name: str | None = None,
    overrides: dict[str, Any] | None = None,
    rehearse: bool = False,
    outputs: str | Path | None = None,
    force: bool = False,
    stages: Iterable[str] | None = None,
    echo: Callable[[str], Any] = print,
    export: bool = False,
    again: str | None = None,
    check: Callable[[Settings], Any] = lambda settings: None,
) -> Summary:
    """Execute a preset's stages (all, or those named) into outputs/<run_name>, skipping what is unchanged.

    With `export` the tuned model is merged, converted and quantised after the others. `again`: the command that goes on
    with it, if that is not `sharpen run`. `check` raises, before the first stage, where what comes after would fail.

    SettingsError before any kernel starts; RunError if another process runs the same run; StageFailed when a cell
    fails; KeyboardInterrupt after Ctrl-C, with the kernel and its children ended.
    """
    overrides = overrides or {}
    chosen = list(IN_EVERY_RUN if stages is None else stages)
    chosen += ["export"] if export and "export" not in chosen else []
    run_name = default_run(preset, rehearse) if run_name is None else run_name
    problems = run_name_problems(run_name)
    problems += [f"unknown stage {s!r}; choose from {', '.join(STAGES)}" for s in chosen if s not in STAGES]
    if stages is None:  # a stage that is named may be given the settings of those that follow elsewhere
        problems += [f"{name!r} belongs to {owners}, which this run does not execute: "
                     f"{'add --export, or ' * (STAGES['export'].notebook in owners)}leave it out"
                     for name, owners in unread(chosen, overrides).items() if name not in RUN_FIELDS]  # fmt: skip
    run_folder = Path(in_project(outputs or "outputs")).resolve() / run_name
    try:
        alone = chosen[0] if len(chosen) == 1 and chosen[0] in STAGES else None
        resolved = resolve(preset, overrides, rehearse, alone)
        if rehearse and resolved.settings.push_to_hub:
            problems.append("push_to_hub: a rehearsal is no result, and is not uploaded: leave one of them out")
        if "export" in chosen and resolved.settings.peft_type == "prefix_tuning":
            problems.append("peft_type = 'prefix_tuning': a prefix changes no weights, so it cannot be merged: leave "
                            "the export out, or choose 'lora' or 'ia3'")  # fmt: skip
        problems += _missing(resolved.settings, chosen, run_folder)
    except SettingsError as error:
        problems += error.problems
    if problems:
        raise SettingsError(problems)
    check(resolved.settings)
    again = again or command(preset, run_name, overrides, rehearse, outputs, "export" in chosen)
    prefix = "REHEARSAL of " if rehearse else ""
    echo(f"{prefix}preset {preset}, run {run_name}: {', '.join(chosen)} -> {run_folder}")
    with disk.writing(run_folder):
        (run_folder / "notebooks").mkdir(parents=True, exist_ok=True)
    disk.lock(run_folder, "pipeline")
    rows = []
    try:
        for index, stage in enumerate((stage for stage in STAGES if stage in chosen), 1):
            notebook = notebook_of(stage, resolved.settings)
            place, began = f"[{index}/{len(chosen)}] {notebook:<16}", time.monotonic()
            current, reason = runs.is_current(run_folder.parent, run_name, stage, resolved, notebook_path(notebook))
            skip = current and not force
            if not skip:
                with _telling(place, run_folder, stage, echo):
                    _execute(stage, run_folder, resolved, set(overrides), again)
            rows.append((stage, "skipped" if skip else "done", time.monotonic() - began))
            why = "" if reason == runs.NOT_COMPLETE else " (forced)" if current else f" (again, as {reason})"
            echo(visible(f"{place} " + (f"skipped: {reason}" if skip else f"done in {rows[-1][2]:.1f} s{why}")))
        written = report.write(run_folder)
        summary = Summary(run_folder, resolved.settings, tuple(rows), headline(run_folder), written)
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


def _missing(settings: Settings, chosen: list[str], run_folder: Path) -> list[str]:
    """The other runs that the stages chosen would miss in the end, told before the first."""
    needed = [("others", name, "evaluate") for name in settings.others if "compare" in chosen]
    if "train" in chosen and settings.continue_from is not None:
        needed.append(("continue_from", settings.continue_from, "train"))
    problems = []
    for field, name, stage in needed:
        try:
            if name == run_folder.name:
                raise runs.RunError(f"{name!r} is this very run: name another")
            runs.read(runs.run_folder_of(run_folder.parent, name), stage)
        except runs.RunError as error:
            problems.append(f"{field}: {error}")
    return problems


def notebook_path(notebook: str) -> Path:
    """A stage's notebook in the project."""
    return NOTEBOOK_FOLDER / f"{notebook}.ipynb"


def command(
    preset: str, run_name: str, overrides: dict[str, Any], rehearse: bool, outputs: str | Path | None,
    export: bool = False,
) -> str:  # fmt: skip
    """The shell command that goes on with a run."""
    words = ["sharpen", "run", preset, "--run", run_name]
    for name, value in overrides.items():
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        words += ["--set", f"{name}={'none' if value is None else text}"]
    words += ["--rehearse"] * rehearse + ["--export"] * export + (["--outputs", str(outputs)] if outputs else [])
    return shlex.join(words)


def headline(run_folder: Path) -> dict[str, str]:
    """The figures that the stages' notebooks put first: label -> text, in the order of the stages."""
    found = {}
    for stage in STAGES:
        if runs.is_complete(run_folder, stage):
            found |= runs.read(run_folder, stage).get("metrics", {}).get("headline") or {}
    return found


def _execute(stage: str, run_folder: Path, resolved: Resolved, overridden: set[str], again: str) -> None:
    """One notebook in a fresh kernel; papermill saves the executed copy after each cell, so a failure keeps it."""
    import papermill
    from papermill.iorw import LocalHandler, papermill_io

    class Executed(LocalHandler):
        """Writes the executed copy whole or not at all, and without the values of tokens and keys."""

        def write(self, buf: str, path: str) -> None:
            disk.write_atomically(Path(path), [redact(buf)])
            if stopping and '"status": "running"' not in buf:  # between cells a kernel hears no interrupt
                raise KeyboardInterrupt

    logging.getLogger("papermill").setLevel(logging.ERROR)  # it warns of settings that the parameters cell leaves out
    notebook = notebook_of(stage, resolved.settings)
    executed = run_folder / "notebooks" / f"{notebook}.ipynb"
    parameters = {"preset": resolved.preset, "run": run_folder.name, "outputs": str(run_folder.parent),
                  "rehearse": resolved.rehearse}
    for field in names_of(stage):
        if field in overridden:  # in a notebook None means 'as the preset has it', so none is said in words
            value = getattr(resolved.settings, field)
            parameters[field] = "none" if value is None else list(value) if isinstance(value, tuple) else value
    papermill_io.register(str(executed), Executed())
    (run_folder / "progress.json").unlink(missing_ok=True)  # of an attempt that was killed
    # papermill formats paths: braces in a folder's name would be taken for its placeholders
    paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (notebook_path(notebook), executed)]
    try:
        with _children_end_with_us() as stopping:
            papermill.execute_notebook(
                *paths, parameters=parameters, kernel_name="python3", language="python", cwd=str(NOTEBOOK_FOLDER),
                progress_bar=False, log_output=False, kernel_manager_class=_this_python(),
            )
        runs.read(run_folder, stage)  # a notebook that ends without stage.finish() has not done its stage
    except Exception as error:  # a cell's error, a dead kernel, a full disk: each ends the run with the same four lines
        name, message = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
        message = visible(redact(message))
        if name == "DeadKernelError":
            told = progress.read(run_folder, stage)
            held = f"{told.memory_bytes / 2**30:.1f} GiB" if told else "an unknown amount of memory"
            advice = progress.less_memory(stage, resolved.settings)
            message = f"the kernel died holding {held}; most often the system ends it as memory runs out: {advice}"
        full = ""
        if shutil.disk_usage(run_folder).free < FULL_BYTES:  # torch and safetensors say it in words of their own
            full = f"the disk that holds {run_folder} is full: make room (`sharpen clean`), or use --outputs\n"
        raise StageFailed(
            f"stage {stage!r} failed: {name}: {message.strip()[:2000]}\n{full}"
            f"the notebook as far as it came: {executed}\nto go on after the cause is mended: {again}"
        ) from error


def _this_python() -> type:
    """A kernel manager that starts the running interpreter, whatever kernels are registered on this machine."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class ThisPython(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
            quiet = "--IPKernelApp.log_level=CRITICAL"  # a cell's errors are in the notebook; this is the kernel's chat
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", quiet]
            told = {"PYTHONPATH": path, "TQDM_DISABLE": "1"}  # bars make no sense in a file
            return KernelSpec(argv=argv, display_name="Python 3", language="python", env=told)

    return ThisPython


@contextlib.contextmanager
def _children_end_with_us() -> Iterator[Sequence]:
    """On Ctrl-C or SIGTERM interrupt the kernel: it ends at once, or in training after the step, with a checkpoint.
    Yields what is empty until then.

    After STOP_SECONDS, or asked again, all processes under it are ended: torchrun's workers have sessions of their own.
    """
    import psutil

    family: list[psutil.Process] = []

    def stop(signum: int, frame: Any) -> None:
        again = bool(family)
        family.extend(psutil.Process().children(recursive=True))  # now, while the tree still hangs together
        kernels = []
        for process in family:
            with contextlib.suppress(psutil.Error):  # it ends in this moment, or has ended
                kernels += [process] * ("ipykernel_launcher" in process.cmdline())
        if again or not kernels:
            raise KeyboardInterrupt
        print("\nstopping; in training after the step at hand (again: at once)", file=sys.stderr, flush=True)
        kernels[0].send_signal(signal.SIGINT)
        deadline.start()

    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
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
def _telling(place: str, run_folder: Path, stage: str, echo: Callable[[str], Any]) -> Iterator[None]:
    """While a stage is at work, say how far it is: on a terminal in one line over and over, in a log as it moves."""
    terminal, over = echo is print and sys.stdout.isatty(), threading.Event()

    def tell() -> None:
        said = ""
        while not over.wait(2 if terminal else 10):
            text = visible(f"{place} {status.line(run_folder, stage)}")
            if terminal:
                print(f"\r\x1b[K{text}", end="", flush=True)
            elif text != said:
                echo(text)
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


def _print_summary(summary: Summary, rehearse: bool, echo: Callable[[str], Any]) -> None:
    places = {
        "report": summary.report, "adapter": summary.run_folder / "adapter",
        "answers": summary.run_folder / "eval" / "generations.jsonl", "notebooks": summary.run_folder / "notebooks",
        "model files": summary.run_folder / "export",
    }
    rows = [*summary.headline.items(), *((label, str(path)) for label, path in places.items() if path.exists())]
    width = max(len(label) for label, _ in rows)
    elapsed = sum(row[2] for row in summary.stages)
    echo(visible("\n" + ("REHEARSAL: a walk through the whole path; its figures are no result\n" if rehearse else "")
         + "\n".join(f"  {label:<{width}}  {text}" for label, text in rows) + f"\n  finished in {elapsed:.0f} s"))
