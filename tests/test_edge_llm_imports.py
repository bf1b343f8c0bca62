"""What comes along with the device's package: nothing of the workstation's, and nothing early."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import edge_llm
from tests.conftest import TinyArtifact

PROJECT = Path(__file__).resolve().parent.parent
WORKSTATION = {"torch", "onnx", "onnxruntime", "transformers", "tvm", "gguf", "compile", "targets"}
WORKSTATION |= {"numpy"}
HEAVY = {"tokenizers", "jinja2", "h11", "paho", "asyncio"}
# What a raw answer has no part in.
FOR_OTHERS = {"jinja2", "h11", "paho", "asyncio", "statistics", "secrets"}
ANSWER = """
import edge_llm
with edge_llm.load({path!r}) as model:
    "".join(model.generate("Hello", max_tokens=2))
"""


def imported_by(code: str, path: Path | None = None) -> set[str]:
    """Top-level modules in a fresh process after ``code``; ``path`` comes first on sys.path."""
    code += "\nimport sys\nprint(*{name.split('.')[0] for name in sys.modules})"
    folders = [str(folder) for folder in (path, PROJECT) if folder is not None]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("code", ["import edge_llm", "import edge_llm.cli"])
def test_importing_loads_neither_the_workstations_packages_nor_heavy_ones(code: str) -> None:
    assert not imported_by(code) & (WORKSTATION | HEAVY)


def test_answering_loads_none_of_the_workstations_packages(
    tiny_artifact: TinyArtifact, tmp_path: Path
) -> None:
    """Not even where they are installed: these would be found first."""
    for name in ("torch", "transformers", "onnx", "numpy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    modules = imported_by(ANSWER.format(path=str(tiny_artifact())), tmp_path)
    assert "tokenizers" in modules
    assert not modules & WORKSTATION


def test_run_imports_what_its_answer_takes(tiny_artifact: TinyArtifact) -> None:
    """Whoever asks for one token waits for every import."""
    words = ["edge-llm", "run", str(tiny_artifact()), "--prompt", "Hello", "--raw"]
    code = f"""
import sys
from edge_llm.cli import cli
cli.main({[*words[1:], "--max-tokens", "1"]!r}, standalone_mode=False)
print()
"""
    modules = imported_by(code)
    assert "tokenizers" in modules
    assert not modules & (WORKSTATION | FOR_OTHERS)


def test_a_command_imports_no_other() -> None:
    code = "from edge_llm.cli import cli; cli.main(['run', '--help'], standalone_mode=False)"
    assert "json" not in imported_by(code)  # of ask and bench


def test_the_version_is_the_distributions() -> None:
    (line,) = [
        line
        for line in (PROJECT / "pyproject.toml").read_text().splitlines()
        if line.startswith("version = ")
    ]
    assert line == f'version = "{edge_llm.__version__}"'
