"""Claims about the last link of the chain: the served model beside those that answered the same questions before."""

import pytest

from lib.run import parameters, presets, runs
from lib.ship import deploy, served
from lib.ship.deploy import Choice

ROWS = [
    {"id": str(number), "kind": "sum", "group": str(number), "gold": {"value": number, "unit": "none"},
     "messages": [{"role": "user", "content": f"What is {number}?"}, {"role": "assistant", "content": ""}]}
    for number in range(1, 21)
]  # fmt: skip


def said(values) -> list[dict]:
    """What a server answers to ROWS."""
    return [{"completion": f"#### {value}", "tokens": 3, "prompt_tokens": 5, "finished": True, "seconds": 0.1}
            for value in values]  # fmt: skip


def answers(values, calculator=True) -> list[dict]:
    return served.results(ROWS, said(values), calculator, "llama-server")


RIGHT = list(range(1, 21))
ONE_WRONG = [*RIGHT[:-1], 99]


def test_answers_are_graded_as_an_evaluation_grades_them_and_a_failed_request_is_an_error():
    found = answers(ONE_WRONG)
    assert [row["correct"] for row in found] == [True] * 19 + [False]
    assert {(row["model"], row["split"], row["calculator"], row["engine"]) for row in found} == {
        ("served", "test", True, "llama-server")}  # fmt: skip
    with pytest.raises(deploy.DeployError, match="1 of 20 requests failed, e.g. APIError: no"):
        served.results(ROWS, [*said(RIGHT)[:-1], {"error": "APIError: no"}], True, "vllm")


def test_each_earlier_answerer_is_set_beside_the_served_model_on_the_same_questions():
    before = [*reversed(answers(RIGHT)), dict(answers(RIGHT)[0], id="another")]
    table = served.links(answers(ONE_WRONG), {"notebook 30": before})
    assert [(row["asked by"], row["accuracy"], row["n"]) for row in table] == [
        ("served", 0.95, 20), ("notebook 30", 1.0, 20)]  # fmt: skip
    change = table[1]["served"]
    assert change["difference"] == pytest.approx(-0.05)
    assert (change["right_to_wrong"], change["wrong_to_right"]) == (1, 0)
    assert (table[1]["same verdicts"], table[1]["same texts"]) == (19, 19)
    text = served.printable(table[1])
    assert text["same verdicts"] == "19" and text["served, against it"].startswith("-5.0 points [")
    assert served.printable(table[0])["served, against it"] == "-"


def test_the_gate_is_of_the_served_model():
    earlier = {"notebook 30": answers(RIGHT), "notebook 40": answers(ONE_WRONG)}
    good, bad = (served.gate(answers(values), earlier, 20.0) for values in (RIGHT, [0] * 20))
    assert good["passes"] and "against the model of notebook 30" in good["reason"]
    assert not bad["passes"] and "-100.0 points" in bad["reason"]
    assert served.gate(answers(RIGHT), {}, 2.0) is None


def test_the_card_says_both_scores_and_which_command_gives_which():
    links = served.links(answers(RIGHT), {}) + served.links(answers([0] * 20, calculator=False), {})
    summary = {"artefact": "demo-Q8_0.gguf", "engine": "llama-server", "links": links}
    text = served.section("demo", summary | {"gate": {"reason": "passes: +0.0 points"}})
    assert "| `sharpen serve demo` | on | 20 | 100.0 % [83.9, 100.0] |" in text
    assert ("| `sharpen serve demo --set calculator=off`, `llama-server` and Ollama with the file alone | off | 20 | "
            "0.0 % [0.0, 16.1] |") in text  # fmt: skip
    assert "Gate: what is served passes: +0.0 points." in text


@pytest.mark.parametrize("path, labels", [
    ("demo-Q8_0.gguf", ["notebook 30", "notebook 40"]), ("demo-Q4_K_M.gguf", ["notebook 30"]),
    ("merged", ["notebook 30", "notebook 40"]), ("adapter", ["notebook 30"]),
])  # fmt: skip
def test_what_answered_before_is_the_tuned_model_and_this_very_file(tmp_path, path, labels):
    for stage, models in (("evaluate", ("base", "tuned")), ("export", ("Q8_0", "merged"))):
        made = runs.begin(parameters.Request(stage, "demo", tmp_path, presets.resolve("demo")))
        made.write_rows("generations.jsonl", [{"id": model, "model": model, "split": "test", "calculator": True}
                                              for model in models])  # fmt: skip
        made.finish()
    found = deploy.earlier(tmp_path / "demo", Choice("llama-server", tmp_path / path, ""), True)
    assert list(found) == labels and found["notebook 30"][0]["model"] == "tuned"
    assert deploy.earlier(tmp_path / "demo", Choice("llama-server", tmp_path / path, ""), False) == {}
