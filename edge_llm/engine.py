"""Serves many requests from one model. The file to read first.

One thread owns the model. It sleeps until there is work, and then repeats, step by step:

    receive   what was submitted and cancelled since (any thread may do that)
    drop      whatever is cancelled or has expired
    admit     what waits, as far as there are pages in the KV cache
    compute   one pass over the weights: a row for every decoding sequence, chunks of prompts
    emit      the drawn tokens' text, to whom it belongs

What is decided is in ``scheduler``, how a token is drawn in ``sampler``, what an answer is made of
in ``generation``::

    engine = Engine(executor, tokenizer)
    ticket = engine.submit(Request(prompt="Hello"), print)
"""

from __future__ import annotations

import atexit
import itertools
import logging
import threading
import time
from collections.abc import Callable, Collection
from collections.abc import Sequence as Tokens
from typing import TYPE_CHECKING

from edge_llm.admission import check_bytes, check_tokens
from edge_llm.batch import Batch, StepExecutor
from edge_llm.buffers import Floats
from edge_llm.errors import RequestError
from edge_llm.events import Reason
from edge_llm.generation import Generation, Listener
from edge_llm.kv_pages import PagePool, pages_for
from edge_llm.metrics import Counters, Metrics
from edge_llm.request import Request
from edge_llm.scheduler import (
    Chunk,
    Limits,
    advance,
    expired,
    make_batch,
    make_plan,
    order,
    steady,
)
from edge_llm.sequence import Consumer, Sequence
from edge_llm.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

QUEUE = 64  # requests that may wait

log = logging.getLogger(__name__)


