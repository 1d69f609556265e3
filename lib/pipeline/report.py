"""A run's executed notebooks as one HTML file for any browser: nothing in it runs or is fetched."""

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
    """Write `report.html` into the run's folder: a summary, contents, and every executed notebook.

    The notebooks are read, never run. RunError where a link in the folder leads out of it."""
    from pygments.formatters import HtmlFormatter

    run_folder = Path(run_folder)
    disk.check_links(run_folder)
    manifests, notes = {}, []
    for stage, row in STAGES.items():
        if not row.in_every_run and not runs.is_complete(run_folder, stage):
            continue  # pretraining and export are not part of every run
        try:
            manifests[stage] = runs.read(run_folder, stage)
        except runs.RunError as error:
            notes.append(html.escape(str(error)))
    if any(manifest["rehearse"] for manifest in manifests.values()):
        notes.insert(0, "REHEARSAL: a walk through the whole path on a small model; its figures are no result")
    contents, sections = "", ""
    for path in _notebooks(run_folder):
        name, (title, note, body) = html.escape(path.stem), _notebook(path)
        entry = f'<a href="#{name}">{html.escape(title)}</a>'
        contents += f"<li>{entry} - {note}</li>" if note else f"<li>{entry}</li>"
        sections += f'<section id="{name}">{_alarm(note)}{body}</section>'
    run = html.escape(run_folder.name)
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Sharpen: {run}</title>"
        f"<style>{STYLE}{HtmlFormatter().get_style_defs('.highlight')}</style></head><body><main>"
        f"<header><h1>Sharpen: run {run}</h1>{''.join(map(_alarm, notes))}{_card(manifests)}</header>"
        f"<nav><h2>Contents</h2><ol>{contents}</ol></nav>{sections}</main></body></html>\n"
    )
    return disk.write_atomically(run_folder / "report.html", [untrusted.visible(untrusted.redact(page))])


def _notebooks(run_folder: Path) -> list[Path]:
    """The executed notebooks of a run and those that every run has, in order."""
    paths = set((run_folder / "notebooks").glob("*.ipynb"))
    executed = {path.stem for path in paths}
    for row in STAGES.values():
        if row.in_every_run and row.notebook_of_devices not in executed:
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


def _card(manifests: dict[str, dict]) -> str:
    """The headline of each stage, then where, when and with what the run was made, as tables."""
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
    return _table(headline) + _table(about)


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
    text, errors = "", []
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
