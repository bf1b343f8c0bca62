"""What a decoder computes, as data: a short list of operations on named values.

Back-end neutral: the numpy reference runs the list as it stands, a back end fuses it into its
stages. Values are float32 [tokens, size]; a tensor name holds ``{layer}`` where it is a layer's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

# Matrices of one kind are multiplied as one, or stand at the same place of every layer: they share
# a format over all layers. The embedding and the output head, often the same, are one kind.
Kind = Literal["qkv", "o", "gate_up", "down", "head"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Embedding:
    """``out = weight[tokens]``."""

    out: str
    weight: str


@dataclass(frozen=True)
class Norm:
    """RMSNorm: ``out = x / sqrt(mean(x²) + eps) · weight`` (arXiv:1910.07467)."""

    out: str
    x: str
    weight: str
    eps: float


@dataclass(frozen=True)
class Linear:
    """``out = x · weightᵀ``."""

    out: str
    x: str
    weight: str
    kind: Kind


@dataclass(frozen=True)
class Rope:
    """Rotary positions, in place: pairs (i, i + head_dim/2) of each head (arXiv:2104.09864)."""

    x: str


@dataclass(frozen=True)
class Attention:
    """Causal grouped-query attention over all positions so far; ``k`` and ``v`` enter the cache."""

    out: str
    q: str
    k: str
    v: str


@dataclass(frozen=True)
class Gate:
    """``out = silu(gate) · up`` (arXiv:2002.05202)."""

    out: str
    gate: str
    up: str


@dataclass(frozen=True)
class Residual:
    """``x = x + y``."""

    x: str
    y: str


Operation: TypeAlias = Norm | Linear | Rope | Attention | Gate | Residual


@dataclass(frozen=True)
class Graph:
    """A decoder: tokens to ``embedding``, ``layer`` as often as there are layers, ``output``."""

    embedding: Embedding
    layer: tuple[Operation, ...]
    output: tuple[Operation, ...]

    def matrices(self, layers: int) -> dict[Kind, tuple[str, ...]]:
        """The tensors of each kind, over so many layers; each once where two are tied."""
        names: dict[Kind, dict[str, None]] = {kind: {} for kind in KINDS}
        names["head"][self.embedding.weight] = None
        for operations, times in ((self.layer, layers), (self.output, 1)):
            for layer in range(times):
                for op in operations:
                    if isinstance(op, Linear):
                        names[op.kind][op.weight.format(layer=layer)] = None
        return {kind: tuple(each) for kind, each in names.items()}


def reads(operation: Operation) -> set[str]:
    """The values that an operation reads."""
    match operation:
        case Attention(_, q, k, v):
            return {q, k, v}
        case Gate(_, gate, up):
            return {gate, up}
        case Residual(x, y):
            return {x, y}
        case _:
            return {operation.x}


def writes(operation: Operation) -> set[str]:
    """The values that an operation writes."""
    return {operation.x if isinstance(operation, Rope | Residual) else operation.out}
