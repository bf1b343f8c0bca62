"""vpdpbusd at any width: four products of unsigned by signed bytes into each 32-bit lane."""

from __future__ import annotations

from collections.abc import Sequence

from tvm.tirx.script.builder import ir as T

from compile.lower.cpu.activations import Activations
from compile.lower.cpu.isa import quads
from compile.lower.cpu.memory import Array, Expr
from compile.lower.cpu.vector import bind, intrinsic, splat

BYTE_BIAS = 128


def dot(
    lanes: int, bits: int, zero: int, data: Array, parts: range, tokens: Sequence[Activations]
) -> list[list[Expr]]:
    """See :mod:`compile.lower.cpu.isa`; ``lanes`` of 32 bits are one register."""
    name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
    sums = [[start(bits, zero, token, lanes)] * len(parts) for token in tokens]
    for quad, index, weights in quads.unsigned(bits, data, parts, 4 * lanes):
        for m, token in enumerate(tokens):
            a = T.reinterpret(splat(token.quads.load(quad), lanes), dtype=f"int8x{4 * lanes}")
            sums[m][index] = bind(intrinsic(name, f"int32x{lanes}", sums[m][index], weights, a))
    return sums


def start(bits: int, zero: int, token: Activations, lanes: int) -> Expr:
    """What takes the bias of unsigned weights off their sum."""
    if bits == 4 and zero == 0:
        return splat(T.int32(0), lanes)
    offset = splat(token.offsets.load(), lanes)
    return bind(offset if bits == 4 else T.shift_left(offset, splat(T.int32(4), lanes)))
