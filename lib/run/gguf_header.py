"""A GGUF file's header: its fields and where its tensors lie. It may come from anywhere, so every size has a bound."""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from lib.run.settings import short
from lib.run.untrusted import UntrustedError

HEADER_BYTES = 64 << 20  # the largest vocabularies take some 20 million
FIELDS, TENSORS, DIMENSIONS = 4096, 1 << 16, 4  # at most
ELEMENTS = 1 << 22  # of all arrays together; the largest vocabularies and their merges take some 1.3 million
TEXT_BYTES = 1 << 20  # of a string; the longest are chat templates, of some 10 thousand
ALIGNMENT = 32  # bytes, where the file names no other
# The format's numbers for the types of a field, as Python's struct names them
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in the file; its shape as torch has it, the outermost dimension first."""

    shape: tuple[int, ...]
    type: GGMLQuantizationType
    start: int
    bytes: int


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself."""

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, Tensor]

    def values(self, name: str) -> np.ndarray:
        """A tensor's values in fp32, whatever they were rounded to."""
        tensor = self.tensors[name]
        data = np.fromfile(self.path, np.uint8, tensor.bytes, offset=tensor.start)
        return dequantize(data, tensor.type).reshape(tensor.shape)


def read(path: Path) -> Header:
    """The header of a GGUF file; UntrustedError where it is torn, past a bound, or of a type that is not read."""
    try:
        with open(path, "rb") as file:
            data, size = file.read(HEADER_BYTES), path.stat().st_size
        return _Parser(path, data, size).header()
    except OSError as error:
        raise UntrustedError(f"{path.name} cannot be read ({error.strerror})") from None
    except struct.error:
        why = f"its header is longer than {HEADER_BYTES >> 20} MiB"
        if size < HEADER_BYTES:
            why = "it ends in its header: fetch it again"
        raise UntrustedError(f"{path.name} is torn or no GGUF file: {why}") from None
    except UnicodeDecodeError:
        raise UntrustedError(f"{path.name} holds a text that is not UTF-8 in its header") from None


class _Parser:
    """Reads one value after the other; struct.error where the data end."""

    def __init__(self, path: Path, data: bytes, size: int):
        self.path, self.data, self.size, self.place, self.elements = path, data, size, 0, 0

    def header(self) -> Header:
        if self.data[:4] != b"GGUF":
            raise UntrustedError(f"{self.path.name} is no GGUF file: it does not begin with GGUF")
        self.place = 4
        version = self.scalar("I")
        if version not in (2, 3):
            raise UntrustedError(f"{self.path.name} is GGUF version {version}: only 2 and 3, little-endian, are read")
        tensors = self.count("Q", TENSORS, "tensors")
        fields, described = {}, {}
        for _ in range(self.count("Q", FIELDS, "fields")):
            name = self.text()
            fields[name] = self.value(name)
        for _ in range(tensors):
            name = self.text()
            described[name] = self.tensor(name)
        return Header(self.path, fields, self.placed(fields, described))

    def scalar(self, form: str) -> Any:
        return self.scalars(form, 1)[0]

    def scalars(self, form: str, count: int) -> list[Any]:
        form = f"<{count}{form}"
        values = struct.unpack_from(form, self.data, self.place)
        self.place += struct.calcsize(form)
        return list(values)

    def count(self, form: str, most: int, what: str) -> int:
        return self.bounded(self.scalar(form), most, what)

    def bounded(self, count: int, most: int, what: str) -> int:
        if count > most:
            raise UntrustedError(f"{self.path.name} claims {count:,} {what}, and at most {most:,} are read")
        return count

    def text(self) -> str:
        size = self.count("Q", TEXT_BYTES, "bytes of one text")
        return str(struct.unpack_from(f"{size}s", self.data, self._past(size))[0], "utf-8")

    def _past(self, size: int) -> int:
        self.place += size
        return self.place - size

    def value(self, name: str) -> Any:
        kind = self.scalar("I")
        if kind != ARRAY:
            return self.single(name, kind)
        kind, count = self.scalar("I"), self.scalar("Q")
        self.elements = self.bounded(self.elements + count, ELEMENTS, f"values in lists up to {short(name)}")
        if kind in SCALARS:
            return self.scalars(SCALARS[kind], count)
        return [self.single(name, kind) for _ in range(count)]

    def single(self, name: str, kind: int) -> Any:
        if kind == TEXT:
            return self.text()
        if kind not in SCALARS:
            raise UntrustedError(f"{self.path.name}: field {short(name)} has type {kind}, which is not read")
        return self.scalar(SCALARS[kind])

    def tensor(self, name: str) -> Tensor:
        """A tensor's description, its start still counted from where the tensors begin."""
        dimensions = self.count("I", DIMENSIONS, f"dimensions of {short(name)}")
        shape = tuple(self.scalar("Q") for _ in range(dimensions))[::-1]
        number, start = self.scalar("I"), self.scalar("Q")
        kind = self.readable(name, number)
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if not shape or min(shape) < 1 or shape[-1] % block:
            raise UntrustedError(f"{self.path.name}: tensor {short(name)} cannot be {list(shape)} in {kind.name}")
        elements = 1
        for length in shape:
            elements *= length
        return Tensor(shape, kind, start, elements // block * block_bytes)

    def readable(self, name: str, number: int) -> GGMLQuantizationType:
        """A tensor's type, if the gguf package can make numbers of it."""
        label = str(number)
        try:
            kind = GGMLQuantizationType(number)
            label = kind.name
            dequantize(np.zeros(GGML_QUANT_SIZES[kind][1], np.uint8), kind)
        except (ValueError, NotImplementedError):
            raise UntrustedError(f"{self.path.name}: tensor {short(name)} has type {label}, which cannot be read here: "
                                 f"use a file with another quantisation, as Q8_0") from None  # fmt: skip
        return kind

    def placed(self, fields: dict, described: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors with their starts counted from the file's; each must lie in it, and none share bytes."""
        alignment = fields.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 16:
            raise UntrustedError(f"{self.path.name}: general.alignment = {short(alignment)}: must be 1 to {1 << 16}")
        end = -(-self.place // alignment) * alignment
        begin, tensors = end, {}
        for name, tensor in sorted(described.items(), key=lambda item: item[1].start):
            start = begin + tensor.start
            if start < end:
                raise UntrustedError(f"{self.path.name}: tensor {short(name)} shares bytes with another")
            end = start + tensor.bytes
            if end > self.size:
                raise UntrustedError(f"{self.path.name} is torn: tensor {short(name)} ends at byte {end:,}, "
                                     f"the file at {self.size:,}: fetch it again")  # fmt: skip
            tensors[name] = Tensor(tensor.shape, tensor.type, start, tensor.bytes)
        return tensors
