"""A decoder run by numpy, operation by operation: the oracle of every back end.

Two arithmetics over the same graph: ``Exact`` computes in float32 on dequantized weights and is
what accuracy is measured against; ``Device`` is the arithmetic of the CPU targets, bit for bit
(:mod:`compile.numerics`).

    reference = Reference(open_checkpoint(path), Exact())
    logits = reference.logits([1, 2, 3])        # float32 [3, vocab]

    cache = Cache()                             # or a few tokens at a time
    logits = [reference.logits([token], cache) for token in (1, 2, 3)]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from compile import numerics
from compile.checkpoint import Q4, Q8, Checkpoint, Matrix, Tensor
from compile.errors import CompileError
from compile.families import FAMILIES
from compile.graph import Attention, Gate, Linear, Norm, Operation, Residual, Rope
from compile.numerics import F32


class Arithmetic(Protocol):
    """What differs between exact and device arithmetic."""

    def norm(self, x: F32, weight: F32, eps: float) -> F32: ...

    def linear(self, x: F32, weight: Tensor) -> F32: ...

    def rotate(self, x: F32, cos: F32, sin: F32) -> F32: ...

    def gate(self, gate: F32, up: F32) -> F32: ...

    def attention(self, q: F32, k: F32, v: F32) -> F32:
        """Queries [n, heads, d] of the last of t positions; k and v [t, kv_heads, d] of all."""


class Exact:
    """float32 throughout, weights dequantized."""

    def norm(self, x: F32, weight: F32, eps: float) -> F32:
        mean: F32 = (x * x).mean(-1, keepdims=True)
        root: F32 = np.sqrt(mean + np.float32(eps))
        return x / root * weight

    def linear(self, x: F32, weight: Tensor) -> F32:
        return x @ dequantized(weight).T

    def rotate(self, x: F32, cos: F32, sin: F32) -> F32:
        first, second = np.split(x, 2, axis=-1)
        cos, sin = cos[:, None], sin[:, None]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def gate(self, gate: F32, up: F32) -> F32:
        return np.asarray(gate / (1 + np.exp(-gate)) * up, np.float32)

    def attention(self, q: F32, k: F32, v: F32) -> F32:
        n, _, head_dim = q.shape
        t, kv_heads, _ = k.shape
        q = q.reshape(n, kv_heads, -1, head_dim).transpose(1, 2, 0, 3)  # [kv_heads, share, n, d]
        score = q @ k.transpose(1, 2, 0)[:, None] / np.float32(np.sqrt(head_dim))
        score = np.where(np.tri(n, t, t - n, dtype=bool), score, np.float32(-np.inf))
        p = np.exp(score - score.max(-1, keepdims=True))
        out: F32 = (p / p.sum(-1, keepdims=True)) @ v.transpose(1, 0, 2)[:, None]
        return out.transpose(2, 0, 1, 3).reshape(n, -1)


class Device:
    """The device's arithmetic: int8 activations and KV cache, fixed order of every sum."""

    def norm(self, x: F32, weight: F32, eps: float) -> F32:
        return numerics.rms_norm(x, weight, eps)

    def linear(self, x: F32, weight: Tensor) -> F32:
        if not isinstance(weight, Q4 | Q8):
            raise CompileError(
                "device arithmetic needs quantized weights: quantize the model first"
            )
        return numerics.linear(*numerics.quantize_activations(x), weight)

    def rotate(self, x: F32, cos: F32, sin: F32) -> F32:
        return numerics.rotate(x, cos, sin)

    def gate(self, gate: F32, up: F32) -> F32:
        return numerics.silu(gate) * up

    def attention(self, q: F32, k: F32, v: F32) -> F32:
        n, _, head_dim = q.shape
        order = numerics.rotary_order(head_dim)
        a, scale = numerics.quantize_activations(q[..., order])
        scale = scale * np.float32(1 / np.sqrt(head_dim))
        keys = numerics.quantize_activations(k[..., order])
        values = numerics.quantize_activations(v)
        rows = [
            numerics.attend(
                (a[i], scale[i]),
                (keys[0][:seen], keys[1][:seen]),
                (values[0][:seen], values[1][:seen]),
            )
            for i, seen in enumerate(range(len(k) - n + 1, len(k) + 1))
        ]
        return np.stack(rows).reshape(n, -1)


def dequantized(tensor: Tensor) -> F32:
    """Any tensor as float32."""
    if isinstance(tensor, Q4 | Q8):
        return tensor.dequantize()
    return tensor.astype(np.float32, copy=False)


