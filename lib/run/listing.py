"""Every setting with its type, bounds, default, stages and meaning, for a terminal and for docs/settings.md."""

import json
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

from lib.run.rules import allowed
from lib.run.settings import FIELDS, MEANT, SettingsError, nearest
from lib.run.stages import STAGES, names_of, notebooks_of

INDENT = " " * 6


class Line(NamedTuple):
    """A setting in words."""

    name: str
    allowed: str
    default: str
    read_by: str  # the numbers of the notebooks that read it
    about: str


def lines() -> Iterator[tuple[str, list[Line]]]:
    """(stage's notebook, the settings that it is the first to read), in the order of the stages."""
    seen: set[str] = set()
    for stage, row in STAGES.items():
        own = [name for name in names_of(stage) if name not in seen]
        seen.update(own)
        yield row.notebook, [_line(name) for name in own]
    yield "sharpen run, after the stages", [_line(name) for name in FIELDS if name not in seen]


def _line(name: str) -> Line:
    field = FIELDS[name]
    numbers = []
    for stage, row in STAGES.items():
        if name in names_of(stage):
            numbers += [notebook[:2] for notebook in notebooks_of(row)]
    default = "the preset's"
    if not field.is_required():
        default = typed(field.default)
    return Line(name, allowed(name), default, ", ".join(numbers), " ".join((field.description or "").split()))


def typed(value: Any) -> str:
    """A value as one types it after `--set NAME=`."""
    return json.dumps(value).strip('"').replace("null", "none")


def in_words(word: str = "", width: int = 80) -> str:
    """The settings whose name holds `word`, a paragraph each; SettingsError where there is none."""
    text, word = "", MEANT.get(word, word)
    for heading, rows in lines():
        shown = [line for line in rows if word in line.name]
        if shown:
            text += f"\n{heading}\n"
        for line in shown:
            text += f"  {line.name} = {line.default}  [{line.read_by or 'sharpen run'}]\n"
            for part in filter(None, (line.about, f"({line.allowed})")):
                text += textwrap.fill(part, width, initial_indent=INDENT, subsequent_indent=INDENT) + "\n"
    if not text:
        hint = nearest(word, FIELDS) or "; `sharpen settings` lists all"
        raise SettingsError([f"no setting is named like {word!r}{hint}"])
    return text.lstrip("\n")


def markdown() -> str:
    """docs/settings.md."""
    text = (
        "# Settings\n\n"
        "Every setting there is, under the notebook that reads it first; the last column names all that do.\n"
        "`sharpen settings --markdown > docs/settings.md` writes this page from `lib/run/settings.py`.\n"
    )
    for heading, rows in lines():
        text += f"\n## {heading}\n\n| setting | what | may be | default | read by |\n|---|---|---|---|---|\n"
        for line in rows:
            cells = f"`{line.name}`", line.about, line.allowed, line.default, line.read_by
            text += f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |\n"
    return text
