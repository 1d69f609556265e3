"""What others publish on the presets' tests, as data: whose score, how it was had, who says so. None is our own."""

from dataclasses import dataclass

UNKNOWN = "none known here"


@dataclass(frozen=True)
class Score:
    """A published score of one model; `shots`, `strictness`, `questions`: None where its source does not tell."""

    model: str
    test: str
    value: float
    source: str  # who says so, and where
    metric: str = "% right"
    shots: int | None = None  # worked examples before the question
    strictness: str | None = None  # what counts as an answer
    questions: int | None = None


@dataclass(frozen=True)
class Reference:
    """What a preset is set beside: `goal`, a tuned model's score, had from `start`, the same model asked untuned (none:
    not known here); and `base`, the best score that is known of the preset's own base, untuned, on the same test."""

    goal: Score | None = None
    start: Score | None = None
    base: Score | None = None
    note: str = ""


_NOT_KEPT = "a published run, whose address is not kept here"
_CARD = "SmolLM3's model card, by lighteval: https://huggingface.co/HuggingFaceTB/SmolLM3-3B"
_QWEN = "its authors, arXiv:2505.09388, as quoted in https://github.com/"


def _gsm8k(model: str, value: float, source: str, **protocol) -> Score:
    return Score(model, "GSM8K", value, source, **protocol)


def _llama(how: str, value: float) -> Score:
    return _gsm8k(f"Llama-3.2-3B, {how}", value, _NOT_KEPT, questions=1319)


QWEN3_06B = _gsm8k("Qwen3-0.6B-Base", 49.81, "a reader, by lm-evaluation-harness: "
                   "https://github.com/EleutherAI/lm-evaluation-harness/issues/3383",
                   shots=8, strictness="last number (49.73 marked)", questions=1319)  # fmt: skip
QWEN3_17B = _gsm8k("Qwen3-1.7B-Base", 65.88, _CARD, shots=5)
QWEN3_4B = _gsm8k("Qwen3-4B-Base", 87.79, f"{_QWEN}Chengsong-Huang/R-Zero/issues/30 (74.14 by SmolLM3's card)",
                  shots=4)  # fmt: skip
QWEN3_8B = _gsm8k("Qwen3-8B-Base", 89.84, f"{_QWEN}QwenLM/Qwen3/issues/1540, where a reader came to less", shots=4)
LLAMA_3B = _gsm8k("Llama-3.2-3B", 25.92, _CARD, shots=5)
PLAIN = (LLAMA_3B, QWEN3_06B, QWEN3_17B, QWEN3_4B, QWEN3_8B)  # untuned models, which a goal is held against

LLAMA_UNTUNED = _llama("untuned", 2.58)
LLAMA_TUNED = _llama("QLoRA r 32, 1 epoch", 32.90)
LLAMA_TUNED_MLP = _llama("QLoRA r 32, MLP targets, 2 epochs", 43.67)
LLAMA_GRPO = _llama("then by GRPO", 45.56)


def _quant(how: str, value: float) -> Score:
    return Score(f"Mistral-7B-Instruct, {how}", "such tasks", value, _NOT_KEPT, strictness="its own grader")


_MISTRAL_UNTUNED, _MISTRAL = _quant("untuned", 2.7), _quant("LoRA r 16, 900 rows, 3 epochs, 4 GPUs", 32.7)
QUANT = Reference(_MISTRAL, _MISTRAL_UNTUNED, note="Another model, other rows and another grader: nothing to be beaten")
QUANT_7B = Reference(_MISTRAL, _MISTRAL_UNTUNED, base=_MISTRAL_UNTUNED)
GSM8K = Reference(LLAMA_TUNED, LLAMA_UNTUNED, base=LLAMA_3B)
GSM8K_MLP = Reference(LLAMA_TUNED_MLP, LLAMA_UNTUNED, base=LLAMA_3B, note=f"{LLAMA_GRPO.model}: {LLAMA_GRPO.value:g} %")
GSM8K_GRPO = Reference(LLAMA_GRPO, LLAMA_TUNED_MLP, base=LLAMA_3B)


def best(base: Score) -> Reference:
    """Of a preset that is to beat the published tuned scores on the same questions, from a better base."""
    note = "No run of this set-up is published; to beat: llama32_3b_gsm8k_mlp"
    return Reference(LLAMA_TUNED_MLP, LLAMA_UNTUNED, base, note)


def _perplexity(model: str, test: str, value: float, strictness: str, questions: int | None = None) -> Score:
    return Score(model, test, value, _NOT_KEPT, "perplexity", strictness=strictness, questions=questions)


_PADDED = "prompt and padding included"
_TINY = "TinyLlama-1.1B"
_TINY_START = _perplexity(f"{_TINY}, untuned", "GSM8K", 229.65, _PADDED, 100)
TINYLLAMA = Reference(_perplexity(f"{_TINY}, QLoRA, 200 rows", "GSM8K", 7.65, _PADDED, 100), _TINY_START, _TINY_START)

