"""Try a run: its adapter asked without a server, or base and tuned model side by side."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from lib.engine.marks import Marks
from lib.grade import calculator, reading
from lib.run import runs
from lib.ship import deploy

CHUNK_TOKENS = 6  # between two looks at an answer; the prompt is computed again for each
# The page asks nobody but the server that it came from; Gradio's own scripts and styles stand in it.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; frame-ancestors 'none'; form-action 'none'"
)
EXAMPLES = 20


class Models:
    """Base and tuned model of a run; with an adapter the base's weights are held once."""

    def __init__(self, run_folder: Path):
        from lib.train import qlora  # first: Unsloth patches transformers

        self.settings = deploy.settings_of(run_folder, full_finetuning=False)  # loaded to be asked, not to be trained
        if problems := runs.changes(run_folder, "train"):
            raise runs.RunError(f"{run_folder / 'adapter'}: {'; '.join(problems)}: run its notebook again")
        self.model, self.tokenizer = qlora.load(self.settings, run_folder / "adapter")
        qlora.FastLanguageModel.for_inference(self.model)

    @functools.cached_property
    def marks(self) -> Marks:
        """The calculator's rule; SharpenError where this vocabulary cannot write a number."""
        return Marks(self.tokenizer)

    @functools.cached_property
    def base(self) -> Any:
        """The model before training, where training made no adapter that could be switched off."""
        from lib.train import qlora

        return qlora.load(self.settings)[0]

    @contextlib.contextmanager
    def _chosen(self, tuned: bool) -> Iterator[Any]:
        """The tuned model or the base, while the block runs."""
        if tuned:
            yield self.model
        elif hasattr(self.model, "disable_adapter"):
            with self.model.disable_adapter():
                yield self.model
        else:
            yield self.base

    def answer(
        self, question: str, tuned: bool = True, calculator: bool = True, chunk: int | None = None,
        temperature: float = 0.0, top_p: float = 1.0, repetition_penalty: float = 1.0, no_repeat_ngram_size: int = 0,
        seed: int = 0,
    ) -> Iterator[str]:  # fmt: skip
        """The answer as it grows by `chunk` tokens (None: all at once), greedy at temperature 0."""
        import torch

        from lib.data import chat
        from lib.judge import evaluate

        prompt = chat.prompt_ids([{"role": "user", "content": question}], self.tokenizer)
        if len(prompt) > self.settings.max_length:
            raise deploy.DeployError(f"the question has {len(prompt)} tokens, and the run was made with max_length = "
                                     f"{self.settings.max_length}: ask a shorter one")  # fmt: skip
        ends, most = chat.end_ids(self.tokenizer), self.settings.max_new_tokens
        processors = []
        if calculator:  # it outlives a chunk that ends within a value
            processors = [evaluate.Calculator(self.marks, rows=1)]
        options = {
            "do_sample": temperature > 0, "repetition_penalty": repetition_penalty,
            "no_repeat_ngram_size": no_repeat_ngram_size, "logits_processor": processors,
            "eos_token_id": ends, "pad_token_id": self.tokenizer.pad_token_id, "use_cache": True,
        }  # fmt: skip
        if temperature:
            options |= {"temperature": temperature, "top_p": top_p}
        torch.manual_seed(seed)
        new = []
        while len(new) < most and not (new and new[-1] in ends):
            ids = torch.tensor([prompt + new], device=next(self.model.parameters()).device)  # (1, T)
            longest = min(chunk or most, most - len(new))
            with self._chosen(tuned) as model:
                output = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=longest, **options
                )
            new = output[0, len(prompt) :].tolist()
            yield self.tokenizer.decode(new, skip_special_tokens=True)

    def both(self, question: str, calculator: bool) -> Iterator[tuple[str, str]]:
        """(base's answer, tuned model's answer) as both grow, a chunk of each in turn."""
        base, tuned = "", ""
        streams = (self.answer(question, is_tuned, calculator, CHUNK_TOKENS) for is_tuned in (False, True))
        for grown_base, grown_tuned in zip_longest(*streams):
            base, tuned = grown_base or base, grown_tuned or tuned
            yield base, tuned


