"""Counts what one step of an artifact executes on an emulated Arm CPU, with one thread.

>>> with Counter("cortex-a76") as counter:                          # doctest: +SKIP
...     print(counter.step(Artifact.open("smollm2.edge"), rows=1, position=100).total)
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from edge_llm.artifact import Artifact
from tests.boards import board_files

SOURCES = Path(__file__).parent
LANES = 16  # logits come in tiles of as many
SECONDS = 300.0


class CountError(Exception):
    """Counting failed, in one line."""


@dataclass(frozen=True)
class Block:
    """A run of guest instructions without a jump into it, as qemu translated it."""

    address: int  # from where code.so was loaded
    instructions: int
    runs: int

    @property
    def executed(self) -> int:
        return self.instructions * self.runs


@dataclass(frozen=True)
class Count:
    """Guest instructions of one marked run."""

    names: tuple[str, ...]  # of the stages, as the program printed them
    stages: tuple[int, ...]  # between barriers, in their order
    blocks: tuple[Block, ...]  # the most executed first

    @property
    def total(self) -> int:
        return sum(self.stages)


class Counter:
    """The plugin and the driver, built once for a CPU; a context manager."""

    def __init__(self, cpu: str) -> None:
        self.cpu = cpu
        self._folder = Path(tempfile.mkdtemp(prefix="edge-llm-count-"))
        self._plugin = self._folder / "plugin.so"
        compile_c(SOURCES / "plugin.c", self._plugin, "-shared", "-fPIC")

    def __enter__(self) -> Counter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self._folder)

    def step(self, artifact: Artifact, rows: int, position: int) -> Count:
        """One step of ``rows`` tokens of a sequence that has ``position`` tokens already."""
        driver, code = self._folder / "step", self._folder / "code.so"
        code.write_bytes(artifact.entry("code.so"))
        manifest = artifact.manifest
        target, execution = manifest.target, manifest.execution
        if not driver.exists():
            compile_c(SOURCES / "step.c", driver, "-target", f"{target.triple}.{target.glibc}")
        (offset,) = (e.offset for e in manifest.entries if e.name == "weights.bin")
        pages = -(-(position + rows) // execution.page_positions)
        numbers = (
            *(offset, pages * execution.page_bytes, pages, execution.workspace_bytes),
            *(-(-manifest.model.vocab_size // LANES) * LANES, rows, position),
        )
        return self.program(driver, code, artifact.path, *numbers)

    def program(self, path: Path, *args: object) -> Count:
        """A marked program (see plugin.c), for Arm and linked dynamically.

        Raises:
            CountError: there is no qemu, or the program failed; in one line.
        """
        emulator = shutil.which("qemu-aarch64")
        if emulator is None:
            raise CountError("qemu-aarch64 is missing: run make test or install qemu-user")
        counts = self._folder / "counts"
        command = [
            *(emulator, "-cpu", self.cpu, "-L", str(board_files().root)),
            *("-plugin", f"{self._plugin},out={counts}", str(path), *map(str, args)),
        ]
        base, *names = run(command).splitlines() or ["0"]
        return parse(counts.read_text(), int(base), names)


def parse(text: str, base: int, names: Sequence[str]) -> Count:
    """What plugin.c wrote; ``base`` is where code.so was loaded."""
    stages: list[int] = []
    runs: dict[tuple[int, int], int] = {}  # qemu may translate a block more than once
    for line in text.splitlines():
        kind, *numbers = line.split()
        if kind == "stage":
            stages.append(int(numbers[0]))
        else:
            address, instructions, times = map(int, numbers)
            key = (address - base, instructions)
            runs[key] = runs.get(key, 0) + times
    blocks = [Block(address, instructions, n) for (address, instructions), n in runs.items()]
    return Count(tuple(names), tuple(stages), tuple(sorted(blocks, key=lambda b: -b.executed)))


def compile_c(source: Path, output: Path, *options: str) -> None:
    """Compile one C file with zig."""
    flags = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror")
    run([sys.executable, "-m", "ziglang", "cc", *flags, *options, "-o", str(output), str(source)])


def run(command: Sequence[str]) -> str:
    """The command's standard output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        raise CountError(f"{Path(command[0]).name}: {lines[0]}")
    return done.stdout
