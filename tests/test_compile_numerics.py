"""The definition of the arithmetic, against exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from compile import numerics
from compile.checkpoint import Q4, Q8

floats = st.floats(-(2.0**50), 2.0**50, width=32).filter(lambda x: x == 0 or abs(x) > 2.0**-50)


def rounded(exact: Fraction) -> np.float32:
    """The float32 nearest to an exact number, ties to even, by comparing neighbours."""
    near = np.float32(float(exact))
    candidates = [
        np.nextafter(near, np.float32(-np.inf)),
        near,
        np.nextafter(near, np.float32(np.inf)),
    ]

    def order(x: np.float32) -> tuple[Fraction, int]:
        return abs(Fraction(float(x)) - exact), int(x.view(np.int32)) & 1

    return min(candidates, key=order)


@given(floats, floats, floats)
def test_fma_rounds_once(a: float, b: float, c: float) -> None:
    got = numerics.fma(np.float32(a), np.float32(b), np.float32(c))
    assert got == rounded(Fraction(a) * Fraction(b) + Fraction(c))


@given(st.floats(1, 2, width=32), st.floats(1, 2, width=32), st.integers(-60, 60))
def test_fma_rounds_once_near_ties(a: float, b: float, exponent: int) -> None:
    product = Fraction(a) * Fraction(b)
    c = np.float32(2.0**exponent)
    got = numerics.fma(np.float32(a), np.float32(b), c)
    assert got == rounded(product + Fraction(float(c)))


def test_fma_of_what_is_infinite_is() -> None:
    for total in (np.inf, -np.inf):
        assert numerics.fma(np.float32(1), np.float32(1), np.float32(total)) == total


def test_exp_is_close_over_its_range() -> None:
    x = np.linspace(-86, 88, 100_001, dtype=np.float32)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(numerics.exp(x) / exact - 1).max() < 2e-7


def test_exp_clamps() -> None:
    ends = numerics.exp(np.array([-1e30, -86, 88, 1e30], np.float32))
    assert ends[0] == ends[1] > 0
    assert ends[2] == ends[3] < np.inf


def test_activations_are_within_half_a_step() -> None:
    x = np.random.default_rng(0).standard_normal((5, 96)).astype(np.float32)
    x[2] = 0
    q, scale = numerics.quantize_activations(x)
    back = (q * scale[..., None]).reshape(x.shape)
    assert np.abs(q).max() == 127
    assert (np.abs(back - x) <= np.repeat(scale, 32, axis=-1) * 0.5001).all()
    assert not q[2].any()


def test_linear_is_close_to_exact() -> None:
    random = np.random.default_rng(1)
    x = random.standard_normal((3, 128)).astype(np.float32)
    a, scale = numerics.quantize_activations(x)
    exact_x = (a * scale[..., None]).reshape(x.shape).astype(np.float64)
    scales = random.random((48, 2)).astype(np.float16)
    q = random.integers(0, 16, (48, 128)).astype(np.uint8)
    minimum = random.standard_normal((48, 2)).astype(np.float16)
    wide = Q8(random.integers(-127, 128, (48, 128)).astype(np.int8), np.tile(scales, 2))
    for weight in (Q4(q, scales), Q4(q, scales, minimum), wide):
        exact = exact_x @ weight.dequantize().astype(np.float64).T
        got = numerics.linear(a, scale, weight)
        assert np.abs(got - exact).max() < 1e-6 * np.abs(exact).max() * math.sqrt(128)


def test_rotation_keeps_lengths() -> None:
    x = np.random.default_rng(2).standard_normal((7, 3, 64)).astype(np.float32)
    frequencies = tuple(float(f) for f in 1e4 ** (-np.arange(0, 64, 2) / 64))
    cos, sin = numerics.rope_tables(frequencies, 7)
    rotated = numerics.rotate(x, cos, sin)
    pairs = x.reshape(7, 3, 2, 32)
    assert np.allclose((rotated.reshape(7, 3, 2, 32) ** 2).sum(2), (pairs**2).sum(2), rtol=1e-5)
    assert (rotated[0] == x[0]).all()
    assert not np.allclose(rotated[1:], x[1:])


def test_rotary_order_puts_pairs_in_one_group() -> None:
    for head_dim in (32, 64, 96, 128):
        order = numerics.rotary_order(head_dim)
        assert sorted(order) == list(range(head_dim))
        groups = order.reshape(-1, 2, 16)
        assert (groups[:, 1] - groups[:, 0] == head_dim // 2).all()
