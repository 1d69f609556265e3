"""A run's executed notebooks as one HTML file for any browser: nothing in it runs or is fetched."""

import html
import re
from pathlib import Path
from typing import Any

from lib.pipeline import answer
from lib.run import disk, runs, untrusted
from lib.run.stages import STAGES, notebooks_of

# Three barriers, as answers of a model are anyone's text: Jupyter's own escaping, `clean`, and this policy, under
# which a browser neither runs a script nor asks another host.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
TAGS = set("a abbr b blockquote br caption code col colgroup dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i img "
           "kbd li ol p pre s span strong sub summary sup table tbody td tfoot th thead tr u ul".split())
PROTOCOLS = {"http", "https", "mailto", "data"}
STYLES = "color background background-color font-weight text-align vertical-align white-space width".split()
DROPPED = "script style iframe object embed template noscript svg math form button input textarea select progress title"
PICTURE = re.compile(r"data:image/(png|jpeg|gif);base64,[A-Za-z0-9+/=\s]+")
TEMPLATE = """{% extends 'basic/index.html.j2' %}
{% block codecell %}{% if 'set-up' in cell.metadata.tags %}<details class="code">
<summary>set-up and settings</summary>{{ super() }}</details>
{% else %}{{ super() }}{% endif %}{% endblock codecell %}
{% block input %}{% if 'set-up' in cell.metadata.tags %}{{ super() }}
{% elif cell.source.strip() %}<details class="code"><summary>code</summary>{{ super() }}</details>
{% endif %}{% endblock input %}
{% block stream_stderr %}<details class="code"><summary>messages</summary>{{ super() }}</details>
{% endblock stream_stderr %}"""
# The contents stay in reach: beside the text or, on a narrow screen, in a bar that unfolds; what an
# entry leads to then comes to stand below the bar.
STYLE = """
body { font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif;
  color: #1d2430; background: #f3f5f8; margin: 0 }
main { display: grid; grid-template-columns: 13rem minmax(0, 64rem); gap: 1.5rem;
  justify-content: center; margin: 1.5rem auto; padding: 0 1rem }
section, header { background: #fff; border: 1px solid #dde2ea; border-radius: 8px;
  padding: 1rem 2rem 1.5rem; margin-bottom: 1.5rem; overflow-wrap: break-word }
nav { font-size: .88rem } nav a { display: block; padding: .3rem 0; text-decoration: none }
nav .note { border: 0; padding: 0 .3rem; margin: 0; font-size: .8rem }
nav.beside { position: sticky; top: 1.5rem; align-self: start; max-height: calc(100vh - 3rem);
  overflow-y: auto }
nav.bar { display: none }

h1 { font-size: 1.7rem; line-height: 1.25; margin: .6rem 0 }
h2 { font-size: 1.25rem; margin: 1.8rem 0 .4rem } h3 { font-size: 1.05rem; margin: .8rem 0 .4rem }
a[href] { color: #0b5fa5 } details { margin: .3rem 0 } summary { cursor: pointer }
table { border-collapse: collapse; font-size: .88rem; margin: .7rem 0 }
th, td { text-align: left; vertical-align: top; padding: .3rem .7rem;
  border-bottom: 1px solid #e4e8ee; font-variant-numeric: tabular-nums; overflow-wrap: break-word }
th { background: #f3f5f8; font-weight: 600 }
pre, code { font: .84rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .4rem 0 }
details.code > summary { color: #6a7585; font-size: .8rem }
.code pre { background: #f7f8fa; padding: .6rem .8rem; border-radius: 5px }
.output, .cell, .wide { overflow-x: auto } .output pre { max-height: 30rem; overflow-y: auto }
.output img { max-width: 100%; height: auto; margin: .6rem 0 }
.output_error pre { background: #fff3e9 }
.note { border-left: 5px solid #d55e00; background: #fff3e9; padding: .6rem 1rem; margin: .8rem 0;
  font-weight: 600; overflow-wrap: anywhere }

header h1 { font-size: 1.1rem; color: #6a7585 } header th { width: 30% }
.answer { font-size: 1.3rem; line-height: 1.45; margin: .4rem 0 1rem }
.answer strong { white-space: nowrap } .wide img { max-width: 46rem; width: 100% }
.examples { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr));
  gap: 1rem 2rem }
.examples h3 { border-bottom: 2px solid #dde2ea; padding-bottom: .3rem }
.examples h4 { margin: .7rem 0 0; font-size: .8rem; color: #6a7585 }

@media (max-width: 62rem) {
  main { display: block; margin: 0; padding: 0 } nav.beside { display: none }
  section, header { border-width: 1px 0; border-radius: 0; padding: .5rem 1rem 1rem }
  nav.bar { display: block; position: sticky; top: 0; z-index: 1; padding: .2rem 1rem;
    background: #fff; border-bottom: 1px solid #dde2ea }
  nav.bar div { max-height: 45vh; overflow-y: auto } section { scroll-margin-top: 3rem }
  main:has(nav details[open]) section { scroll-margin-top: calc(45vh + 3rem) }
  .answer { font-size: 1.1rem } .wide img { min-width: 40rem }
}
@media print {
  html { font-size: 12px } body { background: #fff } main { display: block }
  nav.beside, nav.bar, details.code { display: none }
  section { break-before: page } section, header { border: 0; padding: 0 }
  .examples { grid-template-columns: repeat(3, 1fr) } .wide img { min-width: 0 }
  .output pre { max-height: none } h1, h2, h3 { break-after: avoid }
  img, tr, .examples > div { break-inside: avoid }
}
"""


