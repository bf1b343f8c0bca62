"""The arithmetic that every CPU target performs, bit for bit, in plain numpy.

This module is the definition; the kernels in ``compile.lower.cpu`` are tested against it.
All values are float32 unless said otherwise. Where the order of roundings matters it is part of
the format: a row adds its groups in column order with one fused multiply-add each, a sum over a
vector keeps 16 partial sums and combines them pairwise, ``exp`` is one polynomial.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from compile.checkpoint import ACTIVATION_GROUP, Q4, Matrix

F32 = NDArray[np.float32]

LANES = 16  # partial sums of a reduction

# exp(x) = 2^n · P(r), n = round(x·log2 e), r = x − n·ln 2 in two parts (Cody and Waite, 1980).
LOG2E = np.float32(1.4426950408889634)
LN2_HIGH = np.float32(0.693359375)
LN2_LOW = np.float32(-2.12194440e-4)
EXP_LOWEST, EXP_HIGHEST = np.float32(-86.0), np.float32(88.0)
# P, highest power first: the coefficients of Cephes expf; relative error below 1e-7 on its range.
EXP_POLYNOMIAL = tuple(
    np.float32(c)
    for c in (
        1.9875691500e-4,
        1.3981999507e-3,
        8.3334519073e-3,
        4.1665795894e-2,
        1.6666665459e-1,
        5.0000001201e-1,
        1.0,
        1.0,
    )
)


def fma(a: Any, b: Any, c: Any) -> F32:
    """``a·b + c`` rounded once, as a fused multiply-add does.

    The product of two float32 is exact in float64. Their sum with ``c`` is rounded to odd there,
    which makes the second rounding, to float32, harmless (Boldo and Melquiond, 2008).
    """
    product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
    addend = np.asarray(c, np.float64)
    total = np.asarray(product + addend)
    with np.errstate(invalid="ignore"):  # of infinities
        back = total - product
        error = (product - (total - back)) + (addend - back)  # Knuth's TwoSum: exact
    bits = total.view(np.int64)
    inexact_and_even = (error != 0) & (bits & 1 == 0) & np.isfinite(total)
    away = np.where((error > 0) == (total > 0), 1, -1)
    odd = np.where(inexact_and_even, bits + away, bits).view(np.float64)
    rounded: F32 = odd.astype(np.float32)
    return rounded


def exp(x: F32) -> F32:
    """e^x with relative error below 2e-7; arguments are clamped to [-86, 88]."""
    x = np.minimum(np.maximum(x, EXP_LOWEST), EXP_HIGHEST)
    n = np.rint(x * LOG2E)
    r = fma(n, -LN2_LOW, fma(n, -LN2_HIGH, x))
    p = np.full_like(r, EXP_POLYNOMIAL[0])
    for c in EXP_POLYNOMIAL[1:]:
        p = fma(p, r, c)
    scaled: F32 = (p.view(np.int32) + (n.astype(np.int32) << 23)).view(np.float32)
    return scaled


def silu(x: F32) -> F32:
    """x / (1 + e^-x)."""
    return x / (np.float32(1) + exp(-x))


def add_lanes(partial: F32) -> F32:
    """Sum of 16 partial sums on the last axis: lane i with i+8, then i+4, i+2, i+1."""
    while partial.shape[-1] > 1:
        half = partial.shape[-1] // 2
        partial = partial[..., :half] + partial[..., half:]
    total: F32 = partial[..., 0]
    return total


def rms_norm(x: F32, weight: F32, eps: float) -> F32:
    """float32 [n, width] → the same: ``(x · (1 / sqrt(mean x² + eps))) · weight``."""
    partial = np.zeros((*x.shape[:-1], LANES), np.float32)
    for column in range(0, x.shape[-1], LANES):
        lanes = x[..., column : column + LANES]
        partial = fma(lanes, lanes, partial)
    mean = add_lanes(partial) / np.float32(x.shape[-1])
    inverse: F32 = np.float32(1) / np.sqrt(mean + np.float32(eps))
    return x * inverse[..., None] * weight


def quantize_activations(x: F32) -> tuple[NDArray[np.int8], F32]:
    """float32 [..., k] → int8 [..., k / 32, 32] and float32 scales [..., k / 32].

    Symmetric, half to even: ``q = rint(x · (127 / max|x|))``, ``scale = max|x| · (1/127)``.
    """
    groups = x.reshape(*x.shape[:-1], -1, ACTIVATION_GROUP)
    largest = np.abs(groups).max(-1)
    inverse = np.float32(127) / np.maximum(largest, np.float32(1e-30))
    return (
        np.rint(groups * inverse[..., None]).astype(np.int8),
        largest * np.float32(1 / 127),
    )


def linear(a: NDArray[np.int8], scale: F32, weight: Matrix) -> F32:
    """int8 [n, k/32, 32] with float32 scales [n, k/32], times [rows, k]ᵀ → float32 [n, rows].

    For each group of 32 columns ``y = fma(d, s·Σqa, y)``; asymmetric weights then add
    ``fma(m, s·Σa, y)``. The integer sums are exact.
    """
    rows, columns = weight.shape
    y = np.zeros((a.shape[0], rows), np.float32)
    per_scale = columns // weight.scale.shape[1] // ACTIVATION_GROUP
    minimum = weight.minimum if isinstance(weight, Q4) else None
    zero = 8 if isinstance(weight, Q4) and minimum is None else 0
    for g in range(columns // ACTIVATION_GROUP):
        q = weight.q[:, g * ACTIVATION_GROUP : (g + 1) * ACTIVATION_GROUP].astype(np.float32) - zero
        activations = a[:, g].astype(np.float32)
        dot = activations @ q.T  # integers below 2^24: exact in float32
        s = scale[:, g, None]
        y = fma(weight.scale[:, g // per_scale].astype(np.float32), dot * s, y)
        if minimum is not None:
            total = activations.sum(-1, keepdims=True)
            y = fma(minimum[:, g // per_scale].astype(np.float32), total * s, y)
    return y


def rope_tables(frequencies: tuple[float, ...], context: int) -> tuple[F32, F32]:
    """cos and sin of position times frequency, each float32 [context, head_dim / 2]."""
    angle = np.arange(context, dtype=np.float64)[:, None] * np.asarray(frequencies, np.float64)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rotate(x: F32, cos: F32, sin: F32) -> F32:
    """Rotary positions for float32 [n, heads, head_dim] with cos, sin [n, head_dim / 2]."""
    first, second = np.split(x, 2, axis=-1)
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate(
        [fma(first, cos, -(second * sin)), fma(second, cos, first * sin)], axis=-1
    )


def rotary_order(head_dim: int) -> NDArray[np.intp]:
    """The order in which a head's rotated values form groups of 32: 16 pairs at a time.

    A group is dimensions 16u … 16u+15 and their partners half a head further, so that a kernel
    that holds 16 rows in its lanes rotates two tiles without moving anything across lanes.
    """
    pairs = np.arange(head_dim // 2).reshape(-1, LANES)
    return np.concatenate([pairs, pairs + head_dim // 2], axis=1).reshape(-1)


def attend(
    q: tuple[NDArray[np.int8], F32],
    k: tuple[NDArray[np.int8], F32],
    v: tuple[NDArray[np.int8], F32],
) -> F32:
    """One query row against all positions up to its own, in quantized form.

    What each position counts, ``e^score`` times its value's scale, is quantized like activations,
    a group of 32 positions at a time; so both products are of integers.

    Args:
        q: int8 [heads, d/32, 32] and scales [heads, d/32]; the scales hold the 1/sqrt(d).
        k: int8 [t, kv_heads, d/32, 32] and scales [t, kv_heads, d/32], in rotary order like q.
        v: like k, in natural order.

    Returns:
        float32 [heads, d].
    """
    share = q[0].shape[0] // k[0].shape[1]  # query heads to a KV head
    (kq, ks), (vq, vs) = ((np.repeat(a, share, 1), np.repeat(s, share, 1)) for a, s in (k, v))
    positions, heads, groups, size = kq.shape
    score = np.zeros((positions, heads), np.float32)
    for g in range(groups):
        dot = np.einsum("hd,thd->th", q[0][:, g].astype(np.int32), kq[:, :, g].astype(np.int32))
        score = fma(ks[:, :, g], dot.astype(np.float32) * q[1][:, g], score)
    p = exp(score - score.max(0))
    padded = np.zeros((-(-positions // LANES) * LANES, heads), np.float32)
    padded[:positions] = p
    partial = np.zeros((heads, LANES), np.float32)
    for block in padded.reshape(-1, LANES, heads):
        partial = partial + block.T
    out = np.zeros((heads, groups, size), np.float32)
    for start in range(0, positions, ACTIVATION_GROUP):
        some = slice(start, min(start + ACTIVATION_GROUP, positions))
        weights = np.zeros((heads, groups, ACTIVATION_GROUP), np.float32)
        weights[..., : some.stop - start] = (p[some, :, None] * vs[some]).transpose(1, 2, 0)
        wq, ws = quantize_activations(weights)  # [heads, groups, 1, 32] and [heads, groups, 1]
        counts = wq[:, :, 0, : some.stop - start].astype(np.int32)
        dot = np.einsum("hgt,thgd->hgd", counts, vq[some].astype(np.int32))
        out = fma(dot.astype(np.float32), ws, out)
    return out.reshape(heads, -1) / add_lanes(partial)[:, None]
