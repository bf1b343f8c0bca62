"""Logits of an artifact, step by step: run on the workstation and on emulated boards alike.

python device_logits.py model.edge 1,2,3,4 --chunk 2 --threads 1 out.f32
"""

from __future__ import annotations

import argparse
import random
from array import array
from pathlib import Path

from edge_llm.artifact import Artifact
from edge_llm.batch import Batch
from edge_llm.buffers import Floats
from edge_llm.executor import Executor


def device_logits(path: Path, tokens: list[int], chunk: int, threads: int = 1) -> Floats:
    """float32 [len(tokens), vocab], computed ``chunk`` tokens a step on scattered pages."""
    with Artifact.open(path) as artifact:
        executor = Executor(artifact, threads=threads, context=max(64, len(tokens)))
        table = random.Random(0).sample(range(executor.pages), executor.pages)
        logits = array("f")
        try:
            for start in range(0, len(tokens), chunk):
                piece = tokens[start : start + chunk]
                for row in executor.step(batch(piece, start, table)):
                    logits.frombytes(row.cast("B"))
        finally:
            executor.close()
        return memoryview(logits).cast("B").cast("f", (len(tokens), executor.vocab_size))


def batch(tokens: list[int], start: int, table: list[int]) -> Batch:
    """A step of one sequence, from position ``start`` on, with the logits of every row."""
    rows = range(len(tokens))
    numbers = (tokens, (start + row for row in rows), (0 for _ in rows), table, rows)
    return Batch(*(array("i", some) for some in numbers))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("artifact", type=Path)
    parser.add_argument("tokens")
    parser.add_argument("--chunk", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("out", type=Path)
    a = parser.parse_args()
    a.out.write_bytes(
        device_logits(a.artifact, [int(t) for t in a.tokens.split(",")], a.chunk, a.threads)
    )
