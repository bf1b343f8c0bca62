"""The held-out tokens and what the teacher says of them: what every model is held against.

yardstick = Yardstick.of(teacher, heldout, folder)
yardstick.measure(model.logits)["kl_mean"]
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_llm.evaluation import Predictions, Predictor

WINDOW = 512  # tokens that are seen at once

Logits: TypeAlias = Callable[[Sequence[int]], NDArray[np.float32]]
Report: TypeAlias = Callable[[int, int], None]  # windows done, of how many


@dataclass(frozen=True)
class Yardstick:
    """The teacher on held-out tokens, in float32 arithmetic.

    Attributes:
        tokens: int32 [windows, WINDOW]; what is left of the text is not used.
        logits: float32 [windows, WINDOW, vocab], in a file.
    """

    tokens: NDArray[np.int32]
    logits: NDArray[np.float32]

    @classmethod
    def of(cls, teacher: Predictor, text: str, folder: Path) -> Yardstick:
        """The teacher's logits, computed once for these tokens and kept in ``folder``."""
        ids = np.array(teacher.encode(text), np.int32)
        tokens = ids[: len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)
        path = folder / f"teacher-{digest(tokens)}.npy"
        if not path.exists():
            aside = path.with_suffix(".part")
            first = teacher.logits(tokens[0].tolist())
            logits = np.lib.format.open_memmap(aside, "w+", np.float32, (len(tokens), *first.shape))
            logits[0] = first
            for window, row in zip(logits[1:], tokens[1:], strict=True):
                window[:] = teacher.logits(row.tolist())
            logits.flush()
            aside.replace(path)
        return cls(tokens, np.load(path, mmap_mode="r"))

    def measure(
        self, logits: Logits, report: Report = lambda _done, _all: None
    ) -> dict[str, float]:
        """A model's distance from the teacher, as ``Predictions.summary`` names its figures."""
        predictions = Predictions()
        for done, (row, reference) in enumerate(zip(self.tokens, self.logits, strict=True)):
            report(done, len(self.tokens))
            ids = row.tolist()
            predictions.add(ids, logits(ids), reference)
        return predictions.summary()


def digest(tokens: NDArray[np.int32]) -> str:
    """A short name for exactly these tokens."""
    return hashlib.sha256(tokens.tobytes()).hexdigest()[:12]
