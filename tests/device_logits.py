"""Logits of an artifact, step by step: run on the workstation and on emulated boards alike.

python device_logits.py model.edge 1,2,3,4 --chunk 2 --threads 1 out.npy
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_llm.artifact import Artifact
from edge_llm.batch import Batch
from edge_llm.executor import Executor


def device_logits(
    path: Path, tokens: list[int], chunk: int, threads: int = 1
) -> NDArray[np.float32]:
    """float32 [len(tokens), vocab], computed ``chunk`` tokens a step on scattered pages."""
    with Artifact.open(path) as artifact:
        executor = Executor(artifact, threads=threads, context=max(64, len(tokens)))
        table = np.random.default_rng(0).permutation(executor.pages).astype(np.int32)[None]
        try:
            pieces = []
            for start in range(0, len(tokens), chunk):
                piece = np.array(tokens[start : start + chunk], np.int32)
                rows = np.arange(len(piece), dtype=np.int32)
                batch = Batch(piece, start + rows, np.zeros_like(piece), table, rows)
                pieces.append(executor.step(batch).copy())
            return np.concatenate(pieces)
        finally:
            executor.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("artifact", type=Path)
    parser.add_argument("tokens")
    parser.add_argument("--chunk", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("out", type=Path)
    a = parser.parse_args()
    np.save(
        a.out, device_logits(a.artifact, [int(t) for t in a.tokens.split(",")], a.chunk, a.threads)
    )
