"""What is installed is what environment.yml says, on anybody's machine, and the package costs nothing to import."""

import os
import re
import shutil
import statistics
import subprocess
import sys
import time
import tomllib

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from lib import doctor

*PIP_LINES, ITSELF = next(
    entry["pip"]
    for entry in yaml.safe_load((doctor.REPOSITORY / "environment.yml").read_text())["dependencies"]
    if isinstance(entry, dict)
)
COLAB_LINES = re.findall(r"^[^#\n].*", (doctor.REPOSITORY / "colab.txt").read_text(), flags=re.MULTILINE)
SMALL_TORCH = "https://download.pytorch.org/whl/cpu"
PROMISED = "jupyterlab papermill unsloth torch transformers peft trl bitsandbytes datasets matplotlib".split()


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=doctor.REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_pip_line_is_pinned_exactly_for_every_machine():
    # No ranges, no +cpu, no paths; and NVIDIA's libraries and Triton come with the CUDA torch only.
    exact = re.compile(r"(?!nvidia-|triton)[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*")
    assert PIP_LINES and [line for line in PIP_LINES if not exact.fullmatch(line)] == []


def test_no_package_is_pinned_twice():
    names = [re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in PIP_LINES]
    assert len(names) == len(set(names))


def test_promised_packages_are_pinned():
    assert set(PROMISED) <= set(doctor.pins())


def test_installed_versions_equal_the_pins():
    check = doctor.versions()
    assert check.state == "ok", check


def test_conda_installs_the_project_itself_last():
    """pip's own way to say so; without it conda's environment would have no command."""
    assert ITSELF == "-e ."


def test_set_up_and_doctor_read_the_same_pins():
    """`make setup` reads environment.yml by line, before there is a YAML parser."""
    text = (doctor.REPOSITORY / "environment.yml").read_text()
    assert [line.split("#")[0].strip().removeprefix("- ") for line in text.splitlines() if "==" in line] == PIP_LINES


def resolve(lines: list[str], python: str, *options: str) -> None:
    """Resolve requirements for that Python on Linux as pip would, by uv; what does not fit together fails."""
    uv = shutil.which("uv", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]))
    if uv is None:
        pytest.skip("uv is not installed")
    command = [uv, "pip", "compile", "--quiet", "--python-version", python, "--python-platform"]
    command += ["x86_64-manylinux_2_35", "--no-header", "--only-binary", ":all:", *options, "-"]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True)
    if "error sending request" in done.stderr or "Failed to fetch" in done.stderr:
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.11.2", "3.11", "3.12", "3.13"])
def test_the_pins_fit_together_as_conda_installs_them(python):
    """With all that Unsloth asks for: conda has no way to say --no-deps. 3.11.2 is Debian 12's."""
    resolve(PIP_LINES, python)


def test_colabs_additions_have_the_pins_versions():
    assert [line for line in COLAB_LINES if line not in PIP_LINES] == ["torchao==0.16.0"]


@pytest.mark.slow
def test_in_colab_only_what_is_meant_to_changes_and_the_rest_stays_satisfied(tmp_path):
    """Against the list that Colab publishes (github.com/googlecolab/backend-info, pip-freeze.gpu.txt)."""
    freeze = os.environ.get("SHARPEN_COLAB_FREEZE")
    if not freeze:
        pytest.skip("SHARPEN_COLAB_FREEZE is not set: it names a file that holds what `pip freeze` prints in Colab")
    with open(freeze, encoding="utf-8") as file:
        there = dict(line.split("+")[0].strip().split("==") for line in file if re.match(r"[\w.-]+==", line))
    ours = dict(line.split("==") for line in COLAB_LINES)
    changed = {name for name in ours if name in there and there[name] != ours[name]}
    assert changed == {"datasets", "pyarrow", "torchao"}
    kept = tmp_path / "kept.txt"
    kept.write_text("\n".join(f"{name}=={version}" for name, version in there.items() if name not in ours))
    # What Unsloth asks for beyond that is what --no-deps leaves out; torch is Colab's own.
    asking = [line for line in COLAB_LINES if not re.match("unsloth|cut_cross_entropy", line)]
    excluded = tmp_path / "excluded.txt"
    excluded.write_text("torch\n")
    resolve(asking, "3.13", "--constraints", str(kept), "--excludes", str(excluded))


