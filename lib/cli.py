"""The command `sharpen`: run presets and watch them, look at the machine, compare runs, grade a file of answers."""

import glob
import re
import shlex
import signal
import sys
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from lib import SharpenError
from lib.engine import llamacpp, vllm_client
from lib.grade import grading
from lib.pipeline import execute
from lib.pipeline import reproduce as reproducing
from lib.pipeline import status as run_status
from lib.pipeline import sweep as sweeping
from lib.run import listing, references, runs, settings_file
from lib.run import presets as published
from lib.run.disk import RunError, to_json, write_atomically
from lib.run.paths import ROOT, absolute, from_folder, is_local, run_name_problems
from lib.run.presets import PRESETS, preset_of, resolve
from lib.run.rules import not_of, unknown, unread
from lib.run.settings import FIELDS, SettingsError, TrainSettings, full_name
from lib.run.stages import IN_EVERY_RUN
from lib.run.untrusted import redact, visible
from lib.ship import cloud as clouds
from lib.ship import deploy as deploying
from lib.ship import endpoint, playground
from lib.ship import serve as serving
from lib.train import scale

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
MAKE, LOOK, USE, KEEP = "Make a run", "Look", "Ask and serve", "Share and tidy"  # groups of commands


def _presets(incomplete: str) -> list[str]:
    return [name for name in PRESETS if name.startswith(incomplete)]


def _runs(context: typer.Context, incomplete: str) -> list[str]:
    folder = Path(context.params.get("outputs") or ROOT / "outputs")
    names = (path.name for path in folder.glob(f"{glob.escape(incomplete)}*") if path.is_dir())
    return sorted(name for name in names if not run_name_problems(name))  # a shell would execute `$(...)`


def _settings(incomplete: str) -> list[str]:
    return [f"{name}=" for name in FIELDS if name.startswith(incomplete)]


