"""What the device computes against float32 arithmetic on the same weights, over English text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import edge_llm
from compile.importer import open_checkpoint
from compile.reference import Exact, Reference
from tests.conftest import Smollm2Artifact

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Distance:
    """How far one model's predictions are from another's on the same tokens."""

    tokens: int
    kl: float  # mean, nats
    perplexity: float  # of the reference
    perplexity_ratio: float
    top1: float  # share of positions with the same most likely token


def distance(
    reference: NDArray[np.float32], device: NDArray[np.float32], tokens: list[int]
) -> Distance:
    p, q = (log_softmax(logits) for logits in (reference, device))
    here, following = np.arange(len(tokens) - 1), np.array(tokens[1:])
    surprise = [-float(log[here, following].mean()) for log in (p, q)]
    return Distance(
        len(tokens),
        float((np.exp(p) * (p - q)).sum(-1).mean()),
        float(np.exp(surprise[0])),
        float(np.exp(surprise[1] - surprise[0])),
        float((reference.argmax(-1) == device.argmax(-1)).mean()),
    )


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def measure(artifact: Path, gguf: Path, text: str) -> Distance:
    with edge_llm.load(artifact) as model:
        tokens = model.encode(text)
        device = model.logits(tokens)
    reference = Reference(open_checkpoint(gguf), Exact()).logits(tokens)
    return distance(reference, device, tokens)


@pytest.mark.parametrize(
    ("name", "kl", "ratio", "top1"),
    [
        ("english.txt", 0.006, 1.005, 0.96),
        # A story surprises the model twice as much a word: more near ties, a wider spread.
        ("story.txt", 0.006, 1.012, 0.93),
    ],
)
def test_logits_are_close_to_float32(
    smollm2_artifact: Smollm2Artifact,
    smollm2_gguf: Path,
    name: str,
    kl: float,
    ratio: float,
    top1: float,
) -> None:
    text = (DATA / name).read_text(encoding="utf-8")
    got = measure(smollm2_artifact(), smollm2_gguf, text)
    print(f"\n{name}: {got}")
    assert got.tokens >= 512
    assert got.kl <= kl
    assert got.perplexity_ratio <= ratio
    assert got.top1 >= top1
