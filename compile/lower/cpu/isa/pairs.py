"""A tile for instructions that multiply eight bytes at a time into 16-bit lanes.

A vector of 16 bytes is two rows of eight columns, four columns of each row side by side: byte
``8·(column//4%2) + 4·(row%2) + column%4``. Eight vectors are the 16 rows. A 4-bit tile holds
columns 16j … 16j+7 in the low halves of its block j and columns 16j+8 … 16j+15 in the high halves.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tvm.tirx.script.builder import ir as T

from compile.lower.cpu.memory import Array, Expr
from compile.lower.cpu.vector import bind, splat

NAME = "pairs"
ROWS = 16
COLUMNS = 32
BYTES = 16  # of a vector

Weights = tuple[int, int, Expr]


def pack4(q: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [rows, columns] of 4-bit values → uint8 [rows/16, columns/32, 256]."""
    rows, columns = q.shape
    blocks = q.reshape(rows // ROWS, 8, 2, columns // COLUMNS, 2, 2, 2, 4)
    low, high = blocks[..., 0, :, :], blocks[..., 1, :, :]
    packed = (low | high << 4).transpose(0, 3, 4, 1, 5, 2, 6)
    return np.ascontiguousarray(packed).reshape(rows // ROWS, columns // COLUMNS, 256)


def pack8(q: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [rows, columns] → uint8 [rows/16, columns/32, 512]."""
    rows, columns = q.shape
    blocks = q.reshape(rows // ROWS, 8, 2, columns // COLUMNS, 4, 2, 4)
    packed = blocks.transpose(0, 3, 4, 1, 5, 2, 6)
    return np.ascontiguousarray(packed).reshape(rows // ROWS, columns // COLUMNS, 512)


def unpack4(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The inverse of :func:`pack4`."""
    tiles, groups, _ = packed.shape
    # [tile, group, j, pair of rows, column // 4 % 2, row % 2, column % 4]
    blocks = packed.reshape(tiles, groups, 2, 8, 2, 2, 4)
    halves = np.stack((blocks & 15, blocks >> 4))
    return halves.transpose(1, 4, 6, 2, 3, 0, 5, 7).reshape(tiles * ROWS, groups * COLUMNS)


def unpack8(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The inverse of :func:`pack8`."""
    tiles, groups, _ = packed.shape
    blocks = packed.reshape(tiles, groups, 4, 8, 2, 2, 4)
    return blocks.transpose(0, 3, 5, 1, 2, 4, 6).reshape(tiles * ROWS, groups * COLUMNS)


def offset8(row: Expr, column: Expr) -> Expr:
    """Byte of a weight within its group of an 8-bit tile; columns 0 to 31."""
    return column // 8 * 128 + row // 2 * 16 + column // 4 % 2 * 8 + row % 2 * 4 + column % 4


def offset4(row: Expr, column: Expr) -> tuple[Expr, Expr, int]:
    """Byte of a weight within its group of a 4-bit tile, the shift to its half, and its flip."""
    return offset8(row, column // 16 * 8 + column % 8), column // 8 % 2 * 4, 0


def unsigned(bits: int, data: Array, pairs: range, less: int = 0) -> list[Weights]:
    """(eight of columns, index of the pair of rows, 16 bytes) in memory order, minus ``less``."""
    vectors = []
    for j in range(2 if bits == 4 else 4):
        for index, pair in enumerate(pairs):
            w = bind(data.load(j * 128 + pair * BYTES, BYTES))
            if bits == 8:
                vectors.append((j, index, w))
                continue
            low = T.bitwise_and(w, splat(T.uint8(15), BYTES))
            high = T.shift_right(w, splat(T.uint8(4), BYTES))
            for half, q in enumerate((low, high)):
                value = q - splat(T.uint8(less), BYTES) if less else q
                vectors.append((2 * j + half, index, bind(value)))
    return vectors