_ARTICLES, _BLOCKS = "9,285 finance news articles", "blocks of 512 tokens"
_NEWS_START = _perplexity("Llama-3.2-1B, untuned", _ARTICLES, 8.34, _BLOCKS)
_NEWS = _perplexity("Llama-3.2-1B, QLoRA r 16, batch 32, 10 epochs", _ARTICLES, 6.34, _BLOCKS)
NEWS_1B = Reference(_NEWS, _NEWS_START, _NEWS_START, "Peak memory 3.56 GB on an A100")
NEWS_3B = Reference(_NEWS, _NEWS_START, note="Of the 3B none is published")


def _fin_r1(test: str, tuned: float, untuned: float) -> Reference:
    """A larger model that learnt more, graded in a way that is not told exactly."""
    source = "its authors, arXiv:2503.16252 and https://huggingface.co/SUFE-AIFLM-Lab/Fin-R1"
    goal = Score("Fin-R1 (Qwen2.5-7B-Instruct, SFT and GRPO on 60,091 rows)", test, tuned, source, strictness="its own")
    start = Score("Qwen2.5-7B-Instruct", test, untuned, source, strictness="its own")
    return Reference(goal, start, note="Another model, other rows and another grader: nothing to be beaten")


FINQA, CONVFINQA = _fin_r1("FinQA", 76.0, 60.0), _fin_r1("ConvFinQA", 85.0, 66.0)
TATQA = Reference(
    Score("TAT-LLM-7B (Llama-2-7B, LoRA, on FinQA, TAT-QA, TAT-DQA)", "TAT-QA", 76.49,
          "its authors, arXiv:2401.13223 and https://huggingface.co/next-tat/tat-llm-7b-lora",
          strictness="exact match, computed by a program"),
    note="GPT-4 untuned: 71.92, by the same",
)  # fmt: skip


def above(reference: Reference) -> list[Score]:
    """The untuned models whose published score on the same test is above the goal, its own base among them."""
    goal = reference.goal
    if not goal or goal.metric != "% right":
        return []
    asked = dict.fromkeys([*filter(None, [reference.base]), *PLAIN])
    return [score for score in asked if score.test == goal.test and score.value > goal.value]


def figure(score: Score) -> str:
    """`43.67 % right`, or `perplexity 6.34`."""
    if score.metric == "% right":
        return f"{score.value:g} % right"
    return f"{score.metric} {score.value:g}"


def in_words(reference: Reference) -> str:
    """All of a reference, for one who reads about its preset."""
    goal, start, base = reference.goal, reference.start, reference.base
    if not goal:
        return reference.note
    begun = figure(start) if start else UNKNOWN
    parts = [f"{goal.test}: {figure(goal)}, from {begun} ({goal.model}; {_had(goal)})"]
    if base:
        parts.append(f"Its own base untuned: {figure(base)} ({base.model}; {_had(base)})")
    else:
        parts.append(f"Its own base untuned: {UNKNOWN}")
    if better := above(reference):
        models = ", ".join(f"{score.model} {score.value:g} %" for score in better)
        parts.append(f"The goal of {goal.value:g} % is below untuned models: {models}")
    return ". ".join([*parts, *filter(None, [reference.note])])


def _had(score: Score) -> str:
    """The protocol and the source."""
    return f"{', '.join(_protocol(score))}; {score.source}"


def _protocol(score: Score) -> list[str]:
    shots, questions = "shots not told", "n not told"
    if score.shots is not None:
        shots = f"{score.shots} shots"
    if score.questions is not None:
        questions = f"n = {score.questions:,}"
    return [shots, score.strictness or "strictness not told", questions]


def markdown(references: dict[str, Reference]) -> str:
    """Two tables: what each preset is set beside, and each score with its protocol and source."""
    rows = ["| preset | goal, tuned | from | its own base, untuned | untuned models above the goal |",
            "|---|---|---|---|---|"]  # fmt: skip
    scores: dict[Score, None] = {}
    for name, reference in references.items():
        rows.append(f"| `{name}` | {' | '.join(_cells(reference))} |")
        told = [reference.goal, reference.start, reference.base, *above(reference)]
        scores |= dict.fromkeys(filter(None, told))
    rows += ["", "| model | test | score | protocol | source |", "|---|---|---|---|---|"]
    for score in scores:
        protocol = "; ".join(_protocol(score))
        rows.append(f"| {score.model} | {score.test} | {figure(score)} | {protocol} | {score.source} |")
    return "\n".join(rows) + "\n"


def _cells(reference: Reference) -> list[str]:
    """A preset's row, but for its name."""
    goal, start, base = reference.goal, UNKNOWN, UNKNOWN
    if not goal:
        return [reference.note, "", "", ""]
    if reference.start:
        start = figure(reference.start)
    if reference.base:
        base = f"{reference.base.model}: {figure(reference.base)}"
    better = ", ".join(f"{score.model} {score.value:g}" for score in above(reference))
    return [f"{goal.model}: {figure(goal)}", start, base, better or UNKNOWN]
