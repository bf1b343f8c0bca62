"""What llvm-mca makes of an artifact's inner loops: cycles beside the limits of single units.

python -m benchmarks.instructions.mca smollm2-rpi5.edge             (Debian's package llvm-19)

A static estimate, with all data in the first cache. The units' own limits are llvm-mca's of the
loop's loads alone and of its multiplications alone.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from edge_llm.artifact import Artifact
from edge_llm.errors import EdgeLLMError

MODELS = {"rpi4": "cortex-a72", "rpi5": "neoverse-n1"}  # the A76 has no model of its own
PRODUCTS = {"sdot": 16, "smull": 8, "smull2": 8, "smlal": 8, "smlal2": 8}  # of an instruction
LEAST_PRODUCTS = 256  # of a turn: smaller loops are not where the time goes
ITERATIONS = 100
LINE = re.compile(r"\s*([0-9a-f]+):\s+(\S+)\s*(.*)")


@dataclass(frozen=True)
class Loop:
    """A loop without a jump inside."""

    address: int
    instructions: tuple[tuple[str, str], ...]  # name, operands

    @property
    def products(self) -> int:
        """Products of weight and activation in one turn."""
        return sum(PRODUCTS.get(name, 0) for name, _ in self.instructions)

    @property
    def kind(self) -> str:
        """Which of the kernels it is."""
        names = [name for name, _ in self.instructions]
        if sum(name.startswith("ld") for name in names) * 64 < self.products:
            return "weights in registers"
        if "fcvtl" not in names:
            return "keys or values"
        return "4 bit" if "and" in names else "8 bit"


@click.command()
@click.argument("artifact", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(artifact: Path) -> None:
    """Print cycles per 32 products of each inner loop of ARTIFACT."""
    try:
        with Artifact.open(artifact) as opened, tempfile.TemporaryDirectory() as folder:
            board = opened.manifest.target.name
            if board not in MODELS:
                raise click.ClickException(f"{artifact} is for {board}, not for {list(MODELS)}")
            code = Path(folder) / "code.so"
            code.write_bytes(opened.entry("code.so"))
            loops = inner_loops(code)
    except (EdgeLLMError, OSError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{board}, llvm-mca -mcpu={MODELS[board]}: cycles per 32 products")
    click.echo("loop                  instructions  products  cycles   loads  multiply  busiest")
    shown: Counter[tuple[str, ...]] = Counter()
    for loop in loops:
        shape = tuple(sorted(name for name, _ in loop.instructions))
        shown[shape] += 1
        if shown[shape] == 1:
            click.echo(row(loop, MODELS[board]))


def row(loop: Loop, cpu: str) -> str:
    """One line of the table."""
    per_32 = 32 / loop.products
    cycles, busiest = (value * per_32 for value in estimate(loop.instructions, cpu))
    loads = [i for i in loop.instructions if i[0].startswith("ld")]
    multiplications = [i for i in loop.instructions if i[0] in PRODUCTS]
    limits = [estimate(some, cpu)[1] * per_32 for some in (loads, multiplications)]
    return (
        f"{loop.kind:20}  {len(loop.instructions):12}  {loop.products:8}  {cycles:6.2f}  "
        f"{limits[0]:6.2f}  {limits[1]:8.2f}  {busiest:7.2f}"
    )


def inner_loops(code: Path) -> list[Loop]:
    """The loops that multiply, in the order of the code."""
    return [loop for loop in loops(disassembly(code)) if loop.products >= LEAST_PRODUCTS]


def disassembly(code: Path) -> list[tuple[int, str, str]]:
    """Address, name and operands of every instruction."""
    text = run(["llvm-objdump-19", "-d", "--no-show-raw-insn", str(code)])
    matches = (LINE.fullmatch(line) for line in text.splitlines())
    return [(int(m[1], 16), m[2], re.sub(r"\s*<.*>", "", m[3])) for m in matches if m]


def loops(instructions: Sequence[tuple[int, str, str]]) -> Iterator[Loop]:
    """Every run of instructions that ends in a jump back to its start and has no other jump."""
    straight: dict[int, int] = {}  # index of each address since the last jump
    for index, (address, name, operands) in enumerate(instructions):
        straight[address] = index
        if not re.fullmatch(r"b(\..*|l|lr|r)?|cbn?z|tbn?z|ret", name):
            continue
        target = re.search(r"0x([0-9a-f]+)$", operands)
        start = straight.get(int(target[1], 16)) if target else None
        if start is not None:
            body = [(n, o) for _, n, o in instructions[start:index]]
            back = operands[: target.start()] if target else ""
            yield Loop(instructions[start][0], (*body, (name, f"{back}.L0")))
        straight.clear()


def estimate(instructions: Sequence[tuple[str, str]], cpu: str) -> tuple[float, float]:
    """Cycles of a turn, and those that its busiest unit works."""
    lines = "\n".join(f"{name} {operands}" for name, operands in instructions)
    command = ["llvm-mca-19", "-mtriple=aarch64", f"-mcpu={cpu}", f"-iterations={ITERATIONS}"]
    text = run(command, f".L0:\n{lines}\n")
    cycles = float(text.partition("Total Cycles:")[2].split()[0])
    # "Block RThroughput" does not add what needs one pipe to what may take either.
    pressure = text.partition("Resource pressure per iteration:")[2].splitlines()[2]
    return cycles / ITERATIONS, max(float(n) for n in pressure.split() if n != "-")


def run(command: Sequence[str], text: str | None = None) -> str:
    """The command's standard output."""
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise click.ClickException(f"{command[0]} is missing: install llvm-19") from None
    if done.returncode:
        raise click.ClickException(f"{command[0]}: {done.stderr.strip().splitlines()[0]}")
    return done.stdout


if __name__ == "__main__":
    main()
