"""The one prompt format, and which tokens of a row are learnt (supervised)."""

import html
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from functools import lru_cache
from itertools import groupby

from jinja2 import TemplateError

from lib import SharpenError
from lib.data import chats
from lib.run.paths import locate
from lib.run.settings import Model, SettingsError

# The embedded base's template; a hub model brings its own with its tokenizer. `generation` marks what is learnt.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>"
    "{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% else %}<|user|>{{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PLAIN = {"system": "", "user": "Question: ", "assistant": "Answer: ", "tool": "Result: "}  # before a plain text
STOP = f"\n\n{PLAIN['user'].strip()}"  # where a model that writes on has ended its answer
UNTOLD = {"verbose": False}  # transformers warns of a prompt that is longer than a model reads; none such is asked
IGNORED = -100  # the label that torch's cross entropy leaves out
TODAY = re.compile(r"""strftime_now\s*\(\s*(['"])(.*?)\1\s*\)""")  # what transformers gives to templates
THINK = re.compile(r"<think>\s*$")  # at a prompt's end: the template opens the thinking
UNTHOUGHT = r"(?:<think>\s*</think>\s*)?"  # what some templates put before an answer without thinking
PLACE = "\ue000{}\ue001"  # stands for an answer's text in what a template writes
ASKED = {"role": "user", "content": "asked"}  # of conversations by which a template's own rules are found out


class EncodingError(SharpenError):
    """A row cannot be learnt as it is; `check` is the data gate's name for why, the message names
    the row."""

    def __init__(self, check: str, message: str):
        self.check = check
        super().__init__(message)


def load_tokenizer(settings: Model):
    """The base model's tokenizer, with the settings' chat template where they name one."""
    if settings.chat_template:
        from unsloth.chat_templates import get_chat_template  # templates for bases that were published without one

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(locate(settings.base_model), trust_remote_code=False)
    if settings.chat_template:
        tokenizer = get_chat_template(tokenizer, chat_template=settings.chat_template)
    if not tokenizer.chat_template:
        problem = f"base_model = {settings.base_model!r} has no chat template"
        raise SettingsError([f"{problem}: set chat_template, e.g. 'llama-3' or 'chatml'"])
    tokenizer.chat_template = dated(tokenizer.chat_template, settings.template_date)
    return tokenizer


def dated(template: str, day: str) -> str:
    """A template that prints today's date, with `day` (ISO 8601) in its place: else what is asked would change from
    day to day. SettingsError where it asks for the time in another way than by `strftime_now('FORMAT')`."""
    template = TODAY.sub(lambda asked: repr(date.fromisoformat(day).strftime(asked[2])), template)
    if re.search(r"strftime_now\s*\(", template):
        raise SettingsError(["the base's chat template prints the time in a way that cannot be held still: set another "
                             "(chat_template)"])  # fmt: skip
    return template


def has_template(settings: Model) -> bool:
    """Was the base published with a chat template, or does it know no chat but the one set for it?"""
    from transformers import AutoTokenizer

    if not settings.chat_template:
        return True  # `load_tokenizer` refuses others
    return bool(AutoTokenizer.from_pretrained(locate(settings.base_model), trust_remote_code=False).chat_template)


# --- what is asked --------------------------------------------------------------------------------
def prompt_ids(messages: list[dict], tokenizer, plain: bool = False, tools: list | None = None) -> list[int]:
    """Token ids of a row's messages up to where the last assistant message begins; as a chat, or `plain` text."""
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if plain:
        texts = [PLAIN[message["role"]] + message["content"] for message in messages]
        return tokenizer.encode("\n\n".join([*texts, PLAIN["assistant"].strip()]), **UNTOLD)
    return _ids(written(messages, tokenizer, tools, prompt=True), tokenizer)


def asked_ids(row: dict, tokenizer) -> list[int]:
    """Token ids of the prompt in which a row's last answer is asked for."""
    return prompt_ids(row["messages"], tokenizer, row.get("plain", False), row.get("tools"))


