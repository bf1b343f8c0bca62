"""The 16 (or 255) values that the weights of a group can take, chosen for the weights at hand.

grid = search(values, importance, MatrixFormat(4, 64, True))
grid.value(grid.round(values))      # float32, as the device has them
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compile.errors import CompileError
from compile.quantize.formats import MatrixFormat

F32 = NDArray[np.float32]
F16 = NDArray[np.float16]

SHRINKS = tuple(float(s) for s in np.linspace(0.65, 1.0, 15))  # of the range that clips nothing
LARGEST = 65504.0  # float16


@dataclass(frozen=True)
class Grid:
    """``scale · (q - zero) + minimum`` for one group of each row.

    Attributes:
        scale: float16 [rows].
        minimum: float16 [rows], or None for a symmetric grid.
        lowest, highest: of q.
        zero: the q of a symmetric grid that stands for 0.
    """

    scale: F16
    minimum: F16 | None
    lowest: int
    highest: int
    zero: int

    def round(self, values: F32) -> F32:
        """float32 [rows] or [rows, n] → the nearest q of each, as float32."""
        shape = (-1,) + (1,) * (values.ndim - 1)
        scale = self.scale.astype(np.float32).reshape(shape)
        if self.minimum is not None:
            values = values - self.minimum.astype(np.float32).reshape(shape)
        q = np.divide(values, scale, out=np.zeros_like(values), where=scale != 0)
        return np.clip(np.rint(q) + self.zero, self.lowest, self.highest)

    def value(self, q: F32) -> F32:
        """What q stands for, float32 of q's shape."""
        shape = (-1,) + (1,) * (q.ndim - 1)
        values: F32 = self.scale.astype(np.float32).reshape(shape) * (q - self.zero)
        if self.minimum is not None:
            values = values + self.minimum.astype(np.float32).reshape(shape)
        return values


def search(values: F32, importance: F32, form: MatrixFormat) -> Grid:
    """The grid on which ``values``, [rows, group], are nearest, squares weighted by column.

    A range narrower than the values clips the largest and resolves the others better; a symmetric
    grid has one step more on one side, so both signs of its scale are tried.
    """
    candidates = (
        [grid for shrink in SHRINKS for grid in _grids(values, np.float32(shrink), form)]
        if form.bits == 4
        else [_int8(values)]
    )
    best, least = candidates[0], np.full(len(values), np.inf, np.float32)
    scale, minimum = best.scale.copy(), None if best.minimum is None else best.minimum.copy()
    for grid in candidates:
        off = grid.value(grid.round(values))
        off -= values
        np.square(off, out=off)
        loss = off @ importance
        better = loss < least
        least = np.where(better, loss, least)
        scale[better] = grid.scale[better]
        if minimum is not None and grid.minimum is not None:
            minimum[better] = grid.minimum[better]
    return Grid(scale, minimum, best.lowest, best.highest, best.zero)


def _grids(values: F32, shrink: np.float32, form: MatrixFormat) -> list[Grid]:
    if form.symmetric:
        scale = half(np.abs(values).max(-1) * (shrink / np.float32(8)))
        return [Grid(sign, None, 0, 15, 8) for sign in (-scale, scale)]
    low, high = np.minimum(values.min(-1), 0), np.maximum(values.max(-1), 0)
    middle, width = (low + high) / 2, (high - low) * shrink
    return [Grid(half(width / np.float32(15)), half(middle - width / 2), 0, 15, 0)]


def _int8(values: F32) -> Grid:
    return Grid(half(np.abs(values).max(-1) / np.float32(127)), None, -127, 127, 0)


def half(values: F32) -> F16:
    """float16, refusing what it cannot hold."""
    if not np.abs(values).max(initial=0) <= LARGEST:
        raise CompileError("weights too large for float16 scales, or not numbers")
    return values.astype(np.float16)
