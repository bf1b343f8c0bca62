"""Armv8.0 NEON (Cortex-A53, A72): no dot product, so rows in lanes and smlal in 16 bits."""

from __future__ import annotations

from collections.abc import Sequence

from tvm.tirx.script.builder import ir as T

from compile.lower.cpu.activations import Activations
from compile.lower.cpu.isa import columns
from compile.lower.cpu.memory import Array, Expr, local
from compile.lower.cpu.vector import bind, halves, intrinsic, splat

LANES = 4
REGISTERS = 32
PREFETCH = 0
BLOCK = (4, 16)
BYTE_BIAS = 0
layout = columns

ROWS = columns.ROWS
COLUMNS = columns.COLUMNS
PER_PASS = 8  # columns of a 4-bit tile in one turn of the loop: enough code, and quickly compiled
BYTES = ROWS  # of one column
HALF = BYTES // 2


def dot(
    bits: int, zero: int, data: Array, parts: range, tokens: Sequence[Activations]
) -> list[list[Expr]]:
    """See :mod:`compile.lower.cpu.isa`; always all 16 rows of the tile."""
    if len(parts) * LANES != ROWS:
        raise ValueError("a tile of columns is multiplied whole")
    return dot4(zero, data, tokens) if bits == 4 else dot8(data, tokens)


def dot4(zero: int, data: Array, tokens: Sequence[Activations]) -> list[list[Expr]]:
    """All 32 columns in 16 bits: the sum of (q-8)·a fits, and what wraps on the way wraps back."""
    sums = local("int16", len(tokens) * ROWS)
    for m, token in enumerate(tokens):
        start = splat(bind(T.cast(token.offsets.load(), "int16")), HALF)
        store_halves(sums, m, [start, start])
    with T.serial(T.int32(COLUMNS // PER_PASS)) as i:
        for j in range(PER_PASS // 2):
            w = bind(data.load(i * (PER_PASS // 2 * BYTES) + j * BYTES, BYTES))
            low = bind(T.bitwise_and(w, splat(T.uint8(15), BYTES)))
            high = bind(T.shift_right(w, splat(T.uint8(4), BYTES)))
            for half, weights in enumerate((low, high)):
                column = i * PER_PASS + 2 * j + half
                for m, token in enumerate(tokens):
                    before = load_halves(sums, m)
                    a = token.values.load(column)
                    store_halves(sums, m, multiply_add(before, weights, a))
    wide = [[w for half in load_halves(sums, m) for w in widen(half)] for m in range(len(tokens))]
    if zero == 8:
        return wide
    return [
        [w - splat(token.offsets.load(), LANES) for w in row]
        for token, row in zip(tokens, wide, strict=True)
    ]


def dot8(data: Array, tokens: Sequence[Activations]) -> list[list[Expr]]:
    """Two columns reach 2·127·127 in 16 bits, then they are widened."""
    sums = local("int32", len(tokens) * ROWS)
    for i in range(len(tokens) * ROWS // LANES):
        sums.store(i * LANES, splat(T.int32(0), LANES))
    with T.serial(T.int32(COLUMNS // 2)) as j:
        pair = [bind(data.load((2 * j + i) * BYTES, BYTES)) for i in range(2)]
        for m, token in enumerate(tokens):
            products = [splat(T.int16(0), HALF)] * 2
            for i, weights in enumerate(pair):
                products = multiply_add(products, weights, token.values.load(2 * j + i))
            wide = [w for half in products for w in widen(half)]
            for part, w in enumerate(wide):
                at = m * ROWS + part * LANES
                sums.store(at, sums.load(at, LANES) + w)
    return [
        [bind(sums.load(m * ROWS + part * LANES, LANES)) for part in range(ROWS // LANES)]
        for m in range(len(tokens))
    ]


def load_halves(sums: Array, m: int) -> list[Expr]:
    """A token's 16 sums as 2 × int16x8."""
    return [sums.load(m * ROWS + half * HALF, HALF) for half in range(2)]


def store_halves(sums: Array, m: int, halves: list[Expr]) -> None:
    """Keep a token's 16 sums."""
    for half, value in enumerate(halves):
        sums.store(m * ROWS + half * HALF, value)


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
