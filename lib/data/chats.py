"""Conversations and preference pairs, in the forms that people keep them in -> messages of one form.

A message is {"role", "content"}: system, user, assistant or tool, and a text. Where there are such, it has a
"name", an answer's thinking ("reasoning_content"), "tool_calls" or a result's "tool_call_id"; and "learn": false
where an answer is context alone. What a form cannot say in these is refused, never passed over.
"""

import json
import re
from collections.abc import Iterable
from itertools import takewhile

from lib.data import formats
from lib.data.formats import BadRow, digest, joined, row_of, text_of

ROLES = {
    "human": "user", "gpt": "assistant", "model": "assistant", "developer": "system", "function_call": "assistant",
    "function": "tool", "observation": "tool",
} | {role: role for role in ("system", "user", "assistant", "tool")}  # fmt: skip
THINKING = ("reasoning_content", "reasoning", "thinking")  # a message's fields that may hold it
THOUGHT = re.compile(r"(?:<think>)?(.*?)</think>(.*)", re.DOTALL)
LEARNT = ("weight", "train", "training", "loss")  # a message's fields that say whether it is learnt
TEXT_PARTS = ("text", "input_text", "output_text")
TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant):")  # as in Anthropic's hh-rlhf


# --- rows -----------------------------------------------------------------------------------------
def trader_sft(fields: dict, place: str) -> dict:
    """A conversation: `messages`, `conversations` (ShareGPT), `prompt` and `completion` (TRL), or `instruction`,
    `input`, `output` and `history` (Alpaca); beside them perhaps `system` and `tools`."""
    if fields.get("label") is False:
        raise BadRow("field 'label' is false: by KTO it marks an answer that is not wanted, which SFT would teach; "
                     "leave such records out, or make pairs of them (source = 'trader_dpo')")  # fmt: skip
    messages = conversation([*_system(fields), *_talk(fields)])
    row = row_of("trader_sft", "conversation", place, "", "", None)
    return row | {"messages": messages} | tools_of(fields)


def trader_dpo(fields: dict, place: str) -> dict:
    """A preference pair: the row is the conversation with the chosen answer; `rejected` holds the other one.

    The conversation is in `prompt`, in another form of `trader_sft`, or (implicit) what `chosen` and `rejected` begin
    with; these are texts, messages, lists of messages, or transcripts."""
    prompt, sides = [*_system(fields), *_talk(fields, pair=True)], []
    asked = [message for message in prompt if not _is_system(message)]
    systems = [message for message in prompt if _is_system(message)]
    for name in ("chosen", "rejected"):
        side = _side(fields, name)
        systems += [message for message in side if _is_system(message)]
        own = [message for message in side if not _is_system(message)]
        if own[: len(asked)] == asked:
            own = own[len(asked) :]
        elif own and own[0]["role"] == "user":
            raise BadRow(f"field {name!r} begins with other messages than field 'prompt'")
        if not own:
            raise BadRow(f"field {name!r} holds no answer")
        sides.append(own)
    shared = 0
    while shared < min(map(len, sides)) - 1 and sides[0][shared] == sides[1][shared]:
        shared += 1
    context = conversation([*systems, *asked, *sides[0][:shared]], answered=False)
    (chosen, *more), (rejected, *others) = (side[shared:] for side in sides)
    if more or others:
        raise BadRow("fields 'chosen' and 'rejected' part before their last messages: a pair is two answers to one "
                     "conversation")  # fmt: skip
    if {chosen["role"], rejected["role"]} != {"assistant"} or "tool_calls" in chosen | rejected:
        raise BadRow("fields 'chosen' and 'rejected' do not end with an answer in words")
    if chosen == rejected:
        raise BadRow("fields 'chosen' and 'rejected' are the same")
    row = row_of("trader_dpo", "preference", place, "", "", None, digest(context))
    return row | {"messages": [*context, chosen], "rejected": whole(rejected)} | tools_of(fields)


def own(fields: dict, place: str, columns: dict[str, str]) -> dict:
    """Your own rows (`formats.own`), whose question, and then also the answer, may be a list of messages."""
    question, name = columns.get("question", "question"), formats.gold_column(columns)
    if not isinstance(fields.get(question), list):
        return formats.own(fields, place, columns)
    *before, asked, said = conversation([*messages_of(fields, question), *_side(fields, name)])
    row = formats.own(fields | {question: asked["content"], name: said["content"]}, place, columns)
    last = [mine | plain for mine, plain in zip((asked, said), row["messages"], strict=True)]
    last[0]["role"] = asked["role"]
    return row | {"messages": [*before, *last]} | tools_of(fields)


def with_rejected(row: dict) -> dict:
    """A pair's row with its rejected answer in the place of the chosen one."""
    return row | {"messages": [*row["messages"][:-1], answer(row["rejected"])]}


# --- what is learnt -------------------------------------------------------------------------------
def answer(text: str) -> dict:
    """An answer as a message; the thinking that it begins with stands apart."""
    message, thought = {"role": "assistant", "content": text.strip()}, THOUGHT.match(text.lstrip())
    if thought:
        message["content"] = thought[2].strip()
        if thought[1].strip():
            message["reasoning_content"] = thought[1].strip()
    return message


