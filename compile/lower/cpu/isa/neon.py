"""Armv8.0 NEON (Cortex-A53, A72): no dot product, so rows in lanes and smlal in 16 bits."""

from __future__ import annotations

from collections.abc import Sequence

from tvm.tirx.script.builder import ir as T

from compile.lower.cpu.activations import Activations
from compile.lower.cpu.isa import columns
from compile.lower.cpu.memory import Array, Expr
from compile.lower.cpu.vector import bind, halves, intrinsic, splat

LANES = 4
BLOCK = (4, 16)
BYTE_BIAS = 0
layout = columns

BYTES = columns.ROWS
HALF = BYTES // 2


def dot(bits: int, data: Array, parts: range, tokens: Sequence[Activations]) -> list[list[Expr]]:
    """See :mod:`compile.lower.cpu.isa`; always all 16 rows of the tile."""
    if len(parts) * LANES != columns.ROWS:
        raise ValueError("a tile of columns is multiplied whole")
    return (dot4 if bits == 4 else dot8)(data, tokens)


def dot4(data: Array, tokens: Sequence[Activations]) -> list[list[Expr]]:
    """All 32 columns in 16 bits: the sum of (q-8)·a is below 2^15, what wraps on the way wraps back."""
    sums = [
        [splat(bind(T.cast(token.totals.load() * T.int32(-8), "int16")), HALF)] * 2
        for token in tokens
    ]
    for j in range(columns.COLUMNS // 2):
        w = bind(data.load(j * BYTES, BYTES))
        low = bind(T.bitwise_and(w, splat(T.uint8(15), BYTES)))
        high = bind(T.shift_right(w, splat(T.uint8(4), BYTES)))
        for column, weights in ((2 * j, low), (2 * j + 1, high)):
            for m, token in enumerate(tokens):
                sums[m] = multiply_add(sums[m], weights, token.values.load(column))
    return [[w for half in row for w in widen(half)] for row in sums]


def dot8(data: Array, tokens: Sequence[Activations]) -> list[list[Expr]]:
    """Two columns reach 2·127·127 in 16 bits, then they are widened."""
    sums = [[splat(T.int32(0), LANES)] * 4 for _ in tokens]
    for j in range(0, columns.COLUMNS, 2):
        pair = [bind(data.load((j + i) * BYTES, BYTES)) for i in range(2)]
        for m, token in enumerate(tokens):
            products = [splat(T.int16(0), HALF)] * 2
            for i, weights in enumerate(pair):
                products = multiply_add(products, weights, token.values.load(j + i))
            wide = [w for half in products for w in widen(half)]
            sums[m] = [bind(s + w) for s, w in zip(sums[m], wide, strict=True)]
    return sums


def multiply_add(sums: list[Expr], weights: Expr, a: Expr) -> list[Expr]:
    """2 × int16x8 sums plus 16 rows of one column times its activation."""
    column = splat(bind(a), HALF)
    signed = T.reinterpret(weights, dtype=f"int8x{BYTES}")
    return [
        bind(s + intrinsic("llvm.aarch64.neon.smull", f"int16x{HALF}", half, column))
        for s, half in zip(sums, halves(signed), strict=True)
    ]


def widen(sums: Expr) -> list[Expr]:
    """int16x8 → 2 × int32x4."""
    return [T.cast(half, f"int32x{LANES}") for half in halves(sums)]
