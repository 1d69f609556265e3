"""A run's answer, the first screen of its report: what training changed, in words and pictures."""

import base64
import html
from pathlib import Path

from lib.judge import answers
from lib.run import disk, runs
from lib.run.stages import IN_EVERY_RUN, STAGES

Manifests = dict[str, dict]  # stage -> its manifest

MADE_FROM = (
    ("train", "prepare"), ("evaluate", "train"), ("compare", "evaluate"), ("probe", "train"), ("export", "train"),
    ("deploy", "train"), ("deploy", "export"),
)  # fmt: skip
FIGURE, FIGURE_BYTES = "accuracy_by_kind.png", 8 << 20
ADAPTERS = {"ia3": "IA3", "prefix_tuning": "prefix tuning"}
TRAINERS = {"dpo": "DPO and ", "rft": "rejection sampling and ", "grpo": "GRPO and "}
# What is raised by a file that has its manifest's hash, but was written by no notebook of ours.
FOREIGN = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError,
    ValueError,
)  # fmt: skip


def first_screen(run_folder: Path, manifests: Manifests) -> tuple[str, list[str]]:
    """(HTML, notes): the answer as far as there is one, and in plain text what cannot be read."""
    current, notes = _current(manifests)
    page = ""
    if "evaluate" not in current:
        page = _how_far(current)
    for stage, part in PARTS:
        if stage not in current:
            continue
        try:
            page += part(run_folder, current)
        except runs.RunError as error:
            notes.append(str(error))
        except FOREIGN as error:
            why = f"{type(error).__name__}: {str(error)[:200]}"
            folder, notebook = run_folder / STAGES[stage].folder, STAGES[stage].notebook
            notes.append(f"{folder} holds what no notebook wrote ({why}): run {notebook} again")
    return page, notes


def _current(manifests: Manifests) -> tuple[Manifests, list[str]]:
    """The stages that belong together, and a note on each that was made from what is replaced.

    Where an earlier stage was done again, a later one tells of another model or of other data."""
    current, notes = dict(manifests), []
    for stage, earlier in MADE_FROM:
        if stage not in current:
            continue
        folder, notebook = STAGES[earlier].folder, STAGES[stage].notebook
        if stage == "deploy" and folder not in current[stage]["inputs"]:
            continue  # an adapter is served without an export
        if earlier not in current:
            del current[stage]
        elif current[stage]["inputs"].get(folder) not in (None, current[earlier]["outputs"]):
            del current[stage]
            notes.append(f"{notebook} was run on another {folder}/ than is here now: run it again")
    return current, notes


def _how_far(manifests: Manifests) -> str:
    complete = [stage for stage in STAGES if stage in manifests] or ["no stage"]
    to_come = [stage for stage in IN_EVERY_RUN if stage not in manifests]
    stages = f"complete: {', '.join(complete)}; to come: {', '.join(to_come)}"
    return f'<p class="answer">There is no answer yet ({stages}).</p>'


# ---- one sentence


def _sentence(run_folder: Path, manifests: Manifests) -> str:
    """What was trained on what, by which method, and from which score to which that led."""
    summary, begin = disk.load(runs.output(run_folder, "evaluate", "summary.json")), ""
    if any(manifest["rehearse"] for manifest in manifests.values()):
        begin = "In a rehearsal, which is no result, "
    if summary["paired"]:
        changed = _accuracy(summary)
    else:
        changed = _perplexity(summary)
    page = f'<p class="answer">{begin}{_made(manifests)}: {changed}.</p>'
    for name, text in (manifests["train"]["metrics"].get("headline") or {}).items():
        if name.startswith("held-out pairs"):  # of preference training: its own score
            page += f"<p>{html.escape(f'{name.capitalize()}: {text}.')}</p>"
    if engine := manifests["evaluate"]["metrics"].get("engine"):  # the oldest runs have none
        page += f"<p>{html.escape(f'Answered by {engine}.')}</p>"
    return page


def _made(manifests: Manifests) -> str:
    """`data/base was trained on 900 rows of quant_tasks by QLoRA`."""
    prepared, train = manifests["prepare"]["settings"], manifests["train"]
    source, base = str(prepared.get("source")), str(train["settings"].get("base_model"))
    if source == "mixture":
        source = " + ".join(prepared["mixture"])
    rows, method = "rows", _method(train["settings"])
    if method.startswith("DPO"):
        rows = "pairs"
    if method.startswith(("rejection", "GRPO")):
        rows = "questions"
    if isinstance(train["metrics"].get("rows"), int):
        rows = f"{train['metrics']['rows']:,} {rows}"
    made = html.escape(f"was trained on {rows} of {source} by {method}")
    return f"<code>{html.escape(base)}</code> {made}"


def _method(settings: dict) -> str:
    """`QLoRA`, `DPO and LoRA`, `full fine-tuning`, ... of a training's settings."""
    method = ADAPTERS.get(str(settings.get("peft_type")), "LoRA")
    if settings.get("use_dora"):
        method = "DoRA"
    if settings.get("load_in_4bit") and method.endswith("RA"):
        method = f"Q{method}"
    if settings.get("full_finetuning"):
        method = "full fine-tuning"
    return TRAINERS.get(str(settings.get("trainer")), "") + method


