"""RMSNorm, its result quantized at once: all that reads it is an integer product."""

from __future__ import annotations

from tvm.tirx.script.builder import ir as T

from compile.lower.cpu.activations import Activations
from compile.lower.cpu.memory import Array, Expr, local
from compile.lower.cpu.vector import LANES, add_lanes, bind, constant, fma, splat


def normalize(x: Array, weight: Array, eps: float, out: Activations) -> None:
    """float32 ``x`` [width] over its root mean square times ``weight``, into a row of ``out``."""
    width = out.columns
    squares = local("float32", LANES)
    squares.store(0, constant(0.0))
    with T.serial(T.int64(0), T.int64(width // LANES)) as i:
        lanes = bind(x.load(i * LANES, LANES))
        squares.store(0, fma(lanes, lanes, squares.load(0, LANES)))
    mean = add_lanes(bind(squares.load(0, LANES))) / T.float32(width)
    inverse = bind(T.float32(1) / T.sqrt(mean + T.float32(eps)))
    with T.serial(T.int64(0), T.int64(out.groups)) as g:

        def half(i: int, group: Expr = g) -> Expr:
            at = group * (2 * LANES) + i * LANES
            return bind(x.load(at, LANES) * splat(inverse) * weight.load(at, LANES))

        out.group(g).write(half(0), half(1))
