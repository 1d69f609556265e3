"""What a CPU trains by against torch's and PEFT's own layers. Importing Unsloth takes seconds."""

from types import SimpleNamespace

import pytest

from lib.data import chats, tasks
from lib.run import presets
from tests.train import shown

pytestmark = pytest.mark.slow
EXACT = {"rtol": 1e-3, "atol": 1e-6}  # of gradients in single precision


@pytest.fixture(scope="module")
def layers(qlora):
    from lib.train import layers

    return layers


def unlogged(step, **metrics):
    pass


def heads(rows=3, tokens=7, keys=7):
    """(query, key, value) of 4 heads in 2 groups, and a module as transformers hands it over."""
    import torch

    torch.manual_seed(0)
    tensors = [torch.randn(rows, count, length, 8, requires_grad=True)
               for count, length in ((4, tokens), (2, keys), (2, keys))]  # fmt: skip
    return tensors, SimpleNamespace(training=True, num_key_value_groups=2, is_causal=True)


@pytest.mark.parametrize("kept", [0, 2**25])
@pytest.mark.parametrize("masked", ["padding", "prefix", None])
def test_products_give_the_kernels_values_and_gradients(layers, monkeypatch, masked, kept):
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    monkeypatch.setattr(layers, "KEPT", kept)
    tensors, module = heads(keys=9 if masked == "prefix" else 7)
    mask = None
    if masked:
        mask = torch.ones(3, 1, 7, tensors[1].shape[2], dtype=torch.bool).tril(tensors[1].shape[2] - 7)
        mask[1, :, :, 5:] = False
    found = []
    for function in (layers.attend, sdpa_attention_forward):
        output, _ = function(module, *tensors, mask, scaling=0.3)
        found.append([output, *torch.autograd.grad(output.square().sum(), tensors)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("training", "longest", "own"), [(True, 7, True), (True, 6, False), (False, 7, False)])
def test_the_kernel_stays_where_rows_are_long_and_where_nothing_is_trained(
    layers, monkeypatch, training, longest, own
):
    monkeypatch.setattr(layers, "LONGEST", longest)
    monkeypatch.setattr(layers, "sdpa_attention_forward", lambda *_, **__: "the kernel")
    tensors, module = heads()
    module.training = training
    assert (layers.attend(module, *tensors, None, scaling=0.3) != "the kernel") == own


def small(family, layers=None):
    """A model of two layers of that family as transformers makes it, or by `layers` with what training uses."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        family, vocab_size=64, hidden_size=32, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, attn_implementation="sdpa", dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).train()
    if layers:
        layers.use(model)
    return model


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma2"])
def test_a_familys_layers_give_its_numbers_and_keep_less(layers, monkeypatch, family):
    """In 16 bit the same logits, to the bit; a family with another formula keeps its own norms and MLPs."""
    import torch

    monkeypatch.setattr(layers, "KEPT", 0)
    ids, found, kept = torch.arange(40).view(2, 20), [], []

    def keep(tensor):
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in weights:
            kept[-1][memory.data_ptr()] = memory.nbytes()
        return tensor

    for use in (None, layers):
        model = small(family, use)
        weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        kept.append({})
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            states = model(ids).logits
        states.float().square().sum().backward()
        gradients = {name: weight.grad for name, weight in model.named_parameters()}
        with torch.no_grad():
            found.append((model.eval()(ids).logits, gradients))
    (plain, theirs), (quick, ours) = found
    assert torch.equal(plain, quick)
    for name in theirs:
        apart = (ours[name].float() - theirs[name].float()).norm() / theirs[name].float().norm()
        assert apart < 0.05, name
    bytes_kept = [sum(memory.values()) for memory in kept]
    if family != "gemma2":
        assert bytes_kept[1] < 0.75 * bytes_kept[0]


@pytest.mark.parametrize("trainer", ["sft", "dpo", "all weights"])
def test_a_trainers_loss_and_gradients_are_those_of_the_kernel(qlora, layers, monkeypatch, tmp_path, trainer):
    """In single precision; of an adapter (SFT, DPO) and of all weights."""
    import torch

    from lib.train import preference

    class Gradients(qlora.TrainerCallback):
        def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
            self.lengths = {batch["input_ids"].shape[1] for batch in train_dataloader}

        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
            self.found = {name: weight.grad.clone() for name, weight in trained}

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.loss = logs.get("loss") or self.loss

    changes = {"trainer": "sft", "max_steps": 1, "per_device_train_batch_size": 4, "logging_steps": 1,
               "warmup_steps": 0, "eval_steps": None, "load_in_4bit": False, "r": 4, "lora_alpha": 8}  # fmt: skip
    if trainer == "dpo":
        pairs = [{"prompt": "Is it worth " + "7 " * n + "?", "chosen": "It is not.", "rejected": "7"} for n in range(4)]
        rows = [chats.trader_dpo(pair, f"pairs.jsonl:{n}") for n, pair in enumerate(pairs)]
        changes |= {"trainer": "dpo", "source": "trader_dpo", "data_dir": str(tmp_path), "kinds": None}
    else:
        rows = [problem.row() for problem in tasks.generate("train", 4, 0)]
        changes |= {"full_finetuning": trainer == "all weights"}
    settings = presets.resolve("demo", changes).settings
    encode = preference.encode if trainer == "dpo" else qlora.encode
    found, called, products = [], [], layers.products
    monkeypatch.setattr(layers, "products", lambda *tensors: called.append(len(found)) or products(*tensors))
    for use in (lambda model, **_: None, layers.use):
        monkeypatch.setattr(layers, "use", use)
        model, tokenizer = qlora.load(settings, dtype=torch.float32)
        model = qlora.attach(model, settings)
        for name, weight in model.named_parameters():  # B begins at zero, and then A has no gradient
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.02)
        gradients = Gradients()
        encoded, _ = encode(rows, tokenizer, settings.max_length)
        shown.train(model, tokenizer, encoded, None, settings, tmp_path, unlogged, [gradients], bf16=False)
        found.append((gradients.loss, gradients.found))
        assert not any(length % qlora.PADDED for length in gradients.lengths), "a CPU compiles for each length"
    assert set(called) == {1}, "the second time alone"
    (loss, plain), (ours, quick) = found
    assert ours == pytest.approx(loss, rel=1e-5)
    assert plain.keys() == quick.keys() and any(gradient.any() for gradient in plain.values())
    for name in plain:
        torch.testing.assert_close(quick[name], plain[name], **EXACT)
