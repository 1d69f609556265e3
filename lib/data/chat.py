"""The one prompt format, and which tokens of a row are learnt (supervised)."""

import html

from lib import SharpenError
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
PLAIN = {"system": "", "user": "Question: ", "assistant": "Answer: "}  # what is before each text in a plain prompt
STOP = f"\n\n{PLAIN['user'].strip()}"  # where a model that writes on has ended its answer
UNTOLD = {"verbose": False}  # transformers warns of a prompt that is longer than a model reads; none such is asked
IGNORED = -100  # the label that torch's cross entropy leaves out


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
    return tokenizer


def has_template(settings: Model) -> bool:
    """Was the base published with a chat template, or does it know no chat but the one set for it?"""
    from transformers import AutoTokenizer

    if not settings.chat_template:
        return True  # `load_tokenizer` refuses others
    return bool(AutoTokenizer.from_pretrained(locate(settings.base_model), trust_remote_code=False).chat_template)


def prompt_ids(messages: list[dict], tokenizer, plain: bool = False) -> list[int]:
    """Token ids of a row's messages up to where the last assistant message begins; as a chat, or `plain` text."""
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if plain:
        texts = [PLAIN[message["role"]] + message["content"] for message in messages]
        return tokenizer.encode("\n\n".join([*texts, PLAIN["assistant"].strip()]), **UNTOLD)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenizer_kwargs=UNTOLD)
    return ids["input_ids"]


def encode(row: dict, tokenizer) -> dict:
    """{"input_ids", "labels"} of a whole row; only the last answer and its end token are learnt.

    EncodingError where the prompt alone is tokenised otherwise than inside the row (the model would
    be asked something that it never saw), or where no end token closes the answer (it would never
    learn to stop)."""
    prompt = prompt_ids(row["messages"], tokenizer)
    whole = tokenizer.apply_chat_template(row["messages"])["input_ids"]
    if whole[: len(prompt)] != prompt:
        message = f"row {row['id']}: its prompt's tokens are not the beginning of the row's tokens"
        raise EncodingError("prompt tokens", message)
    while len(whole) > len(prompt) and not tokenizer.decode(whole[-1:]).strip():
        whole.pop()  # some templates put a newline after the end token; nobody generates it
    if len(whole) == len(prompt):
        raise EncodingError("nothing learnt", f"row {row['id']}: its answer has no tokens to learn")
    if whole[-1] not in end_ids(tokenizer):
        message = (f"row {row['id']}: the chat template closes the answer with {tokenizer.decode(whole[-1:])!r}, "
                   f"not with the end token {tokenizer.eos_token!r}")  # fmt: skip
        raise EncodingError("end token", message)
    return {"input_ids": whole, "labels": [IGNORED] * len(prompt) + whole[len(prompt) :]}


def end_ids(tokenizer) -> list[int]:
    """The tokens that end an answer: EOS, and the end of a turn where the vocabulary has one."""
    turns = tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|im_end|>", "<end_of_turn>"])
    known = [id for id in turns if id not in (None, tokenizer.unk_token_id)]
    return list(dict.fromkeys([tokenizer.eos_token_id, *known]))


def supervised_text(encoded: dict, tokenizer) -> str:
    """The text of the tokens that are learnt."""
    return tokenizer.decode([label for label in encoded["labels"] if label != IGNORED])


def show_mask(encoded: dict, tokenizer):
    """The row as Jupyter shows it: learnt tokens bold on green, the prompt grey."""
    from IPython.display import HTML

    learnt = sum(label != IGNORED for label in encoded["labels"])
    prompt, answer = encoded["input_ids"][:-learnt], encoded["input_ids"][-learnt:]
    parts = [(prompt, "color:#777"), (answer, "background:#e3f4e3;font-weight:bold")]
    spans = (f'<span style="{style}">{html.escape(tokenizer.decode(ids))}</span>' for ids, style in parts)
    return HTML(f'<pre style="white-space:pre-wrap">{"".join(spans)}</pre><p>{learnt} of {len(encoded["labels"])} '
                f"tokens are learnt.</p>")  # fmt: skip
