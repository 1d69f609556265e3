"""Worked examples before a question: which training rows, how many fit, and how many serve the base best."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from operator import itemgetter
from pathlib import Path

import numpy as np

from lib.data import chat, formats
from lib.judge import answers, evaluate
from lib.run import runs
from lib.run.settings import EvaluateSettings

TRIED = (0, 1, 4, 8)  # by few_shot = "best"
STREAM = 40  # of random numbers, apart from those of other things that have the same seed


@dataclass(frozen=True)
class Prompting:
    """What stands before each question: the first `shots` rows of the `pool` that are none of its own."""

    shots: int = 0
    pool: Sequence[dict] = ()
    plain: bool = False  # as plain text, for a base that knows no chat
    with_tuned: bool = False
    validation: Sequence[dict] = ()  # rows of `answers.summarise` by which `shots` was chosen
    not_tried: Sequence[dict] = ()  # {"shots", "why"}

    def arms(self, model: str, questions: list[dict]) -> dict[str, list[dict]]:
        """{label: the questions as they are asked}: alone and, of those with a gold, after the examples."""
        arms = {model: questions}
        if self.shots and (model == "base" or self.with_tuned):
            graded = [row for row in questions if row["gold"]]
            arms[label(model, self.shots)] = self.before(graded, self.shots)
        return arms

    def ask(
        self, name: str, model, tokenizer, questions: list[dict], settings: EvaluateSettings, calculator: bool,
        folder: Path,
    ) -> list[dict]:  # fmt: skip
        """What a model answers in each of its `arms`, as of `evaluate.ask`."""
        answered = []
        for arm, rows in self.arms(name, questions).items():
            answered += evaluate.ask(model, tokenizer, rows, settings, calculator, {"model": arm}, folder)
        return answered

    def before(self, questions: list[dict], shots: int) -> list[dict]:
        """The questions after so many examples, which are earlier turns; a row's own system text stays first."""
        return [
            row | {"messages": _turns(row, examples_of(row, self.pool, shots)), "plain": self.plain and shots > 0}
            for row in questions
        ]

    def asked(self, questions: list[dict]) -> list[dict]:
        """The questions in every form that the base is asked in."""
        return [row for rows in self.arms("base", questions).values() for row in rows]

    def record(self, questions: list[dict]) -> dict:
        """What the evaluation's summary holds of it: "examples" are ids, and "others" those of the questions
        that cannot have all of these."""
        usual, others = answers.column(self.pool[: self.shots], "id"), {}
        for row in questions:
            own = answers.column(examples_of(row, self.pool, self.shots), "id")
            if own != usual and row["gold"]:
                others[row["id"]] = own
        return {"shots": self.shots, "examples": usual, "others": others, "plain": self.plain,
                "validation": self.validation, "not_tried": self.not_tried}  # fmt: skip

    def table(self) -> list[dict[str, str]]:
        """In words: accuracy by the number of examples, on validation rows; why others were not tried."""
        rows = []
        for text, row in zip(answers.table_text(self.validation), self.validation, strict=True):
            chosen = "chosen" if row["model"] == label("base", self.shots) else ""
            rows.append({name: text[name] for name in ("model", "n", "accuracy [95 %]", "format rate")})
            rows[-1]["note"] = chosen
        rows += [{"model": label("base", row["shots"]), "note": f"not tried: {row['why']}"} for row in self.not_tried]
        return rows


def label(model: str, shots: int) -> str:
    """`base`, `base, 1 shot` or `base, 8 shots`."""
    if not shots:
        return model
    return f"{model}, {shots} shot{'s' if shots > 1 else ''}"