def test_every_python_that_is_admitted_is_tried_in_ci():
    project = tomllib.loads((doctor.REPOSITORY / "pyproject.toml").read_text())["project"]
    ci = yaml.safe_load((doctor.REPOSITORY / ".github/workflows/ci.yml").read_text())
    admitted = [f"3.{minor}" for minor in range(30) if f"3.{minor}" in SpecifierSet(project["requires-python"])]
    assert ci["jobs"]["test"]["strategy"]["matrix"]["python"] == admitted == ["3.11", "3.12", "3.13"]


def test_the_image_leaves_out_what_git_ignores():
    def patterns(name):
        lines = (doctor.REPOSITORY / name).read_text().splitlines()
        return {line.removeprefix("**/").strip("/") for line in lines if line and not line.startswith("#")}

    assert patterns(".dockerignore") == patterns(".gitignore")


@pytest.fixture
def place(tmp_path):
    """A checkout's Makefile beside stand-ins for Python, pip, uv and git that write down how they were called."""
    for name in ("Makefile", "environment.yml", "pyproject.toml"):
        shutil.copy(doctor.REPOSITORY / name, tmp_path)
    bin = tmp_path / "bin"
    bin.mkdir()
    for tool in ("uv", "pip", "git"):
        script = f'#!/bin/sh\necho {tool} "$@" >>{tmp_path}/calls\n'
        script += 'case "$*" in *stdin) cat >/dev/null;; $FAILING) exit 1;; esac\n'
        if tool == "pip":
            script += 'if [ "$1" = config ]; then echo "$PIP_CONFIG"; fi\n'
        (bin / tool).write_text(script)
    with open(bin / "uv", "a") as uv:
        uv.write(f'[ "$1" != venv ] || {{ mkdir -p .venv/bin && cp {bin}/pip .venv/bin; }}\n')
    (bin / "python").write_text(f'#!/bin/sh\n[ "$2" != venv ] || {{ mkdir -p .venv/bin && cp {bin}/pip .venv/bin; }}\n')
    for script in bin.iterdir():
        script.chmod(0o755)
    return tmp_path