@dataclass
class Cache:
    """What a sequence's next tokens need of those so far.

    Attributes:
        length: tokens so far.
        layers: each layer's keys and values, float32 [length, kv_heads, head_dim].
    """

    length: int = 0
    layers: dict[int | None, tuple[F32, F32]] = field(default_factory=dict)

    def extended(self, layer: int | None, k: F32, v: F32) -> tuple[F32, F32]:
        """The layer's keys and values with these behind them."""
        if layer in self.layers:
            before = self.layers[layer]
            k, v = np.concatenate((before[0], k)), np.concatenate((before[1], v))
        self.layers[layer] = k, v
        return k, v


class Reference:
    """A checkpoint's decoder under one arithmetic.

    ``logits`` is all of it; the parts let several models take turns, a layer at a time. They take
    float32 [sequences · length, width] of as many sequences of one length.
    """

    def __init__(self, checkpoint: Checkpoint, arithmetic: Arithmetic) -> None:
        self._checkpoint = checkpoint
        self._arithmetic = arithmetic
        self._graph = FAMILIES[checkpoint.config.family](checkpoint.config)

    def logits(self, tokens: Sequence[int], cache: Cache | None = None) -> F32:
        """float32 [len(tokens), vocab]: what follows each prefix of ``tokens``.

        They begin a sequence, or go on with the one in ``cache``, which they join.
        """
        cache = cache or Cache()
        x = self.embed(tokens)
        for layer in range(self._checkpoint.config.layers):
            x = self.layer(layer, x, cache=cache)
        cache.length += len(tokens)
        return self.output(x)

    def embed(self, tokens: Sequence[int]) -> F32:
        """The residual stream before the first layer."""
        return embed(self._checkpoint.tensor(self._graph.embedding.weight), tokens)

    def layer(self, layer: int, x: F32, sequences: int = 1, cache: Cache | None = None) -> F32:
        """The residual stream behind a layer."""
        values = {self._graph.embedding.out: x}
        length = cache.length if cache else 0
        config = self._checkpoint.config
        tables = numerics.rope_tables(config.rope_frequencies, length + len(x) // sequences)
        for operation in self._graph.layer:
            operate(
                operation,
                values,
                lambda name: self._checkpoint.tensor(name.format(layer=layer)),
                self._arithmetic,
                (tables[0][length:], tables[1][length:]),
                sequences,
                (lambda k, v: cache.extended(layer, k, v)) if cache else None,
            )
        return values[self._graph.embedding.out]

    def output(self, x: F32) -> F32:
        """Logits, float32 [len(x), vocab]."""
        values = {self._graph.embedding.out: x}
        for operation in self._graph.output:
            operate(operation, values, self._checkpoint.tensor, self._arithmetic)
        return values["logits"]


def operate(
    operation: Operation,
    values: dict[str, F32],
    weight: Callable[[str], Tensor],
    arithmetic: Arithmetic,
    rope: tuple[F32, F32] | None = None,
    sequences: int = 1,
    extend: Callable[[F32, F32], tuple[F32, F32]] | None = None,
) -> None:
    """Perform one operation on named values, float32 [sequences · length, size] each.

    Args:
        operation: of a graph.
        values: read and written.
        weight: gives the tensor that an operation names.
        arithmetic: how.
        rope: cos and sin of the positions, [length, head_dim / 2]; for operations on heads.
        sequences: how many follow each other in the values.
        extend: puts keys and values of earlier positions before these, if there are any.
    """

    def heads(name: str) -> list[F32]:
        """Of each sequence, [length, heads, head_dim]."""
        assert rope is not None
        return list(values[name].reshape(sequences, len(rope[0]), -1, 2 * rope[0].shape[1]))

    match operation:
        case Norm(out, x, name, eps):
            values[out] = arithmetic.norm(values[x], dequantized(weight(name)), eps)
        case Linear(out, x, name):
            values[out] = arithmetic.linear(values[x], weight(name))
        case Rope(x):
            assert rope is not None
            rotated = [arithmetic.rotate(one, *rope) for one in heads(x)]
            values[x] = np.concatenate(rotated).reshape(values[x].shape)
        case Attention(out, q, k, v):
            each = zip(heads(q), heads(k), heads(v), strict=True)
            values[out] = np.concatenate(
                [arithmetic.attention(a, *(extend(b, c) if extend else (b, c))) for a, b, c in each]
            )
        case Gate(out, gate, up):
            values[out] = arithmetic.gate(values[gate], values[up])
        case Residual(x, y):
            values[x] = values[x] + values[y]


def embed(weight: Tensor, tokens: Sequence[int]) -> F32:
    """Rows of an embedding as float32 [len(tokens), width]."""
    index = np.asarray(tokens, np.intp)
    if isinstance(weight, Q4 | Q8):
        rows: Matrix = weight.rows(index)
        return rows.dequantize()
    return weight[index].astype(np.float32)
