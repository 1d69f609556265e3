"""Every notebook is written the same way, so that a reader who knows one knows them all. No kernel is started."""

import ast
import io
import re
import subprocess
import symtable
import tokenize
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from lib.run import parameters, presets
from lib.run.paths import ROOT
from lib.run.settings import SettingsError
from lib.run.stages import STAGES, names_of, notebooks_of

LIGHT = {"disk", "paths", "runs", "stages"}
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
STAGE_OF = {name: stage for stage, row in STAGES.items() for name in notebooks_of(row)}
ABSOLUTE = re.compile(
    r"(?<![\w.:/<-])(?:~|/(?:content|data|dev|etc|home|mnt|opt|root|srv|tmp|usr|var|work|Users))/|\b[A-Z]:\\"
)


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


@pytest.fixture
def cells(path) -> list:
    return nbformat.read(path, as_version=4).cells


def code(cells) -> list:
    return [cell for cell in cells if cell.cell_type == "code"]


def prose(cells) -> str:
    """The notebook's markdown without its code blocks, whose `# comments` are no headings."""
    text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def parse(cell) -> list[ast.stmt]:
    """A code cell's statements; IPython's `!` and `%` lines count as the calls that they stand for."""
    return ast.parse(TransformerManager().transform_cell(cell.source)).body


def is_assert(statement: ast.stmt) -> bool:
    return any(isinstance(node, ast.Assert) for node in ast.walk(statement))


