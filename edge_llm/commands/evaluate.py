"""``edge-llm eval``: how well a model predicts a text."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import click

import edge_llm
from edge_llm.commands import options
from edge_llm.errors import ConfigError


@click.command("eval")
@options.FILE
@click.argument("text", metavar="TEXT.txt")
@click.option("--against", metavar="OTHER.edge", help="Compare with this artifact's predictions.")
@click.option(
    "--context",
    type=click.IntRange(2),
    default=512,
    show_default=True,
    metavar="N",
    help="Tokens of a window; each starts afresh.",
)
@options.THREADS
@options.JSON
def evaluate(
    file: str, text: str, against: str | None, context: int, threads: int | None, as_json: bool
) -> None:
    """Perplexity on a text file, and the distance to another artifact of the same vocabulary.

    KL is the divergence of FILE.edge's predictions from OTHER.edge's, in nats a token.

    \b
      edge-llm eval smollm2.edge essay.txt
      edge-llm eval smollm2-int4.edge essay.txt --against smollm2-int8.edge --json
    """
    from edge_llm.evaluation import score, windows

    content = _read(text)
    with contextlib.ExitStack() as models:
        model = models.enter_context(edge_llm.load(file, threads, context))
        other = models.enter_context(edge_llm.load(against, threads, context)) if against else None
        parts = windows(model, content, context)
        if not parts:
            raise ConfigError(f"{text}: has fewer than 2 tokens, so nothing to predict")
        if other and other.manifest.model.vocab_size != model.manifest.model.vocab_size:
            raise ConfigError(f"{file} and {against} have vocabularies of different sizes")
        if other and windows(other, content, context) != parts:
            raise ConfigError(f"{file} and {against} split the text into different tokens")
        result = score(_progress(parts), model, other).summary()
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        for name, value in result.items():
            click.echo(f"{name:20}{value:>12.6g}")


def _progress(windows: list[list[int]]) -> Iterator[list[int]]:
    show = sys.stderr.isatty()
    for number, window in enumerate(windows, start=1):
        yield window
        if show:
            end = "\n" if number == len(windows) else ""
            click.echo(f"\rwindow {number} of {len(windows)}{end}", err=True, nl=False)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 at byte {error.start}") from None
