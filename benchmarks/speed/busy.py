"""Neighbours that want every CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LOOP = "import os; os.sched_setaffinity(0, {{{cpu}}})\nwhile True: pass"


@contextmanager
def busy_cpus() -> Iterator[None]:
    """One process a CPU that computes without end while the block runs."""
    loops = [
        subprocess.Popen([sys.executable, "-c", LOOP.format(cpu=cpu)])
        for cpu in sorted(os.sched_getaffinity(0))
    ]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
