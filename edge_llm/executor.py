"""The compiled model: an artifact's code and mapped weights, and the memory of a run.

One :meth:`Executor.step` is one call into the code, which runs its own threads. Everything that
reaches the code as an index is checked before, in entry.c: the compiled code checks nothing.

>>> with Artifact.open("smollm2.edge") as artifact:                             # doctest: +SKIP
...     executor = Executor(artifact, context=2048)
"""

from __future__ import annotations

import ctypes
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_llm.artifact import Artifact
from edge_llm.batch import Batch
from edge_llm.buffers import Floats, Integers, address, zeros
from edge_llm.drawing import Drawing
from edge_llm.errors import ArtifactError, ConfigError, EdgeLLMError
from edge_llm.profile import Profile, Stages
from edge_llm.sampler import Draw

LANES = 16  # rows of the output matrix come in tiles of 16: so are the columns of the logits
POINTERS = 9  # that entry.c's edge_step takes
ROWS, WANTED, THREADS, TABLE_ROWS = 0, 1, 4, 7  # those of its numbers that each step decides
REFUSED = 1  # what entry.c returns for indices out of range
FEW_ROWS = 8  # a step of no more waits for weights rather than arithmetic: it counts as decoding


class Executor:
    """Runs steps of one artifact; not for two threads at once (see ``edge_llm.batch``).

    Args:
        artifact: opened and checked; must stay open for as long.
        threads: of a step; None for what suits the board, or every CPU this process may use.
        decode_threads: of a step that decodes; None for ``threads``, or what suits the board.
        context: positions a sequence may have; None for what was compiled.
        sequences: how many such sequences the KV cache holds at once.

    Attributes:
        compiled_seconds: spent within the compiled steps.

    Raises:
        ConfigError: a setting out of range.
        ArtifactError: the code cannot be loaded.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        threads: int | None = None,
        decode_threads: int | None = None,
        context: int | None = None,
        sequences: int = 1,
    ) -> None:
        manifest, self._path = artifact.manifest, artifact.path
        execution = manifest.execution
        self.vocab_size = manifest.model.vocab_size
        self.context = _setting("context", context, manifest.model.context, manifest.model.context)
        self.page_positions = execution.page_positions
        self.max_rows = execution.max_rows
        most = execution.max_threads
        available = min(len(os.sched_getaffinity(0)), most)
        prefill = min(execution.prefill_threads or available, available)
        decode = threads or min(execution.decode_threads or available, available)
        self.threads = _setting("threads", threads, most, prefill)
        self.decode_threads = _setting("decode_threads", decode_threads, most, decode)
        self.pages = -(-self.context // self.page_positions) * sequences
        self._columns = -(-self.vocab_size // LANES) * LANES
        rows, self._table = self.max_rows, -(-self.context // self.page_positions)
        lengths = (rows, rows, rows, rows * self._table, rows)  # of a batch's arrays, in order
        cache_bytes = self.pages * execution.page_bytes
        try:
            self._memory: tuple[Integers, ...] = (
                artifact.entry("weights.bin"),
                zeros(cache_bytes),
                zeros(execution.workspace_bytes),
            )
            # A step copies its indices: asking for their addresses each time takes longer.
            self._indices = tuple(zeros(length, "i") for length in lengths)
            self._logits = zeros(sequences * self._columns, "f")
        except (OSError, OverflowError, MemoryError, ValueError):
            raise ConfigError(
                f"there is no memory for a KV cache of {cache_bytes / 1e6:.0f} MB: give a smaller "
                "context, or fewer sequences"
            ) from None
        # What a step is called with (compile/lower/cpu/entry.c).
        memories: tuple[Floats | Integers, ...] = (*self._memory, *self._indices, self._logits)
        self._pointers = (ctypes.c_void_p * POINTERS)(*map(address, memories))
        self._logits_address = address(self._logits)
        numbers = [0, 0, self._table, self.pages, 0, self.vocab_size, self.context, 0]
        self._numbers = (ctypes.c_int32 * len(numbers))(*numbers)
        self.compiled_seconds = 0.0
        self._library = _load(artifact)
        # What was compiled before tokens were drawn in C has no such function.
        draws = hasattr(self._library, "edge_draw")
        self._drawing = Drawing(self._library, self.vocab_size) if draws else None
        count = max(self.threads, self.decode_threads)
        if error := self._library.edge_threads_start(count):
            raise EdgeLLMError(f"cannot start {count} threads: {os.strerror(error)}")

    @property
    def draw(self) -> Draw:
        """Finds the next token in a row of logits; ArtifactError where the code is older."""
        if self._drawing is None:
            raise ArtifactError(
                f"{self._path}: compiled by an older edge-llm, whose code draws no tokens: compile "
                "it again"
            )
        return self._drawing

    def step(self, batch: Batch) -> list[Floats]:
        """Logits, float32 [vocab_size], of each wanted row; views, valid until the next step.

        Raises:
            ValueError: an array of the batch is too long, not of C's int, or holds an index out of
                range.
        """
        rows, wanted = len(batch.tokens), len(batch.wanted)
        table_rows, rest = divmod(len(batch.tables), self._table)
        if not 1 <= rows <= self.max_rows or not self._memory:
            raise ValueError(f"a step of {rows} rows; 1 to {self.max_rows} on an open executor")
        if not len(batch.positions) == len(batch.sequences) == rows:
            raise ValueError("tokens, positions and sequences differ in length")
        if max(wanted, table_rows) > rows or rest:
            raise ValueError(
                f"a step of {rows} rows with {wanted} wanted and {len(batch.tables)} pages, "
                f"{self._table} for each table"
            )
        given = (batch.tokens, batch.positions, batch.sequences, batch.tables, batch.wanted)
        for kept, values in zip(self._indices, given, strict=True):
            kept[: len(values)] = values
        logits, first = self._logits, self._logits_address
        if wanted * self._columns > len(logits):  # many only where every row is wanted: not kept
            logits = zeros(wanted * self._columns, "f")
            first = address(logits)
        self._pointers[POINTERS - 1] = first
        threads = self.decode_threads if rows <= FEW_ROWS else self.threads
        self._numbers[ROWS], self._numbers[WANTED] = rows, wanted
        self._numbers[THREADS], self._numbers[TABLE_ROWS] = threads, table_rows
        start = time.perf_counter()
        failure = self._library.edge_step(self._pointers, self._numbers)
        self.compiled_seconds += time.perf_counter() - start
        if failure:
            message = self._library.edge_error().decode()
            if failure == REFUSED:
                raise ValueError(message)
            raise EdgeLLMError(f"the compiled step failed: {message}")
        starts = range(0, wanted * self._columns, self._columns)
        return [logits[start : start + self.vocab_size] for start in starts]

    @contextmanager
    def profile(self) -> Iterator[Profile]:
        """The time of every stage of the steps within the context."""
        decode, prefill = (
            Stages(self._library.edge_stages(rows).decode().split("\n")) for rows in (1, 2)
        )
        self._library.edge_profile(decode.address, prefill.address)
        try:
            yield Profile(decode, prefill)
        finally:
            self._library.edge_profile(None, None)

    def close(self) -> None:
        """Stop the threads and give the memory back; no step may follow. Idempotent."""
        self._library.edge_threads_stop()
        self._memory = ()


def _setting(name: str, value: int | None, most: int, default: int) -> int:
    if value is None:
        return default
    if not 1 <= value <= most:
        raise ConfigError(f"{name} {value}: this artifact allows 1 to {most}")
    return value


def _load(artifact: Artifact) -> ctypes.CDLL:
    """The artifact's shared object (its functions: compile/lower/cpu, entry.c, threads.c, draw.c).

    The loader wants a file by name: it is written into a private directory that is gone before
    this returns, while the mapping stays.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="edge-llm-") as folder:
            path = Path(folder) / "code.so"
            path.write_bytes(artifact.entry("code.so"))
            library = ctypes.CDLL(str(path))
        library.edge_error.restype = ctypes.c_char_p
        library.edge_stages.restype = ctypes.c_char_p
        library.edge_profile.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
        library.edge_step.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
        return library
    except (OSError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"{artifact.path}: code.so cannot be loaded: {reason}") from None
