"""The held-out tokens and what the teacher says of them: what every model is held against.

yardstick = Yardstick.of(teacher, key, heldout, folder, report)
yardstick.measure(model.logits, "our model", report)["kl_mean"]
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from compile.errors import CompileError
from edge_llm.evaluation import Predictions, Predictor

WINDOW = 512  # tokens that are seen at once

Logits: TypeAlias = Callable[[Sequence[int]], NDArray[np.float32]]
Report: TypeAlias = Callable[[str, float], None]  # what is measured, and the share that is done


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
    def of(cls, teacher: Predictor, key: str, text: str, folder: Path, report: Report) -> Yardstick:
        """The logits of the teacher of that key, computed once for these tokens and kept.

        CompileError where there is no room for them.
        """
        ids = np.array(teacher.encode(text), np.int32)
        tokens = ids[: len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)
        path = folder / f"teacher-{key}-{short_hash(tokens.tobytes())}.npy"
        if not path.exists():
            aside = path.with_suffix(".part")
            kept = None
            for done, window in enumerate(tokens):
                report("teacher", done / len(tokens))
                logits = teacher.logits(window.tolist())
                if kept is None:
                    shape = (len(tokens), *logits.shape)
                    kept = np.lib.format.open_memmap(aside, "w+", np.float32, shape)
                    reserve(aside)
                kept[done] = logits
            report("teacher", 1.0)
            aside.replace(path)
        return cls(tokens, np.load(path, mmap_mode="r"))

    def measure(self, logits: Logits, name: str, report: Report) -> dict[str, float]:
        """A model's distance from the teacher, as ``Predictions.summary`` names its figures."""
        predictions = Predictions()
        for done, (row, reference) in enumerate(zip(self.tokens, self.logits, strict=True)):
            report(name, done / len(self.tokens))
            window = row.tolist()
            predictions.add(window, logits(window), reference)
        report(name, 1.0)
        return predictions.summary()


def reserve(path: Path) -> None:
    """Take the room that a sparse file will need: a disk that is full says so now."""
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        raise CompileError(f"cannot write {path}: {error.strerror}") from None


def short_hash(content: bytes) -> str:
    """A name for exactly these bytes."""
    return hashlib.sha256(content).hexdigest()[:12]
