"""The tile of ``quads``, but with two rows of the same four columns in the halves of a 4-bit byte.

Rows 0 to 7 are the low halves; rows 8 to 15 the high ones, which are stored with their top bit
flipped, so that the byte read as signed is ``16·(high - 8) + low``. One product of whole bytes
then takes the place of the shifts that would separate the high halves:
``Σ byte·a - Σ low·a = 16·Σ (high - 8)·a``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compile.lower.cpu.isa.quads import COLUMNS, ROWS, offset8, pack8, unpack8
from compile.lower.cpu.memory import Expr

__all__ = ["NAME", "offset4", "offset8", "pack4", "pack8", "unpack4", "unpack8"]

NAME = "stacked"


def pack4(q: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [rows, columns] of 4-bit values → uint8 [rows/16, columns/32, 256]."""
    rows, columns = q.shape
    blocks = q.reshape(rows // ROWS, 2, 8, columns // COLUMNS, 8, 4)
    packed = (blocks[:, 0] | (blocks[:, 1] ^ 8) << 4).transpose(0, 2, 3, 1, 4)
    return np.ascontiguousarray(packed).reshape(rows // ROWS, columns // COLUMNS, 256)


def unpack4(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The inverse of :func:`pack4`."""
    tiles, groups, _ = packed.shape
    blocks = packed.reshape(tiles, groups, 8, 8, 4)  # [tile, group, j, row % 8, column % 4]
    halves = np.stack((blocks & 15, blocks >> 4 ^ 8))
    return halves.transpose(1, 0, 4, 2, 3, 5).reshape(tiles * ROWS, groups * COLUMNS)


def offset4(row: Expr, column: Expr) -> tuple[Expr, Expr, Expr]:
    """Byte of a weight within its group of a 4-bit tile, the shift to its half, and its flip."""
    return column // 4 * 32 + row % 8 * 4 + column % 4, row // 8 * 4, row // 8 * 8