def set_up(place, *arguments: str, **environment: str) -> tuple[list[str], str]:
    """The calls of installers in a set-up with stand-ins, but for the list of packages, and what it said."""
    (place / "calls").unlink(missing_ok=True)
    done = subprocess.run(
        ["make", "setup", f"PYTHON={place}/bin/python", *arguments], cwd=place, capture_output=True, text=True,
        env={"PATH": f"{place}/bin:/usr/bin:/bin", "FAILING": "none"} | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    calls = (place / "calls").read_text().splitlines() if (place / "calls").exists() else []
    return [re.sub(r" --(quiet|no-warn-conflicts|python \S+)", "", call) for call in calls], done.stdout + done.stderr


def installs(calls: list[str]) -> list[str]:
    """The calls but for those that read pip's settings."""
    return [call for call in calls if call != "pip config list"]


TORCH = next(line for line in PIP_LINES if line.startswith("torch=="))
REST = ["install -r /dev/stdin", "install --no-deps -r /dev/stdin", "install --no-deps --no-build-isolation -e ."]


def test_set_up_takes_the_small_torch_alone_from_its_index_and_is_done_once(place):
    calls, said = set_up(place)
    small = f"install --no-deps --index-url {SMALL_TORCH} {TORCH}"
    assert installs(calls) == [f"uv pip {call}" for call in [small, *REST]] and "by uv" in said
    assert set_up(place)[0] == []


def test_set_up_says_so_where_the_small_torch_is_not_to_be_had(place):
    calls, said = set_up(place, FAILING="*whl/cpu*")
    assert installs(calls)[1:] == [f"uv pip {call}" for call in REST] and f"no torch from {SMALL_TORCH}" in said


def test_set_up_leaves_torch_to_the_package_index_with_a_gpu_or_where_it_is_told(place):
    assert installs(set_up(place, "TORCH_INDEX=")[0]) == [f"uv pip {call}" for call in REST]
    (place / ".venv/.sharpen-setup").unlink()
    (place / "bin/nvidia-smi").symlink_to(place / "bin/git")
    assert installs(set_up(place)[0]) == [f"uv pip {call}" for call in REST]


def test_set_up_fetches_uv_and_does_without_it_where_it_must(place):
    (place / "bin/uv").unlink()
    calls, said = set_up(place, "TORCH_INDEX=", FAILING="*uv==*")
    uv = next(line for line in PIP_LINES if line.startswith("uv=="))
    assert installs(calls) == [f"pip install {uv}", *(f"pip {call}" for call in REST)] and "by pip" in said


def test_set_up_goes_on_by_pip_where_uv_cannot(place):
    calls, said = set_up(place, "TORCH_INDEX=", FAILING="pip install*-e .")  # the last that uv is asked for
    assert installs(calls) == [f"{tool} {call}" for tool in ("uv pip", "pip") for call in REST]
    assert "pip installs" in said


def test_set_up_passes_pips_indexes_on_to_uv(place):
    """uv reads none of pip's settings."""
    with open(place / "bin/uv", "a") as uv:
        uv.write(f'echo "$UV_DEFAULT_INDEX, $UV_EXTRA_INDEX_URL, $UV_FIND_LINKS" >>{place}/indexes\n')
    config = "global.extra-index-url='https://a.example https://b.example'\n:env:.find-links='/wheels'\n"
    set_up(place, "TORCH_INDEX=", PIP_CONFIG=f"{config}global.index-url='https://mirror.example/simple'")
    told = "https://mirror.example/simple, https://a.example https://b.example, /wheels"
    assert set((place / "indexes").read_text().splitlines()) == {told}


def test_set_up_lets_uv_find_or_fetch_a_python_where_none_will_do(place):
    calls, _ = set_up(place, "PYTHON=", "TORCH_INDEX=")
    assert calls[0] == "uv venv --seed .venv" and installs(calls)[1:] == [f"uv pip {call}" for call in REST]


def test_set_up_names_the_pythons_that_will_do(place):
    (place / "bin/python").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(AssertionError, match=r"needs Python 3\.11, 3\.12 or 3\.13 .*(?s:.)*conda env create"):
        set_up(place)


FIRST_CELL = """
import json, os, sys, types
from IPython.core.interactiveshell import InteractiveShell
if sys.argv[1] == "colab":
    sys.modules["google.colab"] = types.ModuleType("google.colab")
(_, cell, *_) = json.load(open(sys.argv[2]))["cells"]
InteractiveShell.instance().run_cell("".join(cell["source"]))
print(os.getcwd(), sys.path[0])
"""


def first_cell(place, where: str, **environment: str) -> str:
    """What a notebook's first cell prints there, run with stand-ins, and at last the working folder and path."""
    notebook = next((doctor.REPOSITORY / "notebooks").glob("10_*.ipynb"))
    bin = os.pathsep.join([str(place / "bin"), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, "-c", FIRST_CELL, where, notebook], cwd=place, capture_output=True, text=True,
        env=os.environ | {"PATH": bin, "FAILING": "none", "IPYTHONDIR": str(place)} | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_cell_does_nothing_on_a_machine_of_ones_own(place):
    assert first_cell(place, "here").split() == [str(place)] and not (place / "calls").exists()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["colab", "kaggle"])
def test_the_first_cell_fetches_and_installs_where_notebooks_are_opened(place, where):
    environment = {"SHARPEN_REPOSITORY": "https://git.example/ana/sharpen"}
    if where == "kaggle":
        environment["KAGGLE_KERNEL_RUN_TYPE"] = "Interactive"
    (place / "bin/git").write_text(
        f'#!/bin/sh\necho git "$@" >>{place}/calls\nmkdir sharpen && cp {doctor.REPOSITORY}/colab.txt sharpen\n'
    )
    told = first_cell(place, where, **environment)
    assert told.split()[-2:] == [str(place / "sharpen")] * 2, told
    fetched = "git clone --quiet --depth 1 https://git.example/ana/sharpen sharpen"
    # Colab looks at commands that begin so, and offers its restart button where what they print asks for it.
    installed = "pip install --no-deps --no-compile -r colab.txt"
    assert (place / "calls").read_text().splitlines() == [fetched, installed]
    first_cell(place, where, **environment)
    assert (place / "calls").read_text().splitlines()[2:] == [installed]


def test_the_first_cell_says_what_is_missing(place):
    assert "write the address of your copy" in first_cell(place, "colab")
    told = first_cell(place, "kaggle", KAGGLE_KERNEL_RUN_TYPE="Batch", SHARPEN_REPOSITORY="https://no.example/x",
                      FAILING="*no.example*")  # fmt: skip
    assert "Internet on" in told


def test_importing_lib_loads_nothing_heavy():
    loaded = run_python("import sys, lib; print(*{name.split('.')[0] for name in sys.modules})").split()
    assert not {"torch", "transformers", "unsloth", "pandas", "numpy", "datasets", "matplotlib"} & set(loaded)


def test_importing_lib_takes_under_half_a_second():
    seconds = []
    for _ in range(5):
        started = time.monotonic()
        run_python("import lib")
        seconds.append(time.monotonic() - started)
    assert statistics.median(seconds) < 0.5, seconds
