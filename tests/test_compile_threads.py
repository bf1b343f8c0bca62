"""The thread layer by itself, and what it leaves running when there is nothing to do."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import edge_llm
from tests.artifacts import PROJECT
from tests.conftest import TinyArtifact

LAYER = PROJECT / "compile" / "lower" / "cpu" / "threads.c"
STRESS = Path(__file__).with_name("threads_stress.c")
SPARE = Path(__file__).with_name("threads_spare.c")


def built(source: Path, folder: Path) -> Path:
    """A program of the thread layer and one more file."""
    program = folder / source.stem
    command = [sys.executable, "-m", "ziglang", "cc", "-std=c11", "-O2", "-o", str(program)]
    subprocess.run([*command, str(source), str(LAYER), "-lpthread"], check=True)
    return program


@pytest.fixture(scope="module")
def stress(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(STRESS, tmp_path_factory.mktemp("threads"))


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2, 3, 5, 16])
def test_every_unit_runs_once_and_within_its_stage(stress: Path, threads: int) -> None:
    done = subprocess.run(
        [str(stress), str(threads), "400", str(threads)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_thread_that_is_held_up_is_left_out_until_it_is_not(tmp_path: Path) -> None:
    program = built(SPARE, tmp_path)
    done = subprocess.run([program], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_nothing_runs_between_requests(tiny_artifact: TinyArtifact) -> None:
    """The CPU time of a second without requests: what the kernel counts, in ticks of 10 ms."""
    with edge_llm.load(tiny_artifact(), threads=2) as model:
        list(model.generate("a", max_tokens=8))
        before = os.times()
        time.sleep(1)
        after = os.times()
    assert after.user + after.system - before.user - before.system <= 0.02
