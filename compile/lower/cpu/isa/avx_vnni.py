"""AVX-VNNI: vpdpbusd in 256 bits, on CPUs without AVX-512."""

from __future__ import annotations

from collections.abc import Sequence

from tvm.tirx.script.builder import ir as T

from compile.lower.cpu.activations import Activations
from compile.lower.cpu.isa import quads
from compile.lower.cpu.memory import Array, Expr
from compile.lower.cpu.vector import bind, intrinsic, splat

LANES = 8
BLOCK = (4, 8)
BYTE_BIAS = 128
layout = quads

BYTES = 4 * LANES


def dot(bits: int, data: Array, parts: range, tokens: Sequence[Activations]) -> list[list[Expr]]:
    """See :mod:`compile.lower.cpu.isa`."""
    zero = 8 if bits == 4 else BYTE_BIAS
    sums = [
        [splat(bind(token.totals.load() * T.int32(-zero)), LANES)] * len(parts) for token in tokens
    ]
    for quad, index, weights in quads.unsigned(bits, data, parts, BYTES):
        for m, token in enumerate(tokens):
            a = T.reinterpret(splat(token.quads.load(quad), LANES), dtype=f"int8x{BYTES}")
            sums[m][index] = bind(
                intrinsic(
                    "llvm.x86.avx512.vpdpbusd.256", f"int32x{LANES}", sums[m][index], weights, a
                )
            )
    return sums
