"""Exported ONNX: onnxruntime computes what the artifact does, and what is read back is the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edge_llm
from compile.checkpoint import Q4, Q8, Checkpoint, Tensor
from compile.errors import CompileError
from compile.export_onnx import export_onnx
from compile.importer import open_checkpoint
from compile.onnx_matrix import pack, unpack
from compile.pipeline import Options, compile_model
from compile.quantize.nearest import quantize4
from compile.reference import Exact, Reference
from edge_llm.cpu import host
from edge_llm.evaluation import Predictions
from targets import resolve
from tests.conftest import Smollm2Artifact, TinyArtifact
from tests.device_logits import device_logits
from tests.onnx_session import Session
from tests.same_tensors import assert_same_tensor, assert_same_tensors
from tests.tiny_model import write_tiny_gguf

PROJECT = Path(__file__).resolve().parent.parent
DATA = Path(__file__).parent / "data"
TOKENS = [int(t) for t in np.random.default_rng(9).integers(0, 320, 37)]
MODELS: dict[str, dict[str, Any]] = {
    "float32": {"quantization": "F32"},
    "float16-untied": {"quantization": "F16", "tied": False},
    "symmetric-head-8": {"quantization": "Q4_0"},
    "asymmetric-head-4": {"quantization": "Q4_1", "head_quantization": "Q4_1", "tied": False},
    "8-bit": {"quantization": "Q8_0"},
}


def compile_command(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "compile", *words]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300)


def tiny(folder: Path, **sizes: Any) -> Checkpoint:
    write_tiny_gguf(folder / "tiny.gguf", **sizes)
    (folder / "onnx").mkdir()
    return open_checkpoint(folder / "tiny.gguf")


@pytest.mark.parametrize("name", MODELS)
def test_onnxruntime_computes_the_weights_that_were_exported(tmp_path: Path, name: str) -> None:
    model, path = tiny(tmp_path, **MODELS[name]), tmp_path / "onnx" / "model.onnx"
    export_onnx(model, path)
    expected = Reference(model, Exact()).logits(TOKENS)
    session = Session(path)
    pieces = [session.logits(TOKENS[start : start + 13]) for start in range(0, len(TOKENS), 13)]
    np.testing.assert_allclose(np.concatenate(pieces), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_an_exported_graph_comes_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    model, path = tiny(tmp_path, **MODELS[name]), tmp_path / "onnx" / "model.onnx"
    export_onnx(model, path)
    back = open_checkpoint(path)
    assert_same_tensors(back, model)
    assert back.config == model.config
    assert json.loads(back.tokenizer.tokenizer_json) == json.loads(model.tokenizer.tokenizer_json)
    assert back.tokenizer.eos_token_ids == model.tokenizer.eos_token_ids
    assert back.tokenizer.chat_template == model.tokenizer.chat_template


@given(
    group=st.sampled_from([32, 64, 128]),
    kind=st.sampled_from(["symmetric", "asymmetric", "eight"]),
    zeros=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_matrix_comes_back(group: int, kind: str, zeros: bool, seed: int) -> None:
    """Whatever float16 holds, and scales of 0 over a minimum that is not."""
    random = np.random.default_rng(seed)
    blocks = 256 // (32 if kind == "eight" else group)

    def half() -> np.ndarray[Any, np.dtype[np.float16]]:
        bits = random.integers(0, 0x7C00, (16, blocks)) | random.integers(0, 2, (16, blocks)) << 15
        return bits.astype(np.uint16).view(np.float16)

    scale = np.where(random.random((16, blocks)) < 0.5 * zeros, np.float16(0), half())
    matrix: Q4 | Q8
    if kind == "eight":
        matrix = Q8(random.integers(-128, 128, (16, 256), np.int8), scale)
    else:
        minimum = half() if kind == "asymmetric" else None
        matrix = Q4(random.integers(0, 16, (16, 256), np.uint8), scale, minimum)
    back, exact = unpack(pack(matrix), 256)
    assert exact
    assert_same_tensor(back, matrix, kind)


def test_wide_groups_compute_the_same(tmp_path: Path) -> None:
    class Wide:
        """The tiny model, its matrices in asymmetric groups of 64 where they divide."""

        def __init__(self, model: Checkpoint) -> None:
            self.config, self.tokenizer, self.names = model.config, model.tokenizer, model.names
            self._model = model

        def tensor(self, name: str) -> Tensor:
            tensor = self._model.tensor(name)
            whole = not name.endswith("norm.weight") and tensor.shape[1] % 64 == 0
            return quantize4(tensor, 64, symmetric=False) if whole else tensor

    model, path = Wide(tiny(tmp_path, quantization="F32")), tmp_path / "onnx" / "model.onnx"
    export_onnx(model, path)
    expected = Reference(model, Exact()).logits(TOKENS)
    np.testing.assert_allclose(Session(path).logits(TOKENS), expected, rtol=0, atol=2e-5)
    assert_same_tensors(open_checkpoint(path), model)


@pytest.mark.slow
def test_an_artifact_its_graph_and_the_graphs_artifact_agree(
    tiny_artifact: TinyArtifact, tmp_path: Path
) -> None:
    artifact, graph, again = tiny_artifact(), tmp_path / "model.onnx", tmp_path / "again.edge"
    export_onnx(open_checkpoint(artifact), graph)
    device = np.asarray(device_logits(artifact, TOKENS, len(TOKENS)))
    predictions = Predictions()
    predictions.add(TOKENS, device, Session(graph).logits(TOKENS))
    assert np.mean(predictions.kl) <= 0.01
    machine = host()
    target = resolve("native", machine.machine, machine.features)
    compile_model(Options(str(graph), target, again))
    np.testing.assert_array_equal(np.asarray(device_logits(again, TOKENS, len(TOKENS))), device)


def test_the_command_writes_all_that_generation_needs(tmp_path: Path) -> None:
    tiny(tmp_path)
    graph = tmp_path / "onnx" / "model.onnx"
    done = compile_command("export", str(tmp_path / "tiny.gguf"), "--onnx", str(graph))
    assert done.returncode == 0, done.stderr
    assert "model.onnx and model.onnx.data" in done.stderr
    assert sorted(path.name for path in graph.parent.iterdir()) == [
        "chat_template.jinja",
        "genai_config.json",
        "model.onnx",
        "model.onnx.data",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_another_models_files_are_left_alone(tmp_path: Path) -> None:
    model, folder = tiny(tmp_path, quantization="F32"), tmp_path / "onnx"
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CompileError, match="is there and belongs to another model"):
        export_onnx(model, folder / "model.onnx")
    assert [path.name for path in folder.iterdir()] == ["tokenizer.json"]


def test_a_failed_export_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = tiny(tmp_path, quantization="F32"), tmp_path / "onnx" / "model.onnx"
    export_onnx(model, path)
    before = {p.name: p.read_bytes() for p in path.parent.iterdir()}

    def full(_name: str) -> Tensor:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model, "tensor", full)
    with pytest.raises(CompileError, match=r"cannot write .*model\.onnx: No space left"):
        export_onnx(model, path)
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    done = compile_command("export", str(tmp_path), "--onnx", str(tmp_path / "no" / "model.onnx"))
    assert done.returncode == 1
    assert done.stderr.strip().endswith("no is not a folder: make it first")


def test_onnxruntime_agrees_about_smollm2(
    smollm2_artifact: Smollm2Artifact, tmp_path: Path
) -> None:
    artifact, graph = smollm2_artifact(), tmp_path / "model.onnx"
    done = compile_command("export", str(artifact), "--onnx", str(graph))
    assert done.returncode == 0, done.stderr
    with edge_llm.load(artifact) as model:
        tokens = model.encode((DATA / "english.txt").read_text(encoding="utf-8"))[:256]
        predictions = Predictions()
        predictions.add(tokens, model.logits(tokens), Session(graph).logits(tokens))
        print(f"\n{predictions.summary()}")
        prompt = model.encode("The three states of matter are")
        expected = "".join(
            model.generate("The three states of matter are", raw=True, max_tokens=32)
        )
        decoded = model.tokenizer.decode(Session(graph).greedy(prompt, 32))
    assert np.mean(predictions.kl) <= 0.01
    assert decoded == expected
