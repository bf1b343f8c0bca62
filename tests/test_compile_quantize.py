"""Which formats a checkpoint's matrices get where nobody chooses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compile.checkpoint import Q4, Q8
from compile.importer import open_checkpoint
from compile.quantize.nearest import QuantizedCheckpoint, Recipe
from tests.tiny_model import write_tiny_gguf

HEAD = "model.embed_tokens.weight"


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_a_head_of_the_layers_format_stays_as_it_is(tmp_path: Path, kind: str) -> None:
    write_tiny_gguf(tmp_path / "m.gguf", quantization=kind, head_quantization=kind)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    recipe = Recipe.of(checkpoint)
    assert (recipe.head_bits, recipe.symmetric) == (4, kind == "Q4_0")
    own, kept = checkpoint.tensor(HEAD), QuantizedCheckpoint(checkpoint, recipe).tensor(HEAD)
    assert isinstance(own, Q4)
    assert isinstance(kept, Q4)
    assert np.array_equal(own.q, kept.q)
    assert np.array_equal(own.scale.view(np.int16), kept.scale.view(np.int16))
    assert Recipe.of(checkpoint, head_bits=8).head_bits == 8


@pytest.mark.parametrize(("layers", "head"), [("Q4_0", "Q4_1"), ("Q4_1", "Q8_0"), ("F16", "F16")])
def test_any_other_head_gets_eight_bits(tmp_path: Path, layers: str, head: str) -> None:
    write_tiny_gguf(tmp_path / "m.gguf", quantization=layers, head_quantization=head)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    recipe = Recipe.of(checkpoint)
    assert recipe.head_bits == 8
    assert isinstance(QuantizedCheckpoint(checkpoint, recipe).tensor(HEAD), Q8)
