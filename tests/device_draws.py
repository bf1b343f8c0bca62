"""Tokens drawn by an artifact's code: run on the workstation and on emulated boards alike.

python device_draws.py model.edge
"""

from __future__ import annotations

import random
import sys
from array import array
from pathlib import Path

from edge_llm.artifact import Artifact
from edge_llm.executor import Executor
from edge_llm.request import Sampling

SETTINGS = (
    Sampling(),
    Sampling(temperature=0.8),
    Sampling(temperature=1.5, top_k=40),
    Sampling(temperature=1.0, top_p=0.9),
    Sampling(temperature=1.2, top_k=200, top_p=0.95, min_p=0.01),
    Sampling(temperature=2.0, repetition_penalty=1.3),
)


def device_draws(path: Path) -> list[int]:
    """Of made-up logits, with each of some settings."""
    numbers = random.Random(5)
    with Artifact.open(path) as artifact:
        executor = Executor(artifact, threads=1, context=64)
        tokens = memoryview(array("i", range(30)))
        drawn = []
        try:
            for _ in range(40):
                row = array("f", [numbers.gauss(0, 3) for _ in range(executor.vocab_size)])
                uniform = numbers.random()
                drawn += [executor.draw(memoryview(row), tokens, s, uniform) for s in SETTINGS]
        finally:
            executor.close()
        return drawn


if __name__ == "__main__":
    print(*device_draws(Path(sys.argv[1])))
