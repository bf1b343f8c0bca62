"""Frequencies of the rotary position embedding (arXiv:2104.09864) and their scalings.

All in float64; a back end rounds once, when it makes its tables.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Frequencies = NDArray[np.float64]  # [head_dim / 2] radians a position


def frequencies(base: float, head_dim: int) -> Frequencies:
    """``base ** (-2i / head_dim)`` for i in 0 … head_dim/2 - 1."""
    return np.power(float(base), -np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)


def llama3(
    plain: Frequencies, factor: float, low: float, high: float, original_context: float
) -> Frequencies:
    """Llama 3's scaling (arXiv:2407.21783): long waves slowed by ``factor``, short ones kept.

    Args:
        plain: the frequencies without scaling.
        factor: by how much the context has grown.
        low: waves that fit fewer times than this into the original context are slowed fully.
        high: waves that fit more often than this are kept; between the two it is a blend.
        original_context: positions before the context was grown.
    """
    turns = original_context * plain / (2 * np.pi)  # in the original context
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return plain * (kept + (1 - kept) / factor)


def from_tables(cos: NDArray[np.floating], sin: NDArray[np.floating]) -> Frequencies:
    """The frequencies of which these are the cosines and sines, [positions, head_dim / 2].

    Each position doubles what the one at half of it told. Tables are rounded to their type, so a
    whole number as base that gives them as well is taken for the truth.
    """
    half, count = cos.shape[1], len(cos)
    found, position = np.zeros(half), 1
    while position < count:
        angle = np.arctan2(sin[position].astype(np.float64), cos[position].astype(np.float64))
        turns = np.rint((found * position - angle) / (2 * np.pi))
        found = (angle + 2 * np.pi * turns) / position
        position *= 2
    if half > 1 and 0 < found[1] < 1:
        base = found[1] ** -half
        cos, sin = cos[:1024], sin[:1024]  # further on, some tables' own angles were float32
        for rounded in (float(f"{base:.2g}"), float(np.rint(base))):
            plain = frequencies(rounded, 2 * half)
            angles = np.arange(len(cos))[:, None] * plain
            if max(np.abs(np.cos(angles) - cos).max(), np.abs(np.sin(angles) - sin).max()) < 2e-3:
                return plain
    return found
