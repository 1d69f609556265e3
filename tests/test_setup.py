"""What is installed is what environment.yml says, and the package itself costs nothing to import."""

import re
import statistics
import subprocess
import sys
import time

import yaml

from lib import doctor

PIP_LINES = next(
    entry["pip"]
    for entry in yaml.safe_load((doctor.REPOSITORY / "environment.yml").read_text())["dependencies"]
    if isinstance(entry, dict)
)
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


def test_set_up_and_doctor_read_the_same_pins():
    """`make setup` reads environment.yml by line, before there is a YAML parser."""
    text = (doctor.REPOSITORY / "environment.yml").read_text()
    assert [line.split("#")[0].strip().removeprefix("- ") for line in text.splitlines() if "==" in line] == PIP_LINES


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
