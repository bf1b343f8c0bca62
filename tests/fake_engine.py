"""An engine that says what a test tells it to, when it is told to, and a desk on a loop for it.

engine = FakeEngine()
job = engine.next_job()             # what a transport has submitted
job.accept()
job.say("Paris")
job.finish()                        # or job.fail(error)
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from edge_llm.errors import RequestError
from edge_llm.events import Accepted, Event, Failed, Finished, Reason, Text
from edge_llm.metrics import Counters, Metrics
from edge_llm.request import Request

T = TypeVar("T")
WAIT = 60.0  # seconds, for anything; the machine may be busy


class Job:
    """A request that was submitted, and what is said to its submitter.

    Attributes:
        request: as it came.
        cancelled: set when it is not wanted any more; it has then ended by that.
    """

    def __init__(self, request: Request, on_event: Callable[[Event], None]) -> None:
        self.request = request
        self.cancelled = threading.Event()
        self._on_event = on_event
        self._texts: list[str] = []
        self._over = False

    def accept(self, position: int = 0) -> None:
        self._on_event(Accepted(position))

    def say(self, text: str) -> None:
        self._texts.append(text)
        self._on_event(Text(text, len(self._texts)))

    def finish(self, reason: Reason = "stop", text: str | None = None) -> None:
        """The end; ``text`` instead of all that was said."""
        self._over = True
        whole = "".join(self._texts) if text is None else text
        self._on_event(Finished(whole, reason, 5, len(self._texts), 0.01, 0.02, 0.03))

    def fail(self, error: RequestError) -> None:
        self._over = True
        self._on_event(Failed(error))

    def cancel(self) -> None:
        if not self._over:
            self.finish("cancelled")
            self.cancelled.set()


class FakeEngine:
    """Implements :class:`edge_llm.desk.Answerer`.

    Attributes:
        refusal: raised by the next submissions; None accepts them.
        gate: while it is clear, a submission waits, as one does whose prompt is long.
    """

    def __init__(self) -> None:
        self.refusal: RequestError | None = None
        self.gate = threading.Event()
        self.gate.set()
        self._tickets = itertools.count(1)
        self._jobs: dict[int, Job] = {}
        self._submitted: SimpleQueue[Job] = SimpleQueue()
        self._ended: list[Callable[[], object]] = []

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> int:
        assert self.gate.wait(WAIT)
        if self.refusal is not None:
            raise self.refusal
        ticket = next(self._tickets)
        self._jobs[ticket] = job = Job(request, on_event)
        self._submitted.put(job)
        return ticket

    def cancel(self, ticket: int) -> None:
        self._jobs[ticket].cancel()

    def metrics(self) -> Metrics:
        return Counters().snapshot(queued=0, active=0, pages_free=1, pages_total=1)

    def on_end(self, tell: Callable[[], object]) -> None:
        self._ended.append(tell)

    def close(self) -> None:
        self.gate.set()
        for tell in self._ended:
            tell()

    def next_job(self) -> Job:
        """The next request that is submitted."""
        return self._submitted.get(timeout=WAIT)

    def asked(self) -> int:
        """How many requests were submitted so far."""
        return len(self._jobs)


class Loop:
    """An event loop on a thread of its own, for tests that are not asynchronous themselves."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Its result, once it is there."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(WAIT)

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Lets it run until it ends or the loop is closed."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def call(self, function: Callable[[], T]) -> T:
        """Calls it on the loop's thread."""

        async def call() -> T:
            return function()

        return self.run(call())

    def close(self) -> None:
        """Cancels what still runs, and ends."""
        self.run(self._cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._loop.shutdown_default_executor()
