"""One answer: draws its tokens, turns them into text, and tells its submitter."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from typing import TypeAlias

from edge_llm.buffers import Floats
from edge_llm.errors import RequestError
from edge_llm.events import Accepted, Event, Failed, Finished, Reason, Text
from edge_llm.request import Request
from edge_llm.sampler import Draw, make_sampler
from edge_llm.sequence import Sequence
from edge_llm.text_stream import TextStream

Listener: TypeAlias = Callable[[Event], None]

log = logging.getLogger(__name__)


class Generation:
    """The consumer of a sequence that is continued token by token.

    Args:
        request: how tokens are drawn and what stops them.
        ends: tokens that end the answer.
        draw: finds each of its tokens.
        decode: turns the answer's ids, in order, into UTF-8.
        listener: is told every event.
    """

    every_row = False

    def __init__(
        self,
        request: Request,
        ends: Collection[int],
        draw: Draw,
        decode: Callable[[int], bytes],
        listener: Listener,
    ) -> None:
        self._sample = make_sampler(request.sampling, draw)
        self._ends = frozenset(ends)
        self._decode = decode
        self._stream = TextStream(request.stop)
        self._listener = listener
        self._deaf = False  # the listener has failed
        self._submitted = time.monotonic()
        self._started: float | None = None
        self._first: float | None = None  # when the first token was there
        self._last = 0.0

    def accepted(self, position: int) -> None:
        self._tell(Accepted(position))

    def started(self) -> None:
        self._started = time.monotonic()

    def take(self, sequence: Sequence, logits: list[Floats]) -> Reason | None:
        """Draws the next token and tells the text that is certain by now."""
        token = self._sample(logits[-1], sequence.tokens)
        sequence.append(token)
        self._last = time.monotonic()
        if self._first is None:
            self._first = self._last
        if token in self._ends:
            return "stop"
        self._tell_text(self._stream.feed(self._decode(token)), sequence)
        if self._deaf:
            return "cancelled"
        if self._stream.stopped:
            return "stop"
        return "length" if sequence.length == sequence.limit else None

    def end(self, sequence: Sequence, reason: Reason) -> Finished:
        if reason in ("stop", "length"):
            self._tell_text(self._stream.finish(), sequence)
        ended = time.monotonic()
        started = ended if self._started is None else self._started
        first = ended if self._first is None else self._first
        finished = Finished(
            text=self._stream.text,
            reason=reason,
            prompt_tokens=sequence.prompt_length,
            completion_tokens=sequence.generated,
            queue_seconds=started - self._submitted,
            prefill_seconds=first - started,
            decode_seconds=max(0.0, self._last - first),
        )
        self._tell(finished)
        return finished

    def fail(self, error: RequestError) -> None:
        self._tell(Failed(error))

    def _tell_text(self, text: str, sequence: Sequence) -> None:
        if text:
            self._tell(Text(text, sequence.generated))

    def _tell(self, event: Event) -> None:
        # A listener that fails loses its own answer, never anybody else's.
        try:
            self._listener(event)
        except Exception as error:
            log.error("a listener failed on %s: %r", type(event).__name__, error)
            self._deaf = True
