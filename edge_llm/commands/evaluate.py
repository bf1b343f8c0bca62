"""``edge-llm eval``: how well a model predicts a text."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

import edge_llm
from edge_llm.commands import options
from edge_llm.errors import ConfigError

if TYPE_CHECKING:
    from edge_llm.evaluation import Distance, Score
    from edge_llm.model import Model


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
    content = _read(text)
    with contextlib.ExitStack() as models:
        model = models.enter_context(edge_llm.load(file, threads, context))
        other = against and models.enter_context(edge_llm.load(against, threads, context))
        ids = model.encode(content)
        if len(ids) < 2:
            raise ConfigError(f"{text}: has {len(ids)} tokens, at least 2 are needed")
        if other and other.encode(content) != ids:
            raise ConfigError(f"{file} and {against} split the text into different tokens")
        score, reference, distance = _score(model, other or None, ids, context)
    result: dict[str, float] = {"perplexity": score.perplexity, "tokens": score.tokens}
    if other:
        result |= {
            "against_perplexity": reference.perplexity,
            "perplexity_ratio": score.perplexity / reference.perplexity,
            "kl_mean": distance.mean,
            "kl_p99": distance.p99,
            "top1_agreement": distance.top1,
        }
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        for name, value in result.items():
            click.echo(f"{name:20}{value:>12.6g}")


def _score(
    model: Model, other: Model | None, ids: list[int], window: int
) -> tuple[Score, Score, Distance]:
    from edge_llm.evaluation import Distance, Score

    score, reference, distance = Score(), Score(), Distance()
    for part in _progress([ids[at : at + window] for at in range(0, len(ids), window)]):
        if len(part) < 2:  # the last window: nothing in it is predicted
            continue
        logits = model.logits(part)
        score.add(logits, part)
        if other is not None:
            others = other.logits(part)
            reference.add(others, part)
            distance.add(others, logits)
    return score, reference, distance


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
