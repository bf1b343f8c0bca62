"""An artifact opened as a checkpoint: packing undone, for every kernel's order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile.checkpoint import Checkpoint
from compile.errors import CompileError, UnsupportedError
from compile.importer import open_checkpoint
from compile.lower.cpu.isa import ISAS
from compile.reference import Device, Reference
from edge_llm.artifact import Artifact, write_artifact
from tests.conftest import TinyArtifact
from tests.device_logits import device_logits
from tests.same_tensors import assert_same_tensors
from tests.test_compile_steps import MODELS, TOKENS

LAYOUTS = {isa.layout.NAME: isa.layout for isa in ISAS.values()}


@pytest.mark.parametrize("layout", LAYOUTS)
@given(tiles=st.integers(1, 4), groups=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_unpacking_undoes_packing(layout: str, tiles: int, groups: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    four = random.integers(0, 16, (16 * tiles, 32 * groups), np.uint8)
    eight = random.integers(0, 256, four.shape, np.uint8)
    module = LAYOUTS[layout]
    np.testing.assert_array_equal(module.unpack4(module.pack4(four)), four)
    np.testing.assert_array_equal(module.unpack8(module.pack8(eight)), eight)


@pytest.mark.parametrize("name", MODELS)
def test_its_weights_are_those_that_the_device_multiplies(
    tiny_artifact: TinyArtifact, name: str
) -> None:
    sizes, options = MODELS[name]
    path = tiny_artifact("native", options, **sizes)
    logits = Reference(open_checkpoint(path), Device()).logits(TOKENS)
    np.testing.assert_array_equal(logits, device_logits(path, TOKENS, len(TOKENS)))


@pytest.mark.parametrize("board", ["rpi4", "rpi5"])
def test_every_target_gives_back_the_same(tiny_artifact: TinyArtifact, board: str) -> None:
    assert_same_tensors(open_checkpoint(tiny_artifact(board)), open_checkpoint(tiny_artifact()))


def test_sizes_and_tokenizer_come_back(tiny_artifact: TinyArtifact, tmp_path: Path) -> None:
    from tests.tiny_model import write_tiny_gguf

    write_tiny_gguf(tmp_path / "tiny.gguf")
    source: Checkpoint = open_checkpoint(tmp_path / "tiny.gguf")
    back = open_checkpoint(tiny_artifact())
    assert back.config == source.config
    assert replace(back.tokenizer, tokenizer_json=b"") == replace(
        source.tokenizer, tokenizer_json=b""
    )


def test_one_of_an_older_compiler_says_what_it_lacks(
    tiny_artifact: TinyArtifact, tmp_path: Path
) -> None:
    with Artifact.open(tiny_artifact()) as artifact:
        manifest = artifact.manifest
        model = replace(manifest.model, norm_eps=None, rope_frequencies=None)
        entries = {entry.name: bytes(artifact.entry(entry.name)) for entry in manifest.entries}
    old = tmp_path / "old.edge"
    write_artifact(old, replace(manifest, model=model), entries)
    with pytest.raises(UnsupportedError, match=r"old\.edge: its manifest lacks norm_eps"):
        open_checkpoint(old)


def test_a_damaged_one_is_refused(tiny_artifact: TinyArtifact, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.edge"
    damaged.write_bytes(tiny_artifact().read_bytes()[:-1])
    with pytest.raises(CompileError, match=r"damaged\.edge: is cut short"):
        open_checkpoint(damaged)
