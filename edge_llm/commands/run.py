"""``edge-llm run``: one prompt, one answer."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

import edge_llm
from edge_llm.commands import options

if TYPE_CHECKING:
    from edge_llm.events import Finished


@click.command()
@options.FILE
@click.option("--prompt", metavar="TEXT", help="What to say to the model; - reads it from stdin.")
@click.option("--system", metavar="TEXT", help="What the model is told to be, before the prompt.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without chat template.")
@options.generation
@options.THREADS
@options.CONTEXT
@click.option("--stats", is_flag=True, help="Print counts, speed and memory to stderr.")
def run(
    file: str,
    prompt: str | None,
    system: str | None,
    raw: bool,
    threads: int | None,
    context: int | None,
    stats: bool,
    **generation: Any,
) -> None:
    """Answer one prompt. The answer, as it comes, is all that is written to stdout.

    \b
      edge-llm run smollm2.edge --prompt "What is the capital of France?"
      edge-llm run smollm2.edge --prompt "Once upon a time" --raw --max-tokens 50
      dmesg | tail -20 | edge-llm run smollm2.edge --system "Explain this log." --stats
    """
    if raw and system is not None:
        raise click.UsageError("--system needs the chat template, which --raw leaves out")
    text = _prompt(prompt)
    with edge_llm.load(file, threads, context) as model:
        if system is None:
            answer = model.generate(text, raw=raw, **generation)
        else:
            messages = [
                {"role": "system", "content": system},
                {"role": "user", "content": text},
            ]
            answer = model.generate(messages=messages, **generation)
        for piece in answer:
            click.echo(piece.encode(), nl=False)  # bytes: UTF-8 whatever the locale
        if sys.stdout.isatty():
            click.echo()
        if stats and answer.finished is not None:
            click.echo(statistics(answer.finished), err=True)


def _prompt(prompt: str | None) -> str:
    if prompt is not None and prompt != "-":
        return prompt
    if prompt is None and sys.stdin.isatty():
        raise click.UsageError("give --prompt TEXT, or the prompt on stdin")
    data = sys.stdin.buffer.read()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"stdin is not UTF-8 at byte {error.start}") from None


def statistics(end: Finished) -> str:
    """Two lines about an answer: what it took, and how fast it was."""
    from edge_llm.memory import peak_resident_bytes

    decoded = max(end.completion_tokens - 1, 0)
    rate = decoded / end.decode_seconds if end.decode_seconds else 0.0
    first = end.queue_seconds + end.prefill_seconds
    return (
        f"{end.prompt_tokens} prompt tokens, {end.completion_tokens} generated, ended by "
        f"{end.reason}\n"
        f"first token after {first:.3f} s, then {rate:.1f} tokens/s, "
        f"at most {peak_resident_bytes() / 1e6:.0f} MB resident"
    )