def _accuracy(summary: dict) -> str:
    """The change of right answers, in the way that was asked first."""
    pair, whole = summary["paired"][0], answers.overall(summary["table"])
    way = pair["split"], pair["calculator"]
    names = answers.compared(summary["table"])
    base, tuned = (_figures(answers.percent(whole[*way, model])) for model in names)
    if names[0] != "base":
        alone = answers.percent(whole[*way, "base"])
        base += html.escape(f" ({names[0]}; without examples {alone})")
    asked = "unseen questions"
    if pair["split"] == "test_seen":
        asked = "questions in trained phrasings"
    return (
        f"right answers to {pair['n']:,} {asked} went from {base} to {tuned} "
        f"with the {answers.calculator_text(pair['calculator'])}, "
        f"a difference of {_figures(answers.change(pair))}"
    )


def _perplexity(summary: dict) -> str:
    """Where no row has a gold: the change of the perplexity of the rows' own answers."""
    found = summary["perplexity"]
    base, tuned = (_figures(answers.perplexity_text(found[model])) for model in answers.MODELS)
    text = f"the perplexity of {found['base']['rows']:,} unseen answers went from {base} to {tuned}"
    if loss := summary.get("loss"):  # the oldest runs have none
        text += f", a difference of {_figures(answers.loss_difference(loss))} nats a token"
    return text


def _figures(text: str) -> str:
    return f"<strong>{html.escape(text)}</strong>"


# ---- what stands below it


def _figure(run_folder: Path, manifests: Manifests) -> str:
    """The picture of accuracies by kind, whole in the page; none where nothing was graded."""
    about = "Right answers by kind of question, of base and tuned model, with 95 % intervals"
    return _picture(run_folder, manifests, "compare", FIGURE, about)


def _picture(run_folder: Path, manifests: Manifests, stage: str, name: str, about: str) -> str:
    """A picture that a stage wrote, whole in the page; nothing where it wrote none."""
    if name not in manifests[stage]["outputs"]:
        return ""
    path = runs.output(run_folder, stage, name)
    with open(path, "rb") as file:
        picture = file.read(FIGURE_BYTES + 1)
    if len(picture) > FIGURE_BYTES or not picture.startswith(b"\x89PNG"):
        limit = f"{FIGURE_BYTES >> 20} MiB"
        raise runs.RunError(f"{path} is no PNG of at most {limit}: run {STAGES[stage].notebook} again")
    source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    return f'<div class="wide"><img alt="{about}" src="{source}"></div>'


def _probed(run_folder: Path, manifests: Manifests) -> str:
    """What sampling, other wordings, a second task and a general text showed, and the curves of pass@k."""
    figures = manifests["probe"]["metrics"].get("headline") or {}
    page = "".join(f"<li>{html.escape(f'{name}: {text}')}</li>" for name, text in figures.items())
    about = "Questions that k sampled answers solve, of base and tuned model, with 95 % intervals"
    picture = _picture(run_folder, manifests, "probe", "pass_at_k.png", about)
    return f"<h2>Asked otherwise, and what was forgotten</h2><ul>{page}</ul>{picture}"


def _verdict(run_folder: Path, manifests: Manifests) -> str:
    """Which file of an export is shipped, and what the gate says of each quantised one."""
    told = "; ".join(map(str, (manifests["export"]["metrics"].get("headline") or {}).values()))
    gates = disk.load(runs.output(run_folder, "export", "summary.json"))["gates"]
    if gates and not any(gate["passes"] for gate in gates.values()):
        told += ". No quantised file passed the gate"
    page = f"<h2>What is shipped</h2><p>{html.escape(told)}.</p>"
    for label, gate in gates.items():
        page += f"<p>{html.escape(label)} {html.escape(gate['reason'])}.</p>"
    return page


def _served(run_folder: Path, manifests: Manifests) -> str:
    """What is served, with the calculator and without, and the gate's verdict of it."""
    told = "; ".join(map(str, (manifests["deploy"]["metrics"].get("headline") or {}).values()))
    gate = disk.load(runs.output(run_folder, "deploy", "summary.json"))["gate"]
    verdict = f" What is served {gate['reason']}." if gate else ""
    return f"<h2>What is served</h2><p>{html.escape(f'{told}.{verdict}')}</p>"


def _three(run_folder: Path, manifests: Manifests) -> str:
    """An answer that training mended, one that it broke, one still wrong, as asked first."""
    path = runs.output(run_folder, "evaluate", "generations.jsonl")
    graded = runs.read_rows(path, gold=True)
    if not graded:
        return ""
    split, calculator = graded[0]["split"], graded[0]["calculator"]
    base, tuned = (answers.arm(graded, model, split, calculator) for model in answers.compared(graded))
    asked = answers.asked(split, calculator, set(answers.column(graded, "split")))
    shown = answers.one_of_each(base, tuned)
    return f"<h2>Three answers</h2><p>The first of each; {html.escape(asked)}.</p>{shown}"


PARTS = (
    ("evaluate", _sentence),
    ("compare", _figure),
    ("probe", _probed),
    ("export", _verdict),
    ("deploy", _served),
    ("evaluate", _three),
)