class Engine:
    """One thread that owns the model; transports put requests in and are handed events.

    Args:
        executor: runs the steps; the engine closes it.
        tokenizer: of the same model.
        queue: requests that may wait; one more is refused with 429.

    Attributes:
        limit: tokens a sequence may have, prompt and answer together.
    """

    def __init__(self, executor: StepExecutor, tokenizer: Tokenizer, queue: int = QUEUE) -> None:
        self._executor = executor
        self._tokenizer = tokenizer
        self._queue = queue
        self.limit = min(executor.context, executor.pages * executor.page_positions)
        self._limits = Limits(
            max_rows=executor.max_rows,
            page_positions=executor.page_positions,
            table_pages=pages_for(executor.context, executor.page_positions),
        )
        # Guarded by the condition: what other threads leave for the engine's.
        self._changed = threading.Condition()
        self._tickets = itertools.count(1)
        self._arrived: list[Sequence] = []
        self._cancelled: set[int] = set()
        self._closed = False
        self._ended: list[Callable[[], object]] | None = []  # to be told; None: they have been
        self._counters = Counters()
        # The engine thread's own; others only read their lengths.
        self._pool = PagePool(executor.pages)
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []  # in the order they were started
        self._dropped: set[int] = set()  # tickets cancelled before this step
        # The last step's, where the next is as it was but for its tokens.
        self._steady: tuple[tuple[Chunk, ...], Batch] | None = None
        self._thread = threading.Thread(target=self._run, name="edge-llm-engine", daemon=True)
        self._thread.start()
        # A process must not end while its threads are within the compiled code.
        atexit.register(self.close)

    # From any thread.

    def submit(self, request: Request, on_event: Listener) -> int:
        """Queues a request. It is tokenized here, on the caller's thread.

        Args:
            request: what to generate.
            on_event: is handed every event, on the engine's thread, possibly before ``submit``
                returns; it must not block.

        Returns:
            A ticket, for :meth:`cancel`.

        Raises:
            RequestError: 400 malformed, 413 too long for the context, 429 queue full,
                503 engine closed.
        """
        try:
            with self._changed:
                self._check_room()  # before the work of tokenizing
            check_bytes(request, self.limit, lambda: self._tokenizer.longest_token)
            ids = self._tokenizer.prompt(request)
            ends = self._tokenizer.generation.eos_token_ids
            return self.submit_ids(ids, request, ends, on_event)
        except RequestError:
            with self._changed:
                self._counters.refused += 1
            raise

    def submit_ids(
        self, ids: Tokens[int], request: Request, ends: Collection[int], on_event: Listener
    ) -> int:
        """As :meth:`submit`, with a prompt that is tokens and other tokens that end the answer."""
        check_tokens(ids, self.limit - 1, self._executor.vocab_size)  # room for one token
        limit = self.limit
        if request.max_tokens is not None:
            limit = min(limit, len(ids) + request.max_tokens)
        draw, decode = self._executor.draw, self._tokenizer.decoder()
        generation = Generation(request, ends, draw, decode, on_event)
        return self._enqueue(ids, limit, generation, request.priority, request.deadline)

    def logits(self, ids: Tokens[int]) -> NDArray[np.float32]:
        """The logits at every position of a sequence, float32 [n, vocab]; waits for them.

        Raises:
            RequestError: 400 no tokens or unknown ones, 413 more than the context holds, 429 queue
                full, 500 the model failed, 503 engine closed.
        """
        from edge_llm.scoring import Scoring  # and with it numpy, of which an answer has no need

        check_tokens(ids, self.limit, self._executor.vocab_size)
        scoring = Scoring(len(ids), self._executor.vocab_size)
        ticket = self._enqueue(ids, len(ids), scoring)
        try:
            return scoring.result()
        finally:
            self.cancel(ticket)  # where the wait was interrupted

    def cancel(self, ticket: int) -> None:
        """Ends a request within one token; tickets that are unknown or over are allowed."""
        with self._changed:
            self._cancelled.add(ticket)
            self._changed.notify()

    def metrics(self) -> Metrics:
        """A snapshot."""
        with self._changed:  # for as short as may be: every step waits for it
            counters = self._counters.copy()
            queued = len(self._arrived) + len(self._waiting)
        return counters.snapshot(
            queued=queued,
            active=len(self._running),
            pages_free=self._pool.free,
            pages_total=self._pool.total,
        )

    def on_end(self, tell: Callable[[], object]) -> None:
        """Calls ``tell`` on the engine's thread as it ends: closed, or by an error of its own.

        At once where it has ended.
        """
        with self._changed:
            if self._ended is not None:
                self._ended.append(tell)
                return
        tell()

    def close(self) -> None:
        """Stops after the current step; whatever waits or runs fails with 503. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()
            atexit.unregister(self.close)

    def _check_room(self) -> None:
        if self._closed:
            raise RequestError(503, "unavailable", "the engine is closed")
        if len(self._arrived) + len(self._waiting) >= self._queue:
            raise RequestError(
                429, "queue_full", f"{self._queue} requests are waiting already: try again later"
            )

    def _enqueue(
        self,
        ids: Tokens[int],
        limit: int,
        consumer: Consumer,
        priority: int = 0,
        deadline: float | None = None,
    ) -> int:
        with self._changed:
            self._check_room()
            ticket = next(self._tickets)
            self._arrived.append(Sequence(ticket, ids, limit, consumer, priority, deadline))
            self._changed.notify()
            return ticket

    # On the engine's thread.

    def _run(self) -> None:
        try:
            while self._receive():
                self._drop()
                chunks = self._steady[0] if self._steady else self._plan()
                if chunks:
                    self._compute_and_emit(chunks)
        except Exception:
            log.exception("the engine failed")
        finally:
            self._shut_down()

    def _receive(self) -> bool:
        """Sleeps until there is work and takes over what is new; False when the engine closes."""
        with self._changed:
            while not (
                self._closed or self._arrived or self._cancelled or self._waiting or self._running
            ):
                self._changed.wait()
            arrived, self._arrived = self._arrived, []
            self._dropped, self._cancelled = self._cancelled, set()
            self._waiting += arrived
            closed = self._closed
        if arrived:
            self._steady = None
            queue = order(self._waiting)
            for sequence in arrived:
                sequence.consumer.accepted(queue.index(sequence))
        return not closed

    def _drop(self) -> None:
        """Ends what is cancelled or has expired, waiting or running."""
        if self._dropped:
            for sequence in [*self._waiting, *self._running]:
                if sequence.ticket in self._dropped:
                    self._end(sequence, "cancelled")
        for sequence in expired([*self._waiting, *self._running], time.monotonic()):
            self._end(sequence, "expired")

    def _plan(self) -> tuple[Chunk, ...]:
        """Starts what there is room for; returns what the next step computes."""
        plan = make_plan(self._waiting, self._running, self._pool.free, self._limits)
        self._admit(plan.admitted)
        return plan.chunks

    def _admit(self, admitted: tuple[Sequence, ...]) -> None:
        for sequence in admitted:
            pages = self._pool.take(pages_for(sequence.limit, self._limits.page_positions))
            sequence.settle(pages, self._limits.table_pages)
            self._waiting.remove(sequence)
            self._running.append(sequence)
            sequence.consumer.started()

    def _batch(self, chunks: tuple[Chunk, ...]) -> Batch:
        """Of the next step: while all just decode, the last one's with other tokens."""
        if self._steady is not None:
            advance(self._steady[1], chunks)
            return self._steady[1]
        batch = make_batch(chunks)
        self._steady = (chunks, batch) if steady(chunks) else None
        return batch

    def _compute_and_emit(self, chunks: tuple[Chunk, ...]) -> None:
        try:
            logits = self._executor.step(self._batch(chunks))
        except Exception as error:  # whatever it was, the next request may fare better
            log.error("a step failed: %r", error)
            for sequence in [*self._running]:
                self._fail(sequence, RequestError(500, "model_error", f"a step failed: {error}"))
            return
        row = 0
        for chunk in chunks:
            chunk.sequence.computed += chunk.rows
            if chunk.wanted:
                self._emit(chunk.sequence, logits[row : row + chunk.wanted])
                row += chunk.wanted

    def _emit(self, sequence: Sequence, logits: list[Floats]) -> None:
        try:
            reason = sequence.consumer.take(sequence, logits)
        except RequestError as error:
            self._fail(sequence, error)
        except Exception as error:  # no memory, say: one answer's fault is not the others'
            log.error("an answer failed: %r", error)
            self._fail(sequence, RequestError(500, "internal_error", f"it failed: {error!r}"))
        else:
            if reason is not None:
                self._end(sequence, reason)

    def _end(self, sequence: Sequence, reason: Reason) -> None:
        self._forget(sequence)
        finished = sequence.consumer.end(sequence, reason)
        if finished is not None:
            with self._changed:
                self._counters.count(finished)

    def _fail(self, sequence: Sequence, error: RequestError) -> None:
        self._forget(sequence)
        sequence.consumer.fail(error)
        with self._changed:
            self._counters.failed += 1

    def _forget(self, sequence: Sequence) -> None:
        """Takes a sequence out of its list and its pages back."""
        self._steady = None
        (self._running if sequence.pages else self._waiting).remove(sequence)
        self._pool.give(sequence.pages)
        sequence.pages = ()

    def _shut_down(self) -> None:
        with self._changed:
            self._closed = True  # also where the thread ends by an error of its own
            self._waiting += self._arrived
            self._arrived = []
        try:
            for sequence in [*self._waiting, *self._running]:
                self._fail(sequence, RequestError(503, "unavailable", "the engine is closing"))
            self._executor.close()
        finally:
            with self._changed:
                ended, self._ended = self._ended, None
            for tell in ended or ():
                tell()
