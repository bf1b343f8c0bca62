"""Typed arrays over the raw pointers that a step is called with.

TIR sees each pointer through flat views, one an element type. An :class:`Array` is such a view
from some element on, so that kernels index from zero and never compute byte addresses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.tirx.script.builder import ir as T

Expr = Any  # a TIR expression; TVM's Python has no static types for them

WIDEST = 1 << 40  # elements a view claims to have: larger than any memory it is laid over


class Pointer:
    """One pointer argument of the function being built."""

    def __init__(self, name: str) -> None:
        self._data = T.arg(name, T.handle("uint8"))
        self._views: dict[str, Any] = {}

    def view(self, dtype: str) -> None:
        """Declare a view; all of them before the first statement, so that every use sees it."""
        self._views[dtype] = T.decl_buffer((T.int64(WIDEST),), dtype, data=self._data)

    def array(self, dtype: str, byte_offset: int = 0) -> Array:
        """The memory from ``byte_offset`` on as elements of ``dtype``."""
        size = item_bytes(dtype)
        if byte_offset % size:
            raise ValueError(f"{dtype} at byte {byte_offset} is not aligned")
        return Array(self._views[dtype], T.int64(byte_offset // size))


def item_bytes(dtype: str) -> int:
    """Bytes of one element, e.g. 2 for ``float16``."""
    return int("".join(c for c in dtype if c.isdigit())) // 8


@dataclass(frozen=True)
class Array:
    """Elements of one type from ``base`` on."""

    buffer: Any
    base: Expr  # int64, in elements

    def at(self, index: Expr) -> Array:
        """The same array from its element ``index`` on."""
        return Array(self.buffer, self.base + T.cast(index, "int64"))

    def load(self, index: Expr = 0, lanes: int = 1) -> Expr:
        """One element, or ``lanes`` consecutive ones as a vector."""
        dtype = str(self.buffer.dtype)
        return self.buffer.vload(
            [self.base + T.cast(index, "int64")], dtype if lanes == 1 else f"{dtype}x{lanes}"
        )

    def prefetch(self, index: Expr) -> None:
        """Ask for the cache line of an element that will be read soon; it need not exist."""
        element = self.buffer[self.base + T.cast(index, "int64")]
        name = T.llvm_lookup_intrinsic_id("llvm.prefetch")
        operands = (T.address_of(element), T.int32(0), T.int32(3), T.int32(1))
        T.evaluate(T.call_llvm_intrin(name, *operands, dtype="void"))

    def store(self, index: Expr, value: Expr) -> None:
        """Write one element or a vector of consecutive ones."""
        start = self.base + T.cast(index, "int64")
        lanes = lanes_of(value)
        T.buffer_store(self.buffer, value, [start if lanes == 1 else T.ramp(start, 1, lanes)])


def local(dtype: str, elements: int) -> Array:
    """A small array on the stack or, where accesses are uniform, in registers.

    TVM keeps allocations below 1 KiB of the scope ``global``, and no others, on the stack.
    """
    return Array(T.alloc_buffer((elements,), dtype, scope="global"), T.int64(0))


def lanes_of(value: Expr) -> int:
    """Lanes of a vector expression; 1 for a scalar."""
    _, _, lanes = str(value.ty).partition("x")
    return int(lanes or 1)
