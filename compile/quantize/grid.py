"""The 16 (or 255) values that the weights of a group can take, chosen for the weights at hand.

Arrays are [columns of the group, rows]: each row has a grid of its own.

    grid = search(values, importance, MatrixFormat(4, 64, True))
    grid.value(grid.round(values))      # float32, as the device has them
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compile.errors import CompileError
from compile.quantize.formats import MatrixFormat

F32 = NDArray[np.float32]
F16 = NDArray[np.float16]

SHRINKS = tuple(np.linspace(0.65, 1.0, 15, dtype=np.float32))  # of the range that clips nothing
LARGEST = 65504.0  # of float16
TOGETHER = 1024  # rows searched at once: their values stay in the cache


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
        """float32 [..., rows] → the nearest q of each, as float32."""
        if self.minimum is not None:
            values = values - self.minimum.astype(np.float32)
        scale = self.scale.astype(np.float32)
        q = values * np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
        np.rint(q, out=q)
        q += np.float32(self.zero)
        return np.clip(q, self.lowest, self.highest, out=q)

    def value(self, q: F32) -> F32:
        """What q stands for, float32 of q's shape."""
        values: F32 = (q - np.float32(self.zero)) * self.scale.astype(np.float32)
        if self.minimum is not None:
            values += self.minimum.astype(np.float32)
        return values


def search(values: F32, importance: F32, form: MatrixFormat) -> Grid:
    """The grid on which ``values``, [group, rows], are nearest, squares weighted by column.

    A range narrower than the values clips the largest and resolves the others better; a symmetric
    grid has one step more on one side, so both signs of its scale are tried.

    Args:
        values: float32 [group, rows].
        importance: float32 [group], what a squared error costs in each column.
        form: the format.
    """
    if form.bits == 8:
        return Grid(half(np.abs(values).max(0) / np.float32(127)), None, -127, 127, 0)
    parts = np.array_split(values, -(-values.shape[1] // TOGETHER), axis=1)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = list(threads.map(lambda part: _search(part, importance, form.symmetric), parts))
    scale = np.concatenate([grid.scale for grid in found])
    minimums = [grid.minimum for grid in found if grid.minimum is not None]
    return Grid(scale, np.concatenate(minimums) if minimums else None, 0, 15, found[0].zero)


def _search(values: F32, importance: F32, symmetric: bool) -> Grid:
    least = np.full(values.shape[1], np.inf, np.float32)
    scale = np.zeros(values.shape[1], np.float16)
    minimum = None if symmetric else np.zeros_like(scale)
    for grid in _symmetric(values) if symmetric else _asymmetric(values):
        off = grid.value(grid.round(values))
        off -= values
        loss = importance @ np.square(off, out=off)
        better = loss < least
        np.copyto(least, loss, where=better)
        np.copyto(scale, grid.scale, where=better)
        if minimum is not None and grid.minimum is not None:
            np.copyto(minimum, grid.minimum, where=better)
    return Grid(scale, minimum, 0, 15, 8 if symmetric else 0)


def _symmetric(values: F32) -> list[Grid]:
    largest = np.abs(values).max(0) / np.float32(8)
    return [
        Grid(half(sign * shrink * largest), None, 0, 15, 8)
        for shrink in SHRINKS
        for sign in (-1, 1)
    ]


def _asymmetric(values: F32) -> list[Grid]:
    low, high = np.minimum(values.min(0), 0), np.maximum(values.max(0), 0)
    width, middle = (high - low) / 2, (low + high) / 2
    return [
        Grid(half(shrink * width * np.float32(2 / 15)), half(middle - shrink * width), 0, 15, 0)
        for shrink in SHRINKS
    ]


def half(values: F32) -> F16:
    """float16, refusing what it cannot hold."""
    if not np.abs(values).max(initial=0) <= LARGEST:
        raise CompileError("weights too large for float16 scales, or not numbers")
    return values.astype(np.float16)
