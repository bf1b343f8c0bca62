"""The promise of one arithmetic: what this machine computes, the boards compute, bit for bit.

Real cross-compiled code under qemu, with arm64 Python and only what a device installs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.boards import CPUS, run_on
from tests.conftest import Smollm2Artifact, TinyArtifact
from tests.device_draws import device_draws
from tests.device_logits import device_logits
from tests.kernels import runnable_targets
from tests.test_compile_steps import MODELS, TOKENS

SCRIPT = Path(__file__).with_name("device_logits.py")
DRAWS = Path(__file__).with_name("device_draws.py")
ASKED = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2]  # of SmolLM2's vocabulary


def board_logits(
    board: str, artifact: Path, tokens: list[int], chunk: int, threads: int, out: Path
) -> NDArray[np.float32]:
    listed = ",".join(map(str, tokens))
    options = ("--chunk", str(chunk), "--threads", str(threads))
    done = run_on(CPUS[board], str(SCRIPT), str(artifact), listed, *options, str(out))
    assert done.returncode == 0, done.stderr
    return np.fromfile(out, np.float32).reshape(len(tokens), -1)


@pytest.mark.board
@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("board", ["rpi3", "rpi5"])
def test_tiny_models(tiny_artifact: TinyArtifact, tmp_path: Path, board: str, name: str) -> None:
    sizes, options = MODELS[name]
    expected = np.asarray(device_logits(tiny_artifact("native", options, **sizes), TOKENS, 1))
    path = tiny_artifact(board, options, **sizes)
    for chunk, threads in ((1, 1), (37, 2)):
        got = board_logits(board, path, TOKENS, chunk, threads, tmp_path / "logits.f32")
        assert np.array_equal(got.view(np.int32), expected.view(np.int32)), (chunk, threads)


@pytest.mark.board
def test_smollm2_on_every_cpu(smollm2_artifact: Smollm2Artifact, tmp_path: Path) -> None:
    expected = np.asarray(device_logits(smollm2_artifact(), ASKED, 1))
    for target in runnable_targets():
        for threads in (1, 2):
            got = np.asarray(device_logits(smollm2_artifact(target), ASKED, len(ASKED), threads))
            assert np.array_equal(got.view(np.int32), expected.view(np.int32)), (target, threads)
    for board in CPUS:
        path = smollm2_artifact(board)
        got = board_logits(board, path, ASKED, len(ASKED), 2, tmp_path / "logits.f32")
        assert np.array_equal(got.view(np.int32), expected.view(np.int32)), board


@pytest.mark.board
@pytest.mark.parametrize("board", ["rpi3", "rpi5"])
def test_drawn_tokens_are_the_same_everywhere(tiny_artifact: TinyArtifact, board: str) -> None:
    expected = device_draws(tiny_artifact())
    assert len(set(expected)) > 20
    done = run_on(CPUS[board], str(DRAWS), str(tiny_artifact(board)))
    assert done.returncode == 0, done.stderr
    assert [int(token) for token in done.stdout.split()] == expected
