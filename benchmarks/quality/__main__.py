"""``python -m benchmarks.quality``: our quantized models and llama.cpp's, on the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import click

from benchmarks.options import only
from benchmarks.quality.candidate import Candidate, Workshop
from benchmarks.quality.ours import calibrated, distilled, larger, nearest
from benchmarks.quality.peers import llama_cpp
from benchmarks.quality.picture import draw
from benchmarks.quality.report import (
    JSON_NAME,
    PICTURE_NAME,
    TABLE_NAME,
    Row,
    earlier,
    record,
    table,
    write_report,
)  # fmt: skip
from benchmarks.quality.texts import Texts, fetch_texts
from benchmarks.quality.yardstick import Yardstick, short_hash
from benchmarks.speed.machine import machine
from benchmarks.speed.models import SOURCE
from benchmarks.speed.workbench import PROJECT, Workbench
from compile.commands.progress import progress
from compile.errors import CompileError
from compile.evaluate.predictors import CheckpointPredictor
from compile.importer import open_checkpoint, source_files
from compile.sources import resolve
from compile.work import content_key

FOLDER = click.Path(file_okay=False, path_type=Path)
WORK = PROJECT / ".cache" / "quality"  # the recipes name the calibration text in it

PARTS: Mapping[str, Callable[[Workshop], Iterator[Candidate]]] = {
    "nearest": nearest,
    "llama.cpp": llama_cpp,
    "calibrated": calibrated,
    "larger": larger,
    "distilled": distilled,
}


@click.command()
@only(PARTS)
@click.option(
    "--peers", type=FOLDER, default=PROJECT / ".cache" / "bench", metavar="FOLDER",
    help="What .ci/setup/peers.sh has filled.  [default: .cache/bench]",
)  # fmt: skip
@click.option(
    "-o", "--output", type=FOLDER, default=PROJECT / "docs" / "quality", metavar="FOLDER",
    help=f"Gets {JSON_NAME}, {TABLE_NAME} and {PICTURE_NAME}; parts that are not measured now stay "
    "as they are there.  [default: docs/quality]",
)  # fmt: skip
def main(only: list[str], peers: Path, output: Path) -> None:
    """Measure how far quantized models are from the float model, ours and llama.cpp's.

    All on the same held-out tokens: their weights in exact arithmetic, and what their own programs
    make of them. Texts and models are kept in .cache/quality.
    """
    bench = Workbench(peers.resolve())
    bench.check()
    try:
        measure_all(bench, only, output)
    except CompileError as error:
        raise click.ClickException(str(error)) from None


def measure_all(bench: Workbench, parts: list[str], output: Path) -> None:
    """The report of these parts, and of what is there of others."""
    texts = fetch_texts(WORK)
    source = resolve(SOURCE, progress=lambda line: click.echo(line, err=True))
    teacher = CheckpointPredictor(SOURCE, open_checkpoint(source))
    key = content_key(source_files(source))[:12]
    with progress() as report:
        yardstick = Yardstick.of(teacher, key, texts.heldout.read_text("utf-8"), WORK, report)
    del teacher
    setting = settings(bench, key, texts, yardstick)
    rows = earlier(output, setting)
    for part in parts:
        for candidate in PARTS[part](Workshop(bench, WORK, source, texts)):
            rows[candidate.name] = measured(candidate, yardstick)
            write_report(output, setting, rows)
            draw(rows, output / PICTURE_NAME)
    click.echo("\n".join(table(rows)))


def measured(candidate: Candidate, yardstick: Yardstick) -> Row:
    """Both its weights in exact arithmetic and its own program."""
    predictor = CheckpointPredictor(candidate.name, candidate.weights())
    with progress() as report, candidate.program() as logits:
        exact = yardstick.measure(predictor.logits, f"{candidate.name}, exact", report)
        run = yardstick.measure(logits, f"{candidate.name}, as run", report)
    return record(candidate, exact, run)


def settings(bench: Workbench, key: str, texts: Texts, yardstick: Yardstick) -> dict[str, str]:
    """What stands above the tables; rows that were taken under others do not count."""
    on = machine(bench)
    windows, size = yardstick.tokens.shape
    return {
        "Teacher": f"{SOURCE}, its weights in float32, {key}",
        "Held out": f"{windows} windows of {size} tokens, {short_hash(yardstick.tokens.tobytes())}",
        "Calibration": f"a text of other works, {short_hash(texts.calibration.read_bytes())}",
        **{name: on[name] for name in ("CPU", "edge-llm", "llama.cpp")},
    }


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.quality")
