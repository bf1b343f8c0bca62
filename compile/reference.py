"""A decoder run by numpy, operation by operation: the oracle of every back end.

Two arithmetics over the same graph: ``Exact`` computes in float32 on dequantized weights and is
what accuracy is measured against; ``Device`` is the arithmetic of the CPU targets, bit for bit
(:mod:`compile.numerics`).

    reference = Reference(open_checkpoint(path), Exact())
    logits = reference.logits([1, 2, 3])        # float32 [3, vocab]
"""

from __future__ import annotations

from collections.abc import Sequence
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

    def attention(self, q: F32, k: F32, v: F32) -> F32: ...


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
        n, heads, head_dim = q.shape
        k, v = (np.repeat(a, heads // k.shape[1], axis=1) for a in (k, v))
        q, k, v = (a.transpose(1, 0, 2) for a in (q, k, v))
        score = q @ k.transpose(0, 2, 1) / np.float32(np.sqrt(head_dim))
        score = np.where(np.tri(n, dtype=bool), score, np.float32(-np.inf))
        p = np.exp(score - score.max(-1, keepdims=True))
        out: F32 = p / p.sum(-1, keepdims=True) @ v
        return out.transpose(1, 0, 2).reshape(n, -1)


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
                (keys[0][: i + 1], keys[1][: i + 1]),
                (values[0][: i + 1], values[1][: i + 1]),
            )
            for i in range(n)
        ]
        return np.stack(rows).reshape(n, -1)


def dequantized(tensor: Tensor) -> F32:
    """Any tensor as float32."""
    if isinstance(tensor, Q4 | Q8):
        return tensor.dequantize()
    return tensor.astype(np.float32)


class Reference:
    """A checkpoint's decoder under one arithmetic; whole sequences, no cache.

    ``logits`` is all of it; its three parts let several models take turns, a layer at a time. They
    take float32 [sequences · length, width] of as many sequences of one length.
    """

    def __init__(self, checkpoint: Checkpoint, arithmetic: Arithmetic) -> None:
        self._checkpoint = checkpoint
        self._arithmetic = arithmetic
        self._graph = FAMILIES[checkpoint.config.family](checkpoint.config)

    def logits(self, tokens: Sequence[int]) -> F32:
        """float32 [len(tokens), vocab]: what follows each prefix of ``tokens``."""
        x = self.embed(tokens)
        for layer in range(self._checkpoint.config.layers):
            x = self.layer(layer, x)
        return self.output(x)

    def embed(self, tokens: Sequence[int]) -> F32:
        """The residual stream before the first layer."""
        return embed(self._checkpoint.tensor(self._graph.embedding.weight), tokens)

    def layer(self, layer: int, x: F32, sequences: int = 1) -> F32:
        """The residual stream behind a layer."""
        return self._run(self._graph.layer, layer, x, sequences)[self._graph.embedding.out]

    def output(self, x: F32) -> F32:
        """Logits, float32 [len(x), vocab]."""
        return self._run(self._graph.output, None, x, 1)["logits"]

    def _run(
        self, operations: tuple[Operation, ...], layer: int | None, x: F32, sequences: int
    ) -> dict[str, F32]:
        values = {self._graph.embedding.out: x}
        for operation in operations:
            self._apply(operation, layer, values, sequences)
        return values

    def _apply(
        self, operation: Operation, layer: int | None, values: dict[str, F32], sequences: int
    ) -> None:
        config = self._checkpoint.config

        def heads(name: str) -> list[F32]:
            """Of each sequence, [length, heads, head_dim]."""
            each = np.split(values[name], sequences)
            return [rows.reshape(len(rows), -1, config.head_dim) for rows in each]

        def weight(name: str) -> Tensor:
            return self._checkpoint.tensor(name.format(layer=layer))

        match operation:
            case Norm(out, x, name, eps):
                values[out] = self._arithmetic.norm(values[x], dequantized(weight(name)), eps)
            case Linear(out, x, name):
                values[out] = self._arithmetic.linear(values[x], weight(name))
            case Rope(x):
                tables = numerics.rope_tables(config.rope_frequencies, len(values[x]) // sequences)
                rotated = [self._arithmetic.rotate(one, *tables) for one in heads(x)]
                values[x] = np.concatenate(rotated).reshape(values[x].shape)
            case Attention(out, q, k, v):
                each = zip(heads(q), heads(k), heads(v), strict=True)
                values[out] = np.concatenate([self._arithmetic.attention(*one) for one in each])
            case Gate(out, gate, up):
                values[out] = self._arithmetic.gate(values[gate], values[up])
            case Residual(x, y):
                values[x] = values[x] + values[y]


def embed(weight: Tensor, tokens: Sequence[int]) -> F32:
    """Rows of an embedding as float32 [len(tokens), width]."""
    index = np.asarray(tokens, np.intp)
    if isinstance(weight, Q4 | Q8):
        rows: Matrix = weight.rows(index)
        return rows.dequantize()
    return weight[index].astype(np.float32)
