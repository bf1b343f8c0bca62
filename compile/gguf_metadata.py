"""Typed reading of a GGUF's key-value metadata: what is missing or of the wrong type is an error.

Metadata(path, {"llama.block_count": 30}).integer("llama.block_count")    # 30
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from compile.errors import CompileError

Value: TypeAlias = bool | int | float | str | tuple[str, ...] | NDArray[Any]


class Metadata:
    """The metadata of one file; every error names the file and the key."""

    def __init__(self, path: Path, values: Mapping[str, Value]) -> None:
        self.path = path
        self._values = values

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number of any width; without a default it must be there."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, value, "a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number; without a default it must be there."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, value, "a number")
        if not math.isfinite(value):
            raise CompileError(f"{self.path}: metadata {key} is {value}, not a finite number")
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        """A string; without a default it must be there."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A truth value."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """An array of strings."""
        value = self._get(key, None)
        if not isinstance(value, tuple):
            raise self._wrong(key, value, "an array of strings")
        return value

    def integers(self, key: str) -> NDArray[np.int64]:
        """An array of whole numbers, as int64 [n]."""
        value = self._get(key, None)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
            raise self._wrong(key, value, "an array of whole numbers")
        return value.astype(np.int64)

    def numbers(self, key: str) -> NDArray[np.float64]:
        """An array of finite numbers, as float64 [n]."""
        value = self._get(key, None)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf":
            raise self._wrong(key, value, "an array of numbers")
        numbers = value.astype(np.float64)
        if not np.isfinite(numbers).all():
            raise CompileError(f"{self.path}: metadata {key} holds numbers that are not finite")
        return numbers

    def _get(self, key: str, default: Value | None) -> Value:
        value = self._values.get(key, default)
        if value is None:
            raise CompileError(f"{self.path}: metadata {key} is missing")
        return value

    def _wrong(self, key: str, value: Value, wanted: str) -> CompileError:
        got = "an array" if isinstance(value, tuple | np.ndarray) else type(value).__name__
        return CompileError(f"{self.path}: metadata {key} must be {wanted}, not {got}")
