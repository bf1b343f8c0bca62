"""The logits of every position of a given sequence: what an evaluation asks for."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from edge_llm.buffers import Floats
from edge_llm.errors import RequestError
from edge_llm.events import Reason
from edge_llm.sequence import Sequence


class Scoring:
    """The consumer of a sequence that is computed once and not continued.

    Args:
        positions: tokens of the sequence.
        vocab_size: columns of the logits.
    """

    every_row = True

    def __init__(self, positions: int, vocab_size: int) -> None:
        self._logits = np.empty((positions, vocab_size), np.float32)
        self._error: RequestError | None = None
        self._over = threading.Event()

    def result(self) -> NDArray[np.float32]:
        """Waits for the logits, float32 [positions, vocab_size]; raises what went wrong."""
        self._over.wait()
        if self._error is not None:
            raise self._error
        return self._logits

    def accepted(self, position: int) -> None:
        """Nobody waits for this news."""

    def started(self) -> None:
        """Nor for this."""

    def take(self, sequence: Sequence, logits: list[Floats]) -> Reason | None:
        for position, row in enumerate(logits, sequence.computed - len(logits)):
            self._logits[position] = row
        return None if sequence.pending else "length"

    def end(self, sequence: Sequence, reason: Reason) -> None:
        if reason != "length":
            self._error = RequestError(503, "unavailable", f"the computation was {reason}")
        self._over.set()

    def fail(self, error: RequestError) -> None:
        self._error = error
        self._over.set()
