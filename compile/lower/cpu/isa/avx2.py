"""AVX2: vpmaddubsw multiplies unsigned by signed bytes and adds pairs, in 16 bits that saturate."""

from __future__ import annotations

from collections.abc import Sequence

from tvm.tirx.script.builder import ir as T

from compile.lower.cpu.activations import Activations
from compile.lower.cpu.isa import quads
from compile.lower.cpu.isa.tuned import records
from compile.lower.cpu.memory import Array, Expr
from compile.lower.cpu.vector import bind, intrinsic, splat

LANES = 8
PREFETCH = records()["avx2"].prefetch
BLOCK = records()["avx2"].block
PASS = None
GROUPS = 1
COPIES = 1
TOGETHER = 4
BYTE_BIAS = 0
layout = quads

BYTES = 4 * LANES


def dot(
    bits: int, zero: int, data: Array, parts: range, tokens: Sequence[Activations]
) -> list[list[Expr]]:
    """See :mod:`compile.lower.cpu.isa`."""
    return dot4(zero, data, parts, tokens) if bits == 4 else dot8(data, parts, tokens)


def dot4(zero: int, data: Array, parts: range, tokens: Sequence[Activations]) -> list[list[Expr]]:
    """Pairs reach 2·15·127; eight of them stay below 2^15, so a group is summed in 16 bits."""
    pairs: list[list[Expr]] = [[None] * len(parts) for _ in tokens]
    for quad, index, weights in quads.unsigned(4, data, parts, BYTES):
        for m, token in enumerate(tokens):
            product = multiply_pairs(weights, activations(token, quad))
            before = pairs[m][index]
            pairs[m][index] = bind(product if before is None else before + product)
    sums = [[bind(add_pairs(pair)) for pair in row] for row in pairs]
    if zero == 0:
        return sums
    return [
        [bind(value + splat(token.offsets.load(), LANES)) for value in row]
        for token, row in zip(tokens, sums, strict=True)
    ]


def dot8(data: Array, parts: range, tokens: Sequence[Activations]) -> list[list[Expr]]:
    """|w| by a with w's sign: pairs reach 2·127·127 and are widened at once."""
    sums: list[list[Expr]] = [[None] * len(parts) for _ in tokens]
    for quad, index, stored in quads.unsigned(8, data, parts, BYTES):
        weights = bind(T.reinterpret(stored, dtype=f"int8x{BYTES}"))
        magnitude = bind(with_sign_of(weights, weights))
        for m, token in enumerate(tokens):
            signed = with_sign_of(activations(token, quad), weights)
            product = add_pairs(multiply_pairs(magnitude, signed))
            before = sums[m][index]
            sums[m][index] = bind(product if before is None else before + product)
    return sums


def activations(token: Activations, quad: int) -> Expr:
    """Four columns of a token's activations, repeated for every row."""
    return T.reinterpret(splat(token.quads.load(quad), LANES), dtype=f"int8x{BYTES}")


def with_sign_of(a: Expr, weights: Expr) -> Expr:
    """``a``, negated where the weight is negative, 0 where it is 0."""
    return intrinsic("llvm.x86.avx2.psign.b", f"int8x{BYTES}", a, weights)


def multiply_pairs(weights: Expr, a: Expr) -> Expr:
    """Unsigned by signed bytes, neighbours added: int16x16."""
    return intrinsic("llvm.x86.avx2.pmadd.ub.sw", "int16x16", weights, a)


def add_pairs(pairs: Expr) -> Expr:
    """Neighbouring 16-bit sums added: int32x8."""
    return intrinsic("llvm.x86.avx2.pmadd.wd", "int32x8", pairs, splat(T.int16(1), 16))
