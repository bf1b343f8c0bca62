"""A GGUF file (version 2 or 3) mapped and taken apart, no byte of it trusted.

Every count and length is checked against the file's size before it is used, so a file of a few
bytes cannot ask for more memory or time than its size warrants. Layout: the ggml project's
docs/gguf.md.

    file = read_gguf(Path("model.gguf"))
    file.metadata.text("general.architecture")      # "llama"
    file.rows("token_embd.weight")                  # uint8 [rows, bytes a row], in the mapping
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compile.errors import CompileError, UnsupportedError
from compile.gguf_metadata import Metadata, Value
from compile.gguf_types import ARRAY, BLOCK_TYPES, BOOL, NUMBERS, STRING, BlockType
from edge_llm.files import map_file

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
MAX_KEY_BYTES = 65535
MAX_ALIGNMENT = 1 << 20
DEFAULT_ALIGNMENT = 32
# The fewest bytes that each of these can take: what a count is checked against.
LEAST_ENTRY = 8 + 4 + 1  # length of the key, type, value of one byte
LEAST_TENSOR = 8 + 4 + 8 + 4 + 8  # length of the name, dimensions, one of them, type, offset
LEAST_TEXT = 8

U32 = struct.Struct("<I")
U64 = struct.Struct("<Q")


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in the file; ``shape`` has the contiguous dimension last."""

    name: str
    type: BlockType
    shape: tuple[int, ...]
    start: int  # bytes from the file's beginning
    size: int  # bytes


@dataclass(frozen=True)
class GGUFFile:
    """A mapped GGUF; the mapping lasts as long as a view of it."""

    path: Path
    metadata: Metadata
    tensors: dict[str, TensorInfo]
    data: memoryview

    def rows(self, name: str) -> NDArray[np.uint8]:
        """A tensor's stored bytes as uint8 [rows, bytes a row], without copying them."""
        info = self.tensors[name]
        stored = np.frombuffer(self.data, np.uint8, info.size, info.start)
        return stored.reshape(
            info.size // (info.shape[-1] // info.type.columns * info.type.size), -1
        )


