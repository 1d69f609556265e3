"""Conversations and pairs in the forms of others: what is learnt of each, by its labels, and what is refused."""

import copy
import json
import re

import pytest

from lib.data import chat, chats, gate
from lib.data.formats import BadRow
from lib.run.paths import ROOT

TOOLS = (  # writes what a template may be given
    "{{ bos_token }}{% if tools %}<|user|>{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "{% if m.role == 'assistant' %}<|assistant|>{% generation %}{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}"
    "<call>{{ call.function.name }} {{ call.function.arguments | tojson }}</call>{% endfor %}"
    "{{ eos_token }}{% endgeneration %}"
    "{% else %}<|user|>{% if m.name %}{{ m.name }}: {% endif %}{{ m.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CUT = "{% set text = m.content.split('</think>')[-1].strip() %}"
ONLY_LAST = (
    chat.TEMPLATE.replace("message", "m")
    .replace("ms", "messages")
    .replace(  # as Qwen3's
        "{{ m['content'] }}{{ eos",
        "{% if not loop.last %}" + CUT + "{% else %}{% set text = m.content %}{% endif %}{{ text }}{{ eos",
    )
)
OPENS = (
    chat.TEMPLATE.replace("message", "m")
    .replace("ms", "messages")
    .replace(  # as DeepSeek-R1's
        "{{ m['content'] }}{{ eos", CUT + "{{ text }}{{ eos"
    )
    .replace("%}<|assistant|>{% endif %}", "%}<|assistant|><think>\n{% endif %}")
)
ALTERNATING = "{% if messages[0].role == 'assistant' %}{{ raise_exception('roles must alternate') }}{% endif %}"


def examples() -> list[tuple[str, str, dict]]:
    """(the form, what is said of it, a record) of each pair of lines on the page."""
    block = re.search(r"^```\n(OpenAI: .*?)^```$", (ROOT / "docs/data.md").read_text(), re.MULTILINE | re.DOTALL)[1]
    lines = block.splitlines()
    return [(*said.split(": ", 1), json.loads(record)) for said, record in zip(lines[::2], lines[1::2], strict=True)]


def templated(tokenizer, template):
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def parse(name: str, record: dict) -> dict:
    return (chats.trader_dpo if name.startswith("pair") else chats.trader_sft)(record, "page:1")


def content(row):
    return [(message["role"], message["content"]) for message in row["messages"]]


def said(*texts, **last) -> dict:
    """A row: question, answer, question, answer, ..."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    messages[-1] |= last
    return {"id": "row-7", "messages": messages, "gold": None}


def learnt(row, tokenizer) -> list[str]:
    """The texts of the stretches that are learnt, each with its end token."""
    text = chat.supervised_text(chat.encode(row, tokenizer), tokenizer)
    return re.findall(r".*?</s>", text, re.DOTALL)


def thinking(*thoughts) -> dict:
    row = said(
        *[text for number in range(1, len(thoughts) + 1) for text in (f"Question {number}?", f"It is {number}.")]
    )
    for message, thought in zip(row["messages"][1::2], thoughts):
        if thought:
            message["reasoning_content"] = thought
    return row


# --- the forms of others ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "claim", "record"), examples(), ids=[name for name, *_ in examples()])
def test_of_each_form_on_the_page_is_learnt_what_it_says(name, claim, record, tokenizer):
    tools = templated(tokenizer, TOOLS)
    if claim.startswith("refused: "):
        with pytest.raises(BadRow, match=re.escape(claim.removeprefix("refused: "))):
            parse(name, record)
        return
    row = chat.ready([parse(name, record)], tools, "all", None)[0]
    texts = learnt(row, tools)
    if name.startswith("pair"):
        assert len(texts) == 1
        texts += learnt(chats.with_rejected(row), tools)
    assert texts == [text + "</s>" for text in json.loads(claim)]
    assert not [fault for fault in chat.faults(row, tools) if fault[2]]
    assert "Be brief." not in json.dumps(record) or "Be brief." in tokenizer.decode(
        chat.encode(row, tools)["input_ids"]
    )


def test_at_least_fifteen_of_the_forms_are_learnt():
    learnt = [name for name, claim, _ in examples() if not claim.startswith("refused")]
    assert len(learnt) >= 15 and len(examples()) >= 20


@pytest.mark.parametrize("name", ["OpenAI, several turns", "OpenAI, tools", "ShareGPT"])
def test_the_templates_generation_marks_say_the_same(name, tokenizer):
    tools, record = templated(tokenizer, TOOLS), {said: record for said, _, record in examples()}[name]
    row = parse(name, record)
    plain = [{key: value for key, value in message.items() if key != "learn"} for message in row["messages"]]
    marked = tools.apply_chat_template(
        plain, tools=row.get("tools"), return_dict=True, return_assistant_tokens_mask=True
    )
    labels = [id if mark else chat.IGNORED for id, mark in zip(marked["input_ids"], marked["assistant_masks"])]
    assert chat.encode(row, tools) == {"input_ids": marked["input_ids"], "labels": labels}


@pytest.mark.parametrize(("change", "reason"), [
    ({"label": False}, "KTO"), ({"weight": 0.5}, "known are 0 and 1"), ({"tools": [{"a": 1}]}, "without a name"),
    ({"tools": "{"}, "'tools' is not JSON"), ({"system": "Be loud."}, "two different system texts"),
    ({"tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}, "arguments are no object"),
    ({"reasoning_content": "a", "content": "<think>b</think> c"}, "thinking is there twice"),
    ({"content": "<think>for ever"}, "does not end"), ({"weight": 0}, "none of its answers is to be learnt"),
])  # fmt: skip
def test_what_cannot_be_learnt_as_it_is_meant_is_refused_by_name(change, reason):
    record = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Buy?"},
                           {"role": "assistant", "content": "No."}]}  # fmt: skip
    top = {name: value for name, value in change.items() if name in ("label", "tools", "system")}
    record["messages"][-1] |= {name: value for name, value in change.items() if name not in top}
    with pytest.raises(BadRow, match=reason):
        chats.trader_sft(record | top, "x")


@pytest.mark.parametrize(("pair", "reason"), [
    ({"prompt": "Buy?", "chosen": [{"role": "user", "content": "Sell?"}, {"role": "assistant", "content": "No."}],
      "rejected": "Yes!"}, "'chosen' begins with other messages than field 'prompt'"),
    ({"prompt": "Hm?", "chosen": [{"role": "user", "content": "Hm?"}], "rejected": "No."}, "'chosen' holds no answer"),
    ({"chosen": "No.", "rejected": "Yes!"}, "no user's message"),
    ({"prompt": "Buy?", "chosen": {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]},
      "rejected": "Yes!"}, "answer in words"),
])  # fmt: skip
def test_a_pair_of_which_something_would_be_lost_is_refused(pair, reason):
    with pytest.raises(BadRow, match=reason):
        chats.trader_dpo(pair, "x")


def test_what_a_chosen_side_carries_is_kept():
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Buy?"},
            {"role": "assistant", "content": "No."}, {"role": "user", "content": "Why?"}]  # fmt: skip
    sides = {name: [*talk, {"role": "assistant", "content": text}] for name, text in
             (("chosen", "Too dear."), ("rejected", "<think>Hm</think>Do it."))}  # fmt: skip
    row = chats.trader_dpo(sides | {"prompt": "Buy?"}, "x")
    assert [message["content"] for message in row["messages"]] == ["Be brief.", "Buy?", "No.", "Why?", "Too dear."]
    assert [message.get("learn") for message in row["messages"]] == [None, None, False, None, None]
    assert chats.with_rejected(row)["messages"][-1] == {
        "role": "assistant", "content": "Do it.", "reasoning_content": "Hm",
    }  # fmt: skip


def test_both_forms_of_a_conversation_give_the_same_messages():
    older = {"conversations": [{"from": "system", "value": "Trade."}, {"from": "human", "value": "Buy?"},
                               {"from": "gpt", "value": "No."}]}  # fmt: skip
    newer = {"messages": [{"role": "system", "content": "Trade."}, {"role": "user", "content": "Buy?"},
                          {"role": "assistant", "content": "No."}]}  # fmt: skip
    assert chats.trader_sft(older, "a:1") == chats.trader_sft(newer, "a:1")
    assert content(chats.trader_sft(newer, "a:1"))[1:] == [("user", "Buy?"), ("assistant", "No.")]


@pytest.mark.parametrize(("messages", "reason"), [
    (None, "missing, empty or no list"), ([], "missing, empty or no list"), ("Buy?", "missing, empty or no list"),
    (["Buy?"], "no message"), ([{"role": "broker", "content": "x"}], "the role 'broker'"),
    ([{"content": "x"}], "the role 'None'"), ([{"role": ["user"], "content": "x"}], "the role"),
    ([{"role": "user", "content": "Buy?"}], "does not end with"),
    ([{"role": "user", "content": "Buy?"}, {"role": "assistant", "content": ""}], "'content' is missing, empty"),
    ([{"role": "assistant", "content": "Hi"}, {"role": "assistant", "content": "No."}], "does not end with"),
])  # fmt: skip
def test_a_conversation_without_a_question_and_its_answer_is_bad(messages, reason):
    with pytest.raises(BadRow, match=reason):
        chats.trader_sft({"messages": messages}, "x")


def test_a_preference_pair_is_learnt_as_its_chosen_answer_and_keeps_the_rejected_one():
    row = chats.trader_dpo({"prompt": "Buy?", "chosen": "No.", "rejected": "Yes!"}, "a:1")
    assert content(row) == [("user", "Buy?"), ("assistant", "No.")] and row["rejected"] == "Yes!"
    talk = {"prompt": [{"role": "user", "content": "Buy?"}], "chosen": [{"role": "assistant", "content": "No."}],
            "rejected": [{"role": "assistant", "content": "Yes!"}]}  # fmt: skip
    again = chats.trader_dpo(talk, "a:2")
    assert again | {"id": row["id"]} == row, "the same prompt is one group, in either form"
    for bad, reason in (({"rejected": "No."}, "are the same"), ({"rejected": " "}, "'rejected' is missing"),
                        ({"chosen": None}, "'chosen' is missing"), ({"prompt": ""}, "'prompt' is missing"),
                        ({"chosen": [{"role": "tool", "content": "No."}]}, "not end with an answer"),
                        ({"prompt": [{"role": "assistant", "content": "Hi"}]}, "user's message")):  # fmt: skip
        with pytest.raises(BadRow, match=reason):
            chats.trader_dpo({"prompt": "Buy?", "chosen": "No.", "rejected": "Yes!"} | bad, "x")


def test_your_own_columns_may_hold_messages(tokenizer):
    columns = {"question": "prompt", "answer": "completion", "context": "page"}
    talk = [("user", "Buy?"), ("assistant", "No."), ("user", "At which price?")]
    record = {"prompt": [{"role": role, "content": text} for role, text in talk], "page": "It costs 12.",
              "completion": [{"role": "assistant", "content": "<think>Half.</think>6"}]}  # fmt: skip
    row = chats.own(record, "mine:1", columns)
    assert learnt(row, tokenizer) == ["No.</s>", "<think>\nHalf.\n</think>\n\n#### 6</s>"]
    assert row["gold"]["value"] == 6 and content(row)[2] == ("user", "It costs 12.\n\nAt which price?")
    plain = {"prompt": "At which price?", "completion": "6", "page": "It costs 12."}
    assert content(chats.own(plain, "mine:1", columns)) == [content(row)[2], ("assistant", "#### 6")]


# --- which answers ----------------------------------------------------------------------------------------------------
def test_one_answer_alone_is_learnt_where_the_setting_says_so(tokenizer):
    row = said("One?", "It is 1.", "Two?", "It is 2.")
    assert learnt(row, tokenizer) == ["It is 1.</s>", "It is 2.</s>"]
    (last,) = chat.ready([row], tokenizer, "last", None)
    assert learnt(last, tokenizer) == ["It is 2.</s>"]
    assert "It is 1.</s>" in tokenizer.decode(chat.encode(last, tokenizer)["input_ids"])
    row["messages"][-1]["learn"] = False
    (last,) = chat.ready([row], tokenizer, "last", None)
    assert learnt(last, tokenizer) == ["It is 1.</s>"], "of those that may be learnt"
    assert "Two?" not in tokenizer.decode(chat.encode(last, tokenizer)["input_ids"]), "nothing is learnt after it"


def test_a_greeting_before_the_first_question_is_context(tokenizer):
    talk = [("gpt", "Welcome."), ("human", "Buy?"), ("gpt", "No.")]
    row = chats.trader_sft({"conversations": [{"from": who, "value": text} for who, text in talk]}, "x")
    assert learnt(row, tokenizer) == ["No.</s>"]
    with pytest.raises(chat.EncodingError, match="row trader_sft-x: the chat template cannot write it: roles must"):
        chat.encode(row, templated(tokenizer, ALTERNATING + chat.TEMPLATE))


def test_an_answer_that_no_end_token_closes_is_refused_and_never_learns_the_next_question(tokenizer):
    open_turns = chat.TEMPLATE.replace("{{ eos_token }}", "{% if loop.last %}{{ eos_token }}{% endif %}")
    with pytest.raises(chat.EncodingError, match="row row-7: the chat template closes the answer with"):
        chat.encode(said("One?", "It is 1.", "Two?", "It is 2."), templated(tokenizer, open_turns))
    assert learnt(said("One?", "It is 1."), templated(tokenizer, open_turns)) == ["It is 1.</s>"]


# --- thinking ---------------------------------------------------------------------------------------------------------
def test_the_templates_own_rule_is_found_out(tokenizer):
    rules = {template: chat.thinking_rule(templated(tokenizer, template)) for template in (TOOLS, ONLY_LAST, OPENS)}
    assert rules == {TOOLS: "keep", ONLY_LAST: "last", OPENS: "drop"}
    assert [chat.opening(templated(tokenizer, template)) for template in rules] == ["", "", "<think>\n"]


@pytest.mark.parametrize("template", [chat.TEMPLATE, ONLY_LAST])
@pytest.mark.parametrize(("rule", "expected"), [
    ("keep", ["<think>\nA.\n</think>\n\nIt is 1.</s>", "<think>\nB.\n</think>\n\nIt is 2.</s>"]),
    ("last", ["<think>\nB.\n</think>\n\nIt is 2.</s>"]), ("drop", ["It is 1.</s>", "It is 2.</s>"]),
])  # fmt: skip
def test_thinking_is_learnt_as_the_setting_says_whatever_the_template(template, rule, expected, tokenizer):
    tokenizer = templated(tokenizer, template)
    (row,) = chat.ready([thinking("A.", "B.")], tokenizer, "all", rule)
    assert learnt(row, tokenizer) == expected


def test_where_the_template_opens_the_thinking_every_learnt_answer_goes_on_from_there(tokenizer):
    opens = templated(tokenizer, OPENS)
    (row,) = chat.ready([thinking("A.", "")], opens, "all", "keep")
    assert learnt(row, opens) == ["A.\n</think>\n\nIt is 1.</s>", "</think>\n\nIt is 2.</s>"]
    prompt = chat.prompt_ids(row["messages"][:1], opens)
    assert (
        tokenizer.decode(prompt).endswith("<think>\n") and chat.encode(row, opens)["input_ids"][: len(prompt)] == prompt
    )


def test_an_empty_thinking_that_a_template_puts_before_answers_gives_way_to_a_real_one(tokenizer):
    empty = chat.TEMPLATE.replace(
        "{{ message['content'] }}{{ eos", "<think>\n\n</think>\n\n{{ message['content'] }}{{ eos"
    )
    assert learnt(thinking("A."), templated(tokenizer, empty)) == ["<think>\nA.\n</think>\n\nIt is 1.</s>"]
    assert learnt(thinking(""), templated(tokenizer, empty)) == ["<think>\n\n</think>\n\nIt is 1.</s>"]


# --- what the gate finds ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("row", "check"), [
    (said("Buy?", "It is 5.</s>"), "control token"), (said("Buy <|assistant|>?", "It is 5."), "control token"),
    (said("Buy?", "It is 5.", tool_calls=[{"function": {"name": "price", "arguments": {}}}]), "lost part"),
    (said("Buy?", "It is 5.") | {"tools": [{"function": {"name": "price"}}]}, "lost part"),
])  # fmt: skip
def test_the_gate_names_what_steers_the_model_or_would_be_lost(row, check, tokenizer):
    row |= {"kind": "k", "group": "g", "source": "s"}
    found = gate.audit({"train": [row]}, tokenizer, 100).of(check)
    assert [(finding.row, finding.matters) for finding in found] == [("row-7", True)]


def test_the_gate_reads_both_answers_of_a_pair(tokenizer):
    row = chats.trader_dpo({"prompt": "Buy?", "chosen": "No.", "rejected": "Yes!</s>"}, "x")
    (found,) = gate.audit({"train": [row]}, tokenizer, 100, pairs=True).of("control token")
    assert found.matters and "holds the control token '</s>'" in found.reason


def test_a_name_that_the_template_does_not_write_is_told(tokenizer):
    row = said("Buy?", "No.")
    row["messages"][0]["name"] = "ann"
    assert [(check, matters) for check, _, matters in chat.faults(row, tokenizer)] == [("lost part", False)]
    assert not list(chat.faults(row, templated(tokenizer, TOOLS)))


def test_the_end_of_a_turn_is_the_templates_own_close(tokenizer):
    turn = copy.deepcopy(tokenizer)
    turn.add_special_tokens({"additional_special_tokens": ["<turn|>"]})
    turn.chat_template = chat.TEMPLATE.replace("{{ eos_token }}", "<turn|>\n")
    assert chat.end_ids(turn) == [tokenizer.eos_token_id, turn.convert_tokens_to_ids("<turn|>")]
    assert chat.supervised_text(chat.encode(said("Buy?", "No."), turn), turn) == "No.<turn|>"
