"""What long work says where nobody watches a terminal."""

from __future__ import annotations

import pytest

from compile.commands import progress as module
from compile.commands.progress import progress


def test_a_stage_is_a_line_however_often_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as report:
        for done in (0.0, 0.5, 1.0, 1.0):
            report("import", done)
    assert capsys.readouterr().err == "import: done\n"


def test_a_long_stage_says_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUIET", 0.0)
    with progress() as report:
        for done in (0.25, 0.5, 1.0):
            report("distill", done)
    assert capsys.readouterr().err == "distill: 25%\ndistill: 50%\ndistill: done\n"
