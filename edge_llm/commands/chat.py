"""``edge-llm chat``: a conversation at the terminal."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click

import edge_llm
from edge_llm.commands import options
from edge_llm.errors import RequestError

if TYPE_CHECKING:
    from edge_llm.answer import Answer
    from edge_llm.model import Model


@click.command()
@options.FILE
@click.option("--system", metavar="TEXT", help="What the model is told to be.")
@options.generation
@options.THREADS
@options.CONTEXT
def chat(
    file: str, system: str | None, threads: int | None, context: int | None, **generation: Any
) -> None:
    """Talk with a model; it remembers the conversation.

    /reset forgets it, /quit or Ctrl-D ends, Ctrl-C interrupts an answer.

    \b
      edge-llm chat smollm2.edge --temperature 0.7 --system "You water plants."
    """
    with contextlib.suppress(ImportError):  # input() then has history and line editing
        import readline  # noqa: F401
    with edge_llm.load(file, threads, context) as model:
        start = [] if system is None else [{"role": "system", "content": system}]
        messages = list(start)
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                click.echo()
                return
            except UnicodeDecodeError:
                click.echo("error: that is not UTF-8", err=True)
                continue
            if line == "/quit":
                return
            if line == "/reset":
                messages = list(start)
            elif line:
                messages = _turn(model, messages, line, generation)


def _turn(
    model: Model, messages: list[dict[str, str]], line: str, generation: dict[str, Any]
) -> list[dict[str, str]]:
    """Asks and prints the answer; returns the conversation as it is then."""
    asked = [*messages, {"role": "user", "content": line}]
    begun = False  # a line of the answer that is not ended yet

    def show(answer: Answer) -> None:
        nonlocal begun
        for piece in answer:
            click.echo(piece.encode(), nl=False)
            begun = True

    try:
        answer = model.generate(messages=asked, **generation)
        try:
            show(answer)
        except KeyboardInterrupt:
            answer.cancel()
            while answer.finished is None:  # pressed once more, it still means this answer
                with contextlib.suppress(KeyboardInterrupt):
                    show(answer)
        click.echo()
    except RequestError as error:
        if begun:
            click.echo()
        advice = ": /reset starts again" if error.status == 413 else ""
        click.echo(f"error: {error}{advice}", err=True)
        return messages
    finished = answer.finished
    assert finished is not None  # the iteration is over
    if finished.prompt_tokens + finished.completion_tokens >= model.engine.limit:
        click.echo("the context is full: /reset starts again", err=True)
    return [*asked, {"role": "assistant", "content": finished.text}]