def write(run_folder: Path) -> Path:
    """Write `report.html` into the run's folder: the answer, contents, and every executed notebook.

    The notebooks are read, never run. RunError where a link in the folder leads out of it."""
    from pygments.formatters import HtmlFormatter

    run_folder = Path(run_folder)
    disk.check_links(run_folder)
    manifests, notes = _manifests(run_folder)
    screen, unread = answer.first_screen(run_folder, manifests)
    notes += unread
    if any(manifest["rehearse"] for manifest in manifests.values()):
        notes.insert(0, "REHEARSAL: a walk through the whole path on a small model; its figures are no result")
    contents, sections = '<a href="#">The answer</a>', ""
    for path in _notebooks(run_folder):
        name, (title, note, body) = html.escape(path.stem), _notebook(path)
        contents += f'<a href="#{name}">{html.escape(title)}</a>{_alarm(note)}'
        sections += f'<section id="{name}">{_alarm(note)}{body}</section>'
    run = html.escape(run_folder.name)
    alarms = "".join(_alarm(html.escape(note)) for note in notes)
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Sharpen: {run}</title>"
        f"<style>{STYLE}{HtmlFormatter().get_style_defs('.highlight')}</style></head><body><main>"
        f'<nav class="beside">{contents}</nav>'
        f'<nav class="bar"><details><summary>Contents</summary><div>{contents}</div></details></nav>'
        f"<div><header><h1>Sharpen: run {run}</h1>{alarms}{clean(screen)}{_how(manifests)}</header>"
        f"{sections}</div></main></body></html>\n"
    )
    return disk.write_atomically(run_folder / "report.html", [untrusted.visible(untrusted.redact(page))])


def _manifests(run_folder: Path) -> tuple[dict[str, dict], list[str]]:
    """({stage: manifest} of the complete stages, a note on each that cannot be read)."""
    manifests, notes = {}, []
    for stage in STAGES:
        if not runs.is_complete(run_folder, stage):
            continue
        try:
            manifests[stage] = runs.read(run_folder, stage)
        except runs.RunError as error:
            notes.append(str(error))
    return manifests, notes


def _notebooks(run_folder: Path) -> list[Path]:
    """The executed notebooks of a run and those that every run has, in order."""
    paths = set((run_folder / "notebooks").glob("*.ipynb"))
    executed = {path.stem for path in paths}
    for row in STAGES.values():
        if row.in_every_run and not executed.intersection(notebooks_of(row)):
            paths.add(run_folder / "notebooks" / f"{row.notebook}.ipynb")
    return sorted(paths)


def clean(text: str) -> str:
    """HTML with the tags of text, tables and embedded pictures: no script or handler, nothing fetched."""
    import bleach
    from bleach.css_sanitizer import CSSSanitizer
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(text, "html.parser")
    for element in soup(DROPPED.split()):
        element.decompose()  # with its content, which the sanitiser would leave as text
    for image in soup("img"):
        if not PICTURE.fullmatch(image.get("src", "")):
            image.replace_with(image.get("alt", ""))
    for link in soup("a", href=re.compile(r"^\w+\.ipynb$")):
        link["href"] = "#" + link["href"].removesuffix(".ipynb")  # it is on this page
    styles = CSSSanitizer(allowed_css_properties=STYLES)
    return bleach.clean(str(soup), TAGS, _allow, PROTOCOLS, strip=True, css_sanitizer=styles)


def _allow(tag: str, name: str, value: str) -> bool:
    """Which attributes `clean` keeps; no ids, so that two notebooks cannot claim the same one."""
    if tag == "img" and name == "src":
        return bool(PICTURE.fullmatch(value))
    if tag == "a" and name == "href":
        return value.startswith(("https://", "http://", "mailto:", "#"))
    if name == "style":
        return not set("(\\@") & set(value)  # no url(), no escapes that could spell it
    sizes = name in ("colspan", "rowspan", "width", "height", "start") and value.isdigit()
    return sizes or name == "class" or (tag, name) == ("img", "alt")