Preset = Annotated[str, Argument(
    help="A preset's name (see `sharpen presets`), or a settings file (my.yaml).", autocompletion=_presets,
)]  # fmt: skip
Run = Annotated[str, Argument(help="A run's name: see `sharpen status`.", autocompletion=_runs)]
RunName = Annotated[str | None, Option("--run", help="The run's name; by default the preset's.")]
Set = Annotated[list[str] | None, Option(
    "--set", metavar="KEY=VALUE", help="Change a setting (see `sharpen settings`); may be repeated.",
    autocompletion=_settings,
)]  # fmt: skip
Yaml = Annotated[Path | None, Option("--yaml", metavar="FILE", help="Write a settings file to start from.")]
DataDir = Annotated[Path | None, Option(help="File or folder of local data: gsm8k/train.jsonl, ...")]
Rehearse = Annotated[bool, Option("--rehearse", help="Walk the whole path, small, on the embedded base.")]
Force = Annotated[bool, Option("--force", help="Run stages again though nothing changed.")]
Export = Annotated[bool, Option("--export", help="Then merge and quantise (builds llama.cpp once).")]
Probe = Annotated[bool, Option("--probe", help="Then sample, reword, and look for what was forgotten (notebook 32).")]
Submit = Annotated[bool, Option("--submit", help="Create it; without, it is only shown.")]
Outputs = Annotated[Path | None, Option(help="Folder for runs, instead of the project's outputs/.")]
Question = Annotated[str, Argument(help="What to ask.")]
Port = Annotated[int, Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")]


@app.command(rich_help_panel=MAKE)
def run(preset: Preset, run: RunName = None, settings: Set = None, data_dir: DataDir = None,
        rehearse: Rehearse = False, outputs: Outputs = None, force: Force = False,
        probe: Probe = False, export: Export = False) -> None:  # fmt: skip
    """Prepare, train, evaluate and compare; what is complete already is skipped."""

    def check(settings: TrainSettings) -> None:
        """Before hours of training, what only the last steps need: llama.cpp, vLLM, a hub that knows us."""
        if export or settings.eval_engine == "llama-server":
            llamacpp.named(settings.llama_cpp_path)
        if settings.eval_engine == "vllm" and not vllm_client.python():
            raise SettingsError([f"eval_engine = 'vllm': {vllm_client.ABSENT}"])
        if settings.push_to_hub:
            from lib.ship import share

            share.check(settings.push_to_hub)

    preset, run, overrides, rehearse = _asked(preset, run, settings, data_dir, rehearse)
    summary = execute.run(
        preset, run, overrides, rehearse, _absolute(outputs), force, export=export, probe=probe, check=check)
    if repo_id := summary.settings.push_to_hub:
        public = not summary.settings.hub_private_repo
        push(summary.run_folder.name, repo_id, public, summary.run_folder.parent)


@app.command(rich_help_panel=LOOK)
def presets(
    name: Annotated[str | None, Argument(help="Tell all of one preset.", autocompletion=_presets)] = None,
    yaml: Yaml = None,
    markdown: Annotated[bool, Option("--markdown", help="What they are set beside, as in docs/numbers.md.")] = False,
) -> None:
    """The presets, a line each; of one all that it sets, or (--yaml) a settings file with it."""
    if markdown:
        typer.echo(references.markdown({preset.name: preset.reference for preset in PRESETS.values()}), nl=False)
        return
    if name is None:
        if yaml:
            raise SettingsError([f"--yaml {yaml}: name the preset to write, as in sharpen presets demo --yaml my.yaml"])
        typer.echo(_preset_lines())
        return
    preset, own = preset_of(name)
    if yaml:
        _write_settings(yaml, name, own)
    else:
        typer.echo(_about(preset, own))


def _preset_lines() -> str:
    """A line of at most 80 columns a preset."""
    rows = [["preset", "base", "data", "GiB", "time"]]
    for preset in PRESETS.values():
        s = preset.settings
        base = s.base_model if is_local(s.base_model) else s.base_model.split("/")[-1]
        memory, time = scale.gib(scale.needed(s)), scale.time_text(preset.name, s)
        took = re.search(r"\d+ (min|h)( a million)?|unknown", time)[0].replace(" a million", "*")
        rows.append([preset.name, base, s.source, memory.removesuffix(" GiB"), took])
    return "\n".join([
        *execute.columns(rows), "", "GiB a GPU and training time are estimates (* a million tokens of yours).",
        "`sharpen presets NAME` tells the rest of one.",
    ])  # fmt: skip


def _about(preset: published.Preset, own: dict[str, Any]) -> str:
    """A preset in words of 80 columns: what it is, what it needs, what it sets."""
    s = preset.settings
    rows = f"{s.train_rows:,}" if s.train_rows else "all"
    memory = scale.gib(scale.needed(s))
    if s.devices > 1:
        memory += f" on each of {s.devices}"
    speed = f"{scale.PEAK / 1e12:.0f} TFLOP/s, of which {scale.UTILISATION:.0%} are assumed to be reached"
    lines = [f"{preset.name}: {preset.description}", ""]
    for label, text in {
        "published": references.in_words(preset.reference), "base": s.base_model,
        "data": f"{', '.join(s.mixture) or s.source}, {rows} rows", "GPU memory": f"{memory} (an estimate)",
        "time": f"{scale.time_text(preset.name, s)}; training alone, on A100s: tokens x 6 x parameters / ({speed})",
    }.items():  # fmt: skip
        lines.append(f"{label:<12}{text}")
    lines += ["", "It sets (`sharpen settings NAME` tells what a setting means):"]
    lines += [f"  {name:<30}{_plain(value)}" for name, value in own.items()]
    indents = {"subsequent_indent": " " * 12, "break_long_words": False, "break_on_hyphens": False}
    return "\n".join(textwrap.fill(line, 80, **indents) if line else "" for line in lines)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return listing.typed(value)


@app.command(rich_help_panel=LOOK)
def settings(
    word: Annotated[str, Argument(help="Only settings whose name holds this.")] = "",
    of: Annotated[str | None, Option("--of", metavar="RUN", help="A run, whose settings --yaml writes.",
                                     autocompletion=_runs)] = None,
    yaml: Yaml = None,
    markdown: Annotated[bool, Option("--markdown", help="As the page docs/settings.md.")] = False,
    outputs: Outputs = None,
) -> None:  # fmt: skip
    """Every setting with its type, bounds, default and the notebooks that read it; or (--of) those of a run."""
    if bool(of) != bool(yaml):
        raise SettingsError(["--of RUN and --yaml FILE go together: they turn a run back into a settings file"])
    if of:
        preset, made_with, rehearse = runs.asked_for(_run_folder(of, outputs))
        _write_settings(yaml, preset, made_with, f"{of}-again", rehearse)
    elif markdown:
        typer.echo(listing.markdown(), nl=False)
    else:
        typer.echo(listing.in_words(word), nl=False)


def _write_settings(
    path: Path, preset: str, own: dict[str, Any], run: str | None = None, rehearse: bool = False
) -> None:
    """Write a settings file for `sharpen run`; one that is there is kept, and what other notebooks read is left out."""
    if path.exists():
        raise SettingsError([f"--yaml {path}: is there already; name another file, or remove it"])
    others = unread(IN_EVERY_RUN, own)
    own = {name: value for name, value in own.items() if name not in others}
    write_atomically(path, [settings_file.text(preset, own, run, rehearse)])
    for name, notebooks in others.items():
        typer.echo(f"left out: {name}, which {notebooks} reads")
    typer.echo(f"{path}: change what you like, then: sharpen run {shlex.quote(str(path))}")


@app.command(rich_help_panel=LOOK)
def doctor() -> None:
    """Look at the device, memory, disk, versions and the hub, each with its remedy; exits with 1 on a failure."""
    from lib import doctor as examination

    checks = examination.checks()
    typer.echo(examination.report(checks))
    if any(check.state == "fail" for check in checks):
        raise typer.Exit(1)


@app.command(rich_help_panel=LOOK)
def compare(
    runs: Annotated[list[str], Argument(
        help="Names of finished runs; the first gets the figures.", autocompletion=_runs)],
    outputs: Outputs = None,
) -> None:
    """Tables and figures over finished runs, written into the first one."""
    from lib.run.runs import read

    folders = [_run_folder(name, outputs) for name in runs]
    first, *_ = [read(folder, "evaluate") for folder in folders]  # before a kernel starts
    overrides = {}
    if len(runs) > 1:
        overrides["others"] = tuple(runs[1:])
    execute.run(first["preset"], runs[0], overrides, first["rehearse"], folders[0].parent, force=True,
                stages=["compare"], again=_again())


@app.command(rich_help_panel=LOOK)
def status(outputs: Outputs = None) -> None:
    """The runs there are: stages that are complete, the one at work, its step and loss, and the time that is left."""
    folder = _outputs(outputs)
    runs = run_status.table(folder)
    if not runs:
        typer.echo(f"no run in {folder}; start one: sharpen run demo")
        return
    names = list(dict.fromkeys(name for run in runs for name in run))
    rows = [names]
    for run in runs:
        rows.append([run.get(name, "-") for name in names])
    typer.echo(visible("\n".join(execute.columns(rows))))


@app.command(rich_help_panel=KEEP)
def clean(
    names: Annotated[list[str] | None, Argument(
        metavar="RUN", help="Runs; all, if none is named.", autocompletion=_runs)] = None,
    yes: Annotated[bool, Option("--yes", help="Free it, without asking.")] = False,
    outputs: Outputs = None,
) -> None:
    """Show what runs can do without (replaced results, ended checkpoints), and free it where you agree."""
    folder = _outputs(outputs)
    spare = run_status.spare(folder, names or [])
    for path, what, size in spare:
        typer.echo(visible(f"{size / 2**20:10.1f} MiB  {path.relative_to(folder)}  ({what})"))
    typer.echo(f"{sum(size for *_, size in spare) / 2**20:10.1f} MiB  in all")
    if spare and (yes or (sys.stdin.isatty() and typer.confirm("free it?"))):
        run_status.free(folder, [path for path, *_ in spare])
        typer.echo("freed")
    elif spare:
        typer.echo("nothing was freed; --yes frees it")


@app.command(rich_help_panel=LOOK)
def grade(
    file: Annotated[Path, Argument(help='JSON lines: {"id", "completion", "gold": {"value", "unit"?, ...}}.')],
    out: Annotated[Path | None, Option(help="Write a verdict a row here, in the same order.")] = None,
    beside: Annotated[str | None, Option(help="Another grader to set beside: math-verify.")] = None,
) -> None:
    """Grade a file of completions: a table with intervals and error classes, and a file of verdicts."""
    if beside not in (None, "math-verify"):
        raise grading.GradingError(f"--beside {beside!r}: unknown grader; choose math-verify")
    answers = grading.read(file)
    if out:
        grading.check_output(file, out)
    verdicts = grading.grade(answers)
    if beside:  # before anything is written: it may be missing here
        others = grading.math_verify_verdicts(answers)
    if out:
        try:
            write_atomically(out, grading.verdict_lines(answers, verdicts))
        except RunError as error:
            raise grading.GradingError(f"--out: {error}") from None
    typer.echo(grading.table(answers, verdicts))
    if beside:
        typer.echo(visible("\n" + grading.beside(answers, verdicts, others, beside)))


@app.command(rich_help_panel=LOOK)
def agree(
    run: Run,
    engines: Annotated[str, Option(help="Two of torch, vllm, llama-server.")] = "torch,llama-server",
    questions: Annotated[int | None, Option(min=1, help="Test questions asked; all by default.")] = None,
    model: Annotated[str, Option(help="tuned or base.")] = "tuned",
    out: Annotated[Path | None, Option(help="Write what was found here, as JSON.")] = None,
    outputs: Outputs = None,
) -> None:
    """Ask one model of a run through two engines: how many verdicts are equal, and those that are not."""
    from lib.ship import agree as agreeing

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was made for the asking goes in any case
    folder, names = _run_folder(run, outputs), [name.strip() for name in engines.split(",")]
    found = agreeing.ask(folder, names, model, questions)
    if out:
        write_atomically(out, [to_json(found, indent=2) + "\n"])
    typer.echo(visible("\n" + agreeing.report(found)))


@app.command(rich_help_panel=MAKE)
def sweep(
    preset: Preset,
    grid: Annotated[list[str] | None, Option(
        "--grid", metavar="KEY=VALUE,VALUE", help="Values to try; may be repeated.", autocompletion=_settings,
    )] = None,
    seeds: Annotated[int, Option(min=1, help="Runs of each cell, each with the next seed.")] = 3,
    run: Annotated[str | None, Option("--run", help="The sweep's name; by default PRESET-sweep.")] = None,
    settings: Set = None, data_dir: DataDir = None, rehearse: Rehearse = False,
    outputs: Outputs = None,
) -> None:  # fmt: skip
    """Run a preset over a grid of settings and several seeds; say what is best, and whether that may be luck."""
    preset, run, overrides, rehearse = _asked(preset, run, settings, data_dir, rehearse)
    values = sweeping.read_grid(grid or [])
    for name in values:
        values[name] = [from_folder(name, text, Path.cwd()) for text in values[name]]
    if sweeping.run(preset, values, seeds, run, overrides, rehearse, _absolute(outputs))["failed"]:
        raise typer.Exit(1)


@app.command(rich_help_panel=KEEP)
def push(
    run: Run,
    to: Annotated[str, Option("--to", metavar="USER/NAME", help="The repository; made if it is not there.")],
    public: Annotated[bool, Option("--public", help="Make a new repository for all to see.")] = False,
    outputs: Outputs = None,
) -> None:
    """Upload a finished run's adapter and its card (scores, data, licences) to the hub; needs a token."""
    from lib.ship import share

    typer.echo(f"uploaded: {share.push(_run_folder(run, outputs), to, not public, typer.echo)}")


@app.command("export-task", rich_help_panel=KEEP)
def export_task(
    run: Run,
    to: Annotated[Path | None, Option(metavar="FOLDER", help="By default the run's task/.")] = None,
    outputs: Outputs = None,
) -> None:
    """Write a run's test as a task for lm-evaluation-harness, with a grader that needs no Sharpen."""
    from lib.ship import task

    folder = task.export(_run_folder(run, outputs), _absolute(to), typer.echo)
    typer.echo(f"written: {folder}\n{task.command(f'sharpen_{run}', shlex.quote(str(folder)))}")


@app.command(rich_help_panel=MAKE)
def reproduce(run: Run, outputs: Outputs = None) -> None:
    """Make a run again from its manifests alone, as RUN-reproduced; exits with 1 where a figure is not equal."""
    folder = _run_folder(run, outputs)
    if runs.is_complete(folder, "export"):
        llamacpp.named()  # a wrong build is named before anything is made again
    if not reproducing.reproduce(run, folder.parent)["equal"]:
        raise typer.Exit(1)


@app.command(rich_help_panel=USE)
def serve(
    run: Run,
    engine: Annotated[str, Option(help="auto, llama-server, vllm or transformers.")] = "auto",
    host: Annotated[str, Option(help="Where to listen; beyond this machine only with SHARPEN_API_KEY.")] = "127.0.0.1",
    port: Port = 8080,
    settings: Set = None,
    log_prompts: Annotated[bool, Option("--log-prompts", help="Questions and answers in the log too.")] = False,
    outputs: Outputs = None,
) -> None:
    """Serve a run's best artefact (GGUF, merged model or adapter) by OpenAI's protocol, with the calculator."""
    folder, overrides = _run_folder(run, outputs), _of_stage("deploy", settings or [])
    chosen = deploying.settings_of(folder, **{"engine": engine, "port": port} | overrides)
    for way in (signal.SIGINT, signal.SIGTERM):  # each ends the server, even if a shell ignores it
        signal.signal(way, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        serving.run(folder, chosen, host, log_prompts)
    typer.echo("stopped")


@app.command(rich_help_panel=USE)
def ask(
    run: Run,
    question: Question,
    calculator: Annotated[bool, Option(help="Fill in <<expression=value>> while answering.")] = True,
    temperature: Annotated[float, Option(min=0, help="0: greedy, the likeliest token each time.")] = 0.0,
    top_p: Annotated[float, Option(min=0.001, max=1, help="Sample from this share of the probability.")] = 1.0,
    repetition_penalty: Annotated[float, Option(min=0.01, help="Above 1: avoid tokens that were there.")] = 1.0,
    no_repeat_ngram_size: Annotated[int, Option(min=0, help="No sequence of so many tokens twice; 0: off.")] = 0,
    seed: Annotated[int, Option(min=0, help="Seed of the sampling.")] = 0,
    outputs: Outputs = None,
) -> None:
    """Ask a run's adapter once, without a server: the answer, what the grader reads in it, and its checked marks."""
    if top_p < 1 and not temperature:
        raise SettingsError([f"top_p = {top_p:g}: counts only while sampling; give a temperature above 0 too"])
    (answer,) = playground.Models(_run_folder(run, outputs)).answer(
        question, calculator=calculator, temperature=temperature, top_p=top_p, repetition_penalty=repetition_penalty,
        no_repeat_ngram_size=no_repeat_ngram_size, seed=seed,
    )  # fmt: skip
    lines = ["", answer.strip(), "", f"read as: {playground.read_as(answer)}", *playground.checked_marks(answer)]
    typer.echo(visible("\n".join(lines)))


@app.command(rich_help_panel=USE)
def demo(run: Run, port: Port = 7860, outputs: Outputs = None) -> None:
    """Serve a page on 127.0.0.1: a question, base and tuned answers side by side, their arithmetic checked."""
    folder, port = _run_folder(run, outputs), llamacpp.free_port(port)
    models, questions = playground.Models(folder), playground.examples(folder)
    typer.echo(f"the page: http://127.0.0.1:{port} (Ctrl-C closes it)")
    playground.serve(playground.page(run, questions, models.both), port)


@app.command(rich_help_panel=USE)
def deploy(run: Run, settings: Set = None, outputs: Outputs = None) -> None:
    """Execute notebook 41: serve the run, ask and load the server, and stop it."""
    folder = _run_folder(run, outputs)
    overrides = deploying.overrides_of(folder) | _of_stage("deploy", settings or [])
    manifest = runs.read(folder, "train")
    execute.run(manifest["preset"], run, overrides, manifest["rehearse"], folder.parent, force=True, stages=["deploy"],
                 again=_again())


cloud = typer.Typer(no_args_is_help=True, help="Train and serve in the cloud; nothing is created without --submit.")
app.add_typer(cloud, name="cloud", rich_help_panel=USE)


@cloud.command("train")
def cloud_train(preset: Preset, run: RunName = None, settings: Set = None, data_dir: DataDir = None,
                rehearse: Rehearse = False, outputs: Outputs = None, submit: Submit = False) -> None:  # fmt: skip
    """Prepare the data here, and train by a SageMaker job."""
    job = clouds.job(*_prepared(*_asked(preset, run, settings, data_dir, rehearse), outputs))
    typer.echo(clouds.submit(job) if submit else f"{job.text()}\n\nnothing was created: --submit does")


@cloud.command("sky")
def cloud_sky(preset: Preset, run: RunName = None, settings: Set = None, data_dir: DataDir = None,
              rehearse: Rehearse = False, outputs: Outputs = None) -> None:  # fmt: skip
    """Prepare the data here, and write SkyPilot's task file for any other cloud or Kubernetes."""
    asked = _prepared(*_asked(preset, run, settings, data_dir, rehearse), outputs)
    typer.echo(f"sky jobs launch {clouds.sky(*asked)}")


@cloud.command("fetch")
def cloud_fetch(
    run: Run,
    wait: Annotated[bool, Option("--wait", help="Wait until the job has ended.")] = False,
    outputs: Outputs = None,
) -> None:
    """Bring what a SageMaker job trained back into the run."""
    typer.echo(clouds.fetch(_run_folder(run, outputs), wait))


@cloud.command("endpoint")
def cloud_endpoint(run: Run, settings: Set = None, outputs: Outputs = None, submit: Submit = False) -> None:
    """Serve a run's exported model by a SageMaker endpoint that grows and shrinks with its requests."""
    folder = _run_folder(run, outputs)
    preset = runs.read(folder, "export")["preset"]
    asked = endpoint.plan(folder, resolve(preset, _of_stage("cloud", settings or []), stage="cloud").settings)
    if not submit:
        typer.echo(f"{asked.text()}\n\nnothing was created: --submit does")
    elif endpoint.create(asked, typer.echo):
        typer.echo(f"endpoint {asked.name} is in service; it costs until: sharpen cloud delete {run}")
    else:
        typer.echo(f"endpoint {asked.name} is whole already; nothing was changed")


@cloud.command("service")
def cloud_service(run: Run, settings: Set = None, outputs: Outputs = None) -> None:
    """Write SkyPilot's file of a service that serves a run with its calculator, on any other cloud or Kubernetes."""
    folder = _run_folder(run, outputs)
    preset = runs.read(folder, "train")["preset"]
    asked = resolve(preset, _of_stage("cloud", settings or []), stage="cloud").settings
    written = clouds.service(folder, asked)
    calculator = deploying.settings_of(folder).calculator != "off"
    typer.echo(f"score: {deploying.score_text(folder, calculator)}")
    typer.echo(f"SHARPEN_API_KEY=... sky serve up {written} --secret SHARPEN_API_KEY")


@cloud.command("invoke")
def cloud_invoke(run: Run, question: Question, outputs: Outputs = None) -> None:
    """Ask a run's endpoint."""
    typer.echo(visible(endpoint.invoke(_run_folder(run, outputs), question)))


@cloud.command("delete")
def cloud_delete(run: Run, outputs: Outputs = None) -> None:
    """Remove all that Sharpen made for a run in the cloud: endpoint, alarms, job, files in the bucket."""
    folder = _run_folder(run, outputs)
    done = endpoint.delete(folder) + clouds.delete(folder)
    typer.echo("\n".join(done) or f"run {run} has nothing in the cloud")


def _prepared(preset: str, run: str | None, overrides: dict[str, str], rehearse: bool, outputs: Path | None) -> tuple:
    """What asks for a training elsewhere, once the run's data lie here."""
    if "push_to_hub" in overrides:
        raise SettingsError(["push_to_hub: there is no adapter yet: fetch it first, then `sharpen push` uploads it"])
    resolve(preset, overrides, rehearse)  # before a kernel starts
    data = execute.run(preset, run, overrides, rehearse, _absolute(outputs), stages=["prepare"], again=_again())
    return preset, data.run_folder, overrides, rehearse


def main() -> None:
    """The entry point: a user's mistake is one message on stderr and exit code 2, never a traceback."""
    try:
        app()
    except SharpenError as error:
        typer.echo(visible(redact(str(error))), err=True)
        sys.exit(2)
    except execute.StageFailed:  # the pipeline has said it
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _again() -> str:
    """The command as it was given."""
    return shlex.join(["sharpen", *sys.argv[1:]])


def _run_folder(run: str, outputs: Path | None) -> Path:
    """The folder of a run that exists."""
    folder = runs.run_folder_of(_outputs(outputs), run)
    if not folder.is_dir():
        command = "sharpen status"
        if outputs:
            command += f" --outputs {shlex.quote(str(folder.parent))}"
        raise RunError(f"there is no run {run!r} in {folder.parent}: `{command}` lists those there are")
    return folder


def _outputs(outputs: Path | None) -> Path:
    """The folder that holds the runs."""
    folder = _absolute(outputs) or ROOT / "outputs"
    if folder.exists() and not folder.is_dir():
        raise RunError(f"--outputs {folder}: is no folder; name the one that holds the runs")
    return folder


def _asked(
    preset: str, run: str | None, pairs: list[str] | None, data_dir: Path | None, rehearse: bool
) -> tuple[str, str | None, dict[str, Any], bool]:
    """(preset, run, overrides, rehearse) as they were typed, over those of a settings file where one is named."""
    overrides = _overrides(pairs or [], data_dir)
    if not preset.endswith(settings_file.ENDINGS):
        return preset, run, overrides, rehearse
    asked = settings_file.read(Path(preset), overrides, rehearse)
    return asked.preset, run or asked.run, asked.overrides, asked.rehearse


def _of_stage(stage: str, pairs: list[str]) -> dict[str, str]:
    """Settings of one stage's notebook; another's would change nothing."""
    overrides = _overrides(pairs, None)
    if foreign := not_of(stage, overrides):
        raise SettingsError(foreign)
    return overrides


def _overrides(pairs: list[str], data_dir: Path | None) -> dict[str, str]:
    """`key=value` texts as a dictionary; which type a value has is the setting's to say (`lib.run.presets`)."""
    if data_dir:
        pairs = [*pairs, f"data_dir={data_dir}"]
    overrides, problems = {}, []
    for pair in pairs:
        name, equals, value = (part.strip() for part in pair.partition("="))
        name = full_name(name)
        if not (name and equals):
            problems.append(f"--set {pair!r}: must be KEY=VALUE, as in --set learning_rate=1e-4")
        elif name in overrides:
            problems.append(f"{name} is set twice, to {overrides[name]!r} and {value!r}: set it once")
        else:
            overrides[name] = value
    if problems:
        raise SettingsError(problems + unknown(overrides))
    return {name: from_folder(name, value, Path.cwd()) for name, value in overrides.items()}


def _absolute(path: Path | str | None) -> Path | None:
    if path:
        return Path(absolute(path, Path.cwd()))
    return None


if __name__ == "__main__":
    main()
