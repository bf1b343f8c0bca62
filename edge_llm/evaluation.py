"""How well a model predicts a text, and how far its predictions are from another's.

predictions = score(windows(model, text, 512), model, other)
print(predictions.perplexity, predictions.kl_mean)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

ROWS = 32  # converted to float64 at a time


class Predictor(Protocol):
    """Anything that says what follows: :class:`edge_llm.model.Model`, for one."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, after the token that begins one where the model wants it."""

    def logits(self, ids: Sequence[int], /) -> NDArray[np.float32]:
        """float32 [n, vocab]: what follows each prefix of ``ids``."""


@dataclass
class Predictions:
    """What a model, and the reference if there is one, made of each token of a text.

    A window's first token is not predicted and not counted.

    Attributes:
        ids: the tokens that were predicted.
        surprise: their negative log-likelihoods, nats.
        likeliest: the tokens held likeliest in their places.
        reference_surprise: as ``surprise``, by the reference; empty without one, as what follows.
        reference_likeliest: as ``likeliest``, by the reference.
        kl: Kullback-Leibler divergence of the model's prediction from the reference's, nats.
    """

    ids: list[int] = field(default_factory=list)
    surprise: list[float] = field(default_factory=list)
    likeliest: list[int] = field(default_factory=list)
    reference_surprise: list[float] = field(default_factory=list)
    reference_likeliest: list[int] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)

    def add(
        self,
        ids: Sequence[int],
        logits: NDArray[np.float32],
        reference: NDArray[np.float32] | None = None,
    ) -> None:
        """Adds a window: its n tokens and the logits [n, vocab] at them."""
        targets = np.asarray(ids[1:])
        self.ids += targets.tolist()
        for start in range(0, len(targets), ROWS):
            rows = slice(start, min(start + ROWS, len(targets)))
            log_q = log_softmax(logits[rows])
            self.surprise += _surprise(log_q, targets[rows])
            self.likeliest += log_q.argmax(axis=1).tolist()
            if reference is not None:
                log_p = log_softmax(reference[rows])
                self.reference_surprise += _surprise(log_p, targets[rows])
                self.reference_likeliest += log_p.argmax(axis=1).tolist()
                self.kl += divergence(log_p, log_q).tolist()

    @property
    def perplexity(self) -> float:
        """Infinite where a token was held impossible."""
        return _perplexity(self.surprise)

    @property
    def top1(self) -> float:
        """Share of places where both hold the same token likeliest."""
        return float(np.mean(np.equal(self.likeliest, self.reference_likeliest)))

    def summary(self) -> dict[str, float]:
        """The figures by their names on the command line and in its JSON."""
        figures: dict[str, float] = {"perplexity": self.perplexity, "tokens": len(self.ids)}
        if self.kl:
            reference = _perplexity(self.reference_surprise)
            figures |= {
                "against_perplexity": reference,
                "perplexity_ratio": self.perplexity / reference,
                "kl_mean": float(np.mean(self.kl)),
                "kl_median": float(np.median(self.kl)),
                "kl_p99": float(np.percentile(self.kl, 99)),
                "top1_agreement": self.top1,
            }
        return figures


def windows(model: Predictor, text: str, size: int) -> list[list[int]]:
    """A text's tokens in windows of at most ``size``, each begun as the model begins a text.

    A rest in which nothing would be predicted is left out; so the list may be empty.
    """
    begin = model.encode("")
    ids = model.encode(text)[len(begin) :]
    step = size - len(begin)
    parts = [begin + ids[at : at + step] for at in range(0, len(ids), step)]
    return [part for part in parts if len(part) >= 2]


def score(
    parts: Iterable[list[int]], model: Predictor, reference: Predictor | None = None
) -> Predictions:
    """What both predict in each window, one window's logits in memory at a time."""
    predictions = Predictions()
    for part in parts:
        logits = model.logits(part)
        predictions.add(part, logits, None if reference is None else reference.logits(part))
    return predictions


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-probabilities of rows of logits."""
    rows = logits.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return rows


def divergence(log_p: NDArray[np.float64], log_q: NDArray[np.float64]) -> NDArray[np.float64]:
    """KL(p‖q) of each row, nats."""
    p = np.exp(log_p)
    terms: NDArray[np.float64] = np.where(p > 0, p * (log_p - log_q), 0.0).sum(axis=1)
    return terms


def _surprise(log_p: NDArray[np.float64], targets: NDArray[np.integer]) -> list[float]:
    picked: list[float] = (-log_p[np.arange(len(targets)), targets]).tolist()
    return picked


def _perplexity(surprise: list[float]) -> float:
    mean = float(np.mean(surprise))
    return math.exp(mean) if mean < 700 else math.inf
