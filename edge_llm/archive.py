"""The zip around an artifact's entries: every byte of the file that is not an entry's data.

Those bytes follow from the names, sizes and CRC-32s of the entries alone. The writer writes them,
the reader computes them again and compares, so that nothing in the file can differ unseen and no
offset or length of the zip is ever trusted. Layout after PKWARE's APPNOTE 6.3.10, 4.3 and 4.5.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from edge_llm.errors import ArtifactError

ALIGNMENT = 64 * 1024  # the largest page of any board
LIMIT = 2**32 - 2**16  # bytes of a zip without its 64-bit extension, room for the directory left

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_EXTRA = struct.Struct("<2H")
_PADDING_ID = 0x4C45  # "EL", an extra field that other readers skip
_VERSION = 10  # 1.0: stored entries
_MADE_BY = 3 << 8 | _VERSION  # on Unix, so that the mode below counts
_MODE = 0o100644 << 16
_DATE = 1 << 5 | 1  # 1 January 1980: the same input gives the same bytes
_FIXED = (_VERSION, 0, 0, 0, _DATE)  # version, flags, method "stored", time, date


@dataclass(frozen=True)
class File:
    """One entry: its ASCII name, where its data begins and how long it is."""

    name: str
    offset: int
    size: int
    crc32: int

    @property
    def end(self) -> int:
        return self.offset + self.size


@dataclass(frozen=True)
class Piece:
    """Bytes of the zip itself, at ``offset``; ``name`` is what to call them in a message."""

    name: str
    offset: int
    data: bytes

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


def place(sizes: Sequence[tuple[str, int]]) -> list[int]:
    """Where the data of each entry begins: the first multiple of 64 KiB its header leaves free."""
    offsets, end = [], 0
    for name, size in sizes:
        begin = -(-(end + _LOCAL.size + len(name)) // ALIGNMENT) * ALIGNMENT
        offsets.append(begin)
        end = begin + size
    if end > LIMIT:
        raise ArtifactError(f"{end} bytes are more than the 4 GiB that the format allows")
    return offsets


def structure(files: Sequence[File], comment: bytes) -> list[Piece]:
    """All bytes of the file but the entries' data: a header before each, and the directory."""
    pieces, directory, end = [], b"", 0
    for file in files:
        padding = file.offset - end - _LOCAL.size - len(file.name)
        # An extra field takes four bytes at least; fewer go before the header instead.
        gap, extra = (padding, 0) if padding < _EXTRA.size else (0, padding)
        pieces.append(Piece(f"header of {file.name}", end, bytes(gap) + _local(file, extra)))
        directory += _central(file, end + gap)
        end = file.end
    count = len(files)
    directory += _END.pack(b"PK\5\6", 0, 0, count, count, len(directory), end, len(comment))
    pieces.append(Piece("directory at the end", end, directory + comment))
    return pieces


def first_entry(view: memoryview, name: str, limit: int) -> bytes:
    """Content of the stored entry ``name`` with which the file must begin, CRC-32 checked."""
    if bytes(view[:4]) != b"PK\3\4":
        raise ArtifactError(_not_a_zip(view))
    if len(view) < _LOCAL.size + len(name):
        raise ArtifactError("is cut short in its first header")
    _, _, flags, method, _, _, crc32, size, _, name_size, extra_size = _LOCAL.unpack_from(view)
    if bytes(view[_LOCAL.size : _LOCAL.size + name_size]) != name.encode():
        raise ArtifactError(f"is a zip file, but does not begin with {name} as an artifact does")
    if flags or method:
        raise ArtifactError(f"{name} is compressed or encrypted: an artifact must not be repacked")
    if size > limit:
        raise ArtifactError(f"{name} has {size} bytes, more than the {limit} allowed")
    begin = _LOCAL.size + name_size + extra_size
    if begin + size > len(view):
        raise ArtifactError(f"is cut short in {name}")
    content = bytes(view[begin : begin + size])
    if zlib.crc32(content) != crc32:
        raise ArtifactError(f"{name} is damaged: its CRC-32 is wrong")
    return content


def _not_a_zip(view: memoryview) -> str:
    if not view:
        return "is empty"
    if bytes(view[:4]) == b"GGUF":
        return "is a GGUF model, not an artifact: compile it with python -m compile"
    return "is not an artifact of edge-llm"


def _local(file: File, extra: int) -> bytes:
    """The header before an entry's data, with ``extra`` bytes of padding at its end."""
    name = file.name.encode("ascii")
    sizes = (file.size, file.size, len(name), extra)
    header = _LOCAL.pack(b"PK\3\4", *_FIXED, file.crc32, *sizes) + name
    if extra == 0:
        return header
    size = extra - _EXTRA.size
    return header + _EXTRA.pack(_PADDING_ID, size) + bytes(size)


def _central(file: File, header: int) -> bytes:
    """The directory's record of an entry whose header begins at ``header``."""
    name = file.name.encode("ascii")
    sizes = (file.size, file.size, len(name), 0, 0, 0, 0)
    return _CENTRAL.pack(b"PK\1\2", _MADE_BY, *_FIXED, file.crc32, *sizes, _MODE, header) + name
