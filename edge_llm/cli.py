"""The command line of a device: ``edge-llm run | chat | serve | ask | bench | info | eval``."""

from __future__ import annotations

import os
import sys

import click

from edge_llm import __version__
from edge_llm.commands.ask import ask
from edge_llm.commands.bench import bench
from edge_llm.commands.chat import chat
from edge_llm.commands.evaluate import evaluate
from edge_llm.commands.info import info
from edge_llm.commands.run import run
from edge_llm.commands.serve import serve
from edge_llm.errors import EdgeLLMError

INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edge-llm")
def cli() -> None:
    """Run a compiled language model on this machine.

    An artifact, FILE.edge, is made on a workstation by `python -m compile`.

    \b
      edge-llm info smollm2.edge
      edge-llm run smollm2.edge --prompt "What is the capital of France?"
      edge-llm serve smollm2.edge --mqtt mqtt://127.0.0.1:1883 --device kitchen
    """


for command in (run, chat, serve, ask, bench, info, evaluate):
    cli.add_command(command)


def main() -> None:
    """Runs a command; whatever goes wrong is one line on stderr and an exit status."""
    try:
        status = cli.main(prog_name="edge-llm", standalone_mode=False)
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
    except OSError as error:
        status = _report(str(error), 1)
    sys.exit(status)


def _report(message: str, status: int) -> int:
    click.echo(f"error: {message}", err=True)
    return status


if __name__ == "__main__":
    main()
