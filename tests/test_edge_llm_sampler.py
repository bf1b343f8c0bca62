"""Sampling against an oracle that sorts the whole vocabulary, and against the odds it promises."""

from __future__ import annotations

import math
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_llm.errors import RequestError
from edge_llm.request import Sampling
from edge_llm.sampler import candidates, exp, likeliest, make_sampler, uniforms

NO_IDS = np.zeros(0, np.int32)


def logits_of(seed: int, vocab: int = 1000, spread: float = 3.0) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).standard_normal(vocab) * spread
    return values.astype(np.float32)


def oracle(
    logits: NDArray[np.float32], temperature: float, top_k: int, top_p: float, min_p: float
) -> dict[int, float]:
    """What each token's probability should be: float64, one full sort, straight from the words."""
    scaled = (logits.astype(np.float64) - logits.max()) / temperature
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if top_k:
        order = order[:top_k]
    weights = np.exp(scaled[order])
    if top_p < 1:
        share = np.cumsum(weights) / weights.sum()
        count = int(np.argmax(share >= top_p)) + 1
        order, weights = order[:count], weights[:count]
    kept = weights >= min_p
    order = [token for token, keep in zip(order, kept, strict=True) if keep]
    weights = weights[kept] / weights[kept].sum()
    return dict(zip(order, weights.tolist(), strict=True))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 40, 5000])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.999, 0.0])
@pytest.mark.parametrize("min_p", [0.0, 0.05, 1.0])
def test_candidates_and_their_odds_are_the_oracles(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = logits_of(1)
    scaled = (logits - logits.max()) / np.float32(temperature)
    ids, weights = candidates(scaled, top_k, top_p, min_p)
    odds = dict(zip(ids.tolist(), (weights / weights.sum()).tolist(), strict=True))
    wanted = oracle(logits, temperature, top_k, top_p, min_p)
    assert all(wanted[token] < 1e-15 for token in wanted.keys() - odds.keys())
    assert odds.keys() <= wanted.keys()
    assert all(
        math.isclose(odds[token], wanted[token], rel_tol=1e-5, abs_tol=1e-15) for token in odds
    )


@given(
    values=st.lists(st.integers(-3, 3), min_size=1, max_size=50),
    count=st.integers(1, 60),
)
def test_the_likeliest_are_those_of_a_full_stable_sort(values: list[int], count: int) -> None:
    row = np.array(values, np.float32)
    wanted = sorted(range(len(row)), key=lambda i: (-row[i], i))[:count]
    assert likeliest(row, count).tolist() == wanted


@given(values=st.lists(st.integers(-2, 2), min_size=1, max_size=50))
def test_greedy_takes_the_lowest_id_of_the_likeliest(values: list[int]) -> None:
    sample = make_sampler(Sampling())
    assert sample(np.array(values, np.float32), NO_IDS) == values.index(max(values))


def test_drawn_tokens_have_the_odds_of_the_softmax() -> None:
    """Chi-square over 20,000 draws: a wrong distribution fails, the fixed seed never flickers."""
    logits = logits_of(2, vocab=12, spread=1.0)
    draws = 20_000
    sample = make_sampler(Sampling(temperature=0.9, seed=5))
    counts = np.bincount([sample(logits, NO_IDS) for _ in range(draws)], minlength=12)
    expected = draws * np.array([oracle(logits, 0.9, 0, 1.0, 0.0)[token] for token in range(12)])
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 31.3  # the 99.9th percentile for 11 degrees of freedom


def test_the_seed_decides_the_tokens() -> None:
    rows = [logits_of(seed) for seed in range(50)]

    def run(seed: int | None) -> list[int]:
        sample = make_sampler(Sampling(temperature=1.5, top_p=0.95, seed=seed))
        return [sample(row, NO_IDS) for row in rows]

    assert run(11) == run(11)
    assert run(11) != run(12)
    assert run(None) != run(None)


def test_the_tokens_of_a_seed_never_change() -> None:
    """Figures written down once: every platform and every later version must draw these."""
    logits = (np.arange(1000) * 619 % 1000 / 125).astype(np.float32)
    sample = make_sampler(Sampling(temperature=0.8, top_k=50, top_p=0.9, min_p=0.01, seed=42))
    drawn = [sample(logits, NO_IDS) for _ in range(8)]
    assert drawn == [651, 126, 231, 294, 42, 777, 189, 714]


def test_the_random_numbers_are_splitmix64() -> None:
    # The published reference outputs for seed 1234567, cut to 53 bits.
    reference = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert list(islice(uniforms(1234567), 3)) == [(z >> 11) / 2**53 for z in reference]


def test_exp_is_exact_to_single_precision() -> None:
    x = np.linspace(-37, 0, 100_001).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    assert float(np.max(np.abs(exp(x) - exact) / exact)) < 1.2e-7
    assert exp(np.array([-np.inf, -40.0, 0.0], np.float32)).tolist() == [0.0, 0.0, 1.0]


def test_repetition_penalty_makes_seen_tokens_less_likely_whatever_their_sign() -> None:
    logits = np.array([2.0, 1.9, -1.0, -1.1], np.float32)
    before = logits.copy()
    sample = make_sampler(Sampling(repetition_penalty=1.5))
    assert sample(logits, np.array([0, 0, 3], np.int32)) == 1
    assert sample(logits, np.array([0, 1], np.int32)) == 0
    assert sample(np.array([-1.0, -1.1], np.float32), np.array([0], np.int32)) == 1
    np.testing.assert_array_equal(logits, before)


def test_a_tiny_temperature_is_greedy() -> None:
    logits = logits_of(3)
    sample = make_sampler(Sampling(temperature=5e-324, seed=1))
    assert sample(logits, NO_IDS) == int(np.argmax(logits))


def test_tokens_of_minus_infinity_are_never_drawn() -> None:
    logits = np.full(100, -np.inf, np.float32)
    logits[[17, 60]] = 0
    sample = make_sampler(Sampling(temperature=100.0, seed=1))
    assert {sample(logits, NO_IDS) for _ in range(100)} == {17, 60}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_are_an_error(value: float, temperature: float) -> None:
    logits = logits_of(4)
    logits[500] = value
    with pytest.raises(RequestError, match=f"logits of {value}") as caught:
        make_sampler(Sampling(temperature=temperature))(logits, NO_IDS)
    assert caught.value.status == 500


def test_nothing_but_minus_infinity_is_an_error() -> None:
    with pytest.raises(RequestError, match="logits of -inf"):
        make_sampler(Sampling())(np.full(10, -np.inf, np.float32), NO_IDS)