def whole(message: dict) -> str:
    """An answer's text with its thinking before it; an empty one stands there too."""
    if "reasoning_content" not in message:
        return message["content"]
    lines = ["<think>", *filter(None, [message["reasoning_content"]]), "</think>", "", message["content"]]
    return "\n".join(lines)


def as_context(messages: Iterable[dict]) -> list[dict]:
    """The messages, none of which is learnt."""
    return [message | {"learn": False} if message["role"] == "assistant" else message for message in messages]


def settled(row: dict, learn: str, thinking: str) -> dict:
    """The row as it is learnt. `learn`: of its answers all, or the last. `thinking`: all is kept, none ("drop"), or
    what comes after the user's last message ("last"); an answer that lost its thinking so is context."""
    messages, plain = [dict(message) for message in row["messages"]], dict(row)
    asked = max((place for place, message in enumerate(messages) if message["role"] == "user"), default=0)
    for place, message in enumerate(messages):
        if "reasoning_content" not in message or thinking == "keep":
            continue
        if thinking == "drop" or place < asked:
            del message["reasoning_content"]
        if thinking == "last" and place < asked:
            message["learn"] = False
    if thinking == "drop" and "rejected" in row:
        plain["rejected"] = answer(row["rejected"])["content"]
    if learn == "last":
        for message in list(filter(is_learnt, messages))[:-1]:
            message["learn"] = False
    return plain | {"messages": messages}


def is_learnt(message: dict) -> bool:
    """Is it an answer, and one that may be learnt?"""
    return message["role"] == "assistant" and message.get("learn", True)


def learnt_texts(row: dict) -> list[str]:
    """The texts of the answers that are learnt."""
    return [message["content"] for message in row["messages"] if is_learnt(message)]


def counted(rows: Iterable[dict]) -> dict[str, int]:
    """Answers in the rows, and how many of them are learnt, hold thinking, or call a tool."""
    answers = [message for row in rows for message in row["messages"] if message["role"] == "assistant"]
    return {
        "answers": len(answers), "learnt": sum(map(is_learnt, answers)),
        "with thinking": sum("reasoning_content" in message for message in answers),
        "calling a tool": sum("tool_calls" in message for message in answers),
    }  # fmt: skip


# --- conversations --------------------------------------------------------------------------------
def conversation(messages: list[dict], answered: bool = True) -> list[dict]:
    """The messages in their order: one system text at most, something asked, and an answer at the end that is learnt
    (unless `answered` is false: then a question, and none is)."""
    opening = list(takewhile(_is_system, messages))
    texts = list(dict.fromkeys(message["content"] for message in opening if message["content"]))
    if len(texts) > 1:
        raise BadRow("it begins with two different system texts")
    messages = [{"role": "system", "content": text} for text in texts] + messages[len(opening) :]
    roles = [message["role"] for message in messages]
    if "user" not in roles or (roles[-1] == "assistant") != answered:
        wanted = "an answer" if answered else "what it answers"
        raise BadRow(f"the conversation has no user's message, or does not end with {wanted}")
    if not answered:
        return as_context(messages)
    first = roles.index("user")  # a greeting before it answers nothing
    messages = as_context(messages[:first]) + messages[first:]
    if not any(map(is_learnt, messages)):
        raise BadRow("none of its answers is to be learnt (weight 0, train false)")
    return messages


def tools_of(fields: dict) -> dict:
    """{"tools"}, the functions that may be called, as OpenAI and chat templates describe them; or {}."""
    tools = _json(fields.get("tools") or fields.get("functions"), "tools")
    if not tools:
        return {}
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRow("field 'tools' is no list of functions")
    tools = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
    if not all(isinstance(tool["function"], dict) and tool["function"].get("name") for tool in tools):
        raise BadRow("field 'tools' has a function without a name")
    return {"tools": tools}


def messages_of(fields: dict, name: str) -> list[dict]:
    """A field's list of messages, in either form."""
    records = fields.get(name)
    if not isinstance(records, list) or not records:
        raise BadRow(f"field {name!r} is missing, empty or no list")
    return [_message(record, name) for record in records]


def _talk(fields: dict, pair: bool = False) -> list[dict]:
    """The messages of whichever form the record has; of a pair, those before its answers, which may be none."""
    lists = [name for name in ("messages", "conversations", "conversation") if name in fields]
    if lists and not (pair and fields.get("prompt")):  # a published pair has its chosen conversation there, too
        return messages_of(fields, lists[0])
    for name, then in (("prompt", "completion"), ("instruction", "output"), ("question", "answer")):
        if fields.get(name) is None:
            continue
        if isinstance(fields[name], list):
            asked = messages_of(fields, name)
        else:
            question = joined(text_of(fields, name), text_of(fields, "input", needed=False))
            asked = [*_history(fields), {"role": "user", "content": question}]
        return asked if pair else [*asked, *_side(fields, then)]
    if pair:
        return []
    raise BadRow("it has none of: messages; conversations; prompt and completion; instruction and output")


