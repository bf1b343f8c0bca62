"""A smaller student cut out of its teacher: without the layers and columns that matter least.

    pruned = prune(checkpoint, layers=20, ffn=960, tokens=tokens)
    pruned.layers           # (0, 1, 2, 5, …): which of the teacher's it keeps

A column of the feed-forward is as important as what it adds to the residual stream: the square of
its activation times that of its weights (Muralidharan et al., 2024, Minitron, arXiv:2407.14679). A
layer is as important as the divergence of the predictions without it; the least important goes, and
the rest is measured anew (Kim et al., 2024, Shortened LLaMA, arXiv:2402.02834).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from compile.checkpoint import Checkpoint, ModelConfig, Tensor
from compile.errors import CompileError
from compile.evaluate.predictors import Remembered
from compile.families import FAMILIES
from compile.graph import Gate, Linear
from compile.llama_tensors import parameters
from compile.quantize.budget import divergence, log_softmax
from compile.quantize.calibrate import Stream, segments
from compile.recipe import Student
from compile.reference import Exact, Reference, dequantized

F32 = NDArray[np.float32]
Tokens = NDArray[np.int32]  # [n, length]
Report = Callable[[float], None]

MULTIPLE = 64  # of feed-forward columns that are kept: whole groups of weights
JUDGED = 512  # tokens that layers are judged by


class PrunedCheckpoint:
    """A view of a checkpoint with some of its layers and of their feed-forward columns.

    Attributes:
        layers: the numbers of the layers that are kept.
    """

    def __init__(
        self, checkpoint: Checkpoint, layers: Sequence[int], columns: dict[int, NDArray[np.intp]]
    ) -> None:
        ffn = len(columns[layers[0]])
        self.config = replace(checkpoint.config, layers=len(layers), ffn=ffn)
        self.tokenizer = checkpoint.tokenizer
        self.layers = tuple(layers)
        self._checkpoint = checkpoint
        self._sources: dict[str, tuple[str, NDArray[np.intp] | None, int]] = {}
        graph = FAMILIES[self.config.family](self.config)
        cut = ffn_axes(checkpoint)
        for new, old in enumerate(layers):
            for op in graph.layer:
                if (name := getattr(op, "weight", None)) is not None:
                    kept = columns[old] if name in cut else None
                    source = name.format(layer=old), kept, cut.get(name, 0)
                    self._sources[name.format(layer=new)] = source
        outer = [graph.embedding, *graph.output]
        for name in dict.fromkeys(op.weight for op in outer if hasattr(op, "weight")):
            self._sources[name] = name, None, 0

    def names(self) -> Iterable[str]:
        """The student's names."""
        return self._sources

    def tensor(self, name: str) -> Tensor:
        """One tensor; float32 where it is cut."""
        source, kept, axis = self._sources[name]
        tensor = self._checkpoint.tensor(source)
        return tensor if kept is None else dequantized(tensor).take(kept, axis)


