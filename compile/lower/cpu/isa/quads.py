"""A tile for instructions that add four neighbouring products into each 32-bit lane.

Rows stand side by side, four columns of each: byte ``row·4 + column%4`` of 64. A 4-bit tile
holds columns 8j … 8j+3 in the low halves of block j and columns 8j+4 … 8j+7 in the high halves.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tvm.tirx.script.builder import ir as T

from compile.lower.cpu.memory import Array, Expr
from compile.lower.cpu.vector import bind, splat

NAME = "quads"
ROWS = 16
COLUMNS = 32

Weights = tuple[int, int, Expr]


def pack4(q: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [rows, columns] of 4-bit values → uint8 [rows/16, columns/32, 256]."""
    rows, columns = q.shape
    blocks = q.reshape(rows // ROWS, ROWS, columns // COLUMNS, 4, 2, 4)
    low, high = blocks[..., 0, :], blocks[..., 1, :]  # [tile, row, group, j, column % 4]
    packed = (low | high << 4).transpose(0, 2, 3, 1, 4)
    return np.ascontiguousarray(packed).reshape(rows // ROWS, columns // COLUMNS, 256)


def pack8(q: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [rows, columns] → uint8 [rows/16, columns/32, 512]."""
    rows, columns = q.shape
    blocks = q.reshape(rows // ROWS, ROWS, columns // COLUMNS, 8, 4)
    packed = blocks.transpose(0, 2, 3, 1, 4)
    return np.ascontiguousarray(packed).reshape(rows // ROWS, columns // COLUMNS, 512)


def unpack4(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The inverse of :func:`pack4`."""
    tiles, groups, _ = packed.shape
    blocks = packed.reshape(tiles, groups, 4, ROWS, 4)  # [tile, group, j, row, column % 4]
    halves = np.stack((blocks & 15, blocks >> 4))
    return halves.transpose(1, 4, 2, 3, 0, 5).reshape(tiles * ROWS, groups * COLUMNS)


def unpack8(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The inverse of :func:`pack8`."""
    tiles, groups, _ = packed.shape
    blocks = packed.reshape(tiles, groups, 8, ROWS, 4)
    return blocks.transpose(0, 3, 1, 2, 4).reshape(tiles * ROWS, groups * COLUMNS)


def offset8(row: Expr, column: Expr) -> Expr:
    """Byte of a weight within its group of an 8-bit tile; columns 0 to 31."""
    return column // 4 * 64 + row * 4 + column % 4


def offset4(row: Expr, column: Expr) -> tuple[Expr, Expr, int]:
    """Byte of a weight within its group of a 4-bit tile, the shift to its half, and its flip."""
    return column // 8 * 64 + row * 4 + column % 4, column // 4 % 2 * 4, 0


def unsigned(bits: int, data: Array, parts: range, width: int) -> list[Weights]:
    """(quad of columns, index of the part, ``width`` unsigned bytes), in memory order."""
    loaded = []
    for j in range(4 if bits == 4 else 8):
        for index, part in enumerate(parts):
            w = bind(data.load(j * 64 + part * width, width))
            if bits == 8:
                loaded.append((j, index, w))
                continue
            low = T.bitwise_and(w, splat(T.uint8(15), width))
            high = T.shift_right(w, splat(T.uint8(4), width))
            loaded.append((2 * j, index, bind(low)))
            loaded.append((2 * j + 1, index, bind(high)))
    return loaded
