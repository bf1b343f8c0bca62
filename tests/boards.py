"""Emulated boards: run a program as a Raspberry Pi would, with only what a device installs.

    done = run_on("cortex-a72", "-c", "import edge_llm", timeout=60)
    done = run_on("cortex-a76", "-m", "edge_llm.cli", "info", "model.edge")
    assert done.returncode == 0, done.stderr

The Python is the distribution's arm64 one and the packages are the device's locked ones, both laid
out by tests/board_root.py; this project comes from its wheel, built anew for each test session. The
process inherits no environment, so nothing of the workstation can be imported by chance.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
BOARDS = PROJECT / ".cache" / "boards"

# The CPU that stands for each target's board in qemu-user.
CPUS = {"rpi3": "cortex-a53", "rpi4": "cortex-a72", "rpi5": "cortex-a76"}


@dataclass(frozen=True)
class BoardFiles:
    """Where tests/board_root.py has put things."""

    root: Path  # the arm64 system: C library and Python
    python: str  # its version, "3.11" say
    site: Path  # what a device installs besides this project


@functools.cache
def board_files() -> BoardFiles:
    index = BOARDS / "boards.json"
    if not index.exists():
        raise RuntimeError("the emulated boards are not set up: run make test")
    fields = json.loads(index.read_text())
    return BoardFiles(BOARDS / fields["root"], fields["python"], BOARDS / fields["site"])


@functools.cache
def installed_project() -> Path:
    """A folder with this project as a device installs it: its wheel, unpacked."""
    folder = Path(tempfile.mkdtemp(prefix="edge-llm-wheel-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with zipfile.ZipFile(build_wheel(folder / "dist")) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def build_wheel(folder: Path) -> Path:
    """Build the device's wheel from the working tree into ``folder``."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, timeout=60)
    (wheel,) = folder.glob("*.whl")
    return wheel


def board_command(cpu: str, *args: str) -> list[str]:
    """The command that runs the board's Python with these arguments, for use with board_env()."""
    files = board_files()
    emulator = shutil.which("qemu-aarch64")
    if emulator is None:
        raise RuntimeError("qemu-aarch64 is missing: run make test or install qemu-user")
    python = files.root / "usr" / "bin" / f"python{files.python}"
    return [emulator, "-cpu", cpu, "-L", str(files.root), str(python), *args]


def board_env(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """The whole environment of a program on a board, with these variables added."""
    return {
        "HOME": tempfile.gettempdir(),
        "LANG": "C.UTF-8",
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": f"{installed_project()}:{board_files().site}",
        **(env or {}),
    }


def run_on(
    cpu: str,
    *args: str,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,  # seconds
) -> subprocess.CompletedProcess[str]:
    """Run the board's Python with these arguments to its end, with standard input closed.

    Args:
        cpu: what ``qemu-aarch64 -cpu help`` lists; a value of CPUS.
    """
    return subprocess.run(
        board_command(cpu, *args),
        env=board_env(env),
        cwd="/",  # python -m looks for modules there first
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
