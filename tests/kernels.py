"""Small functions around the CPU kernels, called with numpy arrays: here, or on an emulated board.

product = kernel("x86-64-v3", 3, emit)
product(a, b, out)
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray
from tvm.ir import GlobalVar, IRModule
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from compile.lower.cpu.memory import Array, Pointer
from edge_llm.cpu import host
from targets import TARGETS, Target
from tests.boards import CPUS, board_files

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


def kernel_targets() -> list[Any]:
    """The parameters of a test of kernels: what this machine runs, and the emulated boards."""
    boards = [pytest.param(board, marks=pytest.mark.board) for board in CPUS]
    return [*runnable_targets(), *boards]


def kernel(target: str, count: int, emit: Callable[..., None]) -> Callable[..., None]:
    """A compiled function of ``count`` pointers; ``emit`` writes its body given the arguments."""
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
    compiled = tvm.compile(module, target=llvm(TARGETS[target]))
    if target in CPUS:
        return lambda *arrays: run_emulated(compiled, target, arrays)
    host_function = compiled["kernel"]
    return lambda *arrays: host_function(*(ctypes.c_void_p(array.ctypes.data) for array in arrays))


def run_emulated(compiled: Any, target: str, arrays: Sequence[NDArray[Any]]) -> None:
    """Call the kernel on the target's board, the arrays travelling there and back as files."""
    emulator = shutil.which("qemu-aarch64")
    assert emulator is not None, "qemu-aarch64 is missing: run make test"
    with tempfile.TemporaryDirectory(prefix="edge-llm-kernel-") as name:
        folder = Path(name)
        compiled.mod.write_to_file(str(folder / "kernel.o"), "o")
        board = TARGETS[target]
        link = [sys.executable, "-m", "ziglang", "cc", "-target", f"{board.triple}.{board.glibc}"]
        emulate = [emulator, "-cpu", CPUS[target], "-L", str(board_files().root)]
        files = [folder / f"a{i}" for i in range(len(arrays))]
        for array, file in zip(arrays, files, strict=True):
            array.tofile(file)
        program = str(folder / "program")
        for command in (
            [
                *link,
                "-o",
                program,
                str(Path(__file__).with_name("kernel.c")),
                str(folder / "kernel.o"),
            ],
            [*emulate, program, *map(str, files)],
        ):
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
        for array, file in zip(arrays, files, strict=True):
            array[...] = np.fromfile(file, array.dtype).reshape(array.shape)


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
