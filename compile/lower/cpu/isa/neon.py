"""Armv8.0 NEON (Cortex-A53, A72): no dot product, so smull and smlal into 16-bit lanes."""

from __future__ import annotations

from collections.abc import Sequence

from tvm.tirx.script.builder import ir as T

from compile.lower.cpu.activations import Activations
from compile.lower.cpu.isa import pairs
from compile.lower.cpu.isa.pairs import Weights
from compile.lower.cpu.memory import Array, Expr
from compile.lower.cpu.vector import bind, halves, intrinsic, splat

LANES = 4
PREFETCH = 0
BLOCK = (4, 8)
PASS = (2, 8)
GROUPS = 1
COPIES = 1
TOGETHER = 1
BYTE_BIAS = 0
layout = pairs


def dot(
    bits: int, zero: int, data: Array, parts: range, tokens: Sequence[Activations]
) -> list[list[Expr]]:
    """See :mod:`compile.lower.cpu.isa`."""
    return dot_loaded(bits, zero, load(bits, 0, data, parts), tokens)


def load(bits: int, zero: int, data: Array, parts: range) -> list[Weights]:
    """See :mod:`compile.lower.cpu.isa`."""
    return pairs.unsigned(bits, data, range(2 * parts.start, 2 * parts.stop), zero)


def dot_loaded(
    bits: int, zero: int, weights: Sequence[Weights], tokens: Sequence[Activations]
) -> list[list[Expr]]:
    """See :mod:`compile.lower.cpu.isa`."""
    return dot4(zero, weights, tokens) if bits == 4 else dot8(weights, tokens)


def dot4(zero: int, weights: Sequence[Weights], tokens: Sequence[Activations]) -> list[list[Expr]]:
    """A lane sums eight columns of its row in 16 bits, its pair's two lanes 16: 16·15·127 fits."""
    sums: list[list[Expr]] = []
    for token in tokens:
        a = repeated(token)
        row: dict[int, Expr] = {}
        for eight, index, stored in weights:
            row[index] = multiply_add(row.get(index), stored, a[eight])
        wide = [widen(neighbours) for neighbours in added(list(row.values()))]
        if zero:
            offset = splat(bind(token.offsets.load()), LANES)
            wide = [bind(value + offset) for value in wide]
        sums.append(wide)
    return sums


def dot8(weights: Sequence[Weights], tokens: Sequence[Activations]) -> list[list[Expr]]:
    """Two columns reach 2·128·127 in 16 bits, then they are widened."""
    sums: list[list[Expr]] = []
    for token in tokens:
        a = repeated(token)
        row: dict[int, Expr] = {}
        for eight, index, stored in weights:
            products = widen(multiply_add(None, stored, a[eight]))
            row[index] = bind(row[index] + products) if index in row else products
        sums.append(added(list(row.values())))
    return sums


def repeated(token: Activations) -> list[Expr]:
    """Eight columns a vector, each four of them twice: as a pair of rows wants them."""
    vectors = []
    for i in range(2):
        quads = bind(token.quads.load(4 * i, 4))
        for first in (0, 2):
            lanes = [T.int32(lane) for lane in (first, first, first + 1, first + 1)]
            vectors.append(bind(T.reinterpret(T.Shuffle([quads], lanes), dtype="int8x16")))
    return vectors


def multiply_add(sums: Expr | None, weights: Expr, a: Expr) -> Expr:
    """int16x8 sums, or None for zeros, plus both eights of a vector of products."""
    signed = bind(T.reinterpret(weights, dtype="int8x16"))
    for w, columns in zip(halves(signed), halves(a), strict=True):
        products = intrinsic("llvm.aarch64.neon.smull", "int16x8", w, columns)
        sums = bind(products if sums is None else sums + products)
    return sums


def added(sums: Sequence[Expr]) -> list[Expr]:
    """Neighbouring lanes added, which leaves half as many vectors."""
    return [
        bind(intrinsic("llvm.aarch64.neon.addp", str(first.ty), first, second))
        for first, second in zip(sums[::2], sums[1::2], strict=True)
    ]


def widen(sums: Expr) -> Expr:
    """int16x8 → int32x4, neighbours added."""
    return bind(intrinsic("llvm.aarch64.neon.saddlp", "int32x4", sums))
