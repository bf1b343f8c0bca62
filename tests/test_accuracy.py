"""What the device computes against float32 arithmetic on the same weights, over English text."""

from __future__ import annotations

from pathlib import Path

import pytest

from compile.evaluate.measure import Options, measure
from tests.conftest import Smollm2Artifact

DATA = Path(__file__).parent / "data"


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
    whole = Options(text=DATA / name, window=1024)
    names = [str(smollm2_artifact()), str(smollm2_gguf)]
    got = measure(names, whole, report=lambda _stage, _share: None, tell=print)["text"]
    print(f"\n{name}: {got}")
    assert got["tokens"] >= 512
    assert got["kl_mean"] <= kl
    assert got["perplexity_ratio"] <= ratio
    assert got["top1_agreement"] >= top1
