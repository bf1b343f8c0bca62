"""The rules by which a token is drawn, in numpy: the reference of compile/lower/cpu/draw.c.

Implements :data:`edge_llm.sampler.Draw`; the same logits, settings and random number give the same
token.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_llm.buffers import Floats, Integers
from edge_llm.request import Sampling

Row: TypeAlias = NDArray[np.float32]
Ids: TypeAlias = NDArray[np.intp]

LEAST_EXPONENT = -37.0  # exp of it is under 2^-53, the finest that a draw resolves


def draw(logits: Floats, tokens: Integers, sampling: Sampling, uniform: float) -> int:
    """The next token's id, or -1, -2, -3 where the largest logit is NaN, infinity or minus it."""
    row = np.asarray(logits)
    if sampling.repetition_penalty != 1:
        row = penalize(row, np.asarray(tokens), sampling.repetition_penalty)
    best = int(row.argmax())  # the first NaN, where there is one; the lowest id of several
    if not math.isfinite(row[best]):
        return -1 if math.isnan(row[best]) else -2 if row[best] > 0 else -3
    if sampling.temperature == 0:
        return best
    # At most 0, so no exp overflows; a tiny temperature sends all others to minus infinity.
    with np.errstate(over="ignore"):
        scaled = (row - row[best]) / np.float32(max(sampling.temperature, 1e-30))
    ids, weights = candidates(scaled, sampling.top_k, sampling.top_p, sampling.min_p)
    cumulative = np.cumsum(weights, dtype=np.float64)
    index = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    # Rounding may lift the product to the last sum itself.
    return int(ids[min(int(index), len(ids) - 1)])


def penalize(logits: Row, ids: NDArray[np.int32], penalty: float) -> Row:
    """A copy in which tokens that occurred are less likely (Keskar et al. 2019, CTRL, 4.1)."""
    logits = logits.copy()
    seen = logits[ids]
    factor = np.float32(penalty)
    logits[ids] = np.where(seen > 0, seen / factor, seen * factor)
    return logits


def candidates(scaled: Row, top_k: int, top_p: float, min_p: float) -> tuple[Ids, Row]:
    """The tokens that may be drawn and their weights, relative to the likeliest token's.

    Args:
        scaled: float32 [vocab], logits over the temperature, the largest being 0.
        top_k: see :class:`edge_llm.request.Sampling`, as the others.
        top_p: of what top-k left.
        min_p: of the likeliest token.

    Returns:
        ids intp [n], weights float32 [n], n at least 1.
    """
    ids = likeliest(scaled, top_k) if top_k else np.flatnonzero(scaled >= LEAST_EXPONENT)
    weights = exp(scaled[ids])
    if top_p < 1:
        kept = nucleus(weights, top_p)
        ids, weights = ids[kept], weights[kept]
    if min_p > 0:
        enough = weights >= np.float32(min_p)
        ids, weights = ids[enough], weights[enough]
    return ids, weights


def likeliest(values: Row, count: int) -> Ids:
    """Ids of the ``count`` largest values, largest first, lowest id first among equals."""
    return np.argsort(-values, kind="stable")[:count]


def nucleus(weights: Row, top_p: float) -> Ids:
    """Indices of the fewest largest weights whose share of the sum reaches ``top_p``.

    Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration".
    """
    enough = top_p * float(np.cumsum(weights, dtype=np.float64)[-1])
    order = likeliest(weights, len(weights))
    sums = np.cumsum(weights[order], dtype=np.float64)
    return order[: int(np.searchsorted(sums, enough)) + 1]


def exp(x: Row) -> Row:
    """e to the x for x of at most 0, to a relative 1e-7, the same bits everywhere.

    Below LEAST_EXPONENT it is 0. The argument is split into n·ln 2 + r; e^r is its Taylor series
    to the seventh power, whose error over |r| ≤ ln 2 / 2 is under 6e-9.
    """
    clipped = np.maximum(x, np.float32(LEAST_EXPONENT))
    n = np.rint(clipped * np.float32(1 / math.log(2)))
    high = np.float32(0.693359375)  # ln 2 in 10 bits, so that n · high is exact
    r = (clipped - n * high) - n * np.float32(math.log(2) - 0.693359375)
    power = np.full(r.shape, 1 / math.factorial(7), np.float32)
    for k in range(6, -1, -1):
        power *= r
        power += np.float32(1 / math.factorial(k))
    power *= ((n.astype(np.int32) + 127) << 23).view(np.float32)  # 2^n
    power[x < np.float32(LEAST_EXPONENT)] = 0
    return power
