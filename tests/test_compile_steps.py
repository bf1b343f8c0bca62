"""Whole steps of tiny models: the bits of the numpy reference, however they are cut and shared."""

from __future__ import annotations

import os
from array import array
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from compile.errors import CompileError, UnsupportedError
from compile.importer import open_checkpoint
from compile.pipeline import Options, compile_model
from compile.quantize.formats import Choices, Formats, parse_kinds
from compile.quantize.nearest import QuantizedCheckpoint
from compile.reference import Device, Exact, Reference
from edge_llm.artifact import Artifact
from edge_llm.batch import Batch
from edge_llm.errors import ConfigError
from edge_llm.executor import Executor
from targets import TARGETS
from tests.conftest import TinyArtifact
from tests.device_logits import batch, device_logits
from tests.kernels import runnable_targets
from tests.tiny_model import write_tiny_gguf, write_tiny_huggingface

TOKENS = [int(t) for t in np.random.default_rng(9).integers(0, 320, 37)]

# Sizes, then the compiler's options, that differ in every way the kernels do.
MODELS: dict[str, tuple[dict[str, object], list[str]]] = {
    "Q4_0": ({}, []),
    "Q4_1-untied": ({"quantization": "Q4_1", "tied": False, "vocab": 327}, []),
    "F16-group-64-head-4": (
        {"quantization": "F16", "width": 128, "ffn": 192, "heads": 4, "kv_heads": 2},
        ["--group", "64", "--asymmetric", "--head-bits", "4"],
    ),
    "F16-group-128-head-dim-64": (
        {
            "quantization": "F16",
            "width": 128,
            "ffn": 256,
            "heads": 4,
            "kv_heads": 4,
            "head_dim": 64,
        },
        ["--group", "128", "--head-bits", "4"],
    ),
    "head-dim-96": (
        {"width": 96, "heads": 2, "kv_heads": 1, "head_dim": 96, "ffn": 96},
        [],
    ),
    "many-queries-a-head": ({"width": 64, "heads": 9, "kv_heads": 1, "head_dim": 32}, []),
    "mixed": (
        {"quantization": "F16", "width": 128, "ffn": 192, "heads": 4, "kv_heads": 2, "tied": False},
        [
            *("--format", "qkv=int8", "--format", "o=int4-g128", "--format", "gate_up=int8"),
            *("--format", "down=int4-g32-asym", "--format", "head=int4-g64-asym"),
        ],
    ),
}


def reference(folder: Path, sizes: dict[str, object], options: list[str]) -> NDArray[np.float32]:
    """The device arithmetic in numpy on the same model and recipe."""
    path = folder / "model.gguf"
    write_tiny_gguf(path, **sizes)
    checkpoint = open_checkpoint(path)
    kinds = [text.split("=") for text in options[1::2] if "=" in text]
    choices = Choices(
        group=int(options[options.index("--group") + 1]) if "--group" in options else None,
        symmetric=False if "--asymmetric" in options else None,
        head_bits=4 if "--head-bits" in options else None,
        kinds=parse_kinds((kind, text) for kind, text in kinds),
    )
    formats = Formats.of(checkpoint, choices)
    return Reference(QuantizedCheckpoint(checkpoint, formats), Device()).logits(TOKENS)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("target", runnable_targets())
def test_logits_are_the_reference_bit_for_bit(
    tiny_artifact: TinyArtifact, tmp_path: Path, target: str, name: str
) -> None:
    sizes, options = MODELS[name]
    path = tiny_artifact(target, options, **sizes)
    expected = reference(tmp_path, sizes, options)
    for chunk, threads in ((1, 1), (1, 2), (37, 1), (13, 2), (2, 3)):
        got = np.asarray(device_logits(path, TOKENS, chunk, threads))
        assert np.array_equal(got.view(np.int32), expected.view(np.int32)), (chunk, threads)


@pytest.mark.slow
@pytest.mark.parametrize("target", runnable_targets())
def test_the_largest_steps_and_counts_of_threads_are_the_reference_too(
    tiny_artifact: TinyArtifact, tmp_path: Path, target: str
) -> None:
    path = tiny_artifact(target)
    tokens = [int(t) for t in np.random.default_rng(3).integers(0, 320, 131)]
    write_tiny_gguf(tmp_path / "model.gguf")
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    quantized = QuantizedCheckpoint(checkpoint, Formats.of(checkpoint))
    expected = Reference(quantized, Device()).logits(tokens)
    for chunk, threads in ((128, 1), (128, 2), (128, 16), (1, 16)):
        got = np.asarray(device_logits(path, tokens, chunk, threads))
        assert np.array_equal(got.view(np.int32), expected.view(np.int32)), (chunk, threads)


@pytest.mark.slow
def test_stages_are_timed_one_by_one(tiny_artifact: TinyArtifact) -> None:
    def one(rows: int) -> Batch:
        return batch(list(range(rows)), 0, [0, 0])

    with Artifact.open(tiny_artifact()) as artifact:
        executor = Executor(artifact, threads=2, context=64)
        before = executor.compiled_seconds
        with executor.profile() as profile:
            for rows in (1, 5):
                executor.step(one(rows))
        taken = executor.compiled_seconds - before
        executor.step(one(5))  # not watched any more
        executor.close()
    for stages in (profile.decode, profile.prefill):
        assert min(stages.nanoseconds) > 0
    both = [sum(stages.seconds().values()) for stages in (profile.decode, profile.prefill)]
    assert 0 < sum(both) <= taken
    assert set(profile.prefill.seconds()) - set(profile.decode.seconds()) == {"norm"}
    assert set(profile.decode.seconds()) - set(profile.prefill.seconds()) == {"scores"}


