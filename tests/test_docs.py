"""Claims about the pages that people read: their commands work, their links lead somewhere, their tables are true."""

import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lib import cli
from lib.pipeline import execute, sweep
from lib.run.paths import ROOT
from lib.run.presets import resolve
from lib.train import scale

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "outputs/README.md", ROOT / "data/README.md"])
STARTS = ("sharpen ", "make ", "papermill ", "pytest ", "python ", "OMP_NUM_THREADS=", "SHARPEN_KILLS=", "conda env ",
          "docker ")  # fmt: skip
NAMED = r"…|^sharpen \S+$|COMMAND|PRESET|^papermill -p$|--help|--set$"  # only spoken of
FINISHED = "test_notebooks.py::test_commands_about_a_finished_run_work_as_they_are_typed"
SERVED = "ship/test_serve.py::test_a_stopped_server_takes_no_more_ends_what_runs_and_leaves_nothing"
TESTED = {  # a command of the pages -> the test that does what it says; settings and words may be others there
    "pytest tests/engine/test_gguf_base.py":
        "engine/test_gguf_base.py::test_tokens_are_llama_cpps_on_a_thousand_texts",
    "sharpen presets": "test_cli.py::test_presets_is_a_line_a_preset_within_80_columns",
    "sharpen presets llama32_3b_gsm8k": "test_cli.py::test_a_preset_tells_the_rest_within_80_columns",
    "sharpen presets demo --yaml my.yaml": "test_cli.py::test_a_presets_file_resolves_to_the_preset",
    "sharpen settings --of demo --yaml again.yaml": "test_cli.py::test_a_runs_file_resolves_to_its_settings",
    "sharpen settings --markdown > docs/settings.md":
        "test_cli.py::test_the_page_of_settings_is_what_the_command_prints",
    "conda env create -f environment.yml": "test_setup.py::test_the_pins_fit_together_as_conda_installs_them",
    "sharpen doctor": "test_doctor.py::test_a_line_for_each_check_with_its_remedy",
    "sharpen status": FINISHED,
    "sharpen clean": FINISHED,
    "sharpen compare demo rank8": FINISHED,
    "sharpen ask demo 'You invest": FINISHED,
    'sharpen ask demo "QUESTION"': FINISHED,
    "sharpen reproduce": "pipeline/test_sweep.py::test_a_run_is_reproduced_from_its_manifests",
    "sharpen push demo --to USER/NAME": "ship/test_share.py::"
    "test_the_command_uploads_when_all_else_is_done_and_again_by_the_same_command",
    "sharpen export-task demo": "ship/test_task.py::test_the_command_writes_the_test_that_the_run_asked",
    "sharpen grade answers.jsonl --out verdicts.jsonl":
        "test_cli.py::test_verdicts_are_written_in_the_order_of_the_answers",
    "python tests/benchmarks/bench_pass.py":
        "grade/test_stats.py::test_the_interval_of_pass_at_k_covers_95_percent",
    "python tests/benchmarks/bench_protocols.py DATA":
        "grade/test_protocols.py::test_the_sample_predictions_score_as_the_official_script_says",
    "python tests/benchmarks/fuzz_numerals.py":
        "grade/test_sentences.py::test_a_spelling_by_unicodes_tables_is_read_or_refused_and_never_misread",
    "sharpen sweep demo --grid r=8,32 --seeds 3":
        "pipeline/test_sweep.py::test_a_rehearsed_sweep_measures_its_cell_and_is_skipped_the_second_time",
    "sharpen serve demo": SERVED,
    "sharpen demo demo": "ship/test_playground.py::test_in_a_browser_an_example_is_asked_and_hostile_text_stays_text",
    "sharpen deploy demo":
        "test_notebooks.py::test_notebook_41_serves_the_file_that_notebook_40_ships_and_it_answers_as_there",
    "sharpen run demo --export": "test_notebooks.py::test_notebook_40_asks_every_artefact_the_same_questions",
    "sharpen agree demo --engines torch,llama-server":
        "test_notebooks.py::test_two_engines_agree_on_a_finished_run_and_nothing_in_it_changes",
    "sharpen cloud fetch quant_7b_fsdp --wait": "ship/test_cloud.py::test_the_commands_train_fetch_and_delete",
    "sharpen cloud service RUN": "ship/test_cloud.py::test_skypilots_service_runs_the_front_and_holds_no_key",
    "sharpen cloud delete RUN": "ship/test_cloud.py::test_the_commands_show_create_ask_and_delete",
    'sharpen cloud invoke RUN "QUESTION"': "ship/test_cloud.py::test_the_commands_show_create_ask_and_delete",
    "papermill notebooks/10_prepare_data.ipynb out.ipynb -p train_rows 300":
        "test_notebooks.py::test_plain_papermill_is_refused_a_misspelt_parameter",
    "papermill notebooks/20_pretrain_gpt.ipynb out.ipynb -p run base":
        "test_notebooks.py::test_notebook_20_pretrains_a_base_that_the_tokenizer_fits",
    "SHARPEN_KILLS=20 pytest tests/pipeline/test_kills.py":
        "pipeline/test_kills.py::test_killed_at_random_moments_a_run_ends_as_one_that_was_left_alone",
}  # fmt: skip
TESTED |= dict.fromkeys(
    ("sharpen run demo_rewards", "sharpen compare demo_rewards by_grpo demo_rewards-sft"),
    "test_presets_rehearsed.py::test_rewards_go_on_from_a_run_that_is_made_first",
)
NEEDS = {  # what they need, or why no test runs them
    "sharpen run llama32_3b_gsm8k": "a GPU, and the hub",
    "sharpen run quant_7b_fsdp": "four GPUs, and the hub",
    "pytest -m gpu": "a GPU",
    "python tests/benchmarks/gpu/bench_gpu.py": "a GPU",
    "sharpen cloud train": "an account of AWS",
    "sharpen cloud endpoint": "an account of AWS",
    "sharpen cloud sky": "an account of a cloud",
    "python tests/benchmarks/bench_gpt.py --muon": "many minutes, alone on a quiet machine",
    "python tests/benchmarks/bench_decode.py": "minutes, alone on a quiet machine",
    "python tests/benchmarks/bench_export_task.py": "an environment with lm-evaluation-harness, and minutes",
    "python tests/benchmarks/bench_pipeline.py": "many minutes, alone on a quiet machine",
    "docker build": "a Docker engine",
    "docker run": "a Docker engine",
}


