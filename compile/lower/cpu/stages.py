"""A layer's operations fused into the stages between which the threads meet.

Four kinds cover a decoder: project and cache, attend, project and add, gate. Each reads what the
stage before wrote and ends in a barrier. A token alone has two for attention, scores and values,
and many have one for each norm: a layer costs six while decoding, seven in a prefill.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from compile.errors import UnsupportedError
from compile.graph import Attention, Gate, Linear, Norm, Operation, Residual, Rope


@dataclass(frozen=True)
class ProjectAndCache:
    """Norm, q, k and v in one matrix, rotation, keys and values into the cache."""

    norm: Norm
    q: str
    k: str
    v: str


@dataclass(frozen=True)
class Attend:
    """Attention over the cache."""


@dataclass(frozen=True)
class ProjectAndAdd:
    """One matrix whose product is added to the residual stream; reads attention or the gate."""

    weight: str
    of_gate: bool


@dataclass(frozen=True)
class GateAndUp:
    """Norm, gate and up in one matrix, ``silu(gate) · up``."""

    norm: Norm
    gate: str
    up: str


Stage: TypeAlias = ProjectAndCache | Attend | ProjectAndAdd | GateAndUp


def fuse(operations: tuple[Operation, ...]) -> tuple[Stage, ...]:
    """The stages of a layer, in order.

    Raises:
        UnsupportedError: operations in an order that no stage covers.
    """
    match operations:
        case (
            Norm(h1, x1),
            Linear(q, hq, wq, "qkv"),
            Linear(k, hk, wk, "qkv"),
            Linear(v, hv, wv, "qkv"),
            Rope(rq),
            Rope(rk),
            Attention(a, aq, ak, av),
            Linear(o, xo, wo, "o"),
            Residual(x2, yo),
            Norm(h2, x3),
            Linear(gate, hg, wg, "gate_up"),
            Linear(up, hu, wu, "gate_up"),
            Gate(m, gg, gu),
            Linear(down, xd, wd, "down"),
            Residual(x4, yd),
        ) if (
            (hq, hk, hv) == (h1,) * 3
            and (rq, rk) == (q, k)
            and (aq, ak, av) == (q, k, v)
            and (xo, yo) == (a, o)
            and (hg, hu) == (h2, h2)
            and (gg, gu) == (gate, up)
            and (xd, yd) == (m, down)
            and x1 == x2 == x3 == x4
        ):
            norms = [op for op in operations if isinstance(op, Norm)]
            return (
                ProjectAndCache(norms[0], wq, wk, wv),
                Attend(),
                ProjectAndAdd(wo, of_gate=False),
                GateAndUp(norms[1], wg, wu),
                ProjectAndAdd(wd, of_gate=True),
            )
    kinds = ", ".join(type(op).__name__ for op in operations)
    raise UnsupportedError(
        f"no CPU stages cover a layer of {kinds}: extend compile.lower.cpu.stages"
    )
