"""How well a model predicts a text, and how far its predictions are from another's.

score = Score()
score.add(model.logits(ids), ids)
print(score.perplexity)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

ROWS = 32  # converted to float64 at a time


@dataclass
class Score:
    """Sums over the tokens seen so far.

    Attributes:
        tokens: how many were predicted.
        nats: their negative log-likelihood.
    """

    tokens: int = 0
    nats: float = 0.0

    def add(self, logits: NDArray[np.float32], ids: Sequence[int]) -> None:
        """Adds a text: logits [n, vocab] at its n tokens, of which all but the first count."""
        row = 0
        for log_p in _log_softmax(logits[:-1]):
            targets = np.asarray(ids[row + 1 : row + 1 + len(log_p)])
            self.nats -= float(log_p[np.arange(len(log_p)), targets].sum())
            row += len(log_p)
        self.tokens += row

    @property
    def perplexity(self) -> float:
        """Infinite where a token was held impossible."""
        mean = self.nats / self.tokens
        return math.exp(mean) if mean < 700 else math.inf


@dataclass
class Distance:
    """Divergences of predictions from a reference's.

    Attributes:
        kl: Kullback-Leibler divergence, in nats, of each row: reference from the other.
        agreed: rows whose likeliest token is the same.
    """

    kl: list[float] = field(default_factory=list)
    agreed: int = 0

    def add(self, reference: NDArray[np.float32], other: NDArray[np.float32]) -> None:
        """Adds rows of logits, both [n, vocab]."""
        for log_p, log_q in zip(_log_softmax(reference), _log_softmax(other), strict=True):
            p = np.exp(log_p)
            terms = np.where(p > 0, p * (log_p - log_q), 0.0)
            self.kl += terms.sum(axis=1).tolist()
            self.agreed += int((log_p.argmax(axis=1) == log_q.argmax(axis=1)).sum())

    @property
    def mean(self) -> float:
        return float(np.mean(self.kl))

    @property
    def p99(self) -> float:
        """The 99th percentile of the rows' divergence."""
        return float(np.percentile(self.kl, 99))

    @property
    def top1(self) -> float:
        """Share of rows whose likeliest token is the same."""
        return self.agreed / len(self.kl)


def _log_softmax(logits: NDArray[np.float32]) -> Iterator[NDArray[np.float64]]:
    """Log-probabilities, a few rows at a time."""
    for start in range(0, len(logits), ROWS):
        rows = logits[start : start + ROWS].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        yield rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
