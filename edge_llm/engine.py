"""Serves many requests from one model."""

from __future__ import annotations

from collections.abc import Callable

from edge_llm.events import Event
from edge_llm.metrics import Metrics
from edge_llm.request import Request


class Engine:
    """One thread that owns the model; transports put requests in and are handed events."""

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> int:
        """Queues a request; from any thread. It is tokenized here, on the caller's thread.

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
        raise NotImplementedError

    def cancel(self, ticket: int) -> None:
        """Ends a request within one token; from any thread, unknown and ended tickets allowed."""
        raise NotImplementedError

    def metrics(self) -> Metrics:
        """A snapshot, from any thread."""
        raise NotImplementedError

    def close(self) -> None:
        """Stops the engine; whatever waits or runs fails with 503. From any thread, idempotent."""
        raise NotImplementedError
