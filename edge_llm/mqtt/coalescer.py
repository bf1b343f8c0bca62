"""Gathers pieces of text into numbered chunks, so that a fast model does not flood the network.

The first piece goes at once; from then on chunks are at least ``seconds`` apart.
"""

from __future__ import annotations

CHUNK_SECONDS = 0.075  # short for a reader, long for a network


class Coalescer:
    """The chunks of one answer.

    Args:
        seconds: between two of them.

    Attributes:
        count: chunks made so far, which is the number of the last.
    """

    def __init__(self, seconds: float = CHUNK_SECONDS) -> None:
        self.count = 0
        self._seconds = seconds
        self._pieces: list[str] = []
        self._next = float("-inf")

    def add(self, text: str) -> None:
        """Takes a piece of text."""
        self._pieces.append(text)

    def wait(self, now: float) -> float | None:
        """Seconds until the next chunk is due; None while there is nothing to send."""
        return max(0.0, self._next - now) if self._pieces else None

    def take(self, now: float, last: bool = False) -> str | None:
        """The text of the next chunk if it is due, or, at the end, whatever is left."""
        if not self._pieces or (now < self._next and not last):
            return None
        text = "".join(self._pieces)
        self._pieces.clear()
        self._next = now + self._seconds
        self.count += 1
        return text
