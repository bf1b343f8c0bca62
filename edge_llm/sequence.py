"""A sequence of tokens the model works on: what is known, what is computed, where it lies."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Tokens
from typing import Protocol

from edge_llm.buffers import Floats, Integers
from edge_llm.errors import RequestError
from edge_llm.events import Finished, Reason


class Consumer(Protocol):
    """Whom a sequence is computed for; called on the engine's thread only.

    Attributes:
        every_row: it takes the logits of every position, not of the last known one alone.
    """

    @property
    def every_row(self) -> bool: ...

    def accepted(self, position: int) -> None:
        """The sequence waits; ``position`` others will be started before it."""

    def started(self) -> None:
        """The sequence has its pages; its first step follows."""

    def take(self, sequence: Sequence, logits: list[Floats]) -> Reason | None:
        """Takes each row's logits, float32 [vocab], valid during the call; may append a token.

        Returns:
            Why the sequence is over, or None where it goes on.
        """

    def end(self, sequence: Sequence, reason: Reason) -> Finished | None:
        """The sequence is over; no call follows. Returns what it told, if it told anybody."""

    def fail(self, error: RequestError) -> None:
        """The sequence cannot be computed; no call follows."""


class Sequence:
    """One sequence from its submission to its end.

    Args:
        ticket: its number; a later sequence has a larger one.
        prompt: the tokens to begin with, at least one.
        limit: tokens it may have at most, prompt included.
        consumer: whom it is computed for.
        priority: the larger, the earlier it is started.
        deadline: ``time.monotonic()`` at which it ends, or None.

    Attributes:
        length: tokens known; those after the prompt were generated.
        computed: tokens whose keys and values are in the cache.
        pages: pages it owns; none while it waits.
        table: the same, filled up with zeros to the length of a step's tables.
    """

    def __init__(
        self,
        ticket: int,
        prompt: Tokens[int],
        limit: int,
        consumer: Consumer,
        priority: int = 0,
        deadline: float | None = None,
    ) -> None:
        self.ticket = ticket
        self.limit = limit
        self.consumer = consumer
        self.priority = priority
        self.deadline = deadline
        self.prompt_length = len(prompt)
        self.length = len(prompt)
        self.computed = 0
        self.pages: tuple[int, ...] = ()
        self.table = array("i")
        self._ids = memoryview(array("i", [*prompt, *[0] * (limit - len(prompt))]))

    @property
    def tokens(self) -> Integers:
        """All known tokens, int32 [length]; a view."""
        return self._ids[: self.length]

    @property
    def pending(self) -> int:
        """Known tokens not computed: 1 when decoding, 0 when a scored sequence is done."""
        return self.length - self.computed

    @property
    def generated(self) -> int:
        """Tokens after the prompt."""
        return self.length - self.prompt_length

    def settle(self, pages: tuple[int, ...], table_pages: int) -> None:
        """Owns these pages from now on."""
        self.table = array("i", [*pages, *[0] * (table_pages - len(pages))])
        self.pages = pages

    def append(self, token: int) -> None:
        """Adds the token that was drawn; there must be room."""
        self._ids[self.length] = token
        self.length += 1
