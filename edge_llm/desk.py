"""Where transports hand in requests: asyncio on this side, the engine's thread on the other.

    async with desk.ask(request) as answer:
        async for event in answer:          # Accepted, Text…, then Finished or Failed
            ...

Whoever leaves the block early, because its client has gone, cancels the request. Requests are
tokenized on a thread of the desk's own, one after the other, so that a long one delays no event.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Protocol

from edge_llm.errors import RequestError
from edge_llm.events import Event, Failed, Finished
from edge_llm.metrics import Metrics
from edge_llm.request import Request

MAX_ACTIVE = 256  # requests in hand; the engine's own queue is shorter
MAX_CHARACTERS = 8 << 20  # of their prompts together; each takes up to four bytes


class Answerer(Protocol):
    """What the desk needs of :class:`edge_llm.engine.Engine`."""

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> int: ...
    def cancel(self, ticket: int) -> None: ...
    def metrics(self) -> Metrics: ...
    def on_end(self, tell: Callable[[], object]) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Card:
    """What is served.

    Attributes:
        name: of the model.
        sha256: of the artifact's manifest, which names it among all others.
        context: tokens that prompt and answer may have together.
    """

    name: str
    sha256: str
    context: int


class Stream:
    """The events of one request, in order; the last is a Finished or a Failed."""

    def __init__(self, engine: Answerer) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._events: deque[Event] = deque()  # at most one a token of the answer
        self._arrived = asyncio.Event()
        self._ticket: int | None = None
        self._cancelled = False
        self._over = False

    async def start(self, request: Request, threads: ThreadPoolExecutor) -> None:
        """Submits the request; RequestError where it is refused."""
        submitted = threads.submit(self._engine.submit, request, self._on_event)
        try:
            self._ticket = await asyncio.wrap_future(submitted)
        except asyncio.CancelledError:
            submitted.add_done_callback(self._cancel_submitted)
            raise
        if self._cancelled:
            self._engine.cancel(self._ticket)

    def cancel(self) -> None:
        """Ends the request within one token; its last event still comes."""
        self._cancelled = True
        if self._ticket is not None and not self._over:
            self._engine.cancel(self._ticket)

    async def next(self, timeout: float | None = None) -> Event | None:
        """The next event; None if there is none within so many seconds."""
        if not self._events:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), timeout)
            except asyncio.TimeoutError:
                return None
        return self._events.popleft()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Event:
        if self._over and not self._events:
            raise StopAsyncIteration
        event = await self.next()
        assert event is not None  # it was waited for
        return event

    def _cancel_submitted(self, submitted: Future[int]) -> None:
        if not submitted.cancelled() and submitted.exception() is None:
            self._engine.cancel(submitted.result())

    def _on_event(self, event: Event) -> None:  # on the engine's thread
        self._loop.call_soon_threadsafe(self._take, event)

    def _take(self, event: Event) -> None:
        self._over = isinstance(event, (Finished, Failed))
        self._events.append(event)
        self._arrived.set()


class Desk:
    """One engine for many transports.

    Args:
        engine: answers.
        card: says what it serves.
        request_seconds: after which any request is given up.

    Attributes:
        card: as given.
        active: requests in hand.
        ended: set when the engine has ended, by :meth:`close` or by an error of its own.
    """

    def __init__(self, engine: Answerer, card: Card, request_seconds: float) -> None:
        self.card = card
        self.active = 0
        self.ended = asyncio.Event()
        self._engine = engine
        self._request_seconds = request_seconds
        self._tested = self._closing = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._characters = 0  # of the prompts in hand
        self._threads = ThreadPoolExecutor(1, "edge-llm-submit")
        self._watchers: list[Callable[[], None]] = []
        self._loop = asyncio.get_running_loop()
        engine.on_end(self._end)

    @property
    def ready(self) -> bool:
        """The self-test has passed, and the engine is neither gone nor about to stop."""
        return self._tested and not self._closing and not self.ended.is_set()

    @asynccontextmanager
    async def ask(self, request: Request) -> AsyncIterator[Stream]:
        """Submits a request for as long as the block lasts.

        Raises:
            RequestError: it is refused: 400, 413, 429 or 503.
        """
        if self._closing:
            raise RequestError(503, "unavailable", "the service is stopping: try again later")
        if self.active >= MAX_ACTIVE:
            raise RequestError(
                429, "queue_full", f"{self.active} requests are in hand already: try again later"
            )
        size = request.characters
        if self.active and self._characters + size > MAX_CHARACTERS:
            raise RequestError(
                429, "queue_full", "the prompts in hand are too long together: try again later"
            )
        latest = time.monotonic() + self._request_seconds
        if request.deadline is None or request.deadline > latest:
            request = replace(request, deadline=latest)
        stream = Stream(self._engine)
        self._count(1)
        self._characters += size
        try:
            await stream.start(request, self._threads)
            yield stream
        finally:
            stream.cancel()
            self._characters -= size
            self._count(-1)

    async def self_test(self) -> Finished:
        """Lets the model say one token; the desk is ready when that has worked."""
        async with self.ask(Request(prompt="Hello", raw=True, max_tokens=1)) as stream:
            last = [event async for event in stream][-1]
        if isinstance(last, Failed):
            raise last.error
        assert isinstance(last, Finished)
        self._tested = True
        return last

    def metrics(self) -> Metrics:
        """The engine's."""
        return self._engine.metrics()

    def watch(self, changed: Callable[[], None]) -> None:
        """Calls ``changed`` whenever the number of requests in hand has changed."""
        self._watchers.append(changed)

    async def drain(self, seconds: float) -> None:
        """Refuses what comes from now on, and lets what is in hand end, for so long."""
        self._closing = True
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)

    async def close(self) -> None:
        """Closes the engine; what is still in hand fails with 503 and is told so."""
        self._closing = True
        await asyncio.get_running_loop().run_in_executor(None, self._engine.close)
        self._threads.shutdown(wait=False)

    def _end(self) -> None:  # on the engine's thread
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self.ended.set)

    def _count(self, step: int) -> None:
        self.active += step
        if self.active:
            self._idle.clear()
        else:
            self._idle.set()
        for changed in self._watchers:
            changed()
