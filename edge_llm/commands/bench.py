"""``edge-llm bench``: how fast a model is on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import nullcontext
from statistics import median
from typing import TYPE_CHECKING

import click

import edge_llm
from edge_llm.commands import options
from edge_llm.errors import ConfigError

if TYPE_CHECKING:
    from edge_llm.events import Event, Finished
    from edge_llm.model import Model
    from edge_llm.profile import Profile

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
@click.option("--profile", is_flag=True, help="Show where the time of a token goes, by stage.")
@options.THREADS
@options.JSON
def bench(
    file: str,
    prompt_tokens: int,
    new_tokens: int,
    rounds: int,
    profile: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure prefill, decoding, the time to the first token and memory.

    Each round answers a prompt of exactly so many tokens with exactly so many, through the engine
    that serves requests. Medians over the rounds, after one that is not counted.

    \b
      edge-llm bench smollm2.edge
      edge-llm bench smollm2.edge --prompt-tokens 512 --new-tokens 64 --threads 1 --json
      edge-llm bench smollm2.edge --profile
    """
    from edge_llm.memory import peak_resident_bytes

    with edge_llm.load(file, threads) as model:
        if prompt_tokens + new_tokens > model.engine.limit:
            raise ConfigError(
                f"{prompt_tokens} prompt tokens and {new_tokens} new ones are more than the "
                f"context of {model.engine.limit}"
            )
        prompt = prompt_of(model, prompt_tokens)
        measure(model, prompt, new_tokens)
        before = model.executor.compiled_seconds
        with model.executor.profile() if profile else nullcontext() as stages:
            ends = [measure(model, prompt, new_tokens) for _ in range(rounds)]
        compiled = model.executor.compiled_seconds - before
    figures = {
        "prefill_tokens_per_second": [e.prompt_tokens / e.prefill_seconds for e in ends],
        "decode_tokens_per_second": [(new_tokens - 1) / e.decode_seconds for e in ends],
        "time_to_first_token_seconds": [e.queue_seconds + e.prefill_seconds for e in ends],
    }
    decoding = sum(e.decode_seconds for e in ends)
    outside = sum(e.prefill_seconds for e in ends) + decoding - compiled
    totals: dict[str, object] = {
        "peak_resident_bytes": peak_resident_bytes(),
        "outside_share": outside / decoding,  # of decoding: scheduler, sampler, text, Python
    }
    alone = int(prompt_tokens % model.executor.max_rows == 1)  # a row of its own, as in decoding
    tokens = {
        "decode": (new_tokens - 1 + alone) * rounds,
        "prefill": (prompt_tokens - alone) * rounds,
    }
    times = {} if stages is None else microseconds(stages, tokens)
    if as_json:
        settings = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "rounds": rounds}
        profiles = {"microseconds_per_token": times} if times else {}
        click.echo(json.dumps(record(figures) | totals | settings | profiles, indent=2))
    else:
        click.echo("\n".join([*table(figures, totals), *profile_table(times)]))


def microseconds(profile: Profile, tokens: dict[str, int]) -> dict[str, dict[str, float]]:
    """Of a token, by kind of step and stage; a kind that did not occur is left out."""
    kinds = {"decode": profile.decode.seconds(), "prefill": profile.prefill.seconds()}
    return {
        kind: {name: seconds / tokens[kind] * 1e6 for name, seconds in stages.items()}
        for kind, stages in kinds.items()
        if tokens[kind] and any(stages.values())
    }


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


def record(figures: dict[str, list[float]]) -> dict[str, object]:
    """Medians, and the least and the most of each under ``range``."""
    return {
        **{name: median(values) for name, values in figures.items()},
        "range": {name: [min(values), max(values)] for name, values in figures.items()},
    }


def table(figures: dict[str, list[float]], totals: dict[str, object]) -> Iterable[str]:
    """The same in lines for people."""
    yield f"{'':30}{'median':>10}{'min':>10}{'max':>10}"
    for name, values in figures.items():
        digits = 4 if name.endswith("_seconds") else 1
        columns = (median(values), min(values), max(values))
        yield f"{name:30}" + "".join(f"{value:10.{digits}f}" for value in columns)
    for name, value in totals.items():
        yield f"{name:30}" + (f"{value:10.1%}" if isinstance(value, float) else f"{value:>10}")


def profile_table(times: dict[str, dict[str, float]]) -> Iterable[str]:
    """Microseconds of a token, a line a stage."""
    for kind, stages in times.items():
        whole = sum(stages.values())
        yield ""
        yield f"{kind:30}{'µs a token':>10}{'share':>10}"
        for name, value in stages.items():
            yield f"  {name:28}{value:10.1f}{value / whole:10.1%}"
        yield f"  {'all stages':28}{whole:10.1f}"
