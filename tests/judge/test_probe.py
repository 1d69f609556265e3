"""What notebook 32 asks and counts, on planted answers and on a run of a few rows."""

from types import SimpleNamespace

import numpy as np
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from lib.data import chat, tasks
from lib.grade import stats
from lib.judge import plots, probe, sampling
from lib.run import parameters, presets, runs
from lib.run.paths import ROOT
from lib.run.settings import SettingsError

TRUE = {"base": (0.1, 0.3), "tuned": (0.2, 0.9)}  # the chance that a sample is right: of every other question


def opened(folder, **changes) -> runs.Stage:
    given = {"preset": "demo", "run": "trial", "outputs": str(folder), "changes": changes}
    return runs.begin(parameters.from_notebook("probe", given))


@pytest.fixture(scope="module")
def rows():
    return [problem.row() for problem in tasks.generate("test", 6, 3)]


@pytest.fixture
def data(tmp_path, rows):
    folder = tmp_path / "data"
    folder.mkdir()
    ungraded = rows[0] | {"id": "no gold", "gold": None}
    (folder / "test.jsonl").write_text("".join(runs.to_json(row) + "\n" for row in [ungraded, *rows]))
    return folder


def planted(samples: int = 8, questions: int = 40) -> list[dict]:
    """Sampled answers whose value is 7 where they are right, else one of a few."""
    random, results = np.random.default_rng(2), []
    for model, chances in TRUE.items():
        for number in range(questions):
            for sample in range(samples):
                right = bool(random.random() < chances[number % 2])
                value, reading = (7.0 if right else float(random.integers(3))), "marker"
                if not right and value == 0:
                    reading = "last number"
                results.append({"id": f"q{number}", "model": model, "sample": sample, "group": number % 8,
                                "correct": right, "value": value, "reading": reading})  # fmt: skip
    return results


# --- what is asked ----------------------------------------------------------------------------------------------------
def test_each_question_is_asked_in_each_wording_and_as_often_as_it_is_sampled(tmp_path, data, rows, tokenizer):
    stage = opened(tmp_path / "out", probe_rows=4, samples=3, also_ask="quant_tasks:5")
    asked = probe.questions(stage, data, tokenizer)
    assert [(row["id"], row["sample"]) for row in asked.sampled] == [(r["id"], n) for r in rows[:4] for n in range(3)]
    splits = [row["split"] for row in asked.greedy]
    assert splits == [name for name in probe.WORDINGS for _ in range(4)] + ["quant_tasks"] * 5
    for row in asked.greedy[:16]:
        own = next(r for r in rows if r["id"] == row["id"])
        (question, answer), line = row["messages"], probe.WORDINGS[row["split"]]
        assert answer == own["messages"][1] and row["gold"] == own["gold"]
        assert question["content"] == "\n\n".join(filter(None, [line, own["messages"][0]["content"]]))
    assert len(set(probe.WORDINGS.values())) == 4 and len(asked.pieces) == probe.PIECES
    assert "of Python's manual" in asked.about["general text"]


def test_without_golds_nothing_is_asked_and_the_text_is_read_all_the_same(tmp_path, data, tokenizer):
    text = tmp_path / "mine.txt"
    text.write_text("    code\n\n" + "Prose of a few words. " * 70 + "\n\nshort\n")
    (data / "test.jsonl").write_text((data / "test.jsonl").read_text().splitlines()[0])
    stage = opened(tmp_path / "out", samples=2, general_text=str(text))
    asked = probe.questions(stage, data, tokenizer)
    assert asked.greedy == asked.sampled == [] and stage.external.keys() == {str(text)}
    assert asked.about["general text"] == "4 of 4 pieces of mine.txt"
    assert " ".join(asked.pieces) == ("Prose of a few words. " * 70).strip()
    text.write_text("short\n")
    with pytest.raises(SettingsError, match="has no two paragraphs of 150 characters that fit max_length = 640 tokens"):
        probe.questions(stage, data, tokenizer)
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(ROOT / "data/base", num_hidden_layers=1)).eval()
    found = probe.ask(model, tokenizer, asked, stage.settings, "tuned")
    assert found["greedy"] == found["sampled"] == [] and len(found["bits"]) == 4


