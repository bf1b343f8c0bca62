"""``make demo`` after its compilation: broker, device and client, over either broker."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from compile import demo
from tests.conftest import Smollm2Artifact


def test_demo_answers(smollm2_artifact: Smollm2Artifact) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "compile.demo", str(smollm2_artifact())],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "\nThe capital of France is Paris.\n" in done.stdout
    assert "first token after" in done.stdout
    assert "Mosquitto" in done.stdout


def test_demo_answers_without_mosquitto(
    smollm2_artifact: Smollm2Artifact,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(sys, "argv", ["demo", str(smollm2_artifact()), "What is 2 and 2?"])
    assert demo.main() == 0
    out, _ = capfd.readouterr()
    assert "iotcore" in out
    assert "first token after" in out


def test_demo_says_what_failed(tmp_path: Path) -> None:
    absent = tmp_path / "absent.edge"
    done = subprocess.run(
        [sys.executable, "-m", "compile.demo", str(absent)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert "absent.edge" in done.stderr
