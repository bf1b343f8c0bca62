"""What long work shows on stderr: a bar a stage on a terminal; elsewhere a line a stage, and one
a minute while it takes longer.

with progress() as report:
    report("import", 0.5)       # half of it done
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

QUIET = 60.0  # seconds after which a long stage says how far it is


@contextmanager
def progress() -> Iterator[Any]:
    """Gives a function of a stage's name and the share of it that is done, 0 to 1."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        ended: set[str] = set()
        spoken = time.monotonic()

        def line(stage: str, done: float) -> None:
            nonlocal spoken
            if stage in ended:
                return
            if done >= 1.0:
                ended.add(stage)
                click.echo(f"{stage}: done", err=True)
            elif time.monotonic() - spoken >= QUIET:
                click.echo(f"{stage}: {done:.0%}", err=True)
            else:
                return
            spoken = time.monotonic()

        yield line
        return
    columns = (TextColumn("{task.description:<9}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def bar(stage: str, done: float) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=1.0)
            bars.update(tasks[stage], completed=done)

        yield bar