def literals(cells) -> tuple[str, dict]:
    """The source of the one parameters cell, and its values; ValueError where one is no plain literal."""
    (cell,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    values = {}
    for statement in ast.parse(cell.source).body:
        assert isinstance(statement, ast.Assign), f"line {statement.lineno} is no assignment"
        (target,) = statement.targets
        assert isinstance(target, ast.Name) and target.id not in values, f"line {statement.lineno}"
        values[target.id] = ast.literal_eval(statement.value)
    return cell.source, values


def test_there_is_a_notebook_for_every_stage():
    assert [path.stem for path in PATHS] == sorted(STAGE_OF)


def test_it_is_a_valid_python_notebook_without_outputs(path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.language == "python"
    assert [cell.id for cell in code(notebook.cells) if cell.outputs or cell.execution_count is not None] == []


def test_it_has_15_to_30_cells_of_at_most_15_lines_of_code(cells):
    assert 15 <= len(cells) <= 30
    setup, *others = code(cells)
    lines = {c.id: len(c.source.splitlines()) for c in others if "parameters" not in c.metadata.get("tags", [])}
    assert {name: n for name, n in lines.items() if n > 15} == {}
    assert [cell.id for cell in cells if not cell.source.strip()] == []


def test_its_first_cell_says_in_three_sentences_what_it_does_and_takes(path, cells):
    first = cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    text = first.source.partition("\n")[2]
    sentences = re.findall(r"[.?!](?=\s|$)", re.sub(r"`[^`]*`|\be\.g\.|\bi\.e\.", "x", text))
    assert len(sentences) == 3
    assert re.search(r"\b(seconds?|minutes?|hours?)\b", text), "how long does it take?"
    assert re.search(r"\b(CPU|GPU|GPUs|computer)\b", text), "on what hardware?"


def test_it_has_one_title(cells):
    assert len(re.findall(r"^# ", prose(cells), flags=re.MULTILINE)) == 1
    assert not re.search(r"^=+\s*$", prose(cells), flags=re.MULTILINE)


def test_it_names_no_place_that_anybody_could_take(cells):
    """The project's address, once it has one, is the first cell's; until then a fork's, by SHARPEN_REPOSITORY."""
    links = set(re.findall(r"https://(?:github\.com|colab\.research\.google\.com)/[^)\"\s]+", str(cells)))
    assert links == {"https://github.com/YOU/sharpen"}


def test_its_set_up_cell_is_the_same_as_everywhere_and_does_nothing_on_ones_own_machine(cells):
    setup = code(cells)[0]
    assert cells[1] is setup
    assert setup.source == code(nbformat.read(PATHS[0], as_version=4).cells)[0].source
    *imports, colab = parse(setup)
    assert all(isinstance(node, ast.Import) for node in imports)
    assert {alias.name for node in imports for alias in node.names} <= {"importlib.util", "os", "sys"}
    assert isinstance(colab, ast.If) and not colab.orelse
    assert "'google.colab' in sys.modules or 'KAGGLE_KERNEL_RUN_TYPE' in os.environ" in ast.unparse(colab.test)


def test_its_parameters_are_commented_literals(cells):
    source, values = literals(cells)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    commented = {token.start[0] for token in tokens if token.type == tokenize.COMMENT and len(token.string) > 5}
    body = ast.parse(source).body
    bare = [node.targets[0].id for node in body if not commented & set(range(node.lineno, node.end_lineno + 1))]
    assert values and bare == []


def test_its_parameters_are_at_most_ten_dials_of_its_stage_that_keep_the_presets_values(path, cells):
    source, values = literals(cells)
    stage = STAGE_OF[path.stem]
    first, dials, last = list(values)[:4], list(values)[4:-1], list(values)[-1]
    assert first == ["preset", "run", "outputs", "rehearse"] and last == "changes" and values["changes"] == {}
    assert 1 <= len(dials) <= 10 and set(dials) <= set(names_of(stage)) and len(source.splitlines()) <= 14
    assert parameters.from_notebook(stage, values).resolved == presets.resolve(values["preset"])


def test_no_other_cell_names_anything_like_a_setting_of_its_stage(path, cells):
    """The start cell, run again after the others, would take that for the setting's value."""
    settings, bound = {*literals(cells)[1], *names_of(STAGE_OF[path.stem])}, {}
    for cell in code(cells):
        table = symtable.symtable(TransformerManager().transform_cell(cell.source), cell.id, "exec")
        bound[cell.id] = settings & {symbol.get_name() for symbol in table.get_symbols() if symbol.is_local()}
    assert [names for names in bound.values() if names] == [set(literals(cells)[1])]


def test_a_wrong_setting_is_refused_before_anything_else_is_imported(path, cells):
    _, given, imports = code(cells)[:3]
    light, start, *_ = parse(imports)
    assert light.module == "lib.run"  # what imports nothing heavy: test_presets.py
    assert "runs" in (names := {name.name for name in light.names}) and names <= LIGHT
    assert ast.unparse(start) == f"stage = runs.start({STAGE_OF[path.stem]!r}, globals())"
    namespace = {}
    exec(f"{given.source}\nlearning_rte = '1e-4'", namespace)  # as papermill sets it
    with pytest.raises(SettingsError, match="unknown setting 'learning_rte' = '1e-4'"):
        exec(imports.source, namespace)


def test_its_checks_assert_before_the_stage_is_finished(cells):
    headings = [i for i, cell in enumerate(cells) if cell.cell_type == "markdown" and cell.source.startswith("## ")]
    (checks,) = [i for i in headings if re.match("## Checks$", cells[i].source, flags=re.MULTILINE)]
    end = next(i for i in headings if i > checks)
    asserting = [i for i, cell in enumerate(cells) if cell.cell_type == "code" and any(map(is_assert, parse(cell)))]
    (finishing,) = [i for i, cell in enumerate(cells) if cell.cell_type == "code" and "stage.finish(" in cell.source]
    assert any(checks < i < end for i in asserting)
    assert checks < finishing < end and max(asserting) < finishing


def test_it_ends_with_what_to_run_next(cells):
    assert cells[-1].cell_type == "markdown" and cells[-1].source.startswith("## Next")


def test_it_names_no_absolute_path(cells):
    named = {cell.id: ABSOLUTE.findall(cell.source) for cell in cells if cell is not code(cells)[0]}
    assert {name: found for name, found in named.items() if found} == {}


def test_its_links_to_other_notebooks_resolve(path, cells):
    text = prose(cells)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (path.parent / link).exists()] == []
    named = set(re.findall(r"\b\d\d_[a-z][a-z_]+\b", text))
    assert named - {other.stem for other in PATHS} == set()


def test_git_holds_no_file_over_16_mib():
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name]
    assert files
    assert [str(file) for file in files if file.is_file() and file.stat().st_size > 16 * 2**20] == []
