"""The doctor names what is wrong with this machine, and what to do about it."""

import importlib.metadata
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from lib import doctor
from lib.doctor import Check
from lib.engine import llamacpp


def test_a_line_for_each_check_with_its_remedy():
    found = [Check("disk", "ok", "9 GiB free"), Check("hub", "warn", "no answer", "check the network")]
    assert doctor.report(found).splitlines() == [
        "ok    disk  9 GiB free",
        "warn  hub   no answer -> check the network",
    ]


def test_checks_are_quick_and_import_no_unsloth():
    code = "import sys; from lib import doctor; print(len(doctor.checks())); assert 'unsloth' not in sys.modules"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=doctor.REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 9
    assert time.monotonic() - started < 10


def test_every_trouble_has_a_remedy(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for check in doctor.checks():
        assert check.state == "ok" or check.remedy, check


def test_a_python_that_should_have_vllm_and_has_none_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setenv("SHARPEN_VLLM_PYTHON", "/no/such/python")
    found = doctor.vllm()
    assert found.state == "warn" and "'/no/such/python': cannot be run" in found.detail and "unset it" in found.remedy
    monkeypatch.delenv("SHARPEN_VLLM_PYTHON")
    assert doctor.vllm().state == "ok"


@pytest.mark.parametrize("version, state", [((3, 10), "fail"), ((3, 11), "ok"), ((3, 13), "ok"), ((3, 14), "fail")])
def test_a_python_that_will_not_do_is_told_with_one_that_will(monkeypatch, version, state):
    monkeypatch.setattr(doctor.sys, "version_info", version)
    found = doctor.python()
    assert found.state == state and ("PYTHON=python3.12" in found.remedy) == (state == "fail")


def test_versions_names_each_package_that_is_missing_or_differs():
    numpy = importlib.metadata.version("numpy")
    assert doctor.versions({"numpy": numpy}).state == "ok"
    differs = doctor.versions({"numpy": "1.0"})
    assert differs.state == "warn" and f"numpy {numpy} (pinned 1.0)" in differs.detail
    assert "make setup" in differs.remedy
    missing = doctor.versions({"numpy": numpy, "no-such-package": "1.0"})
    assert missing.state == "fail" and "no-such-package" in missing.detail and "numpy" not in missing.detail


def test_a_local_build_equals_its_pin(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.13.0+cpu")
    assert doctor.versions({"torch": "2.13.0"}).state == "ok"


@pytest.mark.parametrize("free_gib, state", [(50, "ok"), (3, "warn"), (0.5, "fail")])
def test_disk_warns_before_it_is_full(monkeypatch, free_gib, state):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=free_gib * 2**30))
    assert doctor.disk().state == state


def test_hub_never_shows_the_token(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check = doctor.hub()
    assert check.state == "ok" and "token: yes" in check.detail and "hf_secret" not in doctor.report([check])


def test_hub_that_never_answers_is_a_warning_in_time(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(doctor, "HUB_TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: time.sleep(5))
    started = time.monotonic()
    check = doctor.hub()
    assert check.state == "warn" and "no answer" in check.detail and time.monotonic() - started < 2


def test_llama_cpp_is_found_through_its_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("SHARPEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LLAMA_CPP_PATH", raising=False)
    assert "not built yet" in doctor.llama_cpp().detail
    folder = tmp_path / "llama.cpp"
    (folder / "build" / "bin").mkdir(parents=True)
    for name in llamacpp.PROGRAMS:
        (folder / "build" / "bin" / name).touch(mode=0o755)
    monkeypatch.setenv("LLAMA_CPP_PATH", str(folder))
    half = doctor.llama_cpp()
    assert half.state == "warn" and "convert_hf_to_gguf.py" in half.detail
    (folder / "convert_hf_to_gguf.py").touch()
    assert doctor.llama_cpp().state == "ok"
