"""A model that is to be measured, and where those of a run come from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.quality.storage import Storage
from benchmarks.quality.texts import Texts
from benchmarks.quality.yardstick import Logits
from benchmarks.speed.workbench import Workbench
from compile.checkpoint import Checkpoint


@dataclass(frozen=True)
class Candidate:
    """One row of the table.

    Attributes:
        name: in the table.
        maker: whose quantization it is: :data:`OURS` or :data:`LLAMA_CPP`.
        made: by which options or recipe.
        storage: what its matrices take.
        weights: opens what they mean, for exact arithmetic.
        program: starts what runs it on a device; gives its logits.
    """

    name: str
    maker: str
    made: str
    storage: Storage
    weights: Callable[[], Checkpoint]
    program: Callable[[], AbstractContextManager[Logits]]


OURS, LLAMA_CPP = "edge-llm", "llama.cpp"


@dataclass(frozen=True)
class Workshop:
    """What the candidates are made of.

    Attributes:
        bench: llama.cpp's programs.
        folder: gets all that is made; it need not be made again.
        teacher: a GGUF; what its weights mean is the teacher.
        texts: to calibrate with, and held out.
    """

    bench: Workbench
    folder: Path
    teacher: Path
    texts: Texts

    def made(
        self,
        name: str,
        sources: Iterable[Path],
        make: Callable[[Path], object],
        changed: float = 0.0,
    ) -> Path:
        """The file of that name, made aside unless it is newer than all that it comes from.

        ``changed`` is when what makes it was last written.
        """
        path = self.folder / name
        newest = max((changed, *(source.stat().st_mtime for source in sources)))
        if not path.exists() or newest > path.stat().st_mtime:
            aside = path.with_name(f".{name}")  # its ending tells programs what to write
            make(aside)
            os.replace(aside, path)
        return path


def words(*command: object) -> Sequence[str]:
    """A command line of paths, numbers and words."""
    return [str(word) for word in command]
