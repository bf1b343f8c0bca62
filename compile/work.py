"""The folder in which a recipe's steps leave what they made, so that none is made twice.

Each step has a folder named by the step and by a hash of all that its result depends on. The step
is done when ``done.json`` stands in it, which is written last; so a changed recipe finds no stale
result, and a killed process leaves none that passes for a whole one. What a step wrote before it
was killed stays, and it may go on from there.

    with opened(Path("model.edge.work")) as work:
        step = work.step("train", {"seed": 1, "data": data.key}, train)
        step.folder / "student.safetensors"

Several processes that torchrun starts share the folder: one leads, and makes what takes one
process; the others wait for it, and join in the steps that are made together.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

from compile.errors import CompileError
from edge_llm.files import replacing

CHUNK = 1 << 20  # bytes read at once
LOOK = 0.2  # seconds between two looks for a step that another process makes
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Libraries tell of a full disk in words: safetensors in the system's, others in their own.
NO_SPACE_WORDS = (
    *(os.strerror(number) for number in NO_SPACE),
    "file write failed",  # torch
    "requested and",  # numpy: "N requested and M written", and where a file is known to be large
    "Not enough free space",
)

Facts: TypeAlias = Mapping[str, Any]  # what a step says of itself, as JSON
Make: TypeAlias = Callable[[Path], Facts]  # writes into the folder it is given


@dataclass(frozen=True)
class Step:
    """A step that is done.

    Attributes:
        name: of the step.
        key: hash of all that its result depends on.
        folder: where its result is.
        seconds: it took, all attempts together.
        peak_bytes: most memory of the process meanwhile; 0 where the system does not tell.
        facts: what it says of itself.
        reused: whether an earlier run had made it.
    """

    name: str
    key: str
    folder: Path
    seconds: float
    peak_bytes: int
    facts: Facts = field(default_factory=dict)
    reused: bool = False


class Work:
    """The steps of one folder; made by :func:`opened`."""

    def __init__(self, path: Path, leads: bool = True) -> None:
        self.path = path
        self.leads = leads
        self.steps: list[Step] = []  # of this run, in order

    def step(
        self, name: str, inputs: Mapping[str, Any], make: Make, *, together: bool = False
    ) -> Step:
        """What ``make`` leaves in the step's folder, made now unless it is there.

        Args:
            name: of the step, and of its folder.
            inputs: all that the result depends on, as JSON; keys of other steps among it.
            make: does the work. It may find what an attempt that was killed has left.
            together: all processes make it; else one does.

        Raises:
            CompileError: those of ``make``, and a full disk.
        """
        key = digest({"step": name, "version": version("edge-llm"), **inputs})
        folder = self.path / f"{name}-{key[:16]}"
        done = folder / "done.json"
        step = read_done(done, key)
        if step is None and not self.leads:
            if together:
                make(folder)
            step = awaited(done, key)
        elif step is None:
            with explained(self.path), stopwatch(folder / "seconds") as seconds:
                reset_peak()
                for left in folder.glob(".*.part"):  # by an attempt that was killed as it wrote
                    left.unlink()
                facts = make(folder)
                step = Step(name, key, folder, seconds(), peak_bytes(), facts)
                write_json(done, {**asdict(step), "folder": folder.name})
        self.steps.append(step)
        return step

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """A step whose result is kept elsewhere, and made each time."""
        reset_peak()
        started = time.monotonic()
        yield
        self.steps.append(Step(name, "", self.path, time.monotonic() - started, peak_bytes()))


@contextmanager
def opened(path: Path, leads: bool = True) -> Iterator[Work]:
    """The work folder at ``path``, made if need be, while nobody else works in it.

    A process that does not lead works in the folder of the one that does.
    """
    if not leads:
        yield Work(path, leads=False)
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / "lock").open("a")
    except OSError as error:
        raise CompileError(f"cannot work in {path}: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it at any end
        except OSError:
            raise CompileError(
                f"{path}: another run works in this folder: wait for it, or give --work another"
            ) from None
        yield Work(path)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say what can be done about a full disk, whichever library ran into it."""
    try:
        yield
    except Exception as error:
        if not disk_full(error):
            raise
        raise CompileError(
            f"{path}: no space is left for what is made there: free some, or give --work a folder "
            "elsewhere; the same command then goes on from here"
        ) from error


def disk_full(error: BaseException | None) -> bool:
    """Whether an exception, or what it came from, says that a file could not grow."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            return True
        if any(words in str(error) for words in NO_SPACE_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def digest(value: Mapping[str, Any]) -> str:
    """SHA-256 of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def content_key(files: Iterable[Path]) -> str:
    """SHA-256 of files and their names, wherever they lie."""
    key = hashlib.sha256()
    for path in files:
        try:
            key.update(path.name.encode() + b"\0")
            key.update(path.stat().st_size.to_bytes(8, "little"))
            with path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    key.update(chunk)
        except OSError as error:
            raise CompileError(f"cannot read {path}: {error.strerror}") from None
    return key.hexdigest()


def read_done(path: Path, key: str) -> Step | None:
    """The step that ``path`` speaks of; None where it is not done."""
    try:
        content = json.loads(path.read_bytes())
        step = Step(**{**content, "folder": path.parent, "reused": True})
    except (OSError, ValueError, TypeError):
        return None
    return step if step.key == key else None


def awaited(path: Path, key: str) -> Step:
    """The step that ``path`` speaks of once the process that leads has made it.

    If that one ends before, torchrun ends this one; CompileError where torchrun has ended itself.
    """
    parent = os.getppid()
    while (step := read_done(path, key)) is None:
        if os.getppid() != parent:
            raise CompileError(f"{path.parent}: torchrun has ended before this step was made")
        time.sleep(LOOK)
    return step


def write_json(path: Path, value: object) -> None:
    """A JSON file, whole or not at all."""
    with replacing(path) as file:
        file.write(json.dumps(value, indent=1).encode() + b"\n")


@contextmanager
def stopwatch(path: Path) -> Iterator[Callable[[], float]]:
    """A folder for a step, and a clock that goes on where an earlier attempt's stood.

    An attempt that is killed outright is not counted.
    """
    path.parent.mkdir(exist_ok=True)
    before = 0.0
    with suppress(OSError, ValueError):
        before = float(path.read_text())
    started = time.monotonic()

    def seconds() -> float:
        return before + time.monotonic() - started

    try:
        yield seconds
    except BaseException:
        with suppress(OSError):
            path.write_text(str(seconds()))
        raise


def reset_peak() -> None:
    """Let the system measure the process's most memory from now on, where it can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Most memory of the process since :func:`reset_peak`; 0 where the system does not tell."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return 0
