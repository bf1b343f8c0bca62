"""What a model's matrices take, embedding and head counted once: bits a weight, by format.

storage = storage_of_gguf(Path("model.gguf"))
bits_per_weight(storage)        # 4.5
shares(storage)                 # {"Q4_0": 1.0}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TypeAlias

import numpy as np

from compile.checkpoint import Checkpoint
from compile.gguf_file import read_gguf
from compile.quantize.formats import MatrixFormat


@dataclass(frozen=True)
class Matrices:
    """Those of one format."""

    weights: int
    bits: int


Storage: TypeAlias = Mapping[str, Matrices]  # by the format's name


def storage_of_gguf(path: Path) -> Storage:
    """By ggml's names of the formats."""
    tensors = read_gguf(path).tensors.values()
    return summed(
        (info.type.name, Matrices(prod(info.shape), 8 * info.size))
        for info in tensors
        if len(info.shape) > 1
    )


def storage_of(checkpoint: Checkpoint) -> Storage:
    """By our names of the formats."""

    def matrices() -> Iterable[tuple[str, Matrices]]:
        for tensor in map(checkpoint.tensor, checkpoint.names()):
            weights, form = prod(tensor.shape), MatrixFormat.of(tensor)
            if form is not None:
                yield str(form), Matrices(weights, round(weights * form.bits_per_weight))
            elif isinstance(tensor, np.ndarray) and tensor.ndim > 1:
                yield tensor.dtype.name, Matrices(weights, 8 * tensor.nbytes)

    return summed(matrices())


def summed(matrices: Iterable[tuple[str, Matrices]]) -> Storage:
    """All of a format together, the format with the most weights first."""
    storage: dict[str, Matrices] = {}
    for name, one in matrices:
        others = storage.get(name, Matrices(0, 0))
        storage[name] = Matrices(others.weights + one.weights, others.bits + one.bits)
    return dict(sorted(storage.items(), key=lambda item: -item[1].weights))


def bits_per_weight(storage: Storage) -> float:
    """Over all matrices, scales counted."""
    return sum(one.bits for one in storage.values()) / weights(storage)


def shares(storage: Storage) -> dict[str, float]:
    """Each format's share of the weights."""
    return {name: one.weights / weights(storage) for name, one in storage.items()}


def weights(storage: Storage) -> int:
    """Of all matrices."""
    return sum(one.weights for one in storage.values())
