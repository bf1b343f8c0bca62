"""Quantization that knows the inputs: each matrix is rounded for what it multiplies.

Layer after layer, two models see the same tokens: the exact one, and the one quantized so far. A
matrix is rounded so that from the second's inputs it gives the first's outputs, which makes good
what was lost before it (Frantar et al., 2023, arXiv:2210.17323; Li et al., 2025, GPTAQ,
arXiv:2504.02692). One layer is in memory at a time, beside the tokens' states.

    quantized = calibrate(checkpoint, formats, tokens)
    quantized.tensor("model.layers.0.mlp.up_proj.weight")       # Q4
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from compile.checkpoint import Checkpoint, Matrix, Tensor
from compile.errors import CompileError
from compile.families import FAMILIES
from compile.graph import Graph, Kind, Linear, Norm, Operation, reads, writes
from compile.numerics import rope_tables
from compile.quantize.feedback import nearest_in, repaired, with_feedback
from compile.quantize.formats import Formats, MatrixFormat
from compile.reference import Exact, dequantized, embed, operate

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Tokens = NDArray[np.int32]  # [sequences, length]

CALIBRATION = 3  # counts the changes of what it makes: what an older one made is stale
ROWS = 8192  # tokens whose products are summed in float32
TIED_TOKENS = 16_384  # for a tied embedding, which takes a pass of its own


class CalibratedCheckpoint:
    """A checkpoint with matrices, held in memory, in place of its own."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config = checkpoint.config
        self.tokenizer = checkpoint.tokenizer
        self.matrices: dict[str, Matrix] = {}
        self._checkpoint = checkpoint

    def names(self) -> Iterable[str]:
        """The checkpoint's names."""
        return self._checkpoint.names()

    def tensor(self, name: str) -> Tensor:
        """One tensor, quantized if it is a matrix."""
        return self.matrices[name] if name in self.matrices else self._checkpoint.tensor(name)


class Stream:
    """One model's values for all calibration tokens, float32 [tokens, size] by name."""

    def __init__(self, checkpoint: Checkpoint, graph: Graph, tokens: Tokens) -> None:
        self._checkpoint = checkpoint
        self._length = tokens.shape[1]
        self._rope = rope_tables(checkpoint.config.rope_frequencies, self._length)
        embedding = checkpoint.tensor(graph.embedding.weight)
        self.values: dict[str, F32] = {
            graph.embedding.out: embed(embedding, tokens.reshape(-1).tolist())
        }

    def run(self, operations: Sequence[Operation], layer: int | None, keep: Iterable[str]) -> None:
        """Perform operations, a sequence at a time, and go on with the values in ``keep``."""
        weights = {
            op.weight: dequantized(self._checkpoint.tensor(op.weight.format(layer=layer)))
            for op in operations
            if isinstance(op, Linear | Norm)
        }
        total = len(next(iter(self.values.values())))
        kept: dict[str, F32] = {}
        for start in range(0, total, self._length):
            window = {name: v[start : start + self._length] for name, v in self.values.items()}
            for op in operations:
                operate(op, window, weights.__getitem__, Exact(), self._rope)
            for name in keep:
                if name not in kept:
                    kept[name] = np.empty((total, window[name].shape[1]), np.float32)
                kept[name][start : start + self._length] = window[name]
        self.values = kept


def calibrate(
    checkpoint: Checkpoint,
    formats: Formats,
    tokens: Tokens,
    report: Callable[[str, float], None] = lambda _stage, _done: None,
) -> CalibratedCheckpoint:
    """Quantize every matrix for the inputs that ``tokens`` cause.

    Args:
        checkpoint: the model; what is quantized already counts as its exact values.
        formats: of every matrix; one that is in its format already stays as it is.
        tokens: int32 [sequences, length], text that the model shall be good at.
        report: is told how far it is.
    """
    graph = FAMILIES[checkpoint.config.family](checkpoint.config)
    layers = checkpoint.config.layers
    steps = 2 * layers if checkpoint.config.tied else layers
    quantized = CalibratedCheckpoint(checkpoint)
    norm, head = graph.output
    assert isinstance(head, Linear)

    def round_matrix(name: str, kind: Kind, hessian: F64, cross: F64) -> None:
        tensor = checkpoint.tensor(name)
        weight = dequantized(tensor)
        if not (np.isfinite(weight).all() and np.isfinite(hessian).all()):
            raise CompileError(f"{name}: it or its inputs hold infinities or NaN: damaged weights?")
        if MatrixFormat.of(tensor) == formats[kind]:
            return  # it lies on such a grid already: no other is as near
        weight = repaired(weight, hessian, cross)
        quantized.matrices[name] = with_feedback(weight, hessian, formats[kind])

    embedding = graph.embedding.weight
    if checkpoint.config.tied:  # it is needed first, but what it multiplies comes last
        stream = Stream(checkpoint, graph, tokens[:: max(1, tokens.size // TIED_TOKENS)])
        for layer in range(layers):
            stream.run(graph.layer, layer, [graph.embedding.out])
            report("quantize", layer / steps)
        stream.run([norm], None, [head.x])
        hessian = moments(stream.values[head.x], stream.values[head.x])
        round_matrix(embedding, head.kind, hessian, hessian)
        del stream
    else:
        tensor, form = checkpoint.tensor(embedding), formats[head.kind]
        if MatrixFormat.of(tensor) != form:
            quantized.matrices[embedding] = nearest_in(dequantized(tensor), form)

    exact, rounded = (Stream(c, graph, tokens) for c in (checkpoint, quantized))
    for layer in range(layers):
        for segment, keep in segments(graph.layer, graph.embedding.out):
            linears = [op for op in segment if isinstance(op, Linear)]
            if linears:
                x, own = (stream.values[linears[0].x] for stream in (exact, rounded))
                hessian, cross = moments(own, own), moments(x, own)
                for op in linears:
                    round_matrix(op.weight.format(layer=layer), op.kind, hessian, cross)
            for stream in (exact, rounded):
                stream.run(segment, layer, keep)
        report("quantize", (steps - layers + layer + 1) / steps)
    if not checkpoint.config.tied:
        for stream in (exact, rounded):
            stream.run([norm], None, [head.x])
        x, own = (stream.values[head.x] for stream in (exact, rounded))
        round_matrix(head.weight, head.kind, moments(own, own), moments(x, own))
    return quantized


def segments(
    operations: Sequence[Operation], stream: str
) -> Iterator[tuple[list[Operation], list[str]]]:
    """Operations cut before each product of a new input, with the values that live on after each.

    Args:
        operations: of a layer.
        stream: the value that the next layer reads.
    """
    parts: list[list[Operation]] = [[]]
    for op in operations:
        fresh = isinstance(op, Linear) and not any(
            isinstance(before, Linear) and before.x == op.x for before in parts[-1]
        )
        if fresh:
            parts.append([])
        parts[-1].append(op)
    for index, part in enumerate(parts):
        alive = {stream}
        for op in reversed([op for later in parts[index + 1 :] for op in later]):
            alive = (alive - writes(op)) | reads(op)
        yield part, sorted(alive)


def moments(x: F32, y: F32) -> F64:
    """Σ xᵀy over tokens, [columns of x, columns of y]."""
    total = np.zeros((x.shape[1], y.shape[1]))
    for start in range(0, len(x), ROWS):
        total += x[start : start + ROWS].T @ y[start : start + ROWS]
    return total
