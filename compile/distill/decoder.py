"""A decoder that learns: the same list of operations as every back end runs, in PyTorch.

    decoder = Decoder(open_checkpoint(path))
    hidden = decoder(tokens)            # float [batch, n, width], what the head reads
    logits = decoder.logits(hidden)     # float [batch, n, vocab]

A product is computed in its matrix's type, everything between in float32. Matrices may pass through
a function on their way into a product: quantization-aware training gives one that rounds
(:mod:`compile.distill.rounding`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from compile.checkpoint import Checkpoint, ModelConfig
from compile.families import FAMILIES
from compile.graph import Attention, Gate, Linear, Norm, Operation, Residual, Rope
from compile.numerics import rope_tables
from compile.reference import dequantized

Transform = Callable[[str, Tensor], Tensor]  # a matrix's name and value → what is multiplied
Values = dict[str, Tensor]


class Cache:
    """Keys and values of earlier positions, [batch, kv_heads, capacity, head_dim] a layer."""

    def __init__(self, capacity: int) -> None:
        self.length = 0
        self._capacity = capacity
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values up to and with these, which are [batch, kv_heads, n, head_dim]."""
        if layer not in self._layers:
            shape = (*k.shape[:2], self._capacity, k.shape[3])
            self._layers[layer] = k.new_empty(shape), v.new_empty(shape)
        end = self.length + k.shape[2]
        keys, values = self._layers[layer]
        keys[:, :, self.length : end], values[:, :, self.length : end] = k, v
        return keys[:, :, :end], values[:, :, :end]


class Decoder(nn.Module):
    """A model of any family, its tensors as parameters under their checkpoint's names."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.config: ModelConfig = checkpoint.config
        self.graph = FAMILIES[self.config.family](self.config)
        self.weights = nn.ParameterDict(
            {
                key(name): nn.Parameter(
                    torch.from_numpy(dequantized(checkpoint.tensor(name)).copy())
                )
                for name in checkpoint.names()
            }
        )
        cos, sin = rope_tables(self.config.rope_frequencies, self.config.context)
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", torch.from_numpy(cos), persistent=False)
        self.register_buffer("sin", torch.from_numpy(sin), persistent=False)
        self.transform: Transform = lambda name, weight: weight

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """int64 [batch, n] → float32 [batch, n, width]: what the head reads."""
        *_, last = self.states(tokens, cache)
        return self.normalized(last)

    def normalized(self, state: Tensor) -> Tensor:
        """The last layer's state → what the head reads."""
        values = {self.graph.embedding.out: state}
        for operation in self.graph.output[:-1]:
            self._operate(operation, None, values, 0, None)
        return values[self._head.x]

    def logits(self, hidden: Tensor) -> Tensor:
        """float [..., width] → float [..., vocab]."""
        return product(hidden, self._weight(self._head.weight))

    def states(self, tokens: Tensor, cache: Cache | None = None) -> Iterator[Tensor]:
        """The residual stream, float [batch, n, width], before the first and after every layer."""
        embedding = self._weight(self.graph.embedding.weight)
        values = {self.graph.embedding.out: functional.embedding(tokens, embedding).float()}
        start = cache.length if cache else 0
        yield values[self.graph.embedding.out]
        for layer in range(self.config.layers):
            for operation in self.graph.layer:
                self._operate(operation, layer, values, start, cache)
            yield values[self.graph.embedding.out]
        if cache:
            cache.length += tokens.shape[1]

    @property
    def _head(self) -> Linear:
        head = self.graph.output[-1]
        assert isinstance(head, Linear)
        return head

    def _weight(self, name: str) -> Tensor:
        return self.transform(name, self.weights[key(name)])

    def _operate(
        self,
        operation: Operation,
        layer: int | None,
        values: Values,
        start: int,
        cache: Cache | None,
    ) -> None:
        def heads(name: str) -> Tensor:
            x = values[name]
            return x.view(*x.shape[:-1], -1, self.config.head_dim)

        match operation:
            case Norm(out, x, name, eps):
                scale = self.weights[key(name.format(layer=layer))]
                values[out] = functional.rms_norm(values[x], scale.shape, scale, eps)
            case Linear(out, x, name):
                values[out] = product(values[x], self._weight(name.format(layer=layer)))
            case Rope(x):
                n = values[x].shape[1]
                cos, sin = (table[start : start + n, None] for table in (self.cos, self.sin))
                first, second = heads(x).chunk(2, -1)
                values[x] = torch.cat(
                    (first * cos - second * sin, second * cos + first * sin), -1
                ).flatten(-2)
            case Attention(out, q, k, v):
                query, keys, vals = (heads(name).transpose(1, 2) for name in (q, k, v))
                query, keys = query.to(vals.dtype), keys.to(vals.dtype)
                if cache is not None and layer is not None:
                    keys, vals = cache.extend(layer, keys, vals)
                shape, several = query.shape, query.shape[2] > 1
                if not several:  # heads that share keys look them up together, as if in a row
                    query = query.reshape(keys.shape[0], keys.shape[1], -1, shape[3])
                attended = functional.scaled_dot_product_attention(
                    query, keys, vals, is_causal=several, enable_gqa=several
                )
                values[out] = attended.reshape(shape).transpose(1, 2).flatten(-2)
            case Gate(out, gate, up):
                values[out] = functional.silu(values[gate]) * values[up]
            case Residual(x, y):
                values[x] = values[x] + values[y]


def product(x: Tensor, weight: Tensor) -> Tensor:
    """``x · weightᵀ`` in the type of ``weight``."""
    return functional.linear(x.to(weight.dtype), weight)


def key(name: str) -> str:
    """A tensor's name as PyTorch takes it for a parameter."""
    return name.replace(".", "/")
