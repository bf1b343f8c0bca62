"""What a model's matrices take, embedding and head counted once: bits a weight, by format.

storage = storage_of_gguf(Path("model.gguf"))
bits_per_weight(storage)        # 4.5
shares(storage)                 # {"Q4_0": 1.0}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from compile.checkpoint import Q4, Q8, Checkpoint, Tensor
from compile.gguf_file import read_gguf


@dataclass(frozen=True)
class Matrices:
    """Those of one format: how many weights they have and bytes they take."""

    weights: int
    bytes: int


def storage_of_gguf(path: Path) -> dict[str, Matrices]:
    """By ggml's names of the formats."""
    tensors = [info for info in read_gguf(path).tensors.values() if len(info.shape) > 1]
    return by_format((info.type.name, prod(info.shape), info.size) for info in tensors)


def storage_of(checkpoint: Checkpoint) -> dict[str, Matrices]:
    """By names of our formats."""
    tensors = (checkpoint.tensor(name) for name in checkpoint.names())
    matrices = [tensor for tensor in tensors if len(tensor.shape) > 1]
    return by_format((format_of(t), prod(t.shape), size_of(t)) for t in matrices)