def _how(manifests: dict[str, dict]) -> str:
    """Each stage's headline, then where, when and with what the run was made, as folded tables."""
    if not manifests:
        return ""
    headline, times, peaks, made_with = {}, [], [], []
    for stage, manifest in manifests.items():
        headline |= manifest["metrics"].get("headline") or {}
        peak = [f"{size / 2**30:.1f} GiB on {name}" for name, size in manifest["peak_memory_bytes"].items()]
        peaks.append(f"{stage} " + " and ".join(peak).replace(" on resident", ""))
        times.append(f"{stage} {manifest['elapsed_seconds'] / 60:.1f}")
        device, git, versions = manifest["device"], manifest["git"], manifest["versions"].items()
        commit = git["commit"] or "outside git"
        if git["dirty"]:
            commit += " with uncommitted changes"
        made_with.append({
            "preset": manifest["preset"],
            "device": f"{device.get('name')}, {device.get('cpu_threads')} CPU threads", "git commit": commit,
            "versions": ", ".join(f"{package} {version}" for package, version in versions if version),
        })  # fmt: skip
    minutes = sum(manifest["elapsed_seconds"] for manifest in manifests.values()) / 60
    about = {
        "preset": "",  # which the loop below fills in, and which stands first
        "finished": f"{manifest['ended_at'][:16].replace('T', ' ')} UTC",
        "took": f"{minutes:.1f} minutes ({', '.join(times)})", "peak memory": ", ".join(peaks),
    }  # fmt: skip
    for name in made_with[0]:
        about[name] = "; ".join(dict.fromkeys(row[name] for row in made_with))
    tables = f'<div class="wide">{_table(headline)}{_table(about)}</div>'
    return f"<details><summary>How it was made, and each stage's figures</summary>{tables}</details>"


def _table(rows: dict[str, Any]) -> str:
    cells = [f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(text))}</td></tr>" for name, text in rows.items()]
    return f"<table>{''.join(cells)}</table>"


def _alarm(text: str) -> str:
    return f'<p class="note">{text}</p>' if text else ""


def _notebook(path: Path) -> tuple[str, str, str]:
    """(title, what is wrong with it if anything, body) of a notebook; the last two are HTML."""
    import nbformat
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    if not path.exists():
        return path.stem, "this notebook was not run", f"<h1>{html.escape(path.stem)}</h1>"
    try:
        notebook = nbformat.reads(untrusted.read_text(path), as_version=4)
        nbformat.validate(notebook)
    except (untrusted.UntrustedError, nbformat.ValidationError, ValueError, KeyError, AttributeError, TypeError,
            RecursionError) as error:  # fmt: skip
        return path.stem, f"this notebook cannot be read: {html.escape(str(error)[:200])}", ""
    # papermill's own note of an error is left out: ours says the same
    notebook.cells = [cell for cell in notebook.cells
                      if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])]  # fmt: skip
    notebook.cells, text, errors = _set_up_as_one(notebook.cells), "", []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text += f"{cell.source}\n"
        if cell.cell_type == "code":
            cell.outputs = _quiet(cell.outputs)
            errors += [output for output in cell.outputs if output.output_type == "error"]
    heading = re.search(r"^# (.*)", text, re.MULTILINE)
    title = heading[1].strip() if heading else path.stem
    note = f"this notebook stopped at an error: {errors[0].ename}: {errors[0].evalue}" if errors else ""
    exporter = HTMLExporter(
        template_file="report.html.j2", extra_loaders=[DictLoader({"report.html.j2": TEMPLATE})],
        sanitize_html=True, exclude_input_prompt=True, exclude_output_prompt=True, exclude_anchor_links=True,
    )  # fmt: skip
    exporter.register_filter("clean_html", clean)  # by pieces: none can close what is around it
    body, _ = exporter.from_notebook_node(notebook)
    return title, html.escape(note), clean(body)


def _set_up_as_one(cells: list) -> list:
    """The code from the top to a notebook's first step as one cell: parameters, imports, settings.

    Without the cell for Colab. A notebook without parameters stays as it is."""
    last = first = next((place for place, cell in enumerate(cells) if cell.cell_type == "code"), 0)
    while last < len(cells) and cells[last].cell_type == "code":
        last += 1
    if not any("parameters" in cell.metadata.get("tags", []) for cell in cells[first:last]):
        return cells
    kept = [cell for cell in cells[first:last] if "google.colab" not in cell.source]
    whole = cells[first]
    whole.source = "\n\n".join(cell.source for cell in kept)
    whole.outputs = [output for cell in kept for output in cell.outputs]
    whole.metadata["tags"] = ["set-up"]
    return [*cells[:first], whole, *cells[last:]]


def _quiet(outputs: list) -> list:
    """Outputs without widgets and overwritten progress lines; what is on stderr comes last."""
    from nbformat.v4 import new_output

    kept, messages = [], ""
    for output in outputs:
        if output.output_type == "stream":
            output.text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in output.text.split("\n"))
        if output.get("name") == "stderr":
            messages += output.text
        elif not any("widget" in kind for kind in output.get("data", {})):
            kept.append(output)
    if messages.strip():
        kept.append(new_output("stream", name="stderr", text=messages))
    return kept
