"""Draws the next token from a row of logits: a function composed from the request's settings.

The order is that of Hugging Face's generate: repetition penalty, temperature, top-k, top-p, min-p,
draw. Ties are broken by the lowest id. The same logits, settings and seed give the same token on
every machine: only float32 and float64 operations that IEEE 754 rounds one way are used (no libm),
sums run in one order, and the random numbers come from a counter.

    sample = make_sampler(Sampling(temperature=0.8, top_p=0.95, seed=7))
    token = sample(logits, tokens_so_far)
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_llm.errors import RequestError
from edge_llm.request import Sampling

Floats: TypeAlias = NDArray[np.float32]
Ids: TypeAlias = NDArray[np.intp]
# logits [vocab] and the sequence so far, prompt included [n], to the next token's id
Sampler: TypeAlias = Callable[[Floats, NDArray[np.int32]], int]

FIRST_NUCLEUS = 64  # tokens that top-p looks at first; it looks at more until they suffice
LEAST_EXPONENT = -37.0  # exp of it is under 2^-53, the finest that a draw resolves


def make_sampler(sampling: Sampling) -> Sampler:
    """The function that draws a request's tokens one after the other.

    Returns:
        A function of logits, float32 [vocab], and the ids of the sequence so far, int32 [n].
        It changes neither. It raises RequestError 500 where the logits have a NaN, an infinity at
        the top or nothing but minus infinity.
    """
    penalty = sampling.repetition_penalty
    choose = greedy if sampling.temperature == 0 else _make_draw(sampling)
    if penalty == 1:
        return lambda logits, ids: choose(logits)
    return lambda logits, ids: choose(penalize(logits, ids, penalty))


def greedy(logits: Floats) -> int:
    """The likeliest token; the lowest id of several."""
    best = int(logits.argmax())  # the first NaN, where there is one
    if not math.isfinite(logits[best]):
        raise RequestError(500, "model_error", f"the model returned logits of {logits[best]}")
    return best


def penalize(logits: Floats, ids: NDArray[np.int32], penalty: float) -> Floats:
    """A copy in which tokens that occurred are less likely (Keskar et al. 2019, CTRL, 4.1)."""
    logits = logits.copy()
    seen = logits[ids]
    factor = np.float32(penalty)
    logits[ids] = np.where(seen > 0, seen / factor, seen * factor)
    return logits


def _make_draw(sampling: Sampling) -> Callable[[Floats], int]:
    seed = int.from_bytes(os.urandom(8), "little") if sampling.seed is None else sampling.seed
    randoms = uniforms(seed)

    def draw(logits: Floats) -> int:
        best = greedy(logits)
        # At most 0, so no exp overflows; a tiny temperature sends all others to minus infinity.
        with np.errstate(over="ignore"):
            scaled = (logits - logits[best]) / np.float32(max(sampling.temperature, 1e-30))
        ids, weights = candidates(scaled, sampling.top_k, sampling.top_p, sampling.min_p)
        cumulative = np.cumsum(weights, dtype=np.float64)
        index = np.searchsorted(cumulative, next(randoms) * cumulative[-1], side="right")
        # Rounding may lift the product to the last sum itself.
        return int(ids[min(int(index), len(ids) - 1)])

    return draw


def candidates(scaled: Floats, top_k: int, top_p: float, min_p: float) -> tuple[Ids, Floats]:
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


def likeliest(values: Floats, count: int) -> Ids:
    """Ids of the ``count`` largest values, largest first, lowest id first among equals."""
    if count >= len(values):
        found = np.arange(len(values))
    else:
        least = np.partition(values, len(values) - count)[len(values) - count]
        found = np.flatnonzero(values >= least)
    # Only what can be among them is sorted: `count` values and those equal to the least.
    return found[np.argsort(-values[found], kind="stable")][:count]


def nucleus(weights: Floats, top_p: float) -> Ids:
    """Indices of the fewest largest weights whose share of the sum reaches ``top_p``.

    Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration".
    """
    enough = top_p * float(np.cumsum(weights, dtype=np.float64)[-1])
    count = FIRST_NUCLEUS
    while True:
        order = likeliest(weights, count)
        sums = np.cumsum(weights[order], dtype=np.float64)
        if sums[-1] >= enough or count >= len(weights):
            return order[: int(np.searchsorted(sums, enough)) + 1]
        count *= 8


def exp(x: Floats) -> Floats:
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


def uniforms(seed: int) -> Iterator[float]:
    """Endless numbers in [0, 1): SplitMix64 (Steele, Lea, Flood 2014), its upper 53 bits."""
    mask = 2**64 - 1
    state = seed & mask
    while True:
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        yield ((z ^ (z >> 31)) >> 11) / 2**53
