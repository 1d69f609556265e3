"""Claims about the report: whole, readable without Jupyter, and inert whatever the notebooks hold."""

import base64
import json
import re
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lib.judge import plots
from lib.pipeline import report
from tests.judge.test_compare import make_run

HOSTILE = (
    "<script>document.title='taken'</script><img src=x onerror=alert(1)><a href='javascript:alert(1)'>go</a>"
    "<a href='data:text/html,<script>1</script>'>data</a><iframe src='https://a.example'></iframe>"
    "<svg onload=alert(1)><script>1</script></svg><style>@import 'https://a.example/x.css'</style>"
    "<p style=\"background:url(https://a.example/p)\" onclick=alert(1)>text</p><math><mtext><img src=x></mtext></math>"
    "<form action='https://a.example'><input name=a></form><!-- <meta http-equiv=refresh content='0;url=https://a.example'>"
    "</div></section></main><base href='https://a.example'><link rel=stylesheet href='https://a.example/x.css'>"
)


def put(run_folder: Path, name: str, *cells) -> None:
    (run_folder / "notebooks").mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=list(cells)), run_folder / "notebooks" / f"{name}.ipynb")


def output(**data: str):
    return new_output("display_data", data={name.replace("_", "/"): text for name, text in data.items()})


def page_of(run_folder: Path) -> BeautifulSoup:
    path = report.write(run_folder)
    assert path == run_folder / "report.html"
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("outputs"), "trial", per_kind=3)
    picture, about = plots.loss_curves({"demo": [{"step": 1, "loss": 1.0}]}, title="A loss")._repr_png_()
    badge = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com)"
    told = new_markdown_cell(f"# Prepare the <i>data</i>\n\nWhy. {badge}\n\n{HOSTILE}")
    drawn = {"data": {"image/png": base64.b64encode(picture).decode()}, "metadata": {"image/png": about}}
    put(folder, "10_prepare_data", told, new_code_cell(
        "secret_of_the_code = 1", outputs=[
            new_output("stream", name="stdout", text=" 10%|#\r100%|##########\nfinished " + HOSTILE),
            new_output("stream", name="stderr", text="a noisy warning"),
            output(**{"text_html": "<table><tr><td>cell</td></tr></table>" + HOSTILE}),
            output(**{"text_markdown": "**bold** " + HOSTILE}),
            output(**{"application_javascript": "alert(1)", "text_plain": "javascript"}),
            output(**{"image_svg+xml": "<svg onload='alert(1)'></svg>"}),
            new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {"model_id": "1"},
                                             "text/plain": "FloatProgress(value=0.0)"}),
            new_output("display_data", **drawn),
        ]))  # fmt: skip
    put(folder, "21_train_qlora", new_markdown_cell("# Train"), new_markdown_cell(
        "an error was met", metadata={"tags": ["papermill-error-cell-tag"]}), new_code_cell("1/0", outputs=[
            new_output("error", ename="ZeroDivisionError", evalue="<b>by zero</b>",
                       traceback=["\x1b[31mZeroDivisionError\x1b[0m: " + HOSTILE])]))  # fmt: skip
    (folder / "notebooks" / "31_compare.ipynb").write_text('{"cells": [')
    return folder


@pytest.fixture(scope="module")
def page(run_folder) -> BeautifulSoup:
    return page_of(run_folder)


def test_a_script_in_an_answer_is_inert(page):
    assert not page("script") and not page(re.compile("^(iframe|svg|math|form|input|object|embed|base|link)$"))
    for element in page(True):
        assert not [name for name in element.attrs if name.startswith("on")], element
        assert not element.get("href", "").lower().startswith(("javascript", "data")), element
    assert "<script>document.title='taken'</script>" in page.get_text()  # the printed one is there, as text
    assert "script" not in report.POLICY and page.find("meta", {"http-equiv": "Content-Security-Policy"})


def test_report_asks_no_other_host(page, run_folder):
    for element in page(True):
        fetched = [element[name] for name in ("src", "srcset", "data", "poster", "background") if name in element.attrs]
        assert all(source.startswith("data:image/png;base64,") for source in fetched), element
        assert "url(" not in element.get("style", "")
    assert "url(" not in "".join(style.text for style in page("style")) and "@import" not in page("style")[0].text
    assert page.find("a", string="Open in Colab"), "the badge stays a link"


def test_an_output_cannot_close_or_hide_what_is_around_it(page):
    sections = page.main.find("div", recursive=False).find_all("section", recursive=False)
    assert [section["id"] for section in sections] == ["10_prepare_data", "21_train_qlora", "30_evaluate", "31_compare"]
    assert page.find("td", string="cell") and page.find("strong", string="bold")


def test_code_is_folded_and_outputs_are_open(page):
    code = page.find(string=re.compile("secret_of_the_code")).find_parent("details")
    assert code is not None and not code.has_attr("open")
    assert page.find("td", string="cell").find_parent("details") is None


