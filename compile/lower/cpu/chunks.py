"""The part of a stage's units that a thread gets: chunks that it claims from the thread layer.

A claim, ``edge_claim`` of threads.c, returns the end of a chunk << 32 | its start, or 0 when the
stage has none left.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tvm.tirx.script.builder import ir as T

from compile.lower.cpu.memory import Expr, local
from compile.lower.cpu.vector import bind


@contextmanager
def claimed(units: Expr, task: Expr, size: int) -> Iterator[Expr]:
    """Every unit that thread ``task`` claims of ``units``, by up to ``size`` at a time."""
    chunk = local("int64", 1)

    def claim() -> None:
        # Opaque to the compiler: it is called each time, and nothing moves past it.
        chunk.store(0, T.call_extern("int64", "edge_claim", task, units, T.int32(size)))

    claim()
    with T.While(chunk.load() != T.int64(0)):
        start = bind(T.cast(chunk.load(), "int32"))
        end = T.cast(T.shift_right(chunk.load(), T.int64(32)), "int32")
        with T.serial(end - start) as i:
            yield bind(start + i)
        claim()
