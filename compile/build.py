"""From a TIR module to the shared object an artifact carries.

LLVM, inside TVM, makes the object file; ``zig cc`` from the ``ziglang`` package compiles the entry
point, the thread layer and what draws a token, and links all for the board's architecture and C
library. No system compiler, and on the device nothing but its C library.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tvm
from tvm.target.codegen import llvm_version_major

from compile.errors import CompileError
from compile.foreign_errors import translated
from compile.lower.cpu.cache import PAGE_POSITIONS
from compile.lower.cpu.step import Lowered
from targets import Target

SOURCES = tuple(
    Path(__file__).parent / "lower" / "cpu" / name for name in ("entry.c", "threads.c", "draw.c")
)
LINK_TIMEOUT = 300  # seconds; the first link for an architecture also builds its C library stubs


@dataclass(frozen=True)
class Versions:
    """What made the code, for the manifest."""

    tvm: str
    llvm: str


def versions() -> Versions:
    """Of the TVM that is imported and the LLVM inside it."""
    return Versions(tvm.__version__, str(llvm_version_major()))


def build(lowered: Lowered, target: Target) -> bytes:
    """The shared object of a model's steps.

    Raises:
        CompileError: the linker failed; the message holds its first line.
    """
    description: dict[str, object] = {"kind": "llvm", "mtriple": target.triple, "mcpu": target.cpu}
    if target.attributes:
        description["mattr"] = list(target.attributes)
    logging.getLogger("tvm").setLevel(logging.ERROR)
    executable = tvm.compile(lowered.module, target=tvm.target.Target(description))
    with (
        translated(f"cannot build for {target.name}"),
        tempfile.TemporaryDirectory(prefix="edge-llm-build-") as folder,
    ):
        object_file = Path(folder) / "model.o"
        executable.mod.write_to_file(str(object_file), "o")
        names = Path(folder) / "stages.c"
        names.write_text(stage_names(lowered), encoding="utf-8")
        library = Path(folder) / "code.so"
        link([object_file, names], library, target)
        return library.read_bytes()


def stage_names(lowered: Lowered) -> str:
    """C: what the entry point tells a profiler."""
    return "".join(
        f"extern const char edge_{name}_stages[];\n"
        f"const char edge_{name}_stages[] = {json.dumps(chr(10).join(stages))};\n"
        for name, stages in lowered.stages.items()
    )


def link(parts: list[Path], library: Path, target: Target) -> None:
    """Link what is of this model with what is of every model into a shared object."""
    command = [
        *(sys.executable, "-m", "ziglang", "cc"),
        *("-target", f"{target.triple}.{target.glibc}"),
        *("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-s"),
        f"-DPAGE_POSITIONS={PAGE_POSITIONS}",
        *("-Wl,-soname,code.so", "-Wl,-z,defs", "-o", str(library)),
        *(*map(str, parts), *map(str, SOURCES), "-lpthread"),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LINK_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise CompileError(f"linking took over {LINK_TIMEOUT} s; is the machine busy?") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise CompileError(f"linking for {target.name} failed: {lines[0]}")
