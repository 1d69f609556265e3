"""Claims about trying a run: its answers are the evaluation's, and the page shows any text as text, to this machine."""

import json
import shutil
import threading
import time
from types import SimpleNamespace

import pytest
import requests
import uvicorn

from lib.engine.marks import Marks
from lib.run.paths import ROOT
from lib.ship import deploy, playground
from tests.test_browser import BROWSERS, browser, wait

HOSTILE = "<img src=x onerror=window.hacked=1><script>window.hacked=1</script>"
QUESTIONS = {"compounding": "What is $12 split by 4?", f"odd{HOSTILE}": f"odd {HOSTILE}"}
ANSWER = f"{HOSTILE} <<12/4=3>> and <<2+2=5>>\n#### 3 %"


# --- the models -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer):
    """The embedded base under an adapter of random numbers, without the seconds that Unsloth takes to be imported."""
    from peft import PeftModel

    from lib.ship import export
    from tests.ship.test_export import make_adapter

    base = ROOT / "data" / "base"
    adapter = make_adapter(base, tmp_path_factory.mktemp("adapter"))
    made = object.__new__(playground.Models)
    made.model = PeftModel.from_pretrained(export.load(base, "cpu"), adapter).eval()
    for name, parameter in made.model.named_parameters():
        if "lora_B" in name:
            parameter.data *= 5  # so that its answers are not the base's
    made.tokenizer, made.marks = tokenizer, Marks(tokenizer)
    made.settings = SimpleNamespace(max_length=200, max_new_tokens=40)
    return made


def last(stream) -> str:
    return [*stream][-1]


@pytest.mark.parametrize("calculator", [True, False])
def test_an_answer_that_grows_by_chunks_is_the_evaluations(models, calculator, tokenizer):
    from lib.data import chat
    from lib.judge import evaluate

    question = "Compute <<3*4=12>> then 2 + 2."
    prompt = chat.prompt_ids([{"role": "user", "content": question}], tokenizer)
    rest = (tokenizer, [prompt], models.settings.max_new_tokens, 1, calculator)
    tuned = evaluate.generate(models.model, *rest)[0]["completion"]
    with models.model.disable_adapter():
        base = evaluate.generate(models.model, *rest)[0]["completion"]
    assert tuned != base
    for chunk in (None, 1, 7):
        grown = [*models.answer(question, True, calculator, chunk)]
        assert grown[-1] == tuned and all(tuned.startswith(text.rstrip("\ufffd")) for text in grown)
    assert last(models.answer(question, False, calculator, 7)) == base
    assert last(models.both(question, calculator)) == (base, tuned)  # in turns, and neither disturbs the other


def test_the_calculator_fills_in_a_value_that_a_chunk_cuts_in_two(models, monkeypatch):
    """Each token is a chunk, and the answer is steered to `<<30/4=`; `7.5>>` is several tokens."""
    ids = models.tokenizer.encode("<<30/4=", add_special_tokens=False)

    class Steered:
        parameters = models.model.parameters
        disable_adapter = models.model.disable_adapter

        def generate(self, input_ids, logits_processor, **rest):
            done = input_ids.shape[1] - self.prompt
            if done < len(ids):
                return input_ids.new_tensor([[*input_ids[0].tolist(), ids[done]]])
            return models.model.generate(input_ids=input_ids, logits_processor=logits_processor, **rest)

    steered = object.__new__(playground.Models)
    steered.__dict__.update(models.__dict__, model=Steered())
    from lib.data import chat

    Steered.prompt = len(chat.prompt_ids([{"role": "user", "content": "?"}], models.tokenizer))
    assert last(steered.answer("?", chunk=1)).startswith("<<30/4=7.5>>")


def test_sampling_follows_its_seed_and_greedy_needs_none(models):
    def answer(**options):
        return last(models.answer("What is 3 + 4?", calculator=False, **options))

    assert answer(temperature=1.5, seed=1) == answer(temperature=1.5, seed=1) != answer(temperature=1.5, seed=2)
    assert answer(seed=1) == answer(seed=2)
    assert answer(temperature=1.5, top_p=1e-6) == answer()  # nothing but the likeliest token is left


def test_no_token_comes_twice_where_that_is_forbidden(models):
    from lib.data import chat

    question = "What is 3 + 4?"
    prompt = chat.prompt_ids([{"role": "user", "content": question}], models.tokenizer)
    text = last(models.answer(question, calculator=False, no_repeat_ngram_size=1))
    ids = models.tokenizer.encode(text, add_special_tokens=False)
    fresh = [token for token in ids if token not in prompt]
    assert len(ids) > 2 and len(ids) - len(set(fresh)) <= 1  # decoded and encoded again, a token may differ
    assert text != last(models.answer(question, calculator=False))


def test_a_question_that_is_too_long_is_told_so(models):
    with pytest.raises(deploy.DeployError, match=r"has \d+ tokens, .* max_length = 200: ask a shorter one"):
        last(models.answer("why? " * 200))


