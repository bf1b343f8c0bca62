"""Artifacts for the tests, compiled as a user would and kept while nothing they come from changes.

artifact("smollm2", gguf_path, "rpi5")      # .cache/artifacts/smollm2-rpi5-….edge
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
ARTIFACTS = PROJECT / ".cache" / "artifacts"
COMPILE_SECONDS = 300.0
UNUSED_SECONDS = 3600.0

# Of edge_llm, what writes an artifact; all else of it may change without changing one.
FORMAT = ("archive", "artifact", "files", "manifest", "schema")


def artifact(name: str, model: Path, target: str, options: Sequence[str] = ()) -> Path:
    """The model compiled for the target, by ``python -m compile`` unless it is there already.

    Args:
        name: how the file's name begins.
        model: what MODEL of the command line is, as a path.
        target: a name of ``python -m compile targets``, or ``native``.
        options: further options of the command line.
    """
    key = hashlib.sha256()
    for part in (content_key(model), target, *options):
        key.update(part.encode() + b"\0")
    path = folder() / f"{name}-{target}-{key.hexdigest()[:12]}.edge"
    if not path.exists():
        command = [sys.executable, "-m", "compile", str(model), "--target", target]
        done = subprocess.run(
            [*command, *options, "-o", str(path)],
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMPILE_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(done.args)}\n{done.stdout}{done.stderr}")
    return path


@functools.cache
def folder() -> Path:
    """Where the artifacts of the compiler as it is now lie; those long unused are removed."""
    current = ARTIFACTS / compiler_key()[:12]
    current.mkdir(parents=True, exist_ok=True)
    os.utime(current)
    for other in ARTIFACTS.iterdir():
        if time.time() - other.stat().st_mtime > UNUSED_SECONDS:
            shutil.rmtree(other)
    return current


def compiler_key() -> str:
    """A hash of every source that decides what an artifact holds."""
    key = hashlib.sha256()
    for path in sorted(compiler_sources()):
        key.update(path.relative_to(PROJECT).as_posix().encode() + b"\0")
        key.update(hashlib.sha256(path.read_bytes()).digest())
    return key.hexdigest()


def compiler_sources() -> Iterator[Path]:
    yield PROJECT / "requirements.lock"  # TVM's version
    yield from (PROJECT / "edge_llm" / f"{module}.py" for module in FORMAT)
    for package in ("compile", "targets"):
        for path in (PROJECT / package).rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                yield path


@functools.cache
def content_key(model: Path) -> str:
    """A hash of a model file, or of every file in a model folder."""
    files = sorted(model.iterdir()) if model.is_dir() else [model]
    key = hashlib.sha256()
    for path in files:
        key.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                key.update(chunk)
    return key.hexdigest()
