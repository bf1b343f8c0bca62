"""Remembers what requests were answered, because QoS 1 delivers some of them twice.

memory.remember(key, digest, reply, until)
memory.reply(key, digest, now)      # what a duplicate gets, without the model being asked again
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_llm.mqtt.messages import Key, Reply

MAX_REPLIES = 1024
MAX_BYTES = 4 << 20  # of all replies together


@dataclass(frozen=True)
class _Answered:
    digest: bytes
    reply: Reply
    until: float


class Duplicates:
    """Replies by client and correlation, the oldest forgotten first where there are too many."""

    def __init__(self, max_replies: int = MAX_REPLIES, max_bytes: int = MAX_BYTES) -> None:
        self._answered: dict[Key, _Answered] = {}  # oldest first
        self._bytes = 0
        self._max_replies = max_replies
        self._max_bytes = max_bytes

    def reply(self, key: Key, digest: bytes, now: float) -> Reply | None:
        """What it was answered, while that is remembered; None for another request of that key."""
        answered = self._answered.get(key)
        if answered is None:
            return None
        if answered.until <= now:
            self._forget(key)
            return None
        return answered.reply if answered.digest == digest else None

    def remember(self, key: Key, digest: bytes, reply: Reply, until: float) -> None:
        """It has been answered; its duplicates may come until that time."""
        self._forget(key)
        self._answered[key] = _Answered(digest, reply, until)
        self._bytes += len(reply.payload)
        while len(self._answered) > self._max_replies or self._bytes > self._max_bytes:
            self._forget(next(iter(self._answered)))

    def _forget(self, key: Key) -> None:
        answered = self._answered.pop(key, None)
        if answered is not None:
            self._bytes -= len(answered.reply.payload)