def test_the_second_task_is_read_from_files_and_graded(tmp_path, data, tokenizer, published_data):
    stage = opened(tmp_path / "out", also_ask="gsm8k:7", also_ask_dir=str(published_data), wordings=False)
    asked = probe.questions(stage, data, tokenizer)
    assert len(asked.greedy) == 7 and all(row["gold"] and row["split"] == "gsm8k" for row in asked.greedy)
    assert [next(iter(hashes)) for hashes in stage.external.values()] == ["test.jsonl"]
    stage = opened(tmp_path / "short", also_ask="gsm8k:7", also_ask_dir=str(published_data), max_length=16)
    with pytest.raises(SettingsError, match="none of 7 rows has a gold and fits max_length = 16"):
        probe.questions(stage, data, tokenizer)


def test_draws_belong_to_seed_question_and_sample_alone(rows):
    asked = [row | {"sample": number} for row in rows for number in range(3)]
    how = 40, 0.8, 0.95
    numbers = sampling.draws(asked, [0], *how).numbers
    assert numbers.shape == (18, 40) and 0 <= numbers.min() < numbers.max() < 1
    assert len({row[0] for row in numbers.tolist()}) == 18
    assert (sampling.draws(asked[::-1][:7], [0], *how).numbers == numbers.flip(0)[:7]).all()
    assert not (sampling.draws(asked, [1], *how).numbers == numbers).any()


@pytest.mark.slow
def test_an_arm_is_asked_again_from_its_journal_to_the_last_token(tmp_path, data, tokenizer, monkeypatch):
    stage = opened(tmp_path / "out", probe_rows=6, samples=4, max_new_tokens=12, eval_batch_size=2, wordings=False,
                   calculator="off")  # fmt: skip
    asked = probe.questions(stage, data, tokenizer)
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(ROOT / "data/base", num_hidden_layers=1)).eval()
    whole, seen = probe.ask(model, tokenizer, asked, stage.settings, "tuned"), []
    decode = probe.evaluate.decode.answers

    def stopped(*arguments, **named):
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return decode(*arguments, **named)

    monkeypatch.setattr(probe.evaluate.decode, "answers", stopped)
    with pytest.raises(KeyboardInterrupt):
        probe.ask(model, tokenizer, asked, stage.settings, "tuned", stage.folder)
    assert probe.ask(model, tokenizer, asked, stage.settings, "tuned", stage.folder) == whole
    assert len(seen) == 4 and len({row["completion"] for row in whole["sampled"]}) > 12


# --- what is counted --------------------------------------------------------------------------------------------------
def test_the_curves_are_the_estimators_means_with_the_intervals_of_stats():
    results = planted()
    rows = {(row["model"], row["score"], row["k"]): row for row in probe.curves(results)}
    assert {k for *_, k in rows} == {1, 2, 4, 8}
    tuned = [row for row in results if row["model"] == "tuned"]
    right = [sum(row["correct"] for row in tuned if row["id"] == f"q{n}") for n in range(40)]
    for k in (1, 2, 4, 8):
        values = stats.pass_at_k(right, 8, k)
        interval = stats.mean_share(values, tries=8 / k)
        row = rows["tuned", "pass", k]
        assert (row["estimate"], row["low"], row["high"]) == (interval.estimate, interval.low, interval.high)
        assert row["clustered"]["groups"] == 8 and row["clustered"]["warning"].startswith("only 8 groups")
    assert rows["tuned", "pass", 8]["estimate"] == sum(map(bool, right)) / 40
    assert rows["tuned", "pass", 1]["estimate"] == pytest.approx(sum(right) / 320)
    assert rows["tuned", "majority", 8]["estimate"] > rows["base", "majority", 8]["estimate"]
    assert "60" not in probe.curves_text(list(rows.values()))[0]["k"]


def test_an_answer_without_a_marker_or_in_a_wrong_unit_is_no_vote_for_the_right_one():
    votes = [(7.0, True, "marker"), (7.0, False, "marker"), (7.0, False, "marker"), (7.0, False, "last number")]
    results = [{"id": "q", "model": "base", "sample": number, "group": 0, "correct": correct, "value": value,
                "reading": reading} for number, (value, correct, reading) in enumerate(votes)]  # fmt: skip
    assert probe._scores(results, 4)["majority"] == [0.0]
    assert probe._scores(results, 1)["majority"] == [0.25]