def _history(fields: dict) -> list[dict]:
    """Alpaca's earlier turns: pairs of a question and its answer."""
    history, messages = fields.get("history") or [], []
    for turn in history if isinstance(history, list) else [None]:
        if not isinstance(turn, list) or len(turn) != 2:
            raise BadRow("field 'history' is no list of pairs, a question and its answer")
        messages += [_message({"role": role, "content": text}, "history") for role, text in
                     zip(("user", "assistant"), turn)]  # fmt: skip
    return messages


def _is_system(message: dict) -> bool:
    return message["role"] == "system"


def _system(fields: dict) -> list[dict]:
    text = text_of(fields, "system", needed=False)
    return [{"role": "system", "content": text}] if text else []


def _side(fields: dict, name: str) -> list[dict]:
    """An answer, perhaps with messages before it: a text, a message, a list of messages, or a transcript."""
    value = fields.get(name)
    if isinstance(value, dict):
        return [_message(value, name)]
    if isinstance(value, list):
        return messages_of(fields, name)
    text = text_of(fields, name)
    blank, *parts = TRANSCRIPT.split(text)
    if len(parts) > 2 and not blank.strip():
        said = zip(parts[::2], parts[1::2])
        return [
            _message({"role": {"Human": "user"}.get(who, "assistant"), "content": text}, name) for who, text in said
        ]
    return [answer(text)]


# --- a message ------------------------------------------------------------------------------------
def _message(record, field: str) -> dict:
    if not isinstance(record, dict):
        raise BadRow(f"field {field!r} holds something that is no message")
    said = record.get("role", record.get("from"))
    if not isinstance(said, str) or said not in ROLES:
        raise BadRow(f"field {field!r} has the role {str(said)[:40]!r}; known are {', '.join(ROLES)}")
    role, name = ROLES[said], "content" if "content" in record else "value"
    text, thinking = _content(record, name)
    message = {"role": role, "content": text}
    if said == "function_call":
        message |= {"content": "", "tool_calls": _calls(text, field)}
    elif calls := record.get("tool_calls") or record.get("function_call"):
        message["tool_calls"] = _calls(calls, field)
    if role == "assistant":
        message |= _thinking(record, message["content"], thinking, field)
        if not _may_be_learnt(record, field):
            message["learn"] = False
    elif any(record.get(name) is True for name in LEARNT):
        raise BadRow(f"field {field!r} would have a message of {said!r} learnt; only answers are")
    if not message["content"] and role not in ("system", "tool") and "tool_calls" not in message:
        raise BadRow(f"field {field!r} has a message of {said!r} whose {name!r} is missing, empty or no text")
    for key in ("name", "tool_call_id"):
        if record.get(key):
            message[key] = text_of(record, key)
    return message


def _content(record: dict, name: str) -> tuple[str, str]:
    """(text, thinking) of a message's content, which may be a list of parts."""
    value = record.get(name)
    if isinstance(value, dict) and record.get("from"):  # a call that is no text
        return json.dumps(value), ""
    if not isinstance(value, list):
        return text_of({name: value}, name, needed=False), ""
    texts, thinking = [], []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in TEXT_PARTS:
            texts.append(text_of(part, "text", needed=False))
        elif kind == "thinking":
            thinking.append(text_of(part, "thinking"))
        else:
            raise BadRow(f"field {name!r} has a part of type {str(kind)[:40]!r}; only text can be learnt")
    return "".join(texts), "\n".join(thinking)


def _thinking(record: dict, text: str, thinking: str, field: str) -> dict:
    """{"content", and "reasoning_content" where there is thinking}: in a field, a part, or before the text."""
    message = answer(text)
    found = [
        thinking,
        *(text_of(record, name, needed=False) for name in THINKING),
        message.pop("reasoning_content", ""),
    ]
    found = list(dict.fromkeys(filter(None, found)))
    if len(found) > 1 or "<think>" in message["content"]:
        raise BadRow(f"field {field!r} has an answer whose thinking is there twice, or does not end")
    return {"content": message["content"]} | ({"reasoning_content": found[0]} if found else {})


def _may_be_learnt(record: dict, field: str) -> bool:
    for name in LEARNT:
        if record.get(name) not in (None, 0, 1):
            raise BadRow(f"field {field!r} has a message with {name} = {str(record[name])[:40]!r}; known are 0 and 1, "
                         f"false and true")  # fmt: skip
    return all(record.get(name) in (None, 1) for name in LEARNT)


def _calls(calls, field: str) -> list[dict]:
    """Calls of functions, each with its arguments as an object, as chat templates want them."""
    calls = _json(calls, field)
    plain = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, dict) else {}
        name = function.get("name") if isinstance(function, dict) else None
        arguments = _json(function.get("arguments") or {}, field) if name else None
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise BadRow(f"field {field!r} has a call of a tool without a name, or whose arguments are no object")
        made = {"type": "function", "function": {"name": name, "arguments": arguments}}
        plain.append(made | ({"id": call["id"]} if call.get("id") else {}))
    return plain


def _json(value, field: str):
    """A value that may be written as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError) as error:
        raise BadRow(f"field {field!r} is not JSON: {str(error)[:100]}") from None
