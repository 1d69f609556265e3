"""Fixtures that several files share."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow torch down on shared cores

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def tokenizer():
    """The embedded base's tokenizer. Tests that change it work on a copy."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ROOT / "data/base")


@pytest.fixture(scope="session")
def processor():
    """The same tokenizer as SentencePiece itself reads it."""
    from lib import tokens

    return tokens.load_processor(ROOT / "data/base")


@pytest.fixture(scope="session")
def published_data():
    """The folder of published data sets (gsm8k/train.jsonl, ...), which is not part of the project."""
    folder = os.environ.get("SHARPEN_DATA")
    if not folder:
        pytest.skip("SHARPEN_DATA is not set: it names the folder that holds gsm8k/train.jsonl")
    if not (Path(folder) / "gsm8k/train.jsonl").is_file():
        pytest.skip(f"SHARPEN_DATA={folder} holds no gsm8k/train.jsonl")
    return Path(folder)
