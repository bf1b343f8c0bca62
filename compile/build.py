"""From a TIR module to the shared object an artifact carries.

LLVM, inside TVM, makes the object file; ``zig cc`` from the ``ziglang`` package compiles the entry
point and the thread layer and links all for the board's architecture and C library. No system
compiler, and on the device nothing but its C library.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tvm
from tvm.ir import IRModule
from tvm.target.codegen import llvm_version_major

from compile.errors import CompileError
from targets import Target

SOURCES = tuple(Path(__file__).parent / "lower" / "cpu" / name for name in ("entry.c", "threads.c"))
LINK_TIMEOUT = 300  # seconds; the first link for an architecture also builds its C library stubs


@dataclass(frozen=True)
class Versions:
    """What made the code, for the manifest."""

    tvm: str
    llvm: str


def versions() -> Versions:
    """Of the TVM that is imported and the LLVM inside it."""
    return Versions(tvm.__version__, str(llvm_version_major()))


def build(module: IRModule, target: Target) -> bytes:
    """The shared object of a TIR module.

    Raises:
        CompileError: the linker failed; the message holds its first line.
    """
    description: dict[str, object] = {"kind": "llvm", "mtriple": target.triple, "mcpu": target.cpu}
    if target.attributes:
        description["mattr"] = list(target.attributes)
    logging.getLogger("tvm").setLevel(logging.ERROR)
    executable = tvm.compile(module, target=tvm.target.Target(description))
    with tempfile.TemporaryDirectory(prefix="edge-llm-build-") as folder:
        object_file = Path(folder) / "model.o"
        executable.mod.write_to_file(str(object_file), "o")
        library = Path(folder) / "code.so"
        link(object_file, library, target)
        return library.read_bytes()


def link(object_file: Path, library: Path, target: Target) -> None:
    """Link an object file, the entry point and the thread layer into a shared object."""
    command = [
        *(sys.executable, "-m", "ziglang", "cc"),
        *("-target", f"{target.triple}.{target.glibc}"),
        *("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-s"),
        *("-Wl,-soname,code.so", "-Wl,-z,defs", "-o", str(library)),
        *(str(object_file), *map(str, SOURCES), "-lpthread"),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LINK_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise CompileError(f"linking took over {LINK_TIMEOUT} s; is the machine busy?") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise CompileError(f"linking for {target.name} failed: {lines[0]}")
