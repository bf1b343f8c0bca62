"""``python -m benchmarks.speed``, which ``make bench`` runs: us and the peers side by side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from benchmarks.options import only
from benchmarks.speed.machine import machine
from benchmarks.speed.parts import PARTS
from benchmarks.speed.report import (
    JSON_NAME,
    PICTURE_NAME,
    TABLE_NAME,
    Record,
    earlier,
    record,
    tables,
    write_report,
)  # fmt: skip
from benchmarks.speed.rounds import Part, Report, Results, measure
from benchmarks.speed.workbench import PROJECT, Workbench, run

PICTURE = PROJECT / "benchmarks" / "speed" / "picture.py"
FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command()
@only(PARTS)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, metavar="N")
@click.option(
    "--peers", type=FOLDER, default=PROJECT / ".cache" / "bench", metavar="FOLDER",
    help="What .ci/setup/peers.sh has filled.  [default: .cache/bench]",
)  # fmt: skip
@click.option(
    "-o", "--output", type=FOLDER, default=PROJECT / "docs" / "benchmarks", metavar="FOLDER",
    help=f"Gets {JSON_NAME}, {TABLE_NAME} and {PICTURE_NAME}; parts that are not measured now stay "
    "as they are there.  [default: docs/benchmarks]",
)  # fmt: skip
def main(only: list[str], rounds: int, peers: Path, output: Path) -> None:
    """Measure edge-llm, llama.cpp, OpenVINO GenAI and the machine's roofs, in turns.

    Leave the machine alone meanwhile. All parts take about half an hour on two cores.
    """
    bench = Workbench(peers.resolve())
    bench.check()
    setting = machine(bench)
    parts: dict[str, Record] = earlier(output, setting)
    for name in only:
        part = PARTS[name](bench)
        parts[name] = record(measured(part, rounds), rounds)
        write_report(output, setting, {name: parts[name] for name in PARTS if name in parts})
        click.echo("\n".join([f"\n{part.title}", *tables(parts[name])]))
    draw(bench, output)


def measured(part: Part, rounds: int) -> Results:
    """The part's results, with a bar on a terminal while they are taken."""
    with progress(part, rounds) as report:
        return measure(part, rounds, report)


@contextmanager
def progress(part: Part, rounds: int) -> Iterator[Report]:
    """Runs done, and whose is next; on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(part.title, total=rounds * len(part.contenders))
        yield lambda done, contender: bars.update(
            task, completed=done, description=f"{part.title}: {contender}"
        )


def draw(bench: Workbench, output: Path) -> None:
    """The picture beside the tables."""
    run([bench.peers_python, str(PICTURE), str(output / JSON_NAME), str(output / PICTURE_NAME)])


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.speed")
