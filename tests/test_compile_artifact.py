"""An artifact opened as a checkpoint: packing undone, for every kernel's order."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile.checkpoint import Checkpoint
from compile.errors import CompileError, UnsupportedError
from compile.importer import open_checkpoint
from compile.lower.cpu.isa import ISAS
from compile.pipeline import (
    Options,
    check_tokenizer,
    compile_model,
    make_plan,
    one_line,
    pack_artifact,
    quantize,
)
from compile.quantize.formats import Formats
from edge_llm.artifact import Artifact, write_artifact
from targets import TARGETS
from tests.same_tensors import assert_same_tensors
from tests.tiny_model import write_tiny_gguf

LAYOUTS = {isa.layout.NAME: isa.layout for isa in ISAS.values()}
ONE_OF_EACH_ISA = {target.isa: name for name, target in TARGETS.items()}.values()
MODELS: dict[str, dict[str, Any]] = {
    "symmetric": {"quantization": "Q4_0"},
    "asymmetric-untied": {"quantization": "Q4_1", "tied": False, "vocab": 327},
    "head-4": {"quantization": "Q4_0", "head_quantization": "Q4_0", "heads": 4, "kv_heads": 2},
}


def packed(folder: Path, target: str = "rpi5", **sizes: Any) -> tuple[Path, Checkpoint]:
    """An artifact of a tiny model, all but its code, and what was packed into it."""
    write_tiny_gguf(folder / "tiny.gguf", **sizes)
    options = Options(str(folder / "tiny.gguf"), TARGETS[target], folder / "tiny.edge")
    quantized = quantize(open_checkpoint(folder / "tiny.gguf"), options, lambda _s, _d: None)
    plan = make_plan(quantized.config, quantized.formats, options)
    pack_artifact(plan, quantized, b"no code", options, lambda _s, _d: None)
    return options.output, quantized


@pytest.mark.parametrize("layout", LAYOUTS)
@given(tiles=st.integers(1, 4), groups=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_unpacking_undoes_packing(layout: str, tiles: int, groups: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    four = random.integers(0, 16, (16 * tiles, 32 * groups), np.uint8)
    eight = random.integers(0, 256, four.shape, np.uint8)
    module = LAYOUTS[layout]
    np.testing.assert_array_equal(module.unpack4(module.pack4(four)), four)
    np.testing.assert_array_equal(module.unpack8(module.pack8(eight)), eight)


@pytest.mark.parametrize("target", ONE_OF_EACH_ISA)
@pytest.mark.parametrize("name", MODELS)
def test_what_was_packed_comes_back(tmp_path: Path, target: str, name: str) -> None:
    path, model = packed(tmp_path, target, **MODELS[name])
    back = open_checkpoint(path)
    assert_same_tensors(back, model)
    assert back.config == model.config
    assert replace(back.tokenizer, tokenizer_json=b"") == replace(
        model.tokenizer, tokenizer_json=b""
    )
    with pytest.raises(KeyError):
        back.tensor("model.layers.99.mlp.up_proj.weight")


def describe_otherwise(path: Path, **changes: Any) -> None:
    """Change what an artifact's manifest says of its model."""
    with Artifact.open(path) as artifact:
        manifest = artifact.manifest
        entries = {entry.name: bytes(artifact.entry(entry.name)) for entry in manifest.entries}
    model = replace(manifest.model, **changes)
    write_artifact(path, replace(manifest, model=model), entries)


def test_one_of_an_older_compiler_says_what_it_lacks(tmp_path: Path) -> None:
    path, _ = packed(tmp_path)
    describe_otherwise(path, norm_eps=None, rope_frequencies=None)
    with pytest.raises(UnsupportedError, match=r"tiny\.edge: its manifest lacks norm_eps"):
        open_checkpoint(path)


def test_one_of_absurd_sizes_is_refused(tmp_path: Path) -> None:
    path, _ = packed(tmp_path)
    describe_otherwise(path, layers=2**31 - 1)
    with pytest.raises(CompileError, match=r"tiny\.edge: layers of 2147483647; it must be"):
        open_checkpoint(path)


def test_what_does_not_fit_into_a_file_is_refused_before_it_is_built(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    config = open_checkpoint(tmp_path / "tiny.gguf").config
    options = Options(str(tmp_path / "tiny.gguf"), TARGETS["rpi5"], tmp_path / "tiny.edge")
    large = replace(config, vocab_size=1 << 24, width=512)
    with pytest.raises(UnsupportedError, match=r"take 9\.\d\d GB as .*a file ends below 4\.29"):
        make_plan(large, Formats(), options)


def test_what_a_device_could_not_use_is_refused_before_it_is_built(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    files = open_checkpoint(tmp_path / "tiny.gguf").tokenizer
    state = json.loads(files.tokenizer_json)
    without = replace(files, tokenizer_json=json.dumps(state | {"decoder": None}).encode())
    with pytest.raises(CompileError, match=r"the decoder none is not supported"):
        check_tokenizer(without)
    with pytest.raises(CompileError, match=r"chat_template\.jinja: line 1: "):
        check_tokenizer(replace(files, chat_template="{% for %}"))


def test_without_a_place_for_what_is_linked_it_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    options = Options(str(tmp_path / "tiny.gguf"), TARGETS["x86-64-v3"], tmp_path / "tiny.edge")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(CompileError, match=r"cannot build for x86-64-v3: .*No such file") as caught:
        compile_model(options)
    assert "\n" not in str(caught.value)


def test_a_name_of_several_lines_becomes_one() -> None:
    assert one_line("a\nb\u2028c" + "d" * 600) == "a b c" + "d" * 495


def test_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path, _ = packed(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CompileError, match=r"tiny\.edge: is cut short"):
        open_checkpoint(path)
