"""What an engine has done so far, as status pages and Prometheus report it."""

from __future__ import annotations

from collections import deque
from copy import copy
from dataclasses import dataclass

from edge_llm.events import Finished
from edge_llm.memory import resident_bytes

RECENT = 64  # finished requests that the medians look back on


@dataclass(frozen=True)
class Metrics:
    """A snapshot of an engine.

    Attributes:
        queued: requests waiting to start.
        active: requests being prefilled or decoded.
        pages_free: free pages of the KV cache.
        pages_total: pages of the KV cache.
        finished_total: requests ended by stop or length.
        stopped_total: requests ended by cancellation or their deadline.
        failed_total: requests ended by an error after they were accepted.
        refused_total: requests that the engine did not accept: too long, or too many waiting.
        prompt_tokens_total: prompt tokens of ended requests.
        completion_tokens_total: generated tokens of ended requests.
        decode_tokens_per_second: median of the last finished requests, each on its own clock.
        time_to_first_token_seconds: median of the last finished requests, queueing included.
        resident_bytes: memory of this process that is in RAM.
    """

    queued: int
    active: int
    pages_free: int
    pages_total: int
    finished_total: int
    stopped_total: int
    failed_total: int
    refused_total: int
    prompt_tokens_total: int
    completion_tokens_total: int
    decode_tokens_per_second: float
    time_to_first_token_seconds: float
    resident_bytes: int


class Counters:
    """The running totals behind :class:`Metrics`; the engine's lock guards its own."""

    def __init__(self) -> None:
        self.finished = 0
        self.stopped = 0
        self.failed = 0
        self.refused = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._rates: deque[float] = deque(maxlen=RECENT)
        self._first_tokens: deque[float] = deque(maxlen=RECENT)

    def count(self, end: Finished) -> None:
        """Adds one ended request."""
        self.prompt_tokens += end.prompt_tokens
        self.completion_tokens += end.completion_tokens
        if end.reason in ("cancelled", "expired"):
            self.stopped += 1
            return
        self.finished += 1
        self._first_tokens.append(end.queue_seconds + end.prefill_seconds)
        if end.completion_tokens > 1 and end.decode_seconds > 0:
            self._rates.append((end.completion_tokens - 1) / end.decode_seconds)

    def copy(self) -> Counters:
        """What they are now."""
        other = copy(self)
        other._rates, other._first_tokens = self._rates.copy(), self._first_tokens.copy()
        return other

    def snapshot(self, queued: int, active: int, pages_free: int, pages_total: int) -> Metrics:
        """The totals, with what the engine says of this moment."""
        from statistics import median  # with fractions and decimals, which no start waits for

        return Metrics(
            queued=queued,
            active=active,
            pages_free=pages_free,
            pages_total=pages_total,
            finished_total=self.finished,
            stopped_total=self.stopped,
            failed_total=self.failed,
            refused_total=self.refused,
            prompt_tokens_total=self.prompt_tokens,
            completion_tokens_total=self.completion_tokens,
            decode_tokens_per_second=median(self._rates or [0.0]),
            time_to_first_token_seconds=median(self._first_tokens or [0.0]),
            resident_bytes=resident_bytes(),
        )