def test_differences_are_paired_and_what_only_one_found_is_counted():
    results = planted()
    rows = {(row["score"], row["k"]): row for row in probe.differences(results)}
    curves = {(row["model"], row["score"], row["k"]): row["estimate"] for row in probe.curves(results)}
    for (score, k), row in rows.items():
        assert row["difference"] == pytest.approx(curves["tuned", score, k] - curves["base", score, k])
        assert row["low"] < row["difference"] < row["high"] and row["against"] == "base"
    (found,) = probe.solved(results)
    ever = {model: {row["id"] for row in results if row["model"] == model and row["correct"]} for model in TRUE}
    assert found["both"] == len(ever["base"] & ever["tuned"]) and found["n"] == 40
    assert found["wrong_to_right"] == len(ever["tuned"] - ever["base"])
    assert found["right_to_wrong"] == len(ever["base"] - ever["tuned"])
    assert found["neither"] == 40 - len(ever["base"] | ever["tuned"])
    assert probe.solved_text([found])[0]["by tuned alone"] == str(found["wrong_to_right"])


def test_a_further_arm_is_set_against_the_tuned_model_as_the_base_is():
    results = planted()
    more = [row | {"model": "base, 8 shots"} for row in results if row["model"] == "tuned"]
    arms = [*more, *results]
    assert {row["against"] for row in probe.differences(arms)} == {"base, 8 shots", "base"}
    same = next(row for row in probe.differences(arms) if row["against"] == "base, 8 shots")
    assert same["difference"] == 0 and len(probe.solved(arms)) == 2
    figure = plots.pass_curves(probe.curves(arms))
    assert len(figure.axes[0].containers) == 3 and len(figure.axes[0].lines) > 6


def greedy(model: str, split: str, verdicts: list[bool]) -> list[dict]:
    return [{"id": f"q{n}", "model": model, "split": split, "correct": correct, "group": n}
            for n, correct in enumerate(verdicts)]  # fmt: skip


def test_the_spread_over_wordings_is_set_beside_the_interval_and_the_second_task_is_paired():
    results = []
    for place, name in enumerate(probe.WORDINGS):
        results += greedy("base", name, [False] * 20) + greedy("tuned", name, [True] * (5 + 3 * place) + [False] * 12)
    results = [row for row in results if int(row["id"][1:]) < 17]
    results += greedy("base", "gsm8k", [True] * 9 + [False] * 6) + greedy("tuned", "gsm8k", [True] * 4 + [False] * 11)
    base, tuned = probe.spreads(results)
    assert (base["spread"], base["p_value"]) == (0, 1.0)
    assert tuned["lowest"] == 5 / 17 and tuned["spread"] == pytest.approx(9 / 17) and tuned["p_value"] < 0.001
    width = stats.wilson(5, 17)
    assert tuned["width"] == width.high - width.low
    (second,) = probe.second_task(results)
    assert (second["task"], second["n"], second["right_to_wrong"], second["wrong_to_right"]) == ("gsm8k", 15, 5, 0)
    assert second["p_value"] == stats.mcnemar(5, 0) and second["base"]["accuracy"] == 9 / 15
    assert probe.second_task_text([second])[0]["won, lost"] == "0, 5"


def test_bits_a_byte_are_the_losses_of_the_text_after_its_first_token(tokenizer):
    import torch

    model = LlamaForCausalLM(LlamaConfig.from_pretrained(ROOT / "data/base", num_hidden_layers=1)).eval()
    piece = "Interest accrues daily, and is paid at the end of each month: 5 %."
    (found,) = probe.bits(model, tokenizer, [piece], SimpleNamespace(eval_batch_size=2))
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(piece, add_special_tokens=False)]])
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss  # transformers' own: the mean over the tokens after the first
    assert found["tokens"] == len(piece.encode())
    assert found["loss"] == pytest.approx(float(loss) * (ids.shape[1] - 1) / np.log(2), rel=1e-5)
    assert chat.IGNORED == -100


def test_the_headline_has_n_interval_and_setting_and_says_that_a_rehearsal_is_none():
    results, settings = planted(), presets.resolve("demo", {"samples": 8}).settings
    general = {"base": 1.2, "tuned": 1.25, "difference": 0.05, "low": 0.04, "high": 0.06, "rows": 150, "tokens": 60000}
    summary = {"curves": probe.curves(results), "spreads": [], "second_task": [], "general_text": general}
    lines = probe.headline(summary, settings, rehearse=False)
    assert list(lines) == ["pass@8", "majority of 8", "general text"]
    assert lines["pass@8"].startswith("base ") and " -> tuned " in lines["pass@8"]
    assert lines["pass@8"].endswith("n = 40, temperature 0.8, top_p 0.95")
    assert lines["general text"] == ("base 1.200 -> tuned 1.250 bits a byte: +0.050 [+0.040, +0.060], 150 pieces, "
                                     "60,000 bytes")  # fmt: skip
    assert all("(rehearsal, no result)" in name for name in probe.headline(summary, settings, rehearse=True))
