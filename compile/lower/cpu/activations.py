"""Quantized activations in the workspace: int8 values, and a scale and sums a group of 32."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from compile.checkpoint import ACTIVATION_GROUP
from compile.lower.cpu.memory import Array, Expr
from compile.lower.cpu.vector import (
    LANES,
    bind,
    intrinsic,
    max_lanes,
    rint,
    splat,
)


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
        values, scale = quantize(first, second)
        for half, q in enumerate(values):
            self.values.store(half * LANES, T.cast(q, "int8x16"))
        self.scales.store(0, scale * T.float32(factor) if factor != 1.0 else scale)
        total = bind(intrinsic("llvm.vector.reduce.add", "int32", values[0] + values[1]))
        self.offsets.store(0, splat(total * T.int32(-8), self.copies))
        self.sums.store(0, T.cast(total, "float32") * scale)


def quantize(first: Expr, second: Expr) -> tuple[tuple[Expr, Expr], Expr]:
    """2 × float32x16 → 2 × int32x16 in [-127, 127] and the float32 scale."""
    largest = bind(max_lanes(T.max(magnitude(first), magnitude(second))))
    inverse = splat(bind(T.float32(127) / T.max(largest, T.float32(1e-30))))
    q = tuple(bind(T.cast(rint(v * inverse), "int32x16")) for v in (first, second))
    return (q[0], q[1]), bind(largest * T.float32(float(1 / 127)))


def magnitude(x: Expr) -> Expr:
    """|x| of 16 lanes."""
    return intrinsic("llvm.fabs", "float32x16", x)
