"""The training that notebooks 21 and 22 show, for tests: their own cells, so that these are what is tested."""

import json
from pathlib import Path
from types import SimpleNamespace

from lib.run.paths import ROOT


def cell(notebook: str, text: str) -> str:
    """The source of the one code cell that holds a text."""
    cells = json.loads((ROOT / f"notebooks/{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    (source,) = ["".join(c["source"]) for c in cells if c["cell_type"] == "code" and text in "".join(c["source"])]
    return source


def arguments(settings) -> dict:
    """What notebook 22 hands to its workers."""
    from lib.train import fsdp

    names = {"settings": settings, "share": fsdp.share(settings)}
    exec(cell("22_train_fsdp", "hyperparameters = dict("), names)
    return names["hyperparameters"] | {"packing": settings.packing}


def train(model, tokenizer, train_rows, validation_rows, settings, folder: Path, log, callbacks=(), resumed=False,
          **changes) -> dict:  # fmt: skip
    """What notebook 21 does with a model and rows, from the arguments to the metrics; `changes` are SFTConfig's."""
    from lib.train import preference, qlora

    names = {
        "model": model, "tokenizer": tokenizer, "train_rows": train_rows, "validation_rows": validation_rows,
        "settings": settings, "stage": SimpleNamespace(folder=folder, log=log, resumed=resumed), "qlora": qlora,
        "preference": preference, "pairs": settings.trainer == "dpo", "callbacks": list(callbacks),
    }  # fmt: skip
    exec(cell("21_train_qlora", "hyperparameters = dict("), names)
    names["hyperparameters"] |= changes
    exec(cell("21_train_qlora", "SFTConfig("), names)
    exec(cell("21_train_qlora", "qlora.fit("), names)
    return names["metrics"]


def rewarded(settings, rows, folder: Path, earlier: Path | None = None, callbacks=()):
    """The trainer that notebook 23 makes for GRPO, not yet trained."""
    from lib.data import chat
    from lib.train import grpo, qlora

    fitted = {}
    names = {
        "settings": settings, "rows": rows, "earlier": earlier, "qlora": qlora,
        "stage": SimpleNamespace(folder=folder, log=None, resumed=False), "tokenizer": chat.load_tokenizer(settings),
        "grpo": SimpleNamespace(**vars(grpo) | {"fit": lambda trainer, *_: fitted.update(trainer=trainer)}),
        "held_out": [], "plots": None,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    exec(cell("23_train_rewards", "hyperparameters = dict("), names)
    exec(cell("23_train_rewards", "def model_of("), names)
    names["callbacks"] = lambda log: list(callbacks)
    exec(cell("23_train_rewards", "def learn_by_advantage("), names)
    names["learn_by_advantage"]()
    return fitted["trainer"]
