"""ggml's storage of weights, decoded: Q4_0, Q4_1 and Q8_0 to the same integers and scales.

The layouts are those of block_q4_0, block_q4_1 and block_q8_0 in ggml-common.h. The other
types have no counterpart in our formats and become float32, by the gguf package.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from compile.checkpoint import Q4, Q8, Tensor

Bytes = NDArray[np.uint8]
SLAB_WEIGHTS = 1 << 22  # weights dequantized at once, so that temporaries stay small


def decode(kind: str, rows: Bytes) -> Tensor:
    """Weights [rows, columns] from the bytes of their rows.

    Args:
        kind: a name in :data:`DECODERS`.
        rows: uint8 [rows, bytes a row].
    """
    return DECODERS[kind](rows)


def _float32(rows: Bytes) -> NDArray[np.float32]:
    return rows.view("<f4")


def _float16(rows: Bytes) -> NDArray[np.float16]:
    return rows.view("<f2")


def _bfloat16(rows: Bytes) -> NDArray[np.float32]:
    return (rows.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _nibbles(blocks: Bytes) -> Bytes:
    """[rows, blocks, 16] bytes to [rows, blocks · 32]: all low halves of a block, then the high."""
    return np.concatenate([blocks & 0x0F, blocks >> 4], axis=2).reshape(len(blocks), -1)


def _scales(halves: Bytes) -> NDArray[np.float16]:
    """[rows, blocks, 2] bytes to [rows, blocks]."""
    return np.ascontiguousarray(halves).view("<f2")[..., 0]


def _q4_0(rows: Bytes) -> Q4:
    blocks = rows.reshape(len(rows), -1, 18)
    return Q4(_nibbles(blocks[..., 2:]), _scales(blocks[..., :2]))


def _q4_1(rows: Bytes) -> Q4:
    blocks = rows.reshape(len(rows), -1, 20)
    return Q4(_nibbles(blocks[..., 4:]), _scales(blocks[..., :2]), _scales(blocks[..., 2:4]))


def _q8_0(rows: Bytes) -> Q8:
    blocks = rows.reshape(len(rows), -1, 34)
    weights = np.ascontiguousarray(blocks[..., 2:]).view(np.int8)
    return Q8(weights.reshape(len(rows), -1), _scales(blocks[..., :2]))


def _dequantized(kind: str) -> Callable[[Bytes], NDArray[np.float32]]:
    def decode_k(rows: Bytes) -> NDArray[np.float32]:
        import gguf

        code = gguf.GGMLQuantizationType[kind]
        columns = gguf.quants.quant_shape_from_byte_shape(rows.shape, code)[1]
        values = np.empty((len(rows), columns), np.float32)
        slab = max(1, SLAB_WEIGHTS // columns)
        for start in range(0, len(rows), slab):
            part = rows[start : start + slab]
            values[start : start + slab] = gguf.quants.dequantize(part, code)
        return values

    return decode_k


DECODERS: MappingProxyType[str, Callable[[Bytes], Tensor]] = MappingProxyType(
    {
        "F32": _float32,
        "F16": _float16,
        "BF16": _bfloat16,
        "Q8_0": _q8_0,
        "Q4_0": _q4_0,
        "Q4_1": _q4_1,
        "Q5_0": _dequantized("Q5_0"),
        "Q5_1": _dequantized("Q5_1"),
        "IQ4_NL": _dequantized("IQ4_NL"),
        "IQ4_XS": _dequantized("IQ4_XS"),
        "Q4_K": _dequantized("Q4_K"),
        "Q5_K": _dequantized("Q5_K"),
        "Q6_K": _dequantized("Q6_K"),
    }
)