@pytest.mark.slow
def test_a_closed_executor_leaves_its_thread_where_it_was(tiny_artifact: TinyArtifact) -> None:
    before = os.sched_getaffinity(0)
    with Artifact.open(tiny_artifact()) as artifact:
        executor = Executor(artifact, threads=2, context=64)
        executor.step(batch([0, 1], 0, [0, 0]))
        executor.close()
    assert os.sched_getaffinity(0) == before


@pytest.mark.slow
def test_rows_do_not_depend_on_their_neighbours(tiny_artifact: TinyArtifact) -> None:
    """Two sequences in one step, their rows and pages mixed, against each alone."""
    path = tiny_artifact()
    first, second = TOKENS[:20], TOKENS[20:]
    alone = [np.asarray(device_logits(path, tokens, 1)) for tokens in (first, second)]
    with Artifact.open(path) as artifact:
        executor = Executor(artifact, threads=2, context=64, sequences=2)
        both = (
            [*first, *second],
            [*range(len(first)), *range(len(second))],
            [0] * len(first) + [1] * len(second),
            [3, 0, 2, 1],
            range(len(first) + len(second)),
        )
        rows = executor.step(Batch(*(array("i", numbers) for numbers in both)))
        together = np.stack([np.array(row) for row in rows])
        executor.close()
    assert np.array_equal(together, np.concatenate(alone))


@pytest.mark.slow
def test_threads_are_those_asked_for_or_the_boards(
    tiny_artifact: TinyArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(4)))
    with Artifact.open(tiny_artifact()) as artifact:
        plain = artifact.manifest
        board = replace(plain.execution, prefill_threads=8, decode_threads=3)
        for execution, asked, expected in (
            (plain.execution, {}, (4, 4)),
            (plain.execution, {"threads": 2}, (2, 2)),
            (plain.execution, {"threads": 2, "decode_threads": 3}, (2, 3)),
            (board, {}, (4, 3)),
            (board, {"threads": 2}, (2, 2)),
            (board, {"decode_threads": 1}, (4, 1)),
        ):
            monkeypatch.setattr(artifact, "manifest", replace(plain, execution=execution))
            executor = Executor(artifact, context=64, **asked)
            assert (executor.threads, executor.decode_threads) == expected
            executor.close()


@pytest.mark.slow
def test_a_step_refuses_what_would_reach_elsewhere(tiny_artifact: TinyArtifact) -> None:
    with Artifact.open(tiny_artifact()) as artifact:
        executor = Executor(artifact, context=64)
        good = {
            "tokens": [1, 2],
            "positions": [0, 1],
            "sequences": [0, 0],
            "tables": [0, 1],
            "wanted": [1],
        }
        bad: dict[str, list[list[int]]] = {
            "tokens": [[1, 320], [-1, 2], []],
            "positions": [[0, 64], [-1, 0], [0]],
            "sequences": [[0, 1], [0]],
            "tables": [[0, 2], [-1, 0], [0], [0, 1, 0], [0, 1] * 3],
            "wanted": [[2], [-1], [0, 1, 1]],
        }

        def of(numbers: dict[str, list[int]]) -> Batch:
            return Batch(**{name: array("i", values) for name, values in numbers.items()})

        for name, values in bad.items():
            for value in values:
                with pytest.raises(ValueError, match=r"step|length"):
                    executor.step(of({**good, name: value}))
        for kind in "hlf":
            wrong = array(kind, good["tokens"])
            with pytest.raises(ValueError, match="structure"):
                executor.step(replace(of(good), tokens=wrong))
        executor.close()
        with pytest.raises(ValueError, match="open"):
            executor.step(of(good))
        for settings in (
            {"threads": 0},
            {"threads": 1000},
            {"decode_threads": 0},
            {"context": 0},
            {"context": 10**6},
            {"sequences": 10**12},  # for which there is no memory
        ):
            with pytest.raises(ConfigError):
                Executor(artifact, **settings)


@pytest.mark.slow
def test_a_hugging_face_folder_gives_the_artifact_of_its_gguf(tmp_path: Path) -> None:
    sizes = {"quantization": "F16"}
    write_tiny_gguf(tmp_path / "model.gguf", **sizes)
    write_tiny_huggingface(tmp_path / "folder", **sizes)
    weights = []
    for source in ("model.gguf", "folder"):
        output = tmp_path / f"{source}.edge"
        compile_model(Options(str(tmp_path / source), TARGETS["rpi5"], output))
        with Artifact.open(output) as artifact:
            weights.append(bytes(artifact.entry("weights.bin")))
    assert weights[0] == weights[1]


def test_what_cannot_be_compiled_is_named(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    write_tiny_gguf(model)
    output = tmp_path / "out.edge"
    with pytest.raises(CompileError, match="context 100000"):
        compile_model(Options(str(model), TARGETS["rpi5"], output, context=100_000))
    with pytest.raises(UnsupportedError, match="down have 96 columns, which is not a mult"):
        compile_model(Options(str(model), TARGETS["rpi5"], output, formats=Choices(group=64)))
    with pytest.raises(CompileError, match="absent"):
        compile_model(Options(str(tmp_path / "absent.gguf"), TARGETS["rpi5"], output))
    assert list(tmp_path.iterdir()) == [model]


def test_exact_and_device_arithmetic_agree_roughly(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_tiny_gguf(path)
    checkpoint = open_checkpoint(path)
    exact = Reference(checkpoint, Exact()).logits(TOKENS)
    device = Reference(checkpoint, Device()).logits(TOKENS)
    assert (exact - device).std() < 0.05 * exact.std()
