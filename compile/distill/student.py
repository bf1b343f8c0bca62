"""What training leaves: a checkpoint like any other.

store(Path("student.safetensors"), LearnedCheckpoint(before, decoder, rounding))
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from compile.checkpoint import Checkpoint, Tensor
from compile.distill.decoder import Decoder, key
from compile.distill.rounding import Rounding


class LearnedCheckpoint:
    """A checkpoint with a decoder's weights, rounded where they were rounded in training."""

    def __init__(self, before: Checkpoint, decoder: Decoder, rounding: Rounding) -> None:
        self.config = before.config
        self.tokenizer = before.tokenizer
        self._names = tuple(before.names())
        self._decoder, self._rounding = decoder, rounding

    def names(self) -> Iterable[str]:
        """The checkpoint's names."""
        return self._names

    def tensor(self, name: str) -> Tensor:
        """One tensor, quantized if its matrix was rounded."""
        weight = self._decoder.weights[key(name)]
        if name in self._rounding:
            return self._rounding.matrix(name, weight)
        values: Tensor = weight.detach().cpu().numpy().astype(np.float32)
        return values