def written(messages: list[dict], tokenizer, tools: list | None = None, prompt: bool = False) -> str:
    """A conversation as the template writes it, with the thinking that its messages hold, be it an empty one; as a
    `prompt`, up to where an answer begins."""
    plain, texts = [], {}
    for number, message in enumerate(messages):
        plain.append({name: value for name, value in message.items() if value is not None and name != "learn"})
        thinking = plain[-1].pop("reasoning_content", None)
        if thinking is not None:
            texts[PLACE.format(number)] = chats.whole(message)
            plain[-1]["content"] = PLACE.format(number)  # no template has a rule for it
    text = _written(plain, tokenizer, tools, prompt)
    for place, own in texts.items():
        text = re.sub(UNTHOUGHT + place, place, text).replace(place, own)
    return text


def _written(messages: list[dict], tokenizer, tools: list | None, prompt: bool) -> str:
    return tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=prompt, tokenize=False)


def _ids(text: str, tokenizer) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False, **UNTOLD)


# --- a template's own rules -----------------------------------------------------------------------
def opening(tokenizer) -> str:
    """What a template ends its prompts with to open the answer's thinking, such as `<think>` and a line's end; or
    nothing."""
    return _opening(tokenizer, tokenizer.chat_template)


def thinking_rule(tokenizer) -> str:
    """What the template does with the thinking of answers: "keep", "drop", or keep the "last" turn's."""
    answers = [{"role": "assistant", "content": f"<think>\nthought {n}\n</think>\n\nanswer {n}"} for n in (1, 2)]
    text = _written([ASKED, answers[0], ASKED, answers[1]], tokenizer, None, False)
    if "thought 1" in text:
        return "keep"
    return "last" if "thought 2" in text else "drop"


def end_ids(tokenizer) -> list[int]:
    """The tokens that end an answer: the tokenizer's and the model's own, the one that the template closes an answer
    with, and the usual ends of a turn where the vocabulary has them."""
    return list(_end_ids(tokenizer, tokenizer.chat_template))


@lru_cache(maxsize=64)
def _opening(tokenizer, template: str) -> str:
    opened = THINK.search(_written([ASKED], tokenizer, None, True))
    return opened[0] if opened else ""


@lru_cache(maxsize=64)
def _end_ids(tokenizer, template: str | None) -> tuple[int, ...]:
    from transformers import GenerationConfig

    ends = [tokenizer.eos_token_id]
    with suppress(OSError):  # it has none
        own = GenerationConfig.from_pretrained(tokenizer.name_or_path).eos_token_id
        ends += own if isinstance(own, list) else [own]
    if template:
        answer = {"role": "assistant", "content": "answered"}
        close = _written([ASKED, answer], tokenizer, None, False).rpartition("answered")[2]
        special = {token.content: id for id, token in tokenizer.added_tokens_decoder.items()}
        ends += [special.get(token) for token in tokenizer.tokenize(close.strip())[:1]]
    turns = tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<end_of_turn>"])
    ends += [id for id in turns if id != tokenizer.unk_token_id]
    return tuple(dict.fromkeys(id for id in ends if id is not None))


# --- what is learnt -------------------------------------------------------------------------------
def ready(rows: list[dict], tokenizer, learn: str, thinking: str | None) -> list[dict]:
    """The rows as they are learnt: which answers, and with which thinking (None: by the template's own rule)."""
    rule = thinking or thinking_rule(tokenizer)
    return [chats.settled(row, learn, rule) for row in rows]


def encode(row: dict, tokenizer) -> dict:
    """{"input_ids", "labels"} of a row; its answers and their end tokens are learnt, but those with "learn": false.
    What follows the last learnt one is left out.

    EncodingError where a prompt alone is tokenised otherwise than inside the row (the model would be asked something
    that it never saw), where no end token closes an answer (it would never learn to stop), or where the template
    cannot write the row."""
    messages, tools, id = row["messages"], row.get("tools"), row["id"]
    if opening(tokenizer):  # each answer has thinking there
        messages = [
            {"reasoning_content": ""} | message if chats.is_learnt(message) else message for message in messages
        ]
    ends, labels = set(end_ids(tokenizer)), []
    try:
        whole = _ids(written(messages, tokenizer, tools), tokenizer)
        for number, message in enumerate(messages):
            if not chats.is_learnt(message):
                continue
            prompt = prompt_ids(messages[: number + 1], tokenizer, tools=tools)
            if whole[: len(prompt)] != prompt:
                problem = f"row {id}: its prompt's tokens are not the beginning of the row's tokens"
                raise EncodingError("prompt tokens", problem)
            end = next((place for place in range(len(prompt), len(whole)) if whole[place] in ends), None)
            _check(whole[len(prompt) : end], end is not None, messages[number:], id, tokenizer)
            labels += [IGNORED] * (len(prompt) - len(labels)) + whole[len(prompt) : end + 1]
    except (TemplateError, TypeError) as error:  # TypeError: a part that a template expects is missing
        raise EncodingError("template", f"row {id}: the chat template cannot write it: {str(error)[:200]}") from None
    if not labels:
        raise EncodingError("nothing learnt", f"row {id}: none of its answers is learnt")
    return {"input_ids": whole[: len(labels)], "labels": labels}


