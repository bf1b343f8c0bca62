"""Armv8.2 dot product (Cortex-A76, A78AE): sdot adds four signed products into each lane."""

from __future__ import annotations

from collections.abc import Sequence

from tvm.tirx.script.builder import ir as T

from compile.lower.cpu.activations import Activations
from compile.lower.cpu.isa import quads
from compile.lower.cpu.memory import Array, Expr
from compile.lower.cpu.vector import bind, intrinsic, splat

LANES = 4
REGISTERS = 32
PREFETCH = 0
BLOCK = (4, 8)
BYTE_BIAS = 0
layout = quads

BYTES = 4 * LANES


def dot(
    bits: int, zero: int, data: Array, parts: range, tokens: Sequence[Activations]
) -> list[list[Expr]]:
    """See :mod:`compile.lower.cpu.isa`."""
    loaded = [[bind(token.quads.load(4 * i, 4)) for i in range(2)] for token in tokens]
    sums = [
        [splat(token.offsets.load() if zero else T.int32(0), LANES)] * len(parts)
        for token in tokens
    ]
    for quad, index, stored in quads.unsigned(bits, data, parts, BYTES):
        weights = T.reinterpret(stored, dtype=f"int8x{BYTES}")
        for m in range(len(tokens)):
            # One lane of a register to all rows: LLVM makes it the instruction's index operand.
            lane = T.Shuffle([loaded[m][quad // 4]], [T.int32(quad % 4)] * LANES)
            sums[m][index] = bind(
                intrinsic(
                    "llvm.aarch64.neon.sdot.v4i32.v16i8",
                    f"int32x{LANES}",
                    sums[m][index],
                    weights,
                    T.reinterpret(lane, dtype=f"int8x{BYTES}"),
                )
            )
    return sums