def prune(
    checkpoint: Checkpoint,
    layers: int,
    ffn: int,
    tokens: Tokens,
    report: Report = lambda _done: None,
) -> PrunedCheckpoint:
    """The checkpoint with fewer layers and feed-forward columns.

    Args:
        checkpoint: the model to cut.
        layers, ffn: how many are kept.
        tokens: int32 [n, length], text that the student shall be good at.
        report: is told the share that is done.

    The model has at least as many (:func:`student_config`).
    """
    config = checkpoint.config
    remembered = Remembered(checkpoint)
    columns = {
        layer: np.sort(np.argsort(-importance, kind="stable")[:ffn])
        for layer, importance in enumerate(column_importances(remembered, tokens))
    }
    report(0.2)
    judged = tokens[: max(1, JUDGED // tokens.shape[1]), :JUDGED]
    narrow = PrunedCheckpoint(remembered, range(config.layers), columns)
    kept = list(range(config.layers))
    while len(kept) > layers:
        divergences = without_each(Remembered(narrow), kept, judged)
        kept.pop(int(np.argmin(divergences)))
        report(0.2 + 0.8 * (config.layers - len(kept)) / max(1, config.layers - layers))
    return PrunedCheckpoint(checkpoint, kept, columns)


def student_config(config: ModelConfig, student: Student) -> ModelConfig:
    """The sizes of a teacher's student; CompileError where the teacher does not have as many."""
    if student.parameters is not None:
        layers, ffn = shape_of(config, student.parameters)
    else:
        layers, ffn = student.layers or config.layers, student.ffn or config.ffn
    if layers > config.layers or ffn > config.ffn:
        raise CompileError(
            f"a student of {layers} layers and {ffn} feed-forward columns: "
            f"{config.name} has {config.layers} and {config.ffn}"
        )
    return replace(config, layers=layers, ffn=ffn)


def shape_of(config: ModelConfig, share: float) -> tuple[int, int]:
    """Layers and feed-forward columns of a student with at most ``share`` of the parameters.

    Depth and width shrink alike. CompileError where the embedding alone is more.
    """
    whole = parameters(config)
    least = 1.0
    for eighth in range(8 * config.layers, 7, -1):
        layers = -(-eighth // 8)
        ffn = config.ffn * eighth // (8 * config.layers) // MULTIPLE * MULTIPLE
        if ffn:
            least = parameters(replace(config, layers=layers, ffn=ffn)) / whole
            if least <= share:
                return layers, ffn
    raise CompileError(
        f"a student of {share:.1%} of the parameters: the embedding stays, so "
        f"{math.ceil(1000 * least) / 10}% is the smallest there is"
    )


def ffn_axes(checkpoint: Checkpoint) -> dict[str, int]:
    """The axis along which each feed-forward matrix has its columns, by name with ``{layer}``."""
    graph = FAMILIES[checkpoint.config.family](checkpoint.config)
    gates = [op for op in graph.layer if isinstance(op, Gate)]
    makes = {value for gate in gates for value in (gate.gate, gate.up)}
    takes = {gate.out for gate in gates}
    linears = [op for op in graph.layer if isinstance(op, Linear)]
    return {op.weight: 0 for op in linears if op.out in makes} | {
        op.weight: 1 for op in linears if op.x in takes
    }


def column_importances(checkpoint: Checkpoint, tokens: Tokens) -> list[F32]:
    """Of each layer's feed-forward columns, float32 [ffn]."""
    graph = FAMILIES[checkpoint.config.family](checkpoint.config)
    (gate,) = (op for op in graph.layer if isinstance(op, Gate))
    (down,) = (op for op in graph.layer if isinstance(op, Linear) and op.x == gate.out)
    stream = Stream(checkpoint, graph, tokens)
    importances = []
    for layer in range(checkpoint.config.layers):
        for segment, keep in segments(graph.layer, graph.embedding.out):
            if down in segment:
                weight = dequantized(checkpoint.tensor(down.weight.format(layer=layer)))
                energy = np.square(stream.values[gate.out]).sum(0)
                importances.append(energy * np.square(weight).sum(0))
            stream.run(segment, layer, keep)
    return importances


def without_each(checkpoint: Checkpoint, kept: Sequence[int], tokens: Tokens) -> list[float]:
    """Mean divergence from the model of ``kept`` layers, once without each of them."""
    reference = Reference(checkpoint, Exact())

    def finish(x: F32, layers: Sequence[int]) -> F32:
        for layer in layers:
            x = reference.layer(layer, x, len(tokens))
        return reference.output(x)

    x = reference.embed(tokens.reshape(-1).tolist())
    whole = log_softmax(finish(x, kept))
    divergences = []
    for place, layer in enumerate(kept):
        divergences.append(divergence(whole, finish(x, kept[place + 1 :])))
        x = reference.layer(layer, x, len(tokens))
    return divergences
