"""Round to nearest: a checkpoint's matrices in the formats the device multiplies.

Quantization is a view: tensors are converted when asked for, one at a time. What a file already
holds in the wanted format (GGUF Q4_0, Q4_1, Q8_0) passes bit for bit.

    quantized = QuantizedCheckpoint(checkpoint, Formats.of(checkpoint))
    quantized.tensor("model.layers.0.mlp.up_proj.weight")       # Q4
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from compile.checkpoint import Q4, Q8, Checkpoint, Matrix, Tensor
from compile.errors import CompileError
from compile.families import FAMILIES
from compile.quantize.formats import Formats, MatrixFormat

SMALLEST_SCALE = np.float32(2.0**-24)  # the smallest positive float16


class QuantizedCheckpoint:
    """A checkpoint whose matrices are all quantized, each kind in its format."""

    def __init__(self, checkpoint: Checkpoint, formats: Formats) -> None:
        self.config = checkpoint.config
        self.tokenizer = checkpoint.tokenizer
        self.formats = formats
        self._checkpoint = checkpoint
        matrices = FAMILIES[self.config.family](self.config).matrices(self.config.layers)
        self._kinds = {name: kind for kind, names in matrices.items() for name in names}

    def names(self) -> Iterable[str]:
        """The checkpoint's names."""
        return self._checkpoint.names()

    def tensor(self, name: str) -> Tensor:
        """One tensor, quantized if it is a matrix."""
        tensor = self._checkpoint.tensor(name)
        if name in self._kinds:
            return quantize(tensor, self.formats[self._kinds[name]], name)
        return tensor


def quantize(tensor: Tensor, form: MatrixFormat, name: str = "matrix") -> Matrix:
    """Any matrix in a format; one that has it already is returned as it is."""
    if form.bits == 8:
        return quantize8(tensor, name)
    return quantize4(tensor, form.group, form.symmetric, name)


def quantize4(tensor: Tensor, group: int, symmetric: bool, name: str = "matrix") -> Q4:
    """Any matrix as 4-bit weights; one that has the format already is returned as it is."""
    if isinstance(tensor, Q4) and tensor.group == group:
        if symmetric == (tensor.minimum is None):
            return tensor
        if not symmetric and np.abs(tensor.scale.astype(np.float32)).max() <= 65504 / 8:
            return Q4(tensor.q, tensor.scale, tensor.scale * np.float16(-8))  # exact
    values = grouped(tensor, group, name)
    if symmetric:
        # The value of largest magnitude becomes -8·d exactly; the other side reaches 7·d.
        extreme = np.take_along_axis(values, np.abs(values).argmax(-1)[..., None], -1)[..., 0]
        scale = half(extreme / np.float32(-8), name)
        q = np.rint(values * inverse(scale)[..., None]) + 8
        return Q4(nibbles(q), scale)
    low = np.minimum(values.min(-1), 0)
    scale = half((np.maximum(values.max(-1), 0) - low) / np.float32(15), name)
    minimum = half(low, name)
    q = np.rint((values - minimum.astype(np.float32)[..., None]) * inverse(scale)[..., None])
    return Q4(nibbles(q), scale, minimum)


def quantize8(tensor: Tensor, name: str = "matrix") -> Q8:
    """Any matrix as 8-bit weights in groups of 32."""
    if isinstance(tensor, Q8):
        return tensor
    values = grouped(tensor, 32, name)
    scale = half(np.abs(values).max(-1) / np.float32(127), name)
    q = np.clip(np.rint(values * inverse(scale)[..., None]), -127, 127)
    return Q8(q.astype(np.int8).reshape(len(q), -1), scale)


def grouped(tensor: Tensor, group: int, name: str) -> NDArray[np.float32]:
    """float32 [rows, columns / group, group]."""
    values = tensor.dequantize() if isinstance(tensor, Q4 | Q8) else tensor.astype(np.float32)
    if values.ndim != 2 or values.shape[1] % group:
        raise CompileError(f"{name}: shape {list(values.shape)} has no rows of groups of {group}")
    if not np.isfinite(values).all():
        raise CompileError(f"{name}: holds infinities or NaN; the checkpoint is damaged")
    return values.reshape(len(values), -1, group)


def half(values: NDArray[np.float32], name: str) -> NDArray[np.float16]:
    """float16, refusing what it cannot hold."""
    if np.abs(values).max(initial=0) > 65504:
        raise CompileError(f"{name}: weights too large for float16 scales")
    return values.astype(np.float16)


def inverse(scale: NDArray[np.float16]) -> NDArray[np.float32]:
    """1 / scale, and 0 where the scale is 0."""
    wide = scale.astype(np.float32)
    return np.where(np.abs(wide) >= SMALLEST_SCALE, 1 / np.where(wide == 0, 1, wide), 0).astype(
        np.float32
    )


def nibbles(q: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Clipped to 0 … 15, as uint8 [rows, columns]."""
    return np.clip(q, 0, 15).astype(np.uint8).reshape(len(q), -1)


def concatenate(matrices: list[Matrix]) -> Matrix:
    """Matrices of one format below each other."""
    if all(isinstance(m, Q8) for m in matrices):
        return Q8(
            np.concatenate([m.q for m in matrices]), np.concatenate([m.scale for m in matrices])
        )
    fours = [m for m in matrices if isinstance(m, Q4)]
    minimums = [m.minimum for m in fours if m.minimum is not None]
    if len(fours) != len(matrices) or len(minimums) not in (0, len(fours)):
        raise CompileError("matrices of one stage must be quantized alike")
    return Q4(
        np.concatenate([m.q for m in fours]),
        np.concatenate([m.scale for m in fours]),
        np.concatenate(minimums) if minimums else None,
    )