def read_as(answer: str) -> str:
    """What the grader reads in an answer: a number with its unit, a choice, or nothing."""
    read = reading.parse(answer) or reading.parse(answer, "choice")
    if read is None or (read.unit == "choice" and read.reading != "marker"):
        return "nothing that can be graded"
    text = f"{read.value:,.10g}" if isinstance(read.value, float) else str(read.value)
    if read.unit not in ("none", "choice"):
        text += f" {read.unit}"
    if read.reading != "marker":
        text += ", by its last number: no marker"
    return text


def checked_marks(answer: str) -> list[str]:
    """Each `<<expression=value>>` of an answer, checked: `12/4 = 3: right`."""
    wrong, lines = calculator.wrong_marks(answer), []
    for expression, stated in calculator.MARK.findall(answer):
        verdict = "right"
        if f"<<{expression}={stated}>>" in wrong:
            try:
                verdict = f"wrong, it is {calculator.show(calculator.calculate(expression))}"
            except calculator.CalculatorError as error:
                verdict = f"cannot be computed ({error})"
        lines.append(f"{expression} = {stated}: {verdict}")
    return lines


def examples(run_folder: Path) -> dict[str, str]:
    """{kind: a question that was trained on}; the test's phrasings are shown to nobody."""
    questions: dict[str, str] = {}
    for row in runs.read_rows(runs.output(run_folder, "prepare", "train.jsonl")):
        questions.setdefault(row["kind"], row["messages"][-2]["content"])
    return dict(list(questions.items())[:EXAMPLES])


def page(title: str, questions: dict[str, str], both: Callable[[str, bool], Iterator[tuple[str, str]]]) -> Any:
    """The page for uvicorn: `both(question, calculator)` yields both answers as they grow.

    Model text stands in text fields only, never in HTML. Nothing is asked of another host, by the
    server or the page. """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    import gradio
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    def ask(question: str, fill: bool) -> Iterator[list[str]]:
        if not question.strip():
            raise gradio.Error("ask something first")
        try:
            for answers in both(question, fill):
                yield [*_fields(answers[0]), *_fields(answers[1])]
        except deploy.DeployError as error:
            raise gradio.Error(str(error)) from None

    with gradio.Blocks(title=title, analytics_enabled=False) as blocks:
        gradio.Markdown(f"# {title}\nThe same question to base and tuned model; each mark `<<...>>` is checked.")
        question = gradio.Textbox(label="Question", lines=3, max_length=20_000)
        with gradio.Row():
            fill = gradio.Checkbox(True, label="Calculator: fill in <<expression=value>> while answering")
            button = gradio.Button("Ask", variant="primary")
        shown = []
        with gradio.Row():
            for name in ("Base", "Tuned"):
                with gradio.Column():
                    shown += [gradio.Textbox(label=f"{name}: answer", lines=8, interactive=False),
                              gradio.Textbox(label=f"{name}: read as", interactive=False),
                              gradio.Textbox(label=f"{name}: arithmetic", lines=3, interactive=False)]  # fmt: skip
        if questions:
            gradio.Examples([[text] for text in questions.values()], question, example_labels=list(questions),
                            label="Examples by kind", cache_examples=False)  # fmt: skip
        button.click(ask, [question, fill], shown, api_visibility="private")
    blocks.queue(default_concurrency_limit=1)  # one model, which is switched between base and tuned
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])  # no other name leads here

    @app.middleware("http")
    async def policy(request, call_next):
        answer = await call_next(request)
        answer.headers["Content-Security-Policy"] = POLICY
        return answer

    theme = gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return gradio.mount_gradio_app(app, blocks, "/", server_name="127.0.0.1", theme=theme, footer_links=[],
                                   run_history=False, ssr_mode=False, mcp_server=False, pwa=False)  # fmt: skip


def _fields(answer: str) -> list[str]:
    return [answer, read_as(answer), "\n".join(checked_marks(answer))]


def serve(app: Any, port: int) -> None:
    """The page on 127.0.0.1 until Ctrl-C or SIGTERM."""
    import uvicorn

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