def _check(learnt: list[int], closed: bool, messages: list[dict], id: str, tokenizer) -> None:
    """Are the learnt tokens some, and `closed` by an end token, and of the first message alone, none of the second?"""
    text = tokenizer.decode(learnt)
    if not text.strip():
        raise EncodingError("nothing learnt", f"row {id}: its answer has no tokens to learn")
    own, after = (message["content"] for message in [*messages, {"content": ""}][:2])
    if not closed or after and after in text and after not in own:
        last = next(filter(str.strip, (tokenizer.decode([token]) for token in reversed(learnt))))
        message = (f"row {id}: the chat template closes the answer with {last!r}, "
                   f"not with the end token {tokenizer.eos_token!r}")  # fmt: skip
        raise EncodingError("end token", message)


def faults(row: dict, tokenizer) -> Iterator[tuple[str, str, bool]]:
    """(the data gate's check, the reason, whether it matters) for what a row's texts hold that steers the model, and
    what the template leaves out."""
    steering = _steering(tokenizer)
    for message in row["messages"]:
        if found := steering.search(message["content"] + message.get("reasoning_content", "")):
            yield "control token", f"a text of its {message['role']} holds the control token {found[0]!r}", True
    text = None
    for what, parts, matters in _structured(row):
        text = text or written(row["messages"], tokenizer, row.get("tools"))
        lost = [part for part in parts if part not in text]
        if lost:
            yield "lost part", f"the chat template does not write its {what}, such as {lost[0][:60]!r}", matters


def _structured(row: dict) -> Iterator[tuple[str, list[str], bool]]:
    """(what, parts of it that a text of the row must hold, whether the row means something else without)."""
    messages = row["messages"]
    if row.get("tools"):
        yield "tools", [tool["function"]["name"] for tool in row["tools"]], True
    if calls := [call for message in messages for call in message.get("tool_calls", [])]:
        yield "calls of tools", [call["function"]["name"] for call in calls], True
    if results := [message["content"] for message in messages if message["role"] == "tool"]:
        yield "tools' results", [result.partition("\n")[0][:40] for result in results], True
    if names := [message["name"] for message in messages if message.get("name") and message["role"] != "tool"]:
        yield "speakers' names", names, False


@lru_cache(maxsize=8)
def _steering(tokenizer) -> re.Pattern:
    """The special tokens, as a text may hold them."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return re.compile("|".join(map(re.escape, sorted(special | set(tokenizer.all_special_tokens)))))


# --- to look at -----------------------------------------------------------------------------------
def supervised_text(encoded: dict, tokenizer) -> str:
    """The text of the tokens that are learnt."""
    return tokenizer.decode([label for label in encoded["labels"] if label != IGNORED])


def stretches(encoded: dict) -> int:
    """How many stretches of a row's tokens are learnt: as many as answers."""
    return sum(learnt for learnt, _ in groupby(label != IGNORED for label in encoded["labels"]))


def show_mask(encoded: dict, tokenizer):
    """The row as Jupyter shows it: learnt tokens bold on green, the others grey."""
    from IPython.display import HTML

    spans, pairs = "", list(zip(encoded["input_ids"], encoded["labels"], strict=True))
    for learnt, part in groupby(pairs, lambda pair: pair[1] != IGNORED):
        style = "background:#e3f4e3;font-weight:bold" if learnt else "color:#777"
        spans += f'<span style="{style}">{html.escape(tokenizer.decode([id for id, _ in part]))}</span>'
    learnt = sum(label != IGNORED for _, label in pairs)
    return HTML(f'<pre style="white-space:pre-wrap">{spans}</pre><p>{learnt} of {len(pairs)} tokens are learnt.</p>')
