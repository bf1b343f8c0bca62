"""The measures of a prediction, against their definitions in few words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from edge_llm.evaluation import ROWS, Predictions, divergence, log_softmax, score, windows

VOCAB = 8
LOGITS = arrays(np.float32, (3, VOCAB), elements=st.floats(-30, 30, width=32))


class Letters:
    """Predicts from a table, a row a token; a letter is a token, and token 0 begins a text."""

    def __init__(self, table: NDArray[np.float32], begins: bool = False) -> None:
        self.table = table
        self.begins = begins

    def encode(self, text: str) -> list[int]:
        return [0] * self.begins + [ord(letter) - ord("a") for letter in text]

    def logits(self, ids: Sequence[int], /) -> NDArray[np.float32]:
        return self.table[list(ids)]


def random_letters(seed: int) -> Letters:
    table = np.random.default_rng(seed).normal(size=(VOCAB, VOCAB)) * 3
    return Letters(table.astype(np.float32))


def test_figures_are_those_of_their_definitions() -> None:
    model, teacher = random_letters(1), random_letters(2)
    text = "abcdefgh" * 9  # more rows than are converted at a time
    parts = windows(model, text, 50)
    got = score(parts, model, teacher)
    q, p = (np.exp(t.astype(np.float64)) for t in (model.table, teacher.table))
    q, p = q / q.sum(1, keepdims=True), p / p.sum(1, keepdims=True)
    pairs = [pair for part in parts for pair in itertools.pairwise(part)]
    assert len(pairs) == 70 > 2 * ROWS
    assert got.surprise == pytest.approx([-math.log(q[a, b]) for a, b in pairs])
    assert got.reference_surprise == pytest.approx([-math.log(p[a, b]) for a, b in pairs])
    kl = [sum(p[a, i] * math.log(p[a, i] / q[a, i]) for i in range(VOCAB)) for a, _ in pairs]
    assert got.kl == pytest.approx(kl)
    ordered = sorted(kl)
    summary = got.summary()
    assert summary["tokens"] == 70
    assert summary["perplexity"] == pytest.approx(math.prod(q[a, b] for a, b in pairs) ** (-1 / 70))
    ratio = math.prod((p[a, b] / q[a, b]) ** (1 / 70) for a, b in pairs)
    assert summary["perplexity_ratio"] == pytest.approx(ratio)
    assert summary["kl_mean"] == pytest.approx(sum(kl) / 70)
    assert summary["kl_median"] == pytest.approx((ordered[34] + ordered[35]) / 2)
    p99 = ordered[68] + 0.31 * (ordered[69] - ordered[68])  # 99 % of the way from 0 to 69
    assert summary["kl_p99"] == pytest.approx(p99)
    agreed = [q[a].argmax() == p[a].argmax() for a, _ in pairs]
    assert summary["top1_agreement"] == pytest.approx(sum(agreed) / 70)


@given(LOGITS, LOGITS)
def test_a_divergence_is_never_negative_and_none_from_itself(
    p: NDArray[np.float32], q: NDArray[np.float32]
) -> None:
    log_p, log_q = log_softmax(p), log_softmax(q)
    assert (divergence(log_p, log_q) >= -1e-12).all()
    assert (divergence(log_p, log_p) == 0).all()
    np.testing.assert_allclose(log_softmax(p + np.float32(7)), log_p, atol=1e-5)


def test_the_perplexity_of_no_idea_is_the_vocabulary() -> None:
    blank = Letters(np.zeros((VOCAB, VOCAB), np.float32))
    summary = score(windows(blank, "abcabc", 4), blank, blank).summary()
    assert summary["perplexity"] == pytest.approx(VOCAB)
    assert (summary["kl_mean"], summary["top1_agreement"], summary["perplexity_ratio"]) == (0, 1, 1)


def test_a_token_held_impossible_makes_the_perplexity_infinite() -> None:
    predictions = Predictions()
    predictions.add([0, 1], np.array([[0.0, -np.inf], [0.0, 0.0]], np.float32))
    assert predictions.perplexity == math.inf


@pytest.mark.parametrize(
    ("begins", "text", "size", "wanted"),
    [
        (False, "abcde", 2, [[0, 1], [2, 3]]),  # a token by itself is predicted from nothing
        (False, "a", 4, []),
        (True, "bcdef", 3, [[0, 1, 2], [0, 3, 4], [0, 5]]),
        (True, "b", 2, [[0, 1]]),
        (True, "", 2, []),
    ],
)
def test_every_window_begins_as_a_text(
    begins: bool, text: str, size: int, wanted: list[list[int]]
) -> None:
    assert windows(Letters(np.zeros((VOCAB, VOCAB), np.float32), begins), text, size) == wanted
