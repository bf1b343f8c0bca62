"""Drawing a token: the rules against an oracle and the odds they promise, the code against them.

The oracle sorts the whole vocabulary in float64; numpy_sampler is the reference in float32, whose
tokens the compiled code (compile/lower/cpu/draw.c) must draw, whatever logits and settings.
"""

from __future__ import annotations

import ctypes
import math
import subprocess
import sys
from array import array
from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_llm.drawing import Drawing
from edge_llm.errors import RequestError
from edge_llm.request import Sampling
from edge_llm.sampler import Draw, make_sampler, uniforms
from tests import numpy_sampler
from tests.artifacts import PROJECT
from tests.numpy_sampler import candidates, exp, likeliest

SOURCE = PROJECT / "compile" / "lower" / "cpu" / "draw.c"
VOCAB = 1000

Sample = Callable[[NDArray[np.float32], Sequence[int]], int]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Draw:
    """The code that artifacts carry, which here stops where C promises nothing."""
    library = tmp_path_factory.mktemp("draw") / "draw.so"
    command = [sys.executable, "-m", "ziglang", "cc", "-std=c11", "-O2", "-Wall", "-Wextra"]
    checks = ["-fsanitize=undefined", "-fsanitize-trap=undefined", "-fPIC", "-shared"]
    subprocess.run([*command, *checks, "-o", str(library), str(SOURCE)], check=True)
    return Drawing(ctypes.CDLL(str(library)), VOCAB)


@pytest.fixture(params=["reference", "compiled"])
def draw(request: pytest.FixtureRequest, compiled: Draw) -> Draw:
    return compiled if request.param == "compiled" else numpy_sampler.draw


def sampler(draw: Draw, sampling: Sampling) -> Sample:
    """The sampler of these settings, for logits and tokens as tests have them."""
    sample = make_sampler(sampling, draw)
    return lambda logits, tokens: sample(
        memoryview(array("f", logits.tolist())).cast("B").cast("f"),
        memoryview(array("i", tokens)),
    )


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
def test_greedy_takes_the_lowest_id_of_the_likeliest(compiled: Draw, values: list[int]) -> None:
    for draw in (compiled, numpy_sampler.draw):
        sample = sampler(draw, Sampling())
        assert sample(np.array(values, np.float32), []) == values.index(max(values))


@given(
    seed=st.integers(0, 2**32),
    vocab=st.integers(1, 1000),
    spread=st.sampled_from([0.0, 0.01, 1.0, 10.0, 1e4, 1e35]),
    rounded=st.booleans(),
    forbidden=st.booleans(),
    sampling=st.builds(
        Sampling,
        temperature=st.sampled_from([0, 5e-324, 1e-3, 0.7, 1.0, 3.0, 100.0]),
        top_k=st.sampled_from([0, 1, 2, 40, 999, 1000, 2**70]),
        top_p=st.sampled_from([0.0, 0.1, 0.9, 0.999, 1 - 1e-12, 1.0]),
        min_p=st.sampled_from([0.0, 1e-30, 0.05, 1.0]),
        repetition_penalty=st.sampled_from([1.0, 0.01, 1.1, 100.0]),
    ),
    uniform=st.sampled_from([0.0, 0.25, 0.5, 0.999, 1 - 2**-53])
    | st.floats(0, 1, exclude_max=True),
)
def test_the_code_draws_what_the_reference_draws(
    compiled: Draw,
    seed: int,
    vocab: int,
    spread: float,
    rounded: bool,
    forbidden: bool,
    sampling: Sampling,
    uniform: float,
) -> None:
    random = np.random.default_rng(seed)
    with np.errstate(over="ignore"):
        row = (random.standard_normal(vocab) * spread).astype(np.float32)
    if rounded:  # so that there are ties
        row = np.rint(row)
    if forbidden:
        row[random.integers(0, vocab, vocab // 2)] = -np.inf
    seen = random.integers(0, vocab, int(random.integers(1, 50)), np.int32)
    logits = memoryview(array("f", row.tolist())).cast("B").cast("f")
    tokens = memoryview(array("i", seen.tolist()))
    drawn, expected = (
        draw(logits, tokens, sampling, uniform) for draw in (compiled, numpy_sampler.draw)
    )
    assert drawn == expected


def test_no_more_logits_than_tokens_are_taken(compiled: Draw) -> None:
    with pytest.raises(ValueError, match="1001 logits for 1000 tokens"):
        sampler(compiled, Sampling())(np.zeros(1001, np.float32), [1])


def test_drawn_tokens_have_the_odds_of_the_softmax(draw: Draw) -> None:
    """Chi-square over 20,000 draws: a wrong distribution fails, the fixed seed never flickers."""
    logits = logits_of(2, vocab=12, spread=1.0)
    draws = 20_000
    sample = sampler(draw, Sampling(temperature=0.9, seed=5))
    counts = np.bincount([sample(logits, []) for _ in range(draws)], minlength=12)
    expected = draws * np.array([oracle(logits, 0.9, 0, 1.0, 0.0)[token] for token in range(12)])
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 31.3  # the 99.9th percentile for 11 degrees of freedom


def test_the_seed_decides_the_tokens(draw: Draw) -> None:
    rows = [logits_of(seed) for seed in range(50)]

    def run(seed: int | None) -> list[int]:
        sample = sampler(draw, Sampling(temperature=1.5, top_p=0.95, seed=seed))
        return [sample(row, []) for row in rows]

    assert run(11) == run(11)
    assert run(11) != run(12)
    assert run(None) != run(None)


def test_the_tokens_of_a_seed_never_change(draw: Draw) -> None:
    """Figures written down once: every platform and every later version must draw these."""
    logits = (np.arange(1000) * 619 % 1000 / 125).astype(np.float32)
    sample = sampler(draw, Sampling(temperature=0.8, top_k=50, top_p=0.9, min_p=0.01, seed=42))
    drawn = [sample(logits, []) for _ in range(8)]
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


def test_repetition_penalty_makes_seen_tokens_less_likely_whatever_their_sign(draw: Draw) -> None:
    logits = np.array([2.0, 1.9, -1.0, -1.1], np.float32)
    before = logits.copy()
    sample = sampler(draw, Sampling(repetition_penalty=1.5))
    assert sample(logits, [0, 0, 3]) == 1
    assert sample(logits, [0, 1]) == 0
    assert sample(np.array([-1.0, -1.1], np.float32), [0]) == 1
    np.testing.assert_array_equal(logits, before)


def test_a_tiny_temperature_is_greedy(draw: Draw) -> None:
    logits = logits_of(3)
    sample = sampler(draw, Sampling(temperature=5e-324, seed=1))
    assert sample(logits, []) == int(np.argmax(logits))


def test_tokens_of_minus_infinity_are_never_drawn(draw: Draw) -> None:
    logits = np.full(100, -np.inf, np.float32)
    logits[[17, 60]] = 0
    sample = sampler(draw, Sampling(temperature=100.0, seed=1))
    assert {sample(logits, []) for _ in range(100)} == {17, 60}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_are_an_error(draw: Draw, value: float, temperature: float) -> None:
    logits = logits_of(4)
    logits[500] = value
    with pytest.raises(RequestError, match=f"logits of {value}") as caught:
        sampler(draw, Sampling(temperature=temperature))(logits, [])
    assert caught.value.status == 500


def test_nothing_but_minus_infinity_is_an_error(draw: Draw) -> None:
    with pytest.raises(RequestError, match="logits of -inf"):
        sampler(draw, Sampling())(np.full(10, -np.inf, np.float32), [])
