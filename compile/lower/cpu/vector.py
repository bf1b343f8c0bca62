"""Vector arithmetic of the numerics (:mod:`compile.numerics`) as TIR expressions.

Sixteen lanes everywhere: LLVM splits them into what the CPU has, lane by lane, so the bits are
the same on each. LLVM may fuse ``a * b + c`` where it sees a product added; every addition of a
product is therefore written as :func:`fma`, and no other sum has a product as its operand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from tvm.tirx.script.builder import ir as T

from compile import numerics
from compile.lower.cpu.memory import Expr, lanes_of, local

LANES = numerics.LANES


def bind(value: Expr) -> Expr:
    """Name a value, so that it is computed once however often it is used."""
    return T.Bind(value)


def intrinsic(name: str, dtype: str, *operands: Expr) -> Expr:
    """A call of an LLVM intrinsic without side effects."""
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(name), *operands, dtype=dtype)


def splat(value: Expr, lanes: int = LANES) -> Expr:
    """``value`` in every lane."""
    return value if lanes == 1 else T.broadcast(value, lanes)


def splat_lane(x: Expr, lane: int, lanes: int) -> Expr:
    """One lane of ``x``, which may have no other, in every lane."""
    return splat(x if lanes_of(x) == 1 else part(x, lane, lane + 1), lanes)


def constant(value: float | np.float32, lanes: int = LANES) -> Expr:
    """A float32 constant in every lane."""
    return splat(T.float32(float(value)), lanes)


def fma(a: Expr, b: Expr, c: Expr) -> Expr:
    """``a · b + c``, rounded once."""
    lanes = lanes_of(a)
    return intrinsic("llvm.fma", "float32" if lanes == 1 else f"float32x{lanes}", a, b, c)


def rint(x: Expr) -> Expr:
    """Nearest integer, half to even."""
    return intrinsic("llvm.rint", f"float32x{lanes_of(x)}", x)


def add_lanes(x: Expr) -> Expr:
    """Sum of 16 lanes, pairwise: lane i with i+8, then i+4, i+2, i+1."""
    while lanes_of(x) > 1:
        low, high = halves(x)
        x = bind(low + high)
    return x


def across(vectors: Sequence[Expr], combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """What ``combine`` makes of all lanes of each of n vectors of 16, as the first n lanes.

    All vectors take each step together, in a third of the operations that they take one by one.
    ``combine`` may take lanes in any order. There are as many lanes as the next power of two.
    """
    missing = (1 << (len(vectors) - 1).bit_length()) - len(vectors)
    held, width = [*vectors, *[vectors[-1]] * missing], LANES  # lanes that are left of each vector
    while width > 1:
        half = width // 2
        pairs = [held] if len(held) == 1 else [held[i : i + 2] for i in range(0, len(held), 2)]
        held = []
        for pair in pairs:
            starts = range(0, sum(lanes_of(x) for x in pair), width)
            low, high = (
                T.Shuffle(pair, [T.int32(start + i) for start in starts for i in side])
                for side in (range(half), range(half, width))
            )
            held.append(settled(combine(low, high)))
        width = half
    return held[0]


def settled(value: Expr) -> Expr:
    """A value that TVM's passes do not follow into what it is made of, many times over.

    It goes through memory, which LLVM takes out again.
    """
    lanes = lanes_of(value)
    dtype = str(value.ty).partition("x")[0]
    array = local(dtype, lanes)
    array.store(0, value)
    return bind(array.load(0, lanes))


def halves(x: Expr) -> tuple[Expr, Expr]:
    """The lower and the upper half of a vector's lanes."""
    lanes = lanes_of(x)
    return part(x, 0, lanes // 2), part(x, lanes // 2, lanes)


def part(x: Expr, start: int, stop: int) -> Expr:
    """Lanes ``start`` to ``stop`` of a vector."""
    return T.Shuffle([x], [T.int32(lane) for lane in range(start, stop)])


def exp(x: Expr) -> Expr:
    """e^x of 16 lanes: :func:`compile.numerics.exp`, operation by operation."""
    x = bind(T.min(T.max(x, constant(numerics.EXP_LOWEST)), constant(numerics.EXP_HIGHEST)))
    n = bind(rint(x * constant(numerics.LOG2E)))
    r = bind(fma(n, constant(-numerics.LN2_HIGH), x))
    r = bind(fma(n, constant(-numerics.LN2_LOW), r))
    p = constant(numerics.EXP_POLYNOMIAL[0])
    for c in numerics.EXP_POLYNOMIAL[1:]:
        p = bind(fma(p, r, constant(c)))
    exponent = T.shift_left(T.cast(n, "int32x16"), splat(T.int32(23)))
    # Scaling by 2^n as an integer sum: a product here could be fused into what follows.
    return bind(T.reinterpret(T.reinterpret(p, dtype="int32x16") + exponent, dtype="float32x16"))


def silu(x: Expr) -> Expr:
    """x / (1 + e^-x) of 16 lanes."""
    return bind(x / (constant(1.0) + exp(-x)))