# --- what is shown of an answer ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("answer, told", [
    ("so\n#### 24926.78", "24,926.78"), ("#### 5 %", "5 percent"), ("B it is\n#### B, A, C", "b, a, c"),
    ("that is 12", "12, by its last number: no marker"), ("I do not know", "nothing that can be graded"),
    ("", "nothing that can be graded"),
])  # fmt: skip
def test_it_says_what_the_grader_reads(answer, told):
    assert playground.read_as(answer) == told


def test_each_mark_is_checked():
    answer = "<<12/4=3>> <<2+2=5>> <<1/0=7>> <<100*1.015=101.5>>"
    right, wrong, undefined, decimal = playground.checked_marks(answer)
    assert (right, wrong, decimal) == ("12/4 = 3: right", "2+2 = 5: wrong, it is 4", "100*1.015 = 101.5: right")
    assert undefined.startswith("1/0 = 7: cannot be computed")
    assert playground.checked_marks("no marks") == []


def test_the_examples_are_trained_on_and_one_of_each_kind(tmp_path):
    from lib.run import parameters, presets, runs

    stage = runs.begin(parameters.Request("prepare", "demo", tmp_path, presets.resolve("demo")))
    rows = {"train": [("a", "one"), ("b", "two"), ("a", "three")], "test": [("a", "held out"), ("c", "held out too")]}
    for split, found in rows.items():
        stage.write_rows(f"{split}.jsonl", [
            {"id": f"{split}{i}", "kind": kind, "messages": [{"role": "user", "content": text},
                                                             {"role": "assistant", "content": "x"}]}
            for i, (kind, text) in enumerate(found)
        ])  # fmt: skip
    stage.finish()
    assert playground.examples(tmp_path / "demo") == {"a": "one", "b": "two"}


# --- the page ---------------------------------------------------------------------------------------------------------
def both(question: str, calculator: bool):
    """Base and tuned answer as they grow; the page is not told before the end that the tuned one is hostile."""
    yield "thinking", "So"
    time.sleep(1)
    yield f"no idea about: {question}, {calculator}", ANSWER


@pytest.fixture(scope="module")
def address():
    """The page's address, served by a thread."""
    server = uvicorn.Server(uvicorn.Config(playground.page("demo", QUESTIONS, both), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_the_page_may_ask_no_other_host_and_answers_to_no_other_name(address):
    answer = requests.get(address, timeout=10)
    policy = answer.headers["Content-Security-Policy"]
    assert answer.status_code == 200 and "default-src 'self'" in policy and "http" not in policy
    assert requests.get(address, headers={"Host": "evil.example"}, timeout=10).status_code == 400
    assert requests.get(f"{address}/docs", timeout=10).status_code == 404
    config = requests.get(f"{address}/config", timeout=10).json()
    assert config["analytics_enabled"] is False and not config.get("is_space")


@pytest.mark.browser
@pytest.mark.slow
def test_in_a_browser_an_example_is_asked_and_hostile_text_stays_text(address, tmp_path):
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser on the PATH ({', '.join(BROWSERS)}); on Debian or Ubuntu: apt install chromium")
    deadline = time.monotonic() + 60
    with browser(program, tmp_path, deadline) as page:

        def fields() -> dict:
            return page.ask("Object.fromEntries([...document.querySelectorAll('label')].map(label => "
                            "[label.innerText.trim(), label.querySelector('textarea, input')?.value]))")  # fmt: skip

        try:
            page.send("Page.navigate", url=address)
            wait(lambda: "Question" in fields(), "the page", deadline)
            page.click("button, td, .gallery-item", "compounding")
            wait(lambda: fields()["Question"] == QUESTIONS["compounding"], "the example", deadline)
            page.click("button", "Ask")
            wait(lambda: fields()["Tuned: answer"] == "So", "the answers to grow", deadline)
            assert fields()["Base: answer"] == "thinking"
            wait(lambda: fields()["Tuned: answer"] == ANSWER, "the whole answer", deadline)
            found = fields()
            page.screenshot(tmp_path / "screenshot.png")
            assert found["Base: answer"] == f"no idea about: {QUESTIONS['compounding']}, True"
            assert found["Tuned: read as"] == "3 percent"
            assert found["Tuned: arithmetic"] == "12/4 = 3: right\n2+2 = 5: wrong, it is 4"
            assert page.ask("window.hacked === undefined && document.querySelector('img[src=\"x\"]') === null")
            asked = page.ask("performance.getEntriesByType('resource').map(entry => entry.name)")
            assert len(asked) > 5 and [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
        except BaseException as error:
            page.screenshot(tmp_path / "screenshot.png")
            error.add_note(f"what the page showed: {tmp_path / 'screenshot.png'}; {json.dumps(fields())}")
            raise
