"""``python -m compile targets``: the boards that can be compiled for."""

from __future__ import annotations

from contextlib import suppress

import click

from edge_llm.cpu import host
from targets import TARGETS, UnknownTargetError, resolve


@click.command("targets")
def targets() -> None:
    """List the boards that can be compiled for."""
    best = None
    machine = host()
    with suppress(UnknownTargetError):
        best = resolve("native", machine.machine, machine.features).name
    width = max(map(len, TARGETS))
    for name, target in TARGETS.items():
        native = "  (native: the best for this machine)" if name == best else ""
        click.echo(f"{name:<{width}}  {target.description}{native}")
