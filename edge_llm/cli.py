"""The command line of a device: ``edge-llm run | chat | serve | ask | bench | info | eval``."""

from __future__ import annotations

import os
import sys
from importlib import import_module

import click

from edge_llm import __version__
from edge_llm.errors import EdgeLLMError

INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
COMMANDS = {  # each is a function of the module that has its name
    "run": "run",
    "chat": "chat",
    "serve": "serve",
    "ask": "ask",
    "bench": "bench",
    "info": "info",
    "eval": "evaluate",
}


class Commands(click.Group):
    """Imports the command that is used, and no other."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = COMMANDS.get(cmd_name)
        if name is None:
            return None
        command: click.Command = getattr(import_module(f"edge_llm.commands.{name}"), name)
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edge-llm")
def cli() -> None:
    """Run a compiled language model on this machine.

    An artifact, FILE.edge, is made on a workstation by `python -m compile`.

    \b
      edge-llm info smollm2.edge
      edge-llm run smollm2.edge --prompt "What is the capital of France?"
      edge-llm serve smollm2.edge --mqtt mqtt://127.0.0.1:1883 --device kitchen
    """


def main() -> None:
    """Runs a command; whatever goes wrong is one line on stderr and an exit status."""
    # numpy's BLAS, of which eval uses nothing, has threads that spin for a while after its import.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        arguments = sys.argv[1:] or ["--help"]
        status = cli.main(arguments, prog_name="edge-llm", standalone_mode=False)
        sys.stdout.flush()
    except EdgeLLMError as error:
        status = _report(str(error), 1)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "edge-llm"
        status = _report(f"{error.format_message()} (see {command} --help)", error.exit_code)
    except click.ClickException as error:
        status = _report(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        status = INTERRUPTED
    except BrokenPipeError:  # whoever read stdout has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except ModuleNotFoundError as error:
        if error.name != "numpy":
            raise
        status = _report("this takes numpy: pip install numpy", 1)
    except MemoryError as error:
        status = _report(f"there is not enough memory: {error}".splitlines()[0], 1)
    except OSError as error:
        status = _report(str(error), 1)
    try:
        sys.stdout.flush()
    except OSError:  # a full disk: Python would say so once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def _report(message: str, status: int) -> int:
    click.echo(f"error: {message}", err=True)
    return status


if __name__ == "__main__":
    main()
