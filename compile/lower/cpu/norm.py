"""RMSNorm, its result quantized at once: all that reads it is an integer product."""

from __future__ import annotations

from tvm.tirx.script.builder import ir as T

from compile.lower.cpu.activations import Activations, write
from compile.lower.cpu.memory import Array, Expr, local
from compile.lower.cpu.vector import LANES, add_lanes, bind, constant, fma, splat


def normalize(x: Array, weight: Array, eps: float, out: Activations, together: int) -> None:
    """float32 ``x`` [width] over its root mean square times ``weight``, into a row of ``out``.

    ``together`` groups are quantized at once.
    """
    width = out.columns
    squares = local("float32", LANES)
    squares.store(0, constant(0.0))
    with T.serial(T.int64(0), T.int64(width // LANES)) as i:
        lanes = bind(x.load(i * LANES, LANES))
        squares.store(0, fma(lanes, lanes, squares.load(0, LANES)))
    mean = add_lanes(bind(squares.load(0, LANES))) / T.float32(width)
    inverse = bind(T.float32(1) / T.sqrt(mean + T.float32(eps)))

    def some(first: Expr, count: int) -> None:
        groups = [first + i for i in range(count)]
        scaled = [
            [
                bind(x.load(at, LANES) * splat(inverse) * weight.load(at, LANES))
                for at in (group * (2 * LANES), group * (2 * LANES) + LANES)
            ]
            for group in groups
        ]
        write([out.group(group) for group in groups], [(a, b) for a, b in scaled])

    whole, rest = divmod(out.groups, together)
    with T.serial(T.int64(0), T.int64(whole)) as turn:
        some(turn * together, together)
    if rest:
        some(T.int64(whole * together), rest)
