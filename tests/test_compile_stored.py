"""Checkpoints of our own: what is stored comes back, and nothing half-written is taken for one."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

from compile.checkpoint import Q4, Q8, Checkpoint, Tensor
from compile.errors import CompileError
from compile.importer import open_checkpoint
from compile.quantize.formats import Choices, Formats
from compile.quantize.nearest import QuantizedCheckpoint
from compile.stored import store
from tests.tiny_model import write_tiny_gguf, write_tiny_huggingface


@pytest.fixture
def tiny(tmp_path: Path) -> Checkpoint:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    return open_checkpoint(tmp_path / "tiny.gguf")


def arrays(tensor: Tensor) -> list[np.ndarray]:
    if isinstance(tensor, Q4):
        return [tensor.q, tensor.scale, *([] if tensor.minimum is None else [tensor.minimum])]
    return [tensor.q, tensor.scale] if isinstance(tensor, Q8) else [tensor]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("head_bits", [4, 8])
def test_what_is_stored_comes_back(
    tmp_path: Path, tiny: Checkpoint, symmetric: bool, head_bits: int
) -> None:
    quantized = QuantizedCheckpoint(
        tiny, Formats.of(tiny, Choices(symmetric=symmetric, head_bits=head_bits))
    )
    store(tmp_path / "tiny.safetensors", quantized)
    store(tmp_path / "again.safetensors", quantized)
    written = [(tmp_path / f"{name}.safetensors").read_bytes() for name in ("tiny", "again")]
    assert written[0] == written[1]
    back = open_checkpoint(tmp_path / "tiny.safetensors")
    assert back.config == tiny.config
    assert back.tokenizer == tiny.tokenizer
    assert sorted(back.names()) == sorted(tiny.names())
    for name in tiny.names():
        stored, expected = back.tensor(name), quantized.tensor(name)
        assert type(stored) is type(expected)
        for one, other in zip(arrays(stored), arrays(expected), strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
    with pytest.raises(KeyError):
        back.tensor("model.layers.99.mlp.up_proj.weight")


@pytest.mark.parametrize("keep", [0, 8, 9, 200, -1])
def test_a_cut_file_is_refused_in_one_line(tmp_path: Path, tiny: Checkpoint, keep: int) -> None:
    path = tmp_path / "tiny.safetensors"
    store(path, tiny)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CompileError, match=r"tiny\.safetensors: n") as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 10**12}, "layers of 1000000000000; it must be 1 to 1024"),
        ({"family": "mamba"}, "family 'mamba': this version knows"),
        ({"rope_frequencies": [1.0]}, "1 rotary frequencies a head"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(
    tmp_path: Path, tiny: Checkpoint, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "tiny.safetensors"
    store(path, tiny)
    with safetensors.safe_open(path, framework="numpy") as file:
        arrays = dict(zip(file.keys(), map(file.get_tensor, file.keys()), strict=True))
        description = json.loads(file.metadata()["edge-llm"])
    description["config"] |= change
    save_file(arrays, path, {"edge-llm": json.dumps(description)})
    with pytest.raises(CompileError, match=message):
        open_checkpoint(path)


def test_scales_of_no_group_are_refused(tmp_path: Path, tiny: Checkpoint) -> None:
    path = tmp_path / "tiny.safetensors"
    store(path, QuantizedCheckpoint(tiny, Formats.of(tiny)))
    with safetensors.safe_open(path, framework="numpy") as file:
        arrays = dict(zip(file.keys(), map(file.get_tensor, file.keys()), strict=True))
        metadata = file.metadata()
    name = next(name for name in arrays if name.endswith("mlp.up_proj.weight.scale"))
    save_file(arrays | {name: arrays[name][:-1]}, path, metadata)
    with pytest.raises(CompileError, match="scale: not one a group of 32, 64 or 128 columns"):
        open_checkpoint(path)


def test_safetensors_of_somebody_else_are_refused(tmp_path: Path) -> None:
    write_tiny_huggingface(tmp_path / "folder")
    with pytest.raises(CompileError, match="give the model's folder"):
        open_checkpoint(tmp_path / "folder" / "model.safetensors")


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, tiny: Checkpoint) -> None:
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(b"before")
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, most))  # as if the disk were full
    try:
        with pytest.raises(CompileError, match=r"cannot write .*tiny\.safetensors"):
            store(path, tiny)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".part"] == []
