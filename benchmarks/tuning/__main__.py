"""Find an instruction set's best register block and prefetch distance on this machine.

python -m benchmarks.tuning --target native            what was found
python -m benchmarks.tuning --target native --write    and record it for the compiler

The kernels are those of the compiler, on the shapes of SmolLM2-135M's widest product: a prefill of
128 tokens with each block, and a single token over more weights than any cache holds with each
distance. The records are data of the compiler: compile/lower/cpu/isa/tuned.json.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from types import ModuleType
from typing import Any, TypeVar

import click
import numpy as np
from numpy.typing import NDArray
from tvm.tirx.script.builder import ir as T

from compile.lower.cpu.activations import Activations
from compile.lower.cpu.isa import ISAS
from compile.lower.cpu.isa.tuned import Record, records, write_record
from compile.lower.cpu.memory import Array
from compile.lower.cpu.tile import ROWS, Tiles, multiply
from edge_llm.cpu import host
from targets import UnknownTargetError, resolve
from tests.kernels import Argument, aligned, kernel, zeros

COLUMNS = 576
PREFILL_ROWS, PREFILL_TOKENS = 1536, 128
DECODE_ROWS = 327_680  # 94 MB of weights and 12 MB of scales
BLOCKS = ((4, 8), (8, 8), (2, 16), (4, 16), (8, 16), (16, 16))  # tokens, rows of a tile
DISTANCES = (0, 2048, 4096, 8192, 16384)  # bytes
NOISE = 0.01  # a difference that is none
ROUNDS = 9
SECONDS = 0.05  # of a round, or one call

Choice = TypeVar("Choice", int, tuple[int, int])


@click.command()
@click.option("--target", default="native", show_default=True, help="A target this machine runs.")
@click.option("--write", is_flag=True, help="Record what was found for the compiler.")
def main(target: str, write: bool) -> None:
    """Search the register blocks and prefetch distances of a target's instruction set."""
    machine = host()
    try:
        chosen = resolve(target, machine.machine, machine.features)
    except UnknownTargetError as error:
        raise click.ClickException(str(error)) from None
    if machine.machine != chosen.machine or not machine.features >= set(chosen.features):
        raise click.ClickException(f"this machine cannot run {chosen.name}: search where it runs")
    isa = ISAS[chosen.isa]
    blocks = {block: 0.0 for block in BLOCKS if block[1] % isa.LANES == 0}
    with click.progressbar([*blocks], label="blocks") as bar:
        for block in bar:
            blocks[block] = prefill(isa, chosen.name, *block)
    distances = decode(isa, chosen.name)
    record = Record(
        cpu=machine.model_name,
        products_per_second={f"{t}x{rows}": round(r) for (t, rows), r in blocks.items()},
        bytes_per_second={str(d): round(r) for d, r in distances.items()},
        block=choose(blocks),
        prefetch=choose(distances),
    )
    click.echo(table(record))
    if write:
        write_record(chosen.isa, record)
        click.echo(f"recorded for {chosen.isa}; {', '.join(records())} have records")


def prefill(isa: ModuleType, target: str, tokens: int, rows: int) -> float:
    """int4 products a second of a prefill whose blocks are ``tokens`` × ``rows``.

    Over symmetric and asymmetric weights together: models come with either.
    """

    def emit(*a: Argument, symmetric: bool) -> None:
        tiles, source, out = operands(a, symmetric)
        with T.serial(PREFILL_ROWS // ROWS) as t, T.serial(PREFILL_TOKENS // tokens) as b:
            multiply(
                isa,
                tiles.tile(t),
                [source.row(b * tokens + m) for m in range(tokens)],
                rows,
                lambda m, row, sums: out.store(
                    (b * tokens + m) * PREFILL_ROWS + t * ROWS + row, sums
                ),
            )

    arguments = arrays(PREFILL_ROWS, PREFILL_TOKENS)
    times = [
        median(seconds(kernel(target, 6, partial(emit, symmetric=symmetric)), arguments))
        for symmetric in (True, False)
    ]
    return len(times) * PREFILL_ROWS * COLUMNS * PREFILL_TOKENS / sum(times)


def decode(isa: ModuleType, target: str) -> dict[int, float]:
    """Bytes of weights and scales a second that a single token reads, by prefetch distance."""
    arguments = arrays(DECODE_ROWS, 1)

    def reading(ahead: int) -> Callable[..., None]:
        def emit(*a: Argument) -> None:
            tiles, source, out = operands(a)
            with T.serial(DECODE_ROWS // ROWS) as t:
                multiply(
                    isa,
                    tiles.tile(t),
                    [source],
                    ROWS,
                    lambda _, row, sums: out.store(t * ROWS + row, sums),
                    ahead=ahead,
                )

        return kernel(target, 6, emit)

    kernels = {ahead: reading(ahead) for ahead in DISTANCES}
    times: dict[int, list[float]] = {ahead: [] for ahead in DISTANCES}
    with click.progressbar(range(ROUNDS), label="distances") as bar:
        for _ in bar:  # in turn, because memory's speed drifts
            for ahead, one in kernels.items():
                times[ahead].append(min(seconds(one, arguments, rounds=2)))
    size = arguments[0].nbytes + arguments[1].nbytes
    return {ahead: size / median(values) for ahead, values in times.items()}


def choose(rates: dict[Choice, float]) -> Choice:
    """The first, that is the smallest, whose rate is as good as the best one's."""
    enough = max(rates.values()) * (1 - NOISE)
    return next(choice for choice, rate in rates.items() if rate >= enough)


def operands(a: tuple[Argument, ...], symmetric: bool = True) -> tuple[Tiles, Activations, Array]:
    """The kernel's arguments as an int4 matrix, activations and the result."""
    row_scales = a[1].array("float16")
    minimums = None if symmetric else row_scales
    tiles = Tiles(4, a[0].array("uint8"), row_scales, minimums, COLUMNS, 32)
    scales, offsets = a[3].array("float32"), a[4].array("int32")
    source = Activations(a[2].array("int8"), a[2].array("int32"), scales, offsets, scales, COLUMNS)
    return tiles, source, a[5].array("float32")


def arrays(rows: int, tokens: int) -> list[NDArray[Any]]:
    """Random operands; what they hold does not change the time."""
    random = np.random.default_rng(0)
    groups = COLUMNS // 32
    return [
        aligned(random.integers(0, 256, rows * COLUMNS // 2, np.uint8)),
        aligned(np.full(rows * groups, 0.01, np.float16)),
        aligned(random.integers(-127, 128, tokens * COLUMNS, np.int8)),
        aligned(np.full(tokens * groups, 0.01, np.float32)),
        aligned(np.zeros(tokens * groups, np.int32)),
        zeros(rows * tokens, np.float32),
    ]


def seconds(
    call: Callable[..., None], arguments: list[NDArray[Any]], rounds: int = ROUNDS
) -> list[float]:
    """Of a call, in each round."""
    start = time.perf_counter()
    call(*arguments)
    calls = max(1, int(SECONDS / (time.perf_counter() - start)))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            call(*arguments)
        times.append((time.perf_counter() - start) / calls)
    return times


def table(record: Record) -> str:
    """What was measured, in lines for people."""
    lines = [f"{record.cpu}, one thread"]
    for block, rate in record.products_per_second.items():
        lines.append(f"  block {block:8}{rate / 1e9:8.1f} G products/s")
    for distance, rate in record.bytes_per_second.items():
        lines.append(f"  {distance:>6} bytes ahead{rate / 1e9:6.1f} GB/s")
    lines.append(f"best: block {record.block}, {record.prefetch} bytes ahead")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
