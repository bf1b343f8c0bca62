"""The recorded search for register blocks and prefetch distances."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.tuning import __main__ as tuning
from compile.lower.cpu.isa import ISAS, tuned
from tests.kernels import runnable_targets


def test_the_compiler_uses_what_is_recorded() -> None:
    for name, record in tuned.records().items():
        assert record.block == ISAS[name].BLOCK
        assert record.prefetch == ISAS[name].PREFETCH
        tokens, rows = record.block
        assert f"{tokens}x{rows}" in record.products_per_second
        assert str(record.prefetch) in record.bytes_per_second


@pytest.mark.slow
def test_a_search_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PREFILL_ROWS": 32, "DECODE_ROWS": 64, "ROUNDS": 1, "SECONDS": 1e-4, "BLOCKS": ((2, 16),)
    }.items():  # fmt: skip
        monkeypatch.setattr(tuning, name, value)
    monkeypatch.setattr(tuned, "FILE", tmp_path / "tuned.json")
    target = runnable_targets()[0]
    done = CliRunner().invoke(tuning.main, ["--target", target, "--write"])
    assert done.exit_code == 0, done.output
    (record,) = tuned.records().values()
    assert record.block == (2, 16)
    assert set(record.bytes_per_second) == {str(distance) for distance in tuning.DISTANCES}


def test_a_target_of_another_machine_is_refused() -> None:
    done = CliRunner().invoke(tuning.main, ["--target", "rpi5"])
    assert done.exit_code == 1
    assert "this machine cannot run rpi5" in done.output
