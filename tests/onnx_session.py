"""An exported decoder run by onnxruntime, with its cache: a second opinion.

session = Session(Path("model.onnx"))
session.logits([1, 2, 3])           # float32 [3, vocab]; what follows goes on from there
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray


class Session:
    """One sequence."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options)
        _, _, *caches = self._session.get_inputs()
        self._cache = {c.name: np.zeros((1, c.shape[1], 0, c.shape[3]), np.float32) for c in caches}
        self._length = 0

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """float32 [len(tokens), vocab], of the next tokens of the sequence."""
        self._length += len(tokens)
        given = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, self._length), np.int64),
        }
        logits, *caches = self._session.run(None, given | self._cache)
        self._cache = dict(zip(self._cache, caches, strict=True))
        result: NDArray[np.float32] = logits[0]
        return result

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The ``count`` likeliest tokens after a prompt, one after the other."""
        tokens = [int(self.logits(prompt)[-1].argmax())]
        while len(tokens) < count:
            tokens.append(int(self.logits(tokens[-1:])[-1].argmax()))
        return tokens
