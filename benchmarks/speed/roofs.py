"""What the machine allows at most, from roofs.c compiled for it, as tokens a second of a model.

Decoding reads every weight once a token; a prefill multiplies with every weight of the layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

from benchmarks.speed.engines import Speed
from benchmarks.speed.workbench import PROJECT, Workbench, run
from compile.gguf_file import read_gguf

SOURCE = PROJECT / "benchmarks" / "speed" / "roofs.c"
HEAD = "output.weight"
TIED_HEAD = "token_embd.weight"


@dataclass(frozen=True)
class Work:
    """What a token costs whatever computes it, the KV cache apart."""

    bytes: int  # of weights, read once a token
    products: int  # of the layers; the head is computed for a prompt's last token only


def work(gguf: Path, bits_per_weight: float | None = None) -> Work:
    """The work of a token of a model, whose embedding is no work unless it is the head too.

    ``bits_per_weight`` are those of another form of the same model; None for the file's own.
    """
    matrices = {n: t for n, t in read_gguf(gguf).tensors.items() if len(t.shape) > 1}
    head = matrices.pop(TIED_HEAD)
    head = matrices.pop(HEAD, head)
    size = sum(tensor.size for tensor in (*matrices.values(), head))
    products = sum(prod(tensor.shape) for tensor in matrices.values())
    if bits_per_weight is not None:
        size = round((products + prod(head.shape)) * bits_per_weight / 8)
    return Work(size, products)


@dataclass(frozen=True)
class Roofs:
    """The compiled roofs.c; ``march`` is the CPU that it may use all of."""

    program: str

    @classmethod
    def build(cls, bench: Workbench, march: str = "native") -> Roofs:
        """Compile it with the system's compiler."""
        program = bench.folder / f"roofs-{march}"
        if not program.exists() or program.stat().st_mtime < SOURCE.stat().st_mtime:
            options = ["-O3", f"-march={march}", "-pthread", "-o", str(program)]
            run(["cc", *options, str(SOURCE)])
        return cls(str(program))

    def read(self, size: int, threads: int, pages: str = "read") -> float:
        """Bytes a second of reading a buffer of that size again and again."""
        return float(run([self.program, pages, str(size), str(threads)]))

    def products(self, threads: int) -> float:
        """Products of two bytes that are added up, a second."""
        return float(run([self.program, "mac", str(threads)]))

    def speed(self, cost: Work, *, prompt: int, new: int, threads: int) -> Speed:
        """A model's at the peak of byte products, and at the bandwidth of a buffer of its size.

        It depends on the number of neither ``prompt`` nor ``new`` tokens.
        """
        del prompt, new
        return Speed(
            self.products(threads) / cost.products, self.read(cost.bytes, threads) / cost.bytes
        )
