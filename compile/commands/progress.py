"""What long work shows: a bar a stage on a terminal, a line a stage elsewhere, both on stderr.

with progress() as report:
    report("import", 0.5)       # half of it done
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click


@contextmanager
def progress() -> Iterator[Any]:
    """Gives a function of a stage's name and the share of it that is done, 0 to 1."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:

        def line(stage: str, done: float) -> None:
            if done >= 1.0:
                click.echo(f"{stage}: done", err=True)

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
