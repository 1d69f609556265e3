"""The prompt format, with the embedded tokenizer: what is asked, what is learnt, and what is refused."""

import copy
import shutil
from types import SimpleNamespace

import pytest

from lib.data import chat, tasks
from lib.run.paths import ROOT
from lib.run.settings import SettingsError


@pytest.fixture(scope="module")
def rows():
    return [problem.row() for split in ("train", "test") for problem in tasks.generate(split, 150, 11)]


def with_template(tokenizer, template):
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def conversation(*texts, id="row-7"):
    roles = ("user", "assistant")
    return {"id": id, "messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]}


# --- 300 rows of tasks ------------------------------------------------------------------------------------------------
def test_every_prompt_is_the_beginning_of_its_row(tokenizer, rows):
    assert len(rows) == 300
    for row in rows:
        prompt, whole = chat.prompt_ids(row["messages"], tokenizer), chat.encode(row, tokenizer)["input_ids"]
        assert whole[: len(prompt)] == prompt and len(whole) > len(prompt)
        assert chat.prompt_ids(row["messages"][:-1], tokenizer) == prompt  # with or without the answer at hand


def test_the_learnt_text_is_the_answer_and_the_end_token(tokenizer, rows):
    for row in rows:
        encoded = chat.encode(row, tokenizer)
        assert chat.supervised_text(encoded, tokenizer) == row["messages"][-1]["content"] + tokenizer.eos_token
        assert encoded["labels"][-1] == encoded["input_ids"][-1] == tokenizer.eos_token_id
        learnt = [label != chat.IGNORED for label in encoded["labels"]]
        assert learnt == sorted(learnt)  # one stretch, at the end
        assert all(b in (a, chat.IGNORED) for a, b in zip(encoded["input_ids"], encoded["labels"], strict=True))


def test_the_templates_generation_marks_say_the_same(tokenizer, rows):
    for row in rows:
        encoded = chat.encode(row, tokenizer)
        marked = tokenizer.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
        labels = [i if learnt else chat.IGNORED for i, learnt in zip(marked["input_ids"], marked["assistant_masks"])]
        assert (marked["input_ids"], labels) == (encoded["input_ids"], encoded["labels"])


def test_padding_is_not_the_end_token(tokenizer):
    special = tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id
    assert None not in special and len(set(special)) == 4
    assert chat.end_ids(tokenizer) == [tokenizer.eos_token_id]


def test_the_embedded_template_is_the_codes_own(tokenizer):
    assert tokenizer.chat_template == chat.TEMPLATE


# --- other conversations ----------------------------------------------------------------------------------------------
def test_what_follows_the_end_token_in_a_template_is_not_learnt(tokenizer):
    trailing = with_template(tokenizer, chat.TEMPLATE.replace("{{ eos_token }}", "{{ eos_token }}\n"))
    encoded = chat.encode(conversation("Two?", "It is 2."), trailing)
    assert encoded == chat.encode(conversation("Two?", "It is 2."), tokenizer)


def test_a_prompt_that_is_tokenised_differently_alone_is_refused(tokenizer):
    """The prompt's text begins the row's text, but its last letters join the answer's first ones in a token."""
    end = "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}" + end + "{% endfor %}"
    glued = with_template(tokenizer, template)
    assert chat.supervised_text(chat.encode(conversation("What is the price?", "#### 5"), glued), glued) == "#### 5</s>"
    with pytest.raises(chat.EncodingError, match="row row-7: its prompt's tokens are not the beginning"):
        chat.encode(conversation("What is the pri", "ce is $5"), glued)


def test_a_template_without_an_end_token_is_refused(tokenizer):
    endless = with_template(tokenizer, chat.TEMPLATE.replace("{{ eos_token }}", ""))
    with pytest.raises(chat.EncodingError, match="row row-7: .* closes the answer with '5', not .*'</s>'"):
        chat.encode(conversation("How much?", "$5"), endless)


def test_an_answer_without_tokens_is_refused(tokenizer):
    silent = with_template(tokenizer, "{{ bos_token }}{{ messages[0]['content'] }}<|assistant|>")
    with pytest.raises(chat.EncodingError, match="row row-7: its answer has no tokens"):
        chat.encode(conversation("How much?", "$5"), silent)


def test_a_base_without_a_template_is_refused_with_the_remedy(tmp_path, tokenizer):
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(f"{ROOT}/data/base/{name}", tmp_path)
    settings = SimpleNamespace(base_model=str(tmp_path), chat_template=None, template_date="2026-01-01")
    with pytest.raises(SettingsError, match="has no chat template: set chat_template, e.g. 'llama-3'"):
        chat.load_tokenizer(settings)
    (tmp_path / "chat_template.jinja").write_text(chat.TEMPLATE)
    assert chat.load_tokenizer(settings).chat_template == tokenizer.chat_template


def test_a_template_that_prints_the_date_prints_the_settings_own(tokenizer):
    print_date = "Today is {{ strftime_now('%d %b %Y') }}."
    template = "{% if strftime_now is defined %}" + print_date + "{% endif %}" + chat.TEMPLATE
    dated = with_template(tokenizer, chat.dated(template, "2024-07-26"))
    ids = chat.encode(conversation("Two?", "It is 2."), dated)["input_ids"]
    assert "Today is 26 Jul 2024." in tokenizer.decode(ids)
    assert chat.dated(chat.TEMPLATE, "2024-07-26") == chat.TEMPLATE
    with pytest.raises(SettingsError, match="cannot be held still: set another"):
        chat.dated("{{ strftime_now(format) }}", "2024-07-26")


# --- what the notebook shows ------------------------------------------------------------------------------------------
def test_the_shown_mask_escapes_html_and_counts_the_learnt_tokens(tokenizer):
    encoded = chat.encode(conversation("Is <b>1</b> & 2 <script>?", "<<1+1=2>>\n#### 2"), tokenizer)
    shown = chat.show_mask(encoded, tokenizer).data
    assert "<script>" not in shown and "<b>" not in shown and "<<" not in shown
    assert "&lt;b&gt;1&lt;/b&gt; &amp; 2 &lt;script&gt;?" in shown
    assert "&lt;&lt;1+1=2&gt;&gt;\n#### 2&lt;/s&gt;" in shown
    learnt = len(tokenizer.encode("<<1+1=2>>\n#### 2", add_special_tokens=False)) + 1
    assert f"{learnt} of {len(encoded['input_ids'])} tokens are learnt" in shown
