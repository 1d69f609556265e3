"""Preference training: pairs of a chosen and a rejected answer, and TRL's DPOTrainer on them."""

# ruff: noqa: E402  (Unsloth must be imported before what it patches)

from statistics import fmean

# isort: off
from unsloth import FastLanguageModel  # first: it patches the others

# isort: on
from datasets import Dataset
from trl import DPOTrainer
from trl.trainer.utils import use_adapter

from lib.data import chat, chats
from lib.grade import stats
from lib.judge import evaluate
from lib.run.memory import TrainingError
from lib.run.settings import TrainSettings
from lib.train import resume


def encode(rows: list[dict], tokenizer, max_length: int) -> tuple[Dataset, list[str]]:
    """(tokenised pairs, ids of the pairs left out because a row is longer than `max_length` tokens).

    TRL's collator reads prompt_ids, chosen_ids and rejected_ids; `input_ids` and `labels` are both whole
    rows, one after the other, by which lengths and supervised tokens are counted."""
    bare = [row["id"] for row in rows if not row.get("rejected")]
    if bare:
        raise TrainingError(f"{len(bare)} of {len(rows)} rows have no rejected answer, such as {bare[0]}: "
                            f"trainer = 'dpo' needs source = 'trader_dpo', whose rows have")  # fmt: skip
    kept, left_out = [], []
    for row in rows:
        encoded = chat.encode(row, tokenizer), chat.encode(chats.with_rejected(row), tokenizer)
        chosen, rejected = (answer["input_ids"] for answer in encoded)
        if max(len(chosen), len(rejected)) > max_length:
            left_out.append(row["id"])
            continue
        labels = encoded[0]["labels"] + encoded[1]["labels"]
        prompt = encoded[0]["labels"].count(chat.IGNORED)
        kept.append({
            "id": row["id"], "prompt_ids": chosen[:prompt], "chosen_ids": chosen[prompt:],
            "rejected_ids": rejected[prompt:], "input_ids": chosen + rejected, "labels": labels,
        })  # fmt: skip
    if rows and not kept:
        raise TrainingError(f"no pair of {len(rows)} fits max_length = {max_length} tokens: raise it")
    return Dataset.from_list(kept), left_out


def answers(pair: dict) -> list[dict]:
    """The pair's two whole rows, the chosen first, as `chat.encode` gives them."""
    prompt, ignored = pair["prompt_ids"], [chat.IGNORED] * len(pair["prompt_ids"])
    sides = pair["chosen_ids"], pair["rejected_ids"]
    return [{"input_ids": prompt + answer, "labels": ignored + answer} for answer in sides]


class PairTrainer(DPOTrainer):
    """TRL's trainer on pairs that `encode` made.

    The reference needs no second model: it is the base, for which the adapter is switched off. Of an
    earlier run's adapter that goes on TRL keeps a frozen copy beside it, named "ref". TRL makes that copy
    of a fresh adapter too, which changes nothing yet: it is let go."""

    def __init__(self, model, **arguments):
        super().__init__(model=model, **arguments)
        assert "ref" in model.peft_config, "Unsloth drops this copy of other trainers, for a wrong one"
        grown = [w for name, w in model.named_parameters() if "lora_B.default" in name and w.any()]
        if not grown:
            model.delete_adapter("ref")
        for weight in model.parameters():
            if weight.requires_grad:  # TRL rounded it to bf16, in which DPO's steps are lost
                weight.data = weight.data.float()
        resume.save_one_adapter(model)

    def _prepare_dataset(self, dataset, *_):
        return dataset  # TRL would tokenise anew, with a line after the end token, and cut long answers


def rewards(model, tokenizer, rows: list[dict], settings: TrainSettings) -> list[dict]:
    """{"chosen", "rejected"} of each pair: by how much likelier than the reference the model finds that
    answer, in nats times beta (Rafailov 2023, equation 5)."""
    FastLanguageModel.for_inference(model)
    reference, by_side = "ref" if "ref" in model.peft_config else None, []
    for answered in (rows, [chats.with_rejected(row) for row in rows]):
        now = evaluate.losses(model, tokenizer, answered, settings, "train")
        with use_adapter(model, reference):
            before = evaluate.losses(model, tokenizer, answered, settings, "train")
        by_side.append([settings.dpo.beta * (b["loss"] - n["loss"]) for b, n in zip(before, now)])
    return [{"chosen": chosen, "rejected": rejected} for chosen, rejected in zip(*by_side)]


def held_out(model, tokenizer, rows: list[dict], settings: TrainSettings) -> dict:
    """The share of pairs whose chosen answer has the higher reward, with its 95 % Wilson interval, and the
    mean margin. Counted by pairs, where TRL's line of held-out accuracy is a mean over batches."""
    pairs = rewards(model, tokenizer, rows, settings)
    margins = [pair["chosen"] - pair["rejected"] for pair in pairs]
    share = stats.wilson(sum(margin > 0 for margin in margins), len(margins))
    return {
        "preference_accuracy": share.estimate, "preference_low": share.low,
        "preference_high": share.high, "preference_pairs": share.n, "reward_margin": fmean(margins),
    }  # fmt: skip


def headline(metrics: dict, note: str = "") -> dict[str, str]:
    """What `held_out` measured, in words for the run's summary; empty where nothing was held out."""
    if "preference_accuracy" not in metrics:
        return {}
    text = ("chosen answer ahead in {preference_accuracy:.1%} ({preference_low:.1%} to {preference_high:.1%}) "
            "of {preference_pairs}, reward margin {reward_margin:.3g}")  # fmt: skip
    return {f"held-out pairs{note}": text.format(**metrics)}
