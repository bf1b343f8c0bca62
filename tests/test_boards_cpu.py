"""Each emulated board knows its CPU and says which artifacts it may run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.boards import CPUS, run_on
from tests.sample_artifact import manifest_target, write_sample

RUNS = {
    "rpi3": {"rpi3", "rpi4"},
    "rpi4": {"rpi3", "rpi4"},
    "rpi5": {"rpi3", "rpi4", "rpi5"},
}
PROGRAM = """
import json, sys
from edge_llm.info import describe
print(json.dumps([json.loads(describe(path, as_json=True))["runs_here"] for path in sys.argv[1:]]))
"""


@pytest.mark.board
@pytest.mark.parametrize("board", CPUS)
def test_artifacts_of_the_boards(board: str, tmp_path: Path) -> None:
    targets = [*CPUS, "x86-64-v3"]
    paths = [write_sample(tmp_path / f"{t}.edge", target=manifest_target(t)) for t in targets]
    done = run_on(CPUS[board], "-c", PROGRAM, *map(str, paths), timeout=120)
    assert done.returncode == 0, done.stderr
    runs = {target for target, here in zip(targets, json.loads(done.stdout), strict=True) if here}
    assert runs == RUNS[board]