def test_pictures_are_embedded_with_their_text(page):
    picture = page.find("img")
    assert picture["alt"] == "A loss" and base64.b64decode(picture["src"].split(",")[1]).startswith(b"\x89PNG")


def test_progress_and_messages_are_out_of_the_way(page):
    assert "100%|##########" in page.text and "10%|#\r" not in page.text and "FloatProgress" not in page.text
    assert page.find(string=re.compile("a noisy warning")).find_parent("details") is not None


def test_contents_link_to_each_notebook_by_its_title(page):
    beside, bar = page("nav")
    assert beside("a") == bar("a") and bar.summary.text == "Contents"
    links = {link["href"]: link.text for link in page.nav("a") if link["href"] != "#"}
    assert links["#10_prepare_data"] == "Prepare the <i>data</i>" and links["#21_train_qlora"] == "Train"
    assert all(page.find(id=target.removeprefix("#")) for target in links)


def test_a_link_to_a_notebook_stays_on_the_page():
    assert report.clean('<a href="30_evaluate.ipynb">next</a>') == '<a href="#30_evaluate">next</a>'
    assert report.clean('<a href="../../etc/passwd">x</a><a href=" JavaScript:x">y</a>') == "<a>x</a><a>y</a>"


def test_failing_missing_and_broken_notebooks_are_said(page):
    notes = {section["id"]: note.text for section in page("section") if (note := section.find(class_="note"))}
    assert "stopped at an error: ZeroDivisionError: <b>by zero</b>" in notes["21_train_qlora"]
    assert notes["30_evaluate"] == "this notebook was not run"
    assert "cannot be read" in notes["31_compare"]
    assert "an error was met" not in page.text


def test_how_it_was_made_is_folded_and_holds_each_headline(page, run_folder):
    how = page.header.find(string=re.compile("How it was made")).find_parent("details")
    assert "tuned right on 70%, n = 6" in how.text and "170 steps" in how.text and "python 3" in how.text
    commit = json.loads((run_folder / "eval" / "manifest.json").read_text())["git"]["commit"]
    assert (commit or "outside git") in how.text
    assert how.get("open") is None and "REHEARSAL" not in page.header.text


def test_set_up_is_one_fold_without_colabs_cell(tmp_path):
    def code(source, tag="other", **data):
        return new_code_cell(source, metadata={"tags": [tag]}, outputs=[output(**data)] if data else [])

    put(tmp_path, "10_prepare_data", new_markdown_cell("# Prepare"), code("import google.colab"),
        code("preset = 'demo'", "parameters"), code("# Parameters\nrun = 'x'", "injected-parameters"),
        code("stage", text_html="<table><tr><td>a setting</td></tr></table>"), new_markdown_cell("## Load"),
        code("load()", text_html="<table><tr><td>a row</td></tr></table>"))  # fmt: skip
    section = page_of(tmp_path).find(id="10_prepare_data")
    set_up, load = section("details")
    assert all(text in set_up.text for text in ("set-up and settings", "preset", "run", "stage", "a setting"))
    assert "load" in load.text and "a row" not in load.text + set_up.text and "colab" not in section.text


def test_a_rehearsal_is_called_one_at_the_top(tmp_path):
    page = page_of(make_run(tmp_path, "walk", per_kind=2, rehearse=True))
    assert page.header.find(class_="note").text.startswith("REHEARSAL: a walk through")


@pytest.mark.parametrize("key, value, told", [
    ("git", {"commit": True, "dirty": None}, "git.commit: Input should be a valid string"),
    ("git", {"dirty": False}, "git.commit: Field required"),
    ("peak_memory_bytes", {"resident": 10**400}, "peak_memory_bytes.resident: Input should be less than"),
    ("elapsed_seconds", 10**400, "elapsed_seconds: Input should be a valid number"),
])  # fmt: skip
def test_a_manifest_that_no_card_can_show_is_told_by_name(run_folder, tmp_path, key, value, told):
    path = tmp_path / "trial" / "data" / "manifest.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(json.loads((run_folder / "data" / "manifest.json").read_text()) | {key: value}))
    assert f"{path}: {told}" in page_of(tmp_path / "trial").header.text


def test_an_empty_run_still_gives_a_page(tmp_path):
    page = page_of(tmp_path)
    assert len(page("section")) == 4 and not page.header.find(class_="note")
    assert "There is no answer yet (complete: no stage; to come: prepare, train, " in page.header.text
    assert not [path for path in tmp_path.iterdir() if path.name != "report.html"]


def test_pictures_and_tables_survive_the_sanitiser():
    kept = '<table class="dataframe"><tbody><tr><td colspan="2"><b>x</b> &lt; 1</td></tr></tbody></table>'
    assert report.clean(kept) == kept
    assert "data:image/png;base64,iVBORw0=" in report.clean('<img src="data:image/png;base64,iVBORw0=">')
    styled = report.clean('<span style="background:#eee;position:fixed">y</span>')
    assert styled == '<span style="background:#eee;">y</span>'