def pool_of(train: list[dict], asked: list[dict], seed: int) -> list[dict]:
    """Worked training rows with a gold in the order in which they are shown: kinds in turn, drawn by `seed`.

    Rows of a group that is asked come last, so that all questions have the same examples where they can:
    what prompts begin with is then computed once."""
    groups, seen, turns = {row["group"] for row in asked}, Counter(), []
    train = [row for row in train if formats.is_worked(row)]
    for place in np.random.default_rng([seed, STREAM]).permutation(len(train)):
        row = train[place]
        own = row["group"] in groups
        seen[own, row["kind"]] += 1
        turns.append((own, seen[own, row["kind"]], row))
    turns.sort(key=itemgetter(0, 1))
    return [row for _, _, row in turns]


def examples_of(row: dict, pool: Sequence[dict], shots: int) -> list[dict]:
    """The examples of one question: of another group, and no question that reads the same."""
    question = row["messages"][-2]["content"]
    others = (
        example for example in pool
        if example["group"] != row["group"] and example["messages"][-2]["content"] != question
    )  # fmt: skip
    return list(islice(others, shots))


def _turns(row: dict, examples: list[dict]) -> list[dict]:
    turns = [message for message in row["messages"] if message["role"] == "system"]
    for example in [*examples, row]:
        turns += [message for message in example["messages"] if message["role"] != "system"]
    return turns


def choose(
    base, tokenizer, data: Path, graded: dict[str, list], settings: EvaluateSettings, calculator: bool, folder: Path
) -> Prompting:  # fmt: skip
    """How the base is asked: after `few_shot` examples, or after as many as serve it best on validation rows.

    Those are asked in one way (`calculator`); of equal accuracies the fewer examples win. RunError where
    the number that was set cannot be asked."""
    test, validation, tried = [row for rows in graded.values() for row in rows], [], (settings.few_shot,)
    if settings.few_shot == "best":
        validation, tried = runs.read_rows(data / "validation.jsonl", gold=True), TRIED
    questions, lacking = test + validation, ""
    if not test or not validation and settings.few_shot == "best":
        lacking = f"no {'validation' if test else 'test'} row has a gold to grade by"
    pool = pool_of(runs.read_rows(data / "train.jsonl", gold=True), questions, settings.few_shot_seed)
    prompting = Prompting(0, pool, not chat.has_template(settings), settings.few_shot_tuned)
    limits = tokenizer, settings.max_new_tokens, base.config.max_position_embeddings
    not_tried = []
    for shots in filter(None, tried):  # without examples it is asked anyway
        if why := lacking or _why_not(prompting, questions, shots, *limits):
            not_tried.append({"shots": shots, "why": why})
    if not_tried and settings.few_shot != "best":
        raise runs.RunError(f"few_shot = {settings.few_shot}: {not_tried[0]['why']}; lower it, or set 0")
    fitting = [shots for shots in tried if shots not in answers.column(not_tried, "shots")]
    table, shots = [], max(fitting)
    if len(fitting) > 1:
        answered = []
        for count in fitting:
            labels = {"model": label("base", count), "split": "validation"}
            rows = prompting.before(validation, count)
            answered += evaluate.ask(base, tokenizer, rows, settings, calculator, labels, folder)
        table = [row for row in answers.summarise(answered) if row["kind"] == "all"]
        shots = max(zip(answers.column(table, "accuracy"), fitting), key=itemgetter(0))[1]
    return replace(prompting, shots=shots, validation=table, not_tried=not_tried)


def _why_not(prompting: Prompting, questions: list[dict], shots: int, tokenizer, most: int, context: int) -> str:
    """Why the questions cannot be asked after so many examples; empty where they can.

    `most`: tokens of the longest answer; `context`: tokens that the base reads."""
    if any(len(examples_of(row, prompting.pool, shots)) < shots for row in questions):
        return "too few worked training rows have a gold and are of another group than the question"
    asked = prompting.before(questions, shots)
    longest = max(len(chat.asked_ids(row, tokenizer)) for row in asked)
    if longest + most <= context:
        return ""
    return f"the longest prompt has {longest:,} tokens, an answer up to {most:,}; the base reads {context:,}"
