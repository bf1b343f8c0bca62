"""Matrices as com.microsoft's MatMulNBits holds them, to and from ours.

``w = (q - zero)·scale`` with a scale and a zero point a block of a row's columns. Our symmetric
forms are its own, with the zero point it takes where none is given. For ``d·q + m`` the zero point
is ``-m/d`` in float32, which the operator takes beside packed integers; m comes back exactly,
because float32 errs by less than a thousandth of a float16's last place.

    packed = pack(Q4(q, scale, minimum))
    unpack(packed, columns)         # the same Q4, bit for bit
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from compile.checkpoint import Q4, Q8, Matrix, Tensor

GROUPS = (32, 64, 128)
# Stands for a scale of 0 over a minimum: q vanishes beside the zero point, and float16 reads 0.
NO_SCALE = np.float32(2.0**-100)


@dataclass(frozen=True)
class NBits:
    """The constant inputs of a MatMulNBits.

    Attributes:
        bits: 4 or 8.
        block: columns that share a scale.
        data: uint8 [rows, blocks, block·bits/8], of two nibbles the even column's in the low one.
        scale: float32 [rows, blocks].
        zero: the same shape; float32, or uint8 unpacked; None for the middle, 8 or 128.
    """

    bits: int
    block: int
    data: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero: NDArray[np.float32] | NDArray[np.uint8] | None

    @property
    def middle(self) -> int:
        """The zero point where none is given."""
        return 1 << self.bits - 1

    def slice(self, begin: int, end: int) -> NBits:
        """Some rows."""
        zero = None if self.zero is None else self.zero[begin:end]
        return replace(self, data=self.data[begin:end], scale=self.scale[begin:end], zero=zero)


def pack(matrix: Matrix) -> NBits:
    """A matrix of ours for MatMulNBits; the same weights, to float32's last place."""
    scale = matrix.scale.astype(np.float32)
    rows, blocks = scale.shape
    if isinstance(matrix, Q8):
        biased = matrix.q.view(np.uint8) ^ np.uint8(128)
        return NBits(8, 32, biased.reshape(rows, blocks, 32), scale, None)
    low, high = matrix.q[:, ::2], matrix.q[:, 1::2]
    data = (low | high << 4).astype(np.uint8).reshape(rows, blocks, matrix.group // 2)
    if matrix.minimum is None:
        return NBits(4, matrix.group, data, scale, None)
    scale = np.where(scale == 0, NO_SCALE, scale)
    zero = -matrix.minimum.astype(np.float32) / scale
    return NBits(4, matrix.group, data, scale, zero)


def unpack(packed: NBits, columns: int) -> tuple[Tensor, bool]:
    """The matrix, [rows, columns], and whether it is exact.

    Q4 or Q8 where the form allows; scales and minimums that float16 does not hold are rounded to
    it, an error 200 times below quantization's. Anything else (blocks of 16, 8 bits around another
    middle, a last block that is not full) becomes float32.
    """
    q = _values(packed)
    half, exact = _half(packed.scale)
    zero = packed.zero
    symmetric = zero is None or bool((zero == packed.middle).all())
    split = 2 if packed.block == 256 else 1
    group = packed.block // split
    if q.shape[1] != columns or not np.isfinite(half).all():
        return _dequantized(packed, q)[:, :columns], True
    if packed.bits == 8 and symmetric and packed.block % 32 == 0:
        return Q8((q ^ np.uint8(128)).view(np.int8), half.repeat(packed.block // 32, 1)), exact
    if packed.bits == 4 and group in GROUPS:
        if symmetric or zero is None:
            return Q4(q, half.repeat(split, 1)), exact
        # In float64 the product is exact, so it is rounded once.
        minimum = -(zero.astype(np.float64) * packed.scale)
        rounded = minimum.astype(np.float16)
        if np.isfinite(rounded).all():
            kept = zero.dtype == np.float32 or bool((rounded == minimum).all())
            return Q4(q, half.repeat(split, 1), rounded.repeat(split, 1)), exact and kept
    return _dequantized(packed, q), True


def _values(packed: NBits) -> NDArray[np.uint8]:
    """uint8 [rows, blocks·block]."""
    data = packed.data.reshape(len(packed.data), -1)
    if packed.bits == 8:
        return data
    return np.stack((data & 15, data >> 4), axis=-1).reshape(len(data), -1)


def _half(scale: NDArray[np.float32]) -> tuple[NDArray[np.float16], bool]:
    """float16, and whether nothing was lost."""
    with np.errstate(over="ignore"):
        half = scale.astype(np.float16)
    return half, bool(((half == scale) | (np.abs(scale) == NO_SCALE)).all())


def _dequantized(packed: NBits, q: NDArray[np.uint8]) -> NDArray[np.float32]:
    """float32 [rows, blocks·block]."""
    zero = np.float32(packed.middle) if packed.zero is None else packed.zero[..., None]
    blocks = q.reshape(*packed.scale.shape, packed.block).astype(np.float32)
    return ((blocks - zero) * packed.scale[..., None]).astype(np.float32).reshape(len(q), -1)
