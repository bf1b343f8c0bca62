"""Draws an answer's tokens by the request's settings.

The order is that of Hugging Face's generate: repetition penalty, temperature, top-k, top-p, min-p,
draw. Ties are broken by the lowest id. The same logits, settings and seed give the same token on
every machine: the compiled code draws it (compile/lower/cpu/draw.c), with operations that IEEE 754
rounds one way, and the random numbers come from a counter.

    sample = make_sampler(Sampling(temperature=0.8, top_p=0.95, seed=7), executor.draw)
    token = sample(logits, tokens_so_far)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import TypeAlias

from edge_llm.buffers import Floats, Integers
from edge_llm.errors import RequestError
from edge_llm.request import Sampling

# logits, float32 [vocab], and the sequence so far, int32 [n], to the next token's id
Sampler: TypeAlias = Callable[[Floats, Integers], int]
# the same, by these settings with this random number from [0, 1); or one of BROKEN
Draw: TypeAlias = Callable[[Floats, Integers, Sampling, float], int]

# What a draw returns where the largest logit is no finite number.
BROKEN: MappingProxyType[int, str] = MappingProxyType({-1: "nan", -2: "inf", -3: "-inf"})


def make_sampler(sampling: Sampling, draw: Draw) -> Sampler:
    """The function that draws a request's tokens one after the other.

    Returns:
        A function of logits and the tokens so far. It raises RequestError 500 where the logits
        have a NaN, an infinity at the top or nothing but minus infinity.
    """
    if sampling.temperature == 0:
        return lambda logits, tokens: _sound(draw(logits, tokens, sampling, 0.0))
    seed = int.from_bytes(os.urandom(8), "little") if sampling.seed is None else sampling.seed
    randoms = uniforms(seed)
    return lambda logits, tokens: _sound(draw(logits, tokens, sampling, next(randoms)))


def _sound(token: int) -> int:
    if token < 0:
        raise RequestError(500, "model_error", f"the model returned logits of {BROKEN[token]}")
    return token


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
