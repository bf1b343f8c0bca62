"""Mixed precision: the formats that cost the model least within so many bytes.

costs = sensitivity(checkpoint, tokens, candidates(checkpoint.config))      # KL, measured
choose(costs, sizes(checkpoint.config), budget_bytes=72_000_000)            # Formats

The divergence of a model rounded in several kinds of matrices is predicted as the sum of what each
costs alone: second-order effects of small independent errors add (Dong et al., 2019, HAWQ,
arXiv:1905.03696, choose by curvature what is measured here).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from compile.checkpoint import Checkpoint, ModelConfig, Tensor
from compile.errors import CompileError
from compile.families import FAMILIES
from compile.graph import KINDS, Kind
from compile.llama_tensors import tensor_shapes
from compile.numerics import F32
from compile.quantize.formats import INT8, Formats, MatrixFormat, weights_of
from compile.quantize.nearest import quantize
from compile.reference import Exact, Reference, dequantized

FORMATS = (
    *(MatrixFormat(4, group, symmetric) for group in (128, 64, 32) for symmetric in (True, False)),
    INT8,
)
ROWS = 128  # whose probabilities are compared at a time

Candidates: TypeAlias = Mapping[Kind, Iterable[MatrixFormat]]
Costs: TypeAlias = dict[Kind, dict[MatrixFormat, float]]
Sizes: TypeAlias = dict[Kind, dict[MatrixFormat, int]]


def candidates(config: ModelConfig) -> dict[Kind, tuple[MatrixFormat, ...]]:
    """The formats whose groups divide the rows of each kind."""
    shapes = tensor_shapes(config)
    names = FAMILIES[config.family](config).matrices(config.layers)
    columns = {kind: shapes[names[kind][0]][1] for kind in KINDS}
    return {
        kind: tuple(form for form in FORMATS if columns[kind] % form.group == 0) for kind in KINDS
    }


def sizes(config: ModelConfig) -> Sizes:
    """Bytes of each kind in each candidate format, scales included."""
    weights = weights_of(config)
    return {
        kind: {form: round(weights[kind] * form.bits_per_weight / 8) for form in forms}
        for kind, forms in candidates(config).items()
    }


def choose(
    costs: Mapping[Kind, Mapping[MatrixFormat, float]],
    sizes: Mapping[Kind, Mapping[MatrixFormat, int]],
    budget_bytes: int,
) -> Formats:
    """The formats with the least summed cost that take no more than ``budget_bytes`` together.

    Every combination is looked at: seven formats of five kinds make 16,807. Of equal costs the
    smaller one is taken.

    Args:
        costs: divergence by kind and format, as :func:`sensitivity` gives it.
        sizes: bytes of the same.
        budget_bytes: for all matrices.

    Raises:
        CompileError: not even the smallest formats fit.
    """
    options = [
        [(cost, sizes[kind][form], form) for form, cost in costs[kind].items()] for kind in KINDS
    ]
    smallest = sum(min(size for _, size, _ in option) for option in options)
    if smallest > budget_bytes:
        raise CompileError(
            f"the budget leaves {max(budget_bytes, 0) / 1e6:.2f} MB for the matrices, "
            f"which take at least {smallest / 1e6:.2f} MB: give more"
        )
    fitting = (
        each for each in product(*options) if sum(size for _, size, _ in each) <= budget_bytes
    )
    best = min(fitting, key=lambda each: (sum(c for c, _, _ in each), sum(s for _, s, _ in each)))
    return Formats(**{kind: form for kind, (_, _, form) in zip(KINDS, best, strict=True)})


def sensitivity(
    checkpoint: Checkpoint,
    tokens: NDArray[np.integer],
    candidates: Candidates,
    report: Callable[[str, float], None] = lambda _stage, _done: None,
) -> Costs:
    """Mean KL divergence, in nats, to the float model with one kind of matrices rounded to nearest.

    All models advance together, a layer at a time, so each tensor is read once and one layer's are
    in memory. What they share apart from that are tokens · vocabulary float32 of the float model's
    output.

    Args:
        checkpoint: the model; what it has quantized counts as what it dequantizes to.
        tokens: integers [sequences, length], some thousand together.
        candidates: the formats to try of each kind.
        report: told "sensitivity" and the share that is done.
    """
    shared = Shared(checkpoint)
    pairs = [(kind, form) for kind, forms in candidates.items() for form in forms]
    models = [Reference(OneKindRounded(shared, *pair), Exact()) for pair in [(None, None), *pairs]]
    flat = [int(token) for token in tokens.reshape(-1)]
    streams = [model.embed(flat) for model in models]
    layers = checkpoint.config.layers
    for layer in range(layers):
        shared.forget()
        for i, model in enumerate(models):
            streams[i] = model.layer(layer, streams[i], len(tokens))
        report("sensitivity", (layer + 1) / (layers + 1))
    shared.forget()
    reference = log_softmax(models[0].output(streams[0]))
    costs: Costs = {kind: {} for kind in candidates}
    for (kind, form), model, x in zip(pairs, models[1:], streams[1:], strict=True):
        costs[kind][form] = divergence(reference, model.output(x))
    report("sensitivity", 1.0)
    return costs


class Shared:
    """Tensors that several models read, each with its float32 values."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._held: dict[str, tuple[Tensor, F32]] = {}

    def read(self, name: str) -> tuple[Tensor, F32]:
        """A tensor as it is and as float32; read but once until :meth:`forget`."""
        if name not in self._held:
            tensor = self.checkpoint.tensor(name)
            self._held[name] = tensor, dequantized(tensor)
        return self._held[name]

    def forget(self) -> None:
        """Free what is held."""
        self._held.clear()


class OneKindRounded:
    """A checkpoint in float32 but for the matrices of one kind, if any, which are rounded."""

    def __init__(self, shared: Shared, kind: Kind | None, form: MatrixFormat | None) -> None:
        self.config = shared.checkpoint.config
        self.tokenizer = shared.checkpoint.tokenizer
        self.names = shared.checkpoint.names
        self._shared = shared
        self._form = form
        graph = FAMILIES[self.config.family](self.config)
        matrices = graph.matrices(self.config.layers)
        self._rounded = frozenset(matrices[kind] if kind else ())

    def tensor(self, name: str) -> Tensor:
        """float32, or a matrix of the kind in its format."""
        tensor, values = self._shared.read(name)
        if self._form is not None and name in self._rounded:
            return quantize(tensor, self._form, name)
        return values


def log_softmax(logits: F32) -> F32:
    """Natural logarithms of the rows' probabilities; takes the place of ``logits``."""
    for start in range(0, len(logits), ROWS):
        rows = logits[start : start + ROWS]
        rows -= rows.max(axis=1, keepdims=True)
        rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
    return logits


def divergence(reference: F32, logits: F32) -> float:
    """Mean KL divergence of rows from log-probabilities ``reference``."""
    log_q = log_softmax(logits)
    total = 0.0
    for start in range(0, len(logits), ROWS):
        log_p = reference[start : start + ROWS]
        terms = np.exp(log_p) * (log_p - log_q[start : start + ROWS])
        total += float(terms.sum(dtype=np.float64))
    return total / len(logits)
