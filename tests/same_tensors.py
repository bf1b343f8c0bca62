"""Whether two checkpoints hold the same tensors, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from compile.checkpoint import Q4, Q8, Checkpoint, Tensor


def arrays(tensor: Tensor) -> list[NDArray[Any]]:
    """What a tensor is made of."""
    if isinstance(tensor, Q4):
        return [tensor.q, tensor.scale, *([] if tensor.minimum is None else [tensor.minimum])]
    return [tensor.q, tensor.scale] if isinstance(tensor, Q8) else [tensor]


def assert_same_tensors(one: Checkpoint, other: Checkpoint) -> None:
    """Names, types, forms and every bit."""
    assert sorted(one.names()) == sorted(other.names())
    for name in one.names():
        assert_same_tensor(one.tensor(name), other.tensor(name), name)


def assert_same_tensor(one: Tensor, other: Tensor, name: str) -> None:
    assert type(one) is type(other), name
    for a, b in zip(arrays(one), arrays(other), strict=True):
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, name)
