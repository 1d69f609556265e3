"""The plain and the fast GPT are one model, and transformers' Llama is a third that agrees."""

from dataclasses import replace

import pytest
import torch

from lib.gpt.fast import FastGPT
from lib.gpt.plain import GPT, SIZES, Config, llama

SMALL = Config(300, 64, 128, 3, 4, 2, 96)


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    plain, fast = GPT(SMALL), FastGPT(SMALL)
    fast.load_state_dict(plain.state_dict())
    return plain.eval(), fast.eval()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(4, SMALL.vocab_size, (2, 65), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [SMALL, SIZES["tiny"], replace(SMALL, num_key_value_heads=4, rope_theta=500_000.0)])
def test_plain_fast_and_transformers_llama_give_the_same_logits(size):
    torch.manual_seed(3)
    plain, fast = GPT(size), FastGPT(size)
    fast.load_state_dict(plain.state_dict())
    ids = torch.randint(4, size.vocab_size, (2, 60))
    with torch.no_grad():
        wanted = llama(plain).eval()(ids).logits  # (B, T, V)
        for model in (plain, fast):
            assert (model(ids) - wanted).abs().max() <= 1e-4


def test_the_sizes_are_what_they_are_called():
    counts = {name: sum(p.numel() for p in FastGPT(config).parameters()) for name, config in SIZES.items()}
    assert 3_000_000 <= counts["base"] == counts["tiny"] <= 5_000_000
    assert 120_000_000 <= counts["medium"] <= 128_000_000
    small = SIZES["small"]
    assert (small.num_hidden_layers, small.num_attention_heads, small.hidden_size) == (6, 8, 512)


@pytest.mark.parametrize("which", [0, 1])
def test_a_token_sees_only_what_precedes_it(pair, ids, which):
    model, changed = pair[which], ids.clone()
    changed[:, 40:] = 7
    with torch.no_grad():
        assert torch.equal(model(ids)[:, :40], model(changed)[:, :40])
        assert not torch.allclose(model(ids)[:, 40:], model(changed)[:, 40:])


@pytest.mark.parametrize("which", [0, 1])
def test_a_document_does_not_see_its_neighbour(pair, ids, which):
    model = pair[which]
    documents = (torch.arange(65) >= 30).long().expand(2, 65)  # two documents in a row
    with torch.no_grad():
        packed = model(ids, documents)
        alone = model(ids[:, 30:])
    # Rotary positions are relative: the second document reads the same wherever it stands.
    assert (packed[:, 30:] - alone).abs().max() <= 1e-4


def test_both_losses_are_the_weighted_mean_over_the_next_tokens(pair, ids):
    weights = torch.rand(2, 65, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logs = pair[0](ids[:, :-1]).log_softmax(-1)  # (B, T, V)
        total = sum(-float(logs[b, t, ids[b, t + 1]] * weights[b, t + 1]) for b in range(2) for t in range(64))
        for model in pair:
            assert float(model.loss(ids, weights)) == pytest.approx(total / float(weights[:, 1:].sum()), rel=1e-4)


def test_both_have_the_same_gradients(pair, ids):
    documents = (torch.arange(65) >= 30).long().expand(2, 65)
    for model in pair:
        model.zero_grad()
        model.loss(ids, torch.ones(2, 65), documents).backward()
    for (name, plain), fast in zip(pair[0].named_parameters(), pair[1].parameters()):
        assert torch.allclose(plain.grad, fast.grad, atol=1e-5), name


def test_recomputed_layers_change_no_gradient(pair, ids):
    other = FastGPT(SMALL, checkpointing=True)
    other.load_state_dict(pair[1].state_dict())
    found = []
    for model in (pair[1], other.train()):
        model.zero_grad()
        model.loss(ids, torch.ones(2, 65)).backward()
        found.append([p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found))


def test_the_cache_changes_nothing_that_is_generated(pair, ids):
    plain, fast = (model.generate(ids[:, :9], 20) for model in pair)
    assert torch.equal(plain, fast) and plain.shape == (2, 29)
    assert torch.equal(plain[:, :9], ids[:, :9])
    with torch.no_grad():
        assert torch.equal(pair[0](plain[:, :-1])[:, -1].argmax(-1), plain[:, -1])


def test_its_own_attention_spelt_out_for_the_compiler_equals_the_library_call(pair, ids, monkeypatch):
    documents = (torch.arange(65) >= 30).long().expand(2, 65)
    with torch.no_grad():
        called = pair[1](ids, documents)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        spelt = pair[1](ids, documents)
    assert (called - spelt).abs().max() <= 1e-5
