"""``edge-llm bench``: how fast a model is on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterable
from statistics import median
from typing import TYPE_CHECKING

import click

import edge_llm
from edge_llm.commands import options
from edge_llm.errors import ConfigError

if TYPE_CHECKING:
    from edge_llm.events import Event, Finished
    from edge_llm.model import Model

TEXT = (
    "The keeper of the lighthouse wrote down the weather every morning: the wind, the height of "
    "the waves, the ships that passed. In forty years he had missed no day. "
)


@click.command()
@options.FILE
@click.option(
    "--prompt-tokens", type=click.IntRange(1), default=128, show_default=True, metavar="N"
)
@click.option("--new-tokens", type=click.IntRange(2), default=128, show_default=True, metavar="N")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, metavar="N")
@options.THREADS
@options.JSON
def bench(
    file: str, prompt_tokens: int, new_tokens: int, rounds: int, threads: int | None, as_json: bool
) -> None:
    """Measure prefill, decoding, the time to the first token and memory.

    Each round answers a prompt of exactly so many tokens with exactly so many, through the engine
    that serves requests. Medians over the rounds, after one that is not counted.

    \b
      edge-llm bench smollm2.edge
      edge-llm bench smollm2.edge --prompt-tokens 512 --new-tokens 64 --threads 1 --json
    """
    from edge_llm.memory import peak_resident_bytes

    with edge_llm.load(file, threads) as model:
        if prompt_tokens + new_tokens > model.engine.limit:
            raise ConfigError(
                f"{prompt_tokens} prompt tokens and {new_tokens} new ones are more than the "
                f"context of {model.engine.limit}"
            )
        prompt = prompt_of(model, prompt_tokens)
        ends = [measure(model, prompt, new_tokens) for _ in range(rounds + 1)][1:]
    figures = {
        "prefill_tokens_per_second": [e.prompt_tokens / e.prefill_seconds for e in ends],
        "decode_tokens_per_second": [(new_tokens - 1) / e.decode_seconds for e in ends],
        "time_to_first_token_seconds": [e.queue_seconds + e.prefill_seconds for e in ends],
    }
    peak = peak_resident_bytes()
    if as_json:
        settings = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "rounds": rounds}
        click.echo(json.dumps(record(figures, peak) | settings, indent=2))
    else:
        click.echo("\n".join(table(figures, peak)))


def prompt_of(model: Model, tokens: int) -> list[int]:
    """Ordinary English of exactly so many tokens."""
    text = TEXT
    while len(ids := model.encode(text)) < tokens:
        text += text
    return ids[:tokens]


def measure(model: Model, prompt: list[int], new_tokens: int) -> Finished:
    """One answer of exactly ``new_tokens``: no token ends it."""
    from queue import SimpleQueue

    from edge_llm.events import Failed, Finished
    from edge_llm.request import Request

    events: SimpleQueue[Event] = SimpleQueue()
    request = Request(prompt="", max_tokens=new_tokens)
    model.engine.submit_ids(prompt, request, (), events.put)
    while True:
        event = events.get()
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Finished):
            return event


def record(figures: dict[str, list[float]], peak: int) -> dict[str, object]:
    """Medians, and the least and the most of each under ``range``."""
    return {
        **{name: median(values) for name, values in figures.items()},
        "peak_resident_bytes": peak,
        "range": {name: [min(values), max(values)] for name, values in figures.items()},
    }


def table(figures: dict[str, list[float]], peak: int) -> Iterable[str]:
    """The same in lines for people."""
    yield f"{'':30}{'median':>10}{'min':>10}{'max':>10}"
    for name, values in figures.items():
        digits = 4 if name.endswith("_seconds") else 1
        columns = (median(values), min(values), max(values))
        yield f"{name:30}" + "".join(f"{value:10.{digits}f}" for value in columns)
    yield f"{'peak_resident_bytes':30}{peak:>10}"
