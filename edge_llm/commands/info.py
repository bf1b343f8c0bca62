"""``edge-llm info``: what is in an artifact."""

from __future__ import annotations

import click

from edge_llm.commands import options


@click.command()
@options.FILE
@options.JSON
def info(file: str, as_json: bool) -> None:
    """Check an artifact and say what is in it, what it needs and whether it runs here.

    \b
      edge-llm info smollm2-rpi5.edge
      edge-llm info smollm2-rpi5.edge --json
    """
    from edge_llm.info import describe

    click.echo(describe(file, as_json))
