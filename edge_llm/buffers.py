"""Memory that compiled code is given by its address."""

from __future__ import annotations

import ctypes
import mmap
import struct
from typing import Literal, TypeAlias, overload

Floats: TypeAlias = "memoryview[float]"  # of float32
Integers: TypeAlias = "memoryview[int]"

SIMPLE = 0  # PyBUF_SIMPLE: contiguous bytes, read-only or not


class _PyBuffer(ctypes.Structure):
    """Python's Py_buffer (part of the stable ABI since 3.11, and the same before)."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_get, _release = ctypes.pythonapi.PyObject_GetBuffer, ctypes.pythonapi.PyBuffer_Release
_get.argtypes = (ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int)
_release.argtypes = (ctypes.POINTER(_PyBuffer),)


def address(memory: Floats | Integers) -> int:
    """Of the first byte; good for as long as ``memory`` is neither released nor forgotten.

    ctypes itself tells addresses of writable memory alone.
    """
    buffer = _PyBuffer()
    _get(memory, buffer, SIMPLE)
    first: int = buffer.buf or 0
    _release(buffer)
    return first


@overload
def zeros(count: int, kind: Literal["f"]) -> Floats: ...
@overload
def zeros(count: int, kind: Literal["B", "i", "q"] = ...) -> Integers: ...
def zeros(count: int, kind: Literal["B", "f", "i", "q"] = "B") -> Floats | Integers:
    """So many zeroed elements of a format of ``struct``; a page takes room once it is written.

    Raises:
        OSError: there is no such memory; OverflowError or ValueError: nor could there be.
    """
    size = count * struct.calcsize(kind)
    return memoryview(mmap.mmap(-1, max(size, 1)))[:size].cast(kind)