def text_of(page) -> str:
    return page.read_text(encoding="utf-8")


def commands() -> dict[str, str]:
    """{command: the page that it stands on}: each line of a block without a language, and each in running text."""
    there = {}
    for page in PAGES:
        blocks = re.findall(r"^```\n(.*?)^```$", text_of(page), flags=re.MULTILINE | re.DOTALL)
        lines = "".join(blocks).replace("\\\n", " ").splitlines()
        lines = [re.sub(r"\s#\s.*", "", line) for line in lines]
        prose = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
        lines += [code for code in re.findall(r"`([^`|]+)`", prose) if not re.search(NAMED, code)]
        for line in lines:
            command = " ".join(line.split())
            if command.startswith(STARTS):
                there[command] = page.name
    return there


COMMANDS = commands()
RUNS = [command for command in COMMANDS if re.search(r"sharpen (run|sweep) ", command)]


def test_the_pages_hold_commands():
    assert len(COMMANDS) > 40 and len(RUNS) > 10


def test_every_command_has_its_test_or_what_it_needs():
    """A run of a preset is made by the tests below and in test_presets_rehearsed.py, `make` by the test below."""
    listed = {*TESTED, *NEEDS}
    bare = [command for command in COMMANDS if not command.startswith("make ") and command not in RUNS]
    unlisted = [command for command in bare if not any(command.startswith(known) for known in listed)]
    assert {command: COMMANDS[command] for command in unlisted} == {}
    assert [known for known in listed if not any(command.startswith(known) for command in COMMANDS)] == []


@pytest.mark.parametrize("test", sorted(set(TESTED.values())))
def test_the_test_of_a_command_is_there(test):
    path, _, name = test.partition("::")
    assert f"\ndef {name}(" in text_of(ROOT / "tests" / path)


@pytest.mark.parametrize("target", sorted({word for c in COMMANDS for word in re.findall(r"\bmake ([a-z-]+)", c)}))
def test_every_make_target_is_there(target):
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout, done.stderr


@pytest.mark.parametrize("command", RUNS)
def test_every_run_on_a_page_is_taken_as_it_is_typed(command, tmp_path, monkeypatch):
    """To where the first kernel would start: its words, its settings, and what contradicts them."""
    asked = []

    def run(preset, run=None, overrides=None, rehearse=False, *_, check=lambda settings: None, **__):
        asked.append(resolve(preset, overrides, rehearse).settings)
        check(asked[0])
        return SimpleNamespace(settings=asked[0])

    def swept(preset, values, seeds, run, overrides, rehearse, outputs):
        asked.extend(resolve(preset, {name: values[name][0] for name in values} | overrides).settings for _ in "1")
        return {"failed": []}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(execute, "run", run)
    monkeypatch.setattr(sweep, "run", swept)
    (tmp_path / "my.csv").write_text("Q,A\n1+1?,2\n")
    (tmp_path / "dev.jsonl").write_text("{}\n")
    (tmp_path / "my.yaml").write_text("preset: demo\n")
    (tmp_path / "DIR").mkdir()
    words = shlex.split(command.partition("sharpen ")[2].replace("base_model=DIR", f"base_model={tmp_path}/DIR"))
    monkeypatch.setattr(sys, "argv", ["sharpen", *(word.replace("NAME", "demo") for word in words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0 and len(asked) == 1


def test_every_link_on_a_page_leads_to_a_file_or_heading_that_is_there():
    lost = []
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
            path, _, heading = link.partition("#")
            if path.startswith("https://"):
                continue
            target = (page.parent / path).resolve() if path else page
            if not target.exists():
                lost.append((page.name, link))
            elif heading:
                titles = re.findall(r"^#+ (.*)", text_of(target), flags=re.MULTILINE)
                names = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
                lost += [(page.name, link)] if heading not in names else []
    assert lost == []


def test_the_readme_is_of_one_sitting_and_leads_to_every_page():
    text = text_of(ROOT / "README.md")
    assert len(text.encode()) <= 10_240
    linked = set(re.findall(r"\]\(([^)\s#]+)", text))
    pages = {page.relative_to(ROOT).as_posix() for page in PAGES} - {"README.md", "outputs/README.md"}
    assert pages - linked == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_line_of_prose_is_over_120_characters(page):
    prose = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL).splitlines()
    assert [line for line in prose if len(line) > 120 and not line.startswith(("|", "[!"))] == []


def test_the_table_of_memory_by_devices_is_what_is_computed():
    rows = re.findall(r"^\| (\d+B) \| (.*) \|$", text_of(ROOT / "docs/devices.md"), flags=re.MULTILINE)
    assert [size for size, _ in rows] == list(scale.SHAPES)
    for size, cells in rows:
        shape = SimpleNamespace(**scale.SHAPES[size])
        both = [
            " / ".join(f"{scale.memory(shape, devices, four_bit).total / 2**30:.1f}" for four_bit in (False, True))
            for devices in (1, 2, 4, 8, 16)
        ]
        assert cells.split(" | ") == [*both, f"{scale.loading(shape, 8, True) / 2**30:.1f}"]
