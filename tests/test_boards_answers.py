"""The same question to a Raspberry Pi 3, 4 and 5, emulated: the answer of the workstation."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.boards import CPUS, run_on
from tests.conftest import Smollm2Artifact

QUESTION = ("--prompt", "What is the capital of France?", "--max-tokens", "8")


@pytest.mark.board
@pytest.mark.parametrize("board", CPUS)
def test_boards_answer_as_this_machine_does(smollm2_artifact: Smollm2Artifact, board: str) -> None:
    here = subprocess.run(
        [sys.executable, "-m", "edge_llm.cli", "run", str(smollm2_artifact()), *QUESTION],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    path = str(smollm2_artifact(board))
    there = run_on(CPUS[board], "-m", "edge_llm.cli", "run", path, *QUESTION)
    assert there.returncode == 0, there.stderr
    assert there.stdout == here.stdout
    assert "Paris" in there.stdout
