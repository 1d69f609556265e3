"""A run's executed notebooks as one HTML file that any browser shows: nothing in it runs or is fetched."""

import html
import re
from pathlib import Path
from typing import Any

from lib.run import disk, runs, untrusted
from lib.run.stages import STAGES

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
{% block input %}{% if cell.source.strip() %}<details class="code"><summary>code</summary>{{ super() }}</details>
{% endif %}{% endblock input %}
{% block stream_stderr %}<details class="code"><summary>messages</summary>{{ super() }}</details>
{% endblock stream_stderr %}"""
STYLE = """
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; color: #1d2430;
  background: #f3f5f8; margin: 0 }
main { max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
section, header, nav { background: #fff; border: 1px solid #dde2ea; border-radius: 8px; padding: 1rem 2rem 1.5rem;
  margin-bottom: 1.5rem }
h1 { font-size: 1.7rem; line-height: 1.25; margin: .6rem 0 } h2 { font-size: 1.25rem; margin: 1.8rem 0 .4rem }
nav h2 { margin: .4rem 0 } h3 { font-size: 1.05rem } a[href] { color: #0b5fa5 }
table { border-collapse: collapse; font-size: .88rem; margin: .7rem 0 }
th, td { text-align: left; vertical-align: top; padding: .3rem .7rem; border-bottom: 1px solid #e4e8ee;
  font-variant-numeric: tabular-nums; overflow-wrap: break-word }
th { background: #f3f5f8; font-weight: 600 } header th { width: 30% }
.output { overflow-x: auto } .output img { max-width: 100%; height: auto; margin: .6rem 0 }
pre, code { font: .84rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .4rem 0 }
.output pre { max-height: 30rem; overflow-y: auto } details { margin: .3rem 0 }
details.code > summary { color: #6a7585; font-size: .8rem; cursor: pointer } .code pre { background: #f7f8fa;
  padding: .6rem .8rem; border-radius: 5px }
.note { border-left: 5px solid #d55e00; background: #fff3e9; padding: .6rem 1rem; margin: .8rem 0; font-weight: 600;
  overflow-wrap: anywhere }
.output_error pre { background: #fff3e9 }
@media print { body { background: #fff } section { break-before: page } .output pre { max-height: none } }
"""


def write(run_folder: Path) -> Path:
    """Write `report.html` into the run's folder: a summary, a table of contents, and every executed notebook.

    The notebooks are read, never run. RunError where a link in the folder leads out of it."""
    from pygments.formatters import HtmlFormatter

    run_folder = Path(run_folder)
    disk.check_links(run_folder)
    manifests, problems = {}, []
    for stage, row in STAGES.items():
        if not row.in_every_run and not runs.is_complete(run_folder, stage):
            continue  # pretraining and export are not part of every run
        try:
            manifests[stage] = runs.read(run_folder, stage)
        except runs.RunError as error:
            problems.append(str(error))
    rehearse = any(manifest["rehearse"] for manifest in manifests.values())
    executed = {path.stem for path in (run_folder / "notebooks").glob("*.ipynb")}
    usual = [row for row in STAGES.values() if row.in_every_run and row.notebook_of_devices not in executed]
    names = sorted(executed | {row.notebook for row in usual})
    parts = [_notebook(run_folder / "notebooks" / f"{name}.ipynb") for name in names]
    contents = "".join(f'<li><a href="#{html.escape(name)}">{html.escape(title)}</a>{" - " * bool(note)}{note}</li>'
                       for name, (title, note, _) in zip(names, parts, strict=True))
    sections = "".join(f'<section id="{html.escape(name)}">{_alarm(note)}{body}</section>'
                       for name, (_, note, body) in zip(names, parts, strict=True))
    warning = _alarm("REHEARSAL: a walk through the whole path on a small model; its figures are no result" * rehearse)
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Sharpen: {html.escape(run_folder.name)}</title>"
        f"<style>{STYLE}{HtmlFormatter(style='default').get_style_defs('.highlight')}</style></head><body><main>"
        f"<header><h1>Sharpen: run {html.escape(run_folder.name)}</h1>{warning}"
        f"{''.join(map(_alarm, map(html.escape, problems)))}{_card(manifests)}</header>"
        f"<nav><h2>Contents</h2><ol>{contents}</ol></nav>{sections}</main></body></html>\n"
    )
    return disk.write_atomically(run_folder / "report.html", [untrusted.visible(untrusted.redact(page))])


def clean(text: str) -> str:
    """HTML with only the tags that text, tables and embedded pictures need: no script, no handler, nothing fetched."""
    import bleach
    from bleach.css_sanitizer import CSSSanitizer
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(text, "html.parser")
    for element in soup(DROPPED.split()):
        element.decompose()  # with its content, which the sanitiser alone would leave behind as text
    for image in soup("img"):
        if not PICTURE.fullmatch(image.get("src", "")):
            image.replace_with(image.get("alt", ""))
    for link in soup("a", href=re.compile(r"^\w+\.ipynb$")):
        link["href"] = "#" + link["href"].removesuffix(".ipynb")  # the other notebooks are on this page
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


def _card(manifests: dict[str, dict]) -> str:
    """The summary as tables: the headline of each stage, then where, when and with what the run was made."""
    headline: dict[str, Any] = {}
    for manifest in manifests.values():
        headline |= manifest.get("metrics", {}).get("headline") or {}
    every = list(manifests.values())
    commits = [m["git"]["commit"] or "outside git" for m in every]
    edits = [" with uncommitted changes" * bool(m["git"]["dirty"]) for m in every]
    about = {
        "preset": [m["preset"] for m in every],
        "finished": [f"{m['ended_at'][:16].replace('T', ' ')} UTC" for m in every[-1:]],
        "took": [f"{sum(m['elapsed_seconds'] for m in every) / 60:.1f} minutes ("
                 + ", ".join(f"{stage} {m['elapsed_seconds'] / 60:.1f}" for stage, m in manifests.items()) + ")"],
        "peak memory": [", ".join(f"{stage} {_gib(m['peak_memory_bytes'])}" for stage, m in manifests.items())],
        "device": [f"{m['device'].get('name')}, {m['device'].get('cpu_threads')} CPU threads" for m in every],
        "git commit": [commit + edit for commit, edit in zip(commits, edits, strict=True)],
        "versions": [", ".join(" ".join(pair) for pair in m["versions"].items() if pair[1]) for m in every],
    }
    return _rows(headline) + _rows({name: "; ".join(dict.fromkeys(values)) for name, values in about.items()})


def _gib(peak: dict[str, int]) -> str:
    return " and ".join(f"{size / 2**30:.1f} GiB{f' on {name}' * (name != 'resident')}" for name, size in peak.items())


def _rows(rows: dict[str, Any]) -> str:
    cells = ((html.escape(name), html.escape(str(text))) for name, text in rows.items())
    return f"<table>{''.join(f'<tr><th>{name}</th><td>{text}</td></tr>' for name, text in cells)}</table>"


def _alarm(text: str) -> str:
    return f'<p class="note">{text}</p>' if text else ""


def _notebook(path: Path) -> tuple[str, str, str]:
    """(title, what is wrong with it if anything, body) of an executed notebook, as HTML but for the title."""
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
    ours = [cell for cell in notebook.cells if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])]
    code = [cell for cell in ours if cell.cell_type == "code"]
    for cell in code:
        cell.outputs = _quiet(cell.outputs)
    notebook.cells = ours  # papermill's own note of an error is left out: ours says the same
    lines = (line for cell in ours if cell.cell_type == "markdown" for line in cell.source.split("\n"))
    title = next((line[2:].strip() for line in lines if line.startswith("# ")), path.stem)
    errors = [output for cell in code for output in cell.outputs if output.output_type == "error"]
    note = f"this notebook stopped at an error: {errors[0].ename}: {errors[0].evalue}" if errors else ""
    exporter = HTMLExporter(
        template_file="report.html.j2", extra_loaders=[DictLoader({"report.html.j2": TEMPLATE})], sanitize_html=True,
        exclude_input_prompt=True, exclude_output_prompt=True, exclude_anchor_links=True,
    )
    exporter.register_filter("clean_html", clean)  # piece by piece, so that no output can open or close what is around
    body, _ = exporter.from_notebook_node(notebook)
    return title, html.escape(note), clean(body)


def _quiet(outputs: list) -> list:
    """Outputs without widgets and overwritten progress lines; messages on stderr come last, in one piece."""
    kept, messages = [], ""
    for output in outputs:
        if output.output_type == "stream":
            output.text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in output.text.split("\n"))
        if output.get("name") == "stderr":
            messages += output.text
        elif not any("widget" in kind for kind in output.get("data", {})):
            kept.append(output)
    from nbformat.v4 import new_output

    return kept + [new_output("stream", name="stderr", text=messages)] * bool(messages.strip())
