"""Quantized activations in the workspace: int8 values, and a scale and sums a group of 32."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from compile.checkpoint import ACTIVATION_GROUP
from compile.lower.cpu.memory import Array, Expr, lanes_of
from compile.lower.cpu.vector import LANES, across, bind, intrinsic, rint, splat, splat_lane


@dataclass(frozen=True)
class Activations:
    """Rows of quantized vectors.

    Attributes:
        values: int8 [rows, columns].
        quads: the same memory as int32, four values an element.
        scales: float32 [rows, columns / 32].
        offsets: int32 [rows, columns / 32, copies], -8·Σa of each group: what weights stored as q
            instead of q - 8 add too much.
        sums: float32 [rows, columns / 32], scale·Σa: what a weight's minimum is multiplied with.
        columns: length of a row.
        copies: 1, or as many as a tile has rows.
    """

    values: Array
    quads: Array
    scales: Array
    offsets: Array
    sums: Array
    columns: int
    copies: int = 1

    @property
    def groups(self) -> int:
        """Groups of 32 in a row."""
        return self.columns // ACTIVATION_GROUP

    def row(self, index: Expr) -> Activations:
        """The rows from ``index`` on."""
        return self.group(index * self.groups)

    def group(self, index: Expr) -> Activations:
        """The memory from group ``index`` on, counted from the first row's first group."""
        return Activations(
            self.values.at(index * ACTIVATION_GROUP),
            self.quads.at(index * (ACTIVATION_GROUP // 4)),
            self.scales.at(index),
            self.offsets.at(index * self.copies),
            self.sums.at(index),
            self.columns,
            self.copies,
        )

    def start(self, part: int, lanes: int) -> Expr:
        """The first group's offset in every lane; of several copies each part loads its own."""
        if self.copies == 1:
            return splat(bind(self.offsets.load()), lanes)
        return bind(self.offsets.load(part * lanes, lanes))

    def write(self, first: Expr, second: Expr, factor: float = 1.0) -> None:
        """Quantize 2 × 16 float32 lanes into the first group; its scale is times ``factor``."""
        write([self], [(first, second)], factor)


Halves = tuple[Expr, Expr]  # of 32 columns, 16 lanes each


def write(targets: Sequence[Activations], groups: Sequence[Halves], factor: float = 1.0) -> None:
    """Quantize groups, each into the first of its target; scales are times ``factor``."""
    quantized, scales, totals = quantize(groups)
    offsets = bind(totals * splat(T.int32(-8), lanes_of(totals)))
    sums = bind(T.cast(totals, str(scales.ty)) * scales)
    if factor != 1.0:
        scales = bind(scales * splat(T.float32(factor), lanes_of(scales)))
    for i, (target, values) in enumerate(zip(targets, quantized, strict=True)):
        for half, q in enumerate(values):
            target.values.store(half * LANES, T.cast(q, "int8x16"))
        target.scales.store(0, splat_lane(scales, i, 1))
        target.offsets.store(0, splat_lane(offsets, i, target.copies))
        target.sums.store(0, splat_lane(sums, i, 1))


def quantize(groups: Sequence[Halves]) -> tuple[list[Halves], Expr, Expr]:
    """float32 groups → int32 ones in [-127, 127], a lane of float32 scales and of sums for each."""
    largest = across([bind(T.max(magnitude(a), magnitude(b))) for a, b in groups], T.max)
    lanes = lanes_of(largest)
    least = T.max(largest, splat(T.float32(1e-30), lanes))
    inverse = bind(splat(T.float32(127), lanes) / least)
    quantized = []
    for i, group in enumerate(groups):
        factor = bind(splat_lane(inverse, i, LANES))
        a, b = (bind(T.cast(rint(v * factor), "int32x16")) for v in group)
        quantized.append((a, b))
    totals = across([bind(a + b) for a, b in quantized], operator.add)
    return quantized, bind(largest * splat(T.float32(float(1 / 127)), lanes)), totals


def magnitude(x: Expr) -> Expr:
    """|x| of 16 lanes."""
    return intrinsic("llvm.fabs", "float32x16", x)