def read_gguf(path: Path) -> GGUFFile:
    """Map a GGUF and read its header; CompileError where it is cut short, damaged or no GGUF."""
    try:
        data = map_file(path)
    except OSError as error:
        raise CompileError(f"{path}: {error.strerror}") from error
    cursor = _Cursor(path, data)
    if bytes(data[: len(MAGIC)]) != MAGIC:
        raise CompileError(f"{path}: not a GGUF file: it does not begin with {MAGIC.decode()}")
    cursor.advance(len(MAGIC), "the magic")
    _check_version(path, cursor.u32("the version"))
    tensor_count = cursor.u64("the tensor count")
    entry_count = cursor.u64("the metadata count")
    cursor.check_count(entry_count, LEAST_ENTRY, "metadata entries")
    cursor.check_count(tensor_count, LEAST_TENSOR, "tensors")
    values: dict[str, Value] = {}
    for _ in range(entry_count):
        key = cursor.text("a metadata key", MAX_KEY_BYTES)
        if key in values:
            raise CompileError(f"{path}: metadata {key!r} is there twice")
        values[key] = cursor.value(key)
    metadata = Metadata(path, values)
    alignment = _alignment(metadata)
    infos: dict[str, TensorInfo] = {}
    for _ in range(tensor_count):
        info = _tensor_info(cursor, alignment)
        if info.name in infos:
            raise CompileError(f"{path}: tensor {info.name!r} is there twice")
        infos[info.name] = info
    base = -(-cursor.position // alignment) * alignment
    tensors = _placed(path, infos, base, len(data))
    return GGUFFile(path, metadata, tensors, data)


def _check_version(path: Path, version: int) -> None:
    if version in VERSIONS:
        return
    if version & 0xFFFF == 0 and version:
        raise UnsupportedError(f"{path}: a big-endian GGUF; only little-endian ones are supported")
    raise UnsupportedError(f"{path}: GGUF version {version}; supported are 2 and 3")


def _alignment(metadata: Metadata) -> int:
    alignment = metadata.integer("general.alignment", DEFAULT_ALIGNMENT)
    if not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise CompileError(
            f"{metadata.path}: general.alignment is {alignment}, not a power of two "
            f"up to {MAX_ALIGNMENT}"
        )
    return alignment


def _tensor_info(cursor: _Cursor, alignment: int) -> TensorInfo:
    """One entry of the tensor table; its start is still counted from the data's beginning."""
    name = cursor.text("a tensor's name", MAX_KEY_BYTES)
    where = f"{cursor.path}: tensor {name!r}"
    dimensions = cursor.u32(f"the dimensions of {name!r}")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise CompileError(f"{where} has {dimensions} dimensions, not 1 to {MAX_DIMENSIONS}")
    # ggml writes the contiguous dimension first
    shape = tuple(cursor.u64(f"the shape of {name!r}") for _ in range(dimensions))[::-1]
    if 0 in shape:
        raise CompileError(f"{where} has an empty shape {list(shape)}")
    code = cursor.u32(f"the type of {name!r}")
    if code not in BLOCK_TYPES:
        raise UnsupportedError(f"{where} has the tensor type {code}, which is not known")
    kind = BLOCK_TYPES[code]
    if shape[-1] % kind.columns:
        raise CompileError(
            f"{where} has {shape[-1]} columns; {kind.name} needs a multiple of {kind.columns}"
        )
    offset = cursor.u64(f"the offset of {name!r}")
    if offset % alignment:
        raise CompileError(f"{where} begins at {offset}, not at a multiple of {alignment} bytes")
    return TensorInfo(name, kind, shape, offset, prod(shape) // kind.columns * kind.size)


def _placed(
    path: Path, infos: dict[str, TensorInfo], base: int, file_size: int
) -> dict[str, TensorInfo]:
    """The tensors with their place in the file, none beyond its end or over another."""
    placed: dict[str, TensorInfo] = {}
    end, before = base, ""
    for info in sorted(infos.values(), key=lambda info: info.start):
        start = base + info.start
        if start + info.size > file_size:
            raise CompileError(
                f"{path}: cut short or damaged: tensor {info.name!r} needs bytes {start} to "
                f"{start + info.size}, the file ends at {file_size}"
            )
        if start < end:
            raise CompileError(f"{path}: tensors {before!r} and {info.name!r} overlap")
        end, before = start + info.size, info.name
        placed[info.name] = TensorInfo(info.name, info.type, info.shape, start, info.size)
    return placed


class _Cursor:
    """Reads the header from front to back and never past the file's end."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path = path
        self.position = 0
        self._data = data

    def advance(self, size: int, what: str) -> int:
        """Where the next ``size`` bytes begin; CompileError where there are not that many."""
        start = self.position
        left = len(self._data) - start
        if size > left:
            raise CompileError(
                f"{self.path}: cut short or damaged: {what} at byte {start} takes {size} bytes, "
                f"{left} are left"
            )
        self.position = start + size
        return start

    def check_count(self, count: int, least: int, what: str) -> None:
        """Refuse a count of things of ``least`` bytes or more that the rest cannot hold."""
        left = len(self._data) - self.position
        if count > left // least:
            raise CompileError(
                f"{self.path}: cut short or damaged: it announces {count} {what} at byte "
                f"{self.position}, but only {left} bytes are left"
            )

    def u32(self, what: str) -> int:
        return int(U32.unpack_from(self._data, self.advance(4, what))[0])

    def u64(self, what: str) -> int:
        return int(U64.unpack_from(self._data, self.advance(8, what))[0])

    def text(self, what: str, limit: int | None = None) -> str:
        size = self.u64(what)
        if limit is not None and size > limit:
            raise CompileError(
                f"{self.path}: {what} at byte {self.position} has {size} bytes, more than {limit}"
            )
        start = self.advance(size, what)
        try:
            return str(self._data[start : start + size], "utf-8")
        except UnicodeDecodeError as error:
            raise CompileError(f"{self.path}: {what} at byte {start} is not UTF-8") from error

    def value(self, key: str) -> Value:
        """The value of a metadata entry: type, then content."""
        code = self.u32(f"the type of {key!r}")
        if code == STRING:
            return self.text(f"metadata {key!r}")
        if code == ARRAY:
            return self._array(key)
        value: bool | int | float = self._numbers(key, code, 1)[0].item()
        return value

    def _array(self, key: str) -> Value:
        code = self.u32(f"the element type of {key!r}")
        count = self.u64(f"the length of {key!r}")
        if code != STRING:
            return self._numbers(key, code, count)
        what = f"metadata {key!r}"
        self.check_count(count, LEAST_TEXT, f"strings of {what}")
        return tuple(self.text(what) for _ in range(count))

    def _numbers(self, key: str, code: int, count: int) -> NDArray[Any]:
        if code not in NUMBERS:
            raise CompileError(
                f"{self.path}: metadata {key!r} has the value type {code}, which is not known"
            )
        kind = NUMBERS[code]
        start = self.advance(count * kind.itemsize, f"metadata {key!r}")
        values = np.frombuffer(self._data, kind, count, start)
        if code != BOOL:
            return values
        if bool((values > 1).any()):
            raise CompileError(
                f"{self.path}: metadata {key!r} has a truth value that is not 0 or 1"
            )
        return values.astype(np.bool_)
