"""Small functions around the CPU kernels, compiled in this process and called with numpy arrays.

product = Kernel("x86-64-v3", emit, sources, outputs)
product(a, b, out)
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm.ir import GlobalVar, IRModule
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from compile.lower.cpu.memory import Array, Pointer
from edge_llm.cpu import host
from targets import TARGETS, Target

VIEWS = ("uint8", "int8", "int32", "float16", "float32")


def runnable_targets() -> list[str]:
    """The targets whose code this machine runs."""
    machine = host()
    return [
        name
        for name, target in TARGETS.items()
        if target.machine == machine.machine and machine.features >= set(target.features)
    ]


class Argument:
    """A pointer argument, to be seen as arrays of any type."""

    def __init__(self, name: str) -> None:
        self.pointer = Pointer(name)

    def declare(self) -> None:
        for dtype in VIEWS:
            self.pointer.view(dtype)

    def array(self, dtype: str) -> Array:
        return self.pointer.array(dtype)


class Kernel:
    """A compiled function of some pointers; ``emit`` writes its body given the arguments."""

    def __init__(self, target: str, count: int, emit: Callable[..., None]) -> None:
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True):
                T.func_name("kernel")
                T.func_attr({"global_symbol": "kernel", "tirx.noalias": False})
                arguments = [Argument(f"a{i}") for i in range(count)]
                for argument in arguments:
                    argument.declare()
                with T.attr(T.int32(0), "device_id", 0), T.attr(T.int32(0), "device_type", 1):
                    emit(*arguments)
            function = builder.get()
        module = IRModule({GlobalVar("kernel"): function})
        self._function = tvm.compile(module, target=llvm(TARGETS[target]))["kernel"]

    def __call__(self, *arrays: NDArray[Any]) -> None:
        self._function(*(ctypes.c_void_p(array.ctypes.data) for array in arrays))


def llvm(target: Target) -> Any:
    description: dict[str, Any] = {
        "kind": "llvm", "mtriple": target.triple, "mcpu": target.cpu
    }  # fmt: skip
    if target.attributes:
        description["mattr"] = list(target.attributes)
    return tvm.target.Target(description)


def aligned(values: NDArray[Any]) -> NDArray[Any]:
    """A copy that starts at a multiple of 64 bytes, as everything in an artifact does."""
    room = np.zeros(values.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


def zeros(shape: Sequence[int] | int, dtype: Any) -> NDArray[Any]:
    """Aligned zeros."""
    return aligned(np.zeros(shape, dtype))
