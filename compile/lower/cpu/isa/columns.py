"""A tile for instructions that multiply whole vectors of rows by one activation.

Columns stand one after the other, 16 rows of each: byte ``column·16 + row``. A 4-bit tile holds
column 2j in the low halves of block j and column 2j+1 in the high halves.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compile.lower.cpu.memory import Expr

NAME = "columns"
ROWS = 16
COLUMNS = 32


def pack4(q: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [rows, columns] of 4-bit values → uint8 [rows/16, columns/32, 256]."""
    rows, columns = q.shape
    blocks = q.reshape(rows // ROWS, ROWS, columns // COLUMNS, 16, 2)
    packed = (blocks[..., 0] | blocks[..., 1] << 4).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(packed).reshape(rows // ROWS, columns // COLUMNS, 256)


def pack8(q: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [rows, columns] → uint8 [rows/16, columns/32, 512]."""
    rows, columns = q.shape
    packed = q.reshape(rows // ROWS, ROWS, columns // COLUMNS, COLUMNS).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(packed).reshape(rows // ROWS, columns // COLUMNS, 512)


def offset8(row: Expr, column: Expr) -> Expr:
    """Byte of a weight within its group of an 8-bit tile; columns 0 to 31."""
    return column * 16 + row


def offset4(row: Expr, column: Expr) -> tuple[Expr, Expr]:
    """Byte of a weight within its group of a 4-bit tile, and the shift to its half."""
    return column // 2 * 16 + row, column % 2 * 4
