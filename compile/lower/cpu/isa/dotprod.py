"""Armv8.2 dot product (Cortex-A76, A78AE): sdot adds four signed products into each lane."""

from __future__ import annotations

from collections.abc import Sequence

from tvm.tirx.script.builder import ir as T

from compile.lower.cpu.activations import Activations
from compile.lower.cpu.isa import stacked
from compile.lower.cpu.memory import Array, Expr
from compile.lower.cpu.vector import bind, intrinsic, splat

LANES = 4
PREFETCH = 0
BLOCK = (4, 8)
PASS = (2, 8)
GROUPS = 2
COPIES = 16
TOGETHER = 1
BYTE_BIAS = 0
layout = stacked

ROWS = 16
BYTES = 4 * LANES

Weights = list[list[Expr]]  # of each quad of columns, of each part: 16 bytes


def dot(
    bits: int, zero: int, data: Array, parts: range, tokens: Sequence[Activations]
) -> list[list[Expr]]:
    """See :mod:`compile.lower.cpu.isa`; of 4-bit weights always all 16 rows of the tile."""
    if bits == 8:
        return dot_loaded(bits, 0, load(bits, 0, data, parts), tokens)
    if len(parts) * LANES != ROWS:
        raise ValueError("a 4-bit tile is multiplied whole")
    return [dot4(zero, data, token) for token in tokens]


def dot4(zero: int, data: Array, token: Activations) -> list[Expr]:
    """Low halves by themselves and within whole bytes: see :mod:`compile.lower.cpu.isa.stacked`."""
    whole = [[bind(data.load(j * 32 + i * BYTES, BYTES)) for i in range(2)] for j in range(8)]
    low = [[bind(T.bitwise_and(w, splat(T.uint8(15), BYTES))) for w in quad] for quad in whole]
    if zero:
        starts = [token.start(part, LANES) for part in range(4)]  # -8·Σa
    else:
        centre = bind(token.start(0, LANES) * splat(T.int32(-16), LANES))  # 128·Σa
        starts = [splat(T.int32(0), LANES)] * 2 + [centre] * 2
    lows, wholes = multiply_add(token, low, starts[:2]), multiply_add(token, whole, starts[2:])
    name = "llvm.aarch64.neon.vcvtfxs2fp.v4f32.v4i32"
    highs = [
        bind(intrinsic(name, f"float32x{LANES}", both - one, T.int32(4)))  # exact: a sixteenth
        for both, one in zip(wholes, lows, strict=True)
    ]
    return [*lows, *highs]


def load(bits: int, zero: int, data: Array, parts: range) -> Weights:
    """See :mod:`compile.lower.cpu.isa`."""
    if bits == 8:
        return [[bind(data.load(j * 64 + p * BYTES, BYTES)) for p in parts] for j in range(8)]

    def separate(quad: int, part: int) -> Expr:
        w = bind(data.load(quad * 32 + part % 2 * BYTES, BYTES))
        if part < 2:
            low = T.bitwise_and(w, splat(T.uint8(15), BYTES))
            return bind(low - splat(T.uint8(zero), BYTES) if zero else low)
        signed = T.shift_right(T.reinterpret(w, dtype=f"int8x{BYTES}"), splat(T.int8(4), BYTES))
        return bind(signed if zero else signed + splat(T.int8(8), BYTES))

    return [[separate(quad, part) for part in parts] for quad in range(8)]


def dot_loaded(
    bits: int, zero: int, weights: Weights, tokens: Sequence[Activations]
) -> list[list[Expr]]:
    """See :mod:`compile.lower.cpu.isa`."""
    starts = [splat(T.int32(0), LANES)] * len(weights[0])
    return [multiply_add(token, weights, starts) for token in tokens]


def multiply_add(token: Activations, weights: Weights, starts: Sequence[Expr]) -> list[Expr]:
    """The products of eight quads of columns added to each part's start."""
    loaded = [bind(token.quads.load(4 * i, 4)) for i in range(2)]
    sums = list(starts)
    for quad, vectors in enumerate(weights):
        # One lane of a register to all rows: LLVM makes it the instruction's index operand.
        lane = T.Shuffle([loaded[quad // 4]], [T.int32(quad % 4)] * LANES)
        for i, w in enumerate(vectors):
            sums[i] = bind(
                intrinsic(
                    "llvm.aarch64.neon.sdot.v4i32.v16i8",
                    f"int32x{LANES}",
                    sums[i],
                    T.reinterpret(w, dtype=f"int8x{BYTES}"),
                    T.reinterpret(lane, dtype=f"int8x{BYTES}"),
                )
            )
    return sums
