"""An executor without a model, honest about everything an engine can get wrong.

It keeps a paged cache of its own, in which each position holds the token written there, and reads
a sequence back through the page table of its row alone. The logits are a function of what it
reads: a wrong position, page or table, a page with two owners or one never written shows in the
text or stops the test. What it says is a toy language: a function from the tokens so far to the
next one.

    engine = Engine(FakeExecutor(), TOKENIZER)
    FakeExecutor(language=spelling("Paris."))    # answers so, whatever the question
"""

from __future__ import annotations

import json
import threading
import zlib
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from edge_llm import buffers
from edge_llm.batch import Batch
from edge_llm.profile import Profile, Stages
from edge_llm.tokenizer import Tokenizer
from tests import numpy_sampler
from tests.tiny_model import CHAT_TEMPLATE, tiny_tokenizer

Language = Callable[[NDArray[np.int32]], int]  # the tokens so far, int32 [n], to the next one

VOCAB = 320  # of TOKENIZER
END = 2  # its <|im_end|>
NOTHING = -1  # in a position that was never written
TOKENIZER = Tokenizer(
    tiny_tokenizer().to_str().encode(),
    json.dumps(
        {
            "bos_token_id": None,
            "eos_token_ids": [END],
            "add_bos": False,
            "bos_token": "",
            "eos_token": "<|im_end|>",
        }
    ).encode(),
    CHAT_TEMPLATE,
)


def babble(tokens: NDArray[np.int32]) -> int:
    """A token that depends on every one before it and on their order; never a control token."""
    return 3 + zlib.crc32(tokens.tobytes()) % (VOCAB - 3)


def spelling(text: str, prompt_ends: int = 0) -> Language:
    """Says ``text`` and then the end token, once the prompt, of any length, is over.

    Args:
        text: the answer.
        prompt_ends: the prompt's last token, which must not be in the text.
    """
    answer = [*TOKENIZER.encode(text), END]

    def language(tokens: NDArray[np.int32]) -> int:
        said = len(tokens) - 1 - int(np.flatnonzero(tokens == prompt_ends)[-1])
        return answer[said]

    return language


class FakeExecutor:
    """Implements :class:`edge_llm.batch.StepExecutor`.

    Attributes:
        rows: rows of each step so far.
        failures: exceptions that the next steps raise, first one first; None lets a step pass.
        gate: while it is clear, a step waits before it begins.
        steps_begun: counts steps that have reached the gate.
        closed: close() was called.
    """

    def __init__(
        self,
        language: Language = babble,
        context: int = 64,
        pages: int = 16,
        page_positions: int = 4,
        max_rows: int = 8,
    ) -> None:
        self.vocab_size = VOCAB
        self.context = context
        self.pages = pages
        self.page_positions = page_positions
        self.max_rows = max_rows
        self.rows: list[int] = []
        self.failures: list[Exception | None] = []
        self.gate = threading.Event()
        self.gate.set()
        self.steps_begun = threading.Semaphore(0)
        self.closed = False
        self.compiled_seconds = 0.0
        self.draw = numpy_sampler.draw
        self._language = language
        self._cache = np.full((pages, page_positions), NOTHING, np.int32)

    def step(self, batch: Batch) -> list[buffers.Floats]:
        """Logits in which the language's next token leads, and lower ids lead higher ones."""
        assert not self.closed
        self.steps_begun.release()
        assert self.gate.wait(timeout=60)
        if self.failures and (failure := self.failures.pop(0)) is not None:
            raise failure
        self._check(batch)
        self.rows.append(len(batch.tokens))
        tables = self._tables(batch)
        places = zip(batch.tokens, batch.positions, batch.sequences, strict=True)
        for token, position, sequence in places:
            page, offset = divmod(position, self.page_positions)
            self._cache[tables[sequence, page], offset] = token
        logits = np.tile(np.linspace(1, 0, VOCAB, dtype=np.float32), (len(batch.wanted), 1))
        for row, wanted in enumerate(batch.wanted):
            logits[row, self._language(self._read(batch, wanted))] = 5
        return [memoryview(row).cast("B").cast("f") for row in logits]

    @contextmanager
    def profile(self) -> Iterator[Profile]:
        stages = Stages(["embed", "head"]), Stages(["embed", "layer", "layer", "head"])
        for some in stages:
            for stage in range(len(some.nanoseconds)):
                some.nanoseconds[stage] += 1000
        yield Profile(*stages)

    def close(self) -> None:
        self.closed = True

    def _tables(self, batch: Batch) -> NDArray[np.int32]:
        """The page tables, a row each."""
        return np.asarray(batch.tables).reshape(-1, -(-self.context // self.page_positions))

    def _read(self, batch: Batch, row: int) -> NDArray[np.int32]:
        """The sequence of a row up to its own position, through its page table."""
        table = self._tables(batch)[batch.sequences[row]]
        length = batch.positions[row] + 1
        tokens: NDArray[np.int32] = self._cache[table].reshape(-1)[:length]
        assert NOTHING not in tokens, "a position was read that was never written"
        assert tokens[-1] == batch.tokens[row]
        return tokens

    def _check(self, batch: Batch) -> None:
        for numbers in (batch.tokens, batch.positions, batch.sequences, batch.tables, batch.wanted):
            assert isinstance(numbers, array)
            assert numbers.typecode == "i"
        rows, tables = len(batch.tokens), self._tables(batch)
        assert 0 < rows <= self.max_rows
        assert len(batch.positions) == len(batch.sequences) == rows
        assert 0 <= min(batch.positions) <= max(batch.positions) < self.context
        assert 0 <= min(batch.tables) <= max(batch.tables) < self.pages
        assert 0 <= min(batch.tokens) <= max(batch.tokens) < VOCAB
        assert np.all(np.diff(batch.wanted) > 0)
        assert all(0 <= wanted < rows for wanted in batch.wanted)
        owned: list[int] = []
        for sequence in range(len(tables)):
            own = np.flatnonzero(np.asarray(batch.sequences) == sequence)
            positions = np.asarray(batch.positions)[own]
            assert np.all(np.diff(own) == 1), "rows of one sequence are not together"
            assert np.all(np.diff(positions) == 1), "positions do not ascend"
            used = int(positions.max()) // self.page_positions + 1
            owned += tables[sequence, :used].tolist()
        assert len(owned) == len(set(owned)), "a page has two owners"
