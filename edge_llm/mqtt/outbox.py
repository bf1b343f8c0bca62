"""Replies that must arrive, until the broker has them: bounded, and never past their time.

    outbox.put(key, reply, until)
    while entry := outbox.take(now):
        outbox.sent(publish(entry.reply), entry)
    outbox.acknowledged(packet, delivered, now)     # or lost(), when the connection breaks

A broker may say that nobody was subscribed, because its client is still on its way back after the
broker was gone: such a reply is tried again, less and less often, as long as it is worth something.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from edge_llm.logs import fields
from edge_llm.mqtt.messages import Key, Reply

MAX_REPLIES = 256
MAX_BYTES = 8 << 20  # of all replies together
FIRST_RETRY = 0.25  # seconds; doubles with every attempt
LAST_RETRY = 30.0

log = logging.getLogger(__name__)


@dataclass
class Entry:
    """A reply on its way.

    Attributes:
        key: of its request.
        reply: what to send.
        until: ``time.monotonic()`` when it is of no use any more.
        after: ``time.monotonic()`` before which it is not tried again.
        pause: seconds until the next attempt, if the broker has nobody to give it to.
        flying: it has been sent, and the broker has not answered.
        precious: tried again where nobody was subscribed, and not given up for those that are not.
    """

    key: Key
    reply: Reply
    until: float
    after: float = -math.inf
    pause: float = FIRST_RETRY
    flying: bool = False
    precious: bool = True


class Outbox:
    """Replies by request. A newer one takes the place of an older one, but no refusal an answer's.

    Attributes:
        window: replies that may be unacknowledged at a time; the broker's Receive Maximum.
        dropped: replies that were given up because there were too many.
        expired: replies whose time was over before the broker had them.
    """

    def __init__(self, max_replies: int = MAX_REPLIES, max_bytes: int = MAX_BYTES) -> None:
        self.window = 1
        self.dropped = 0
        self.expired = 0
        self._entries: dict[tuple[Key, bool], Entry] = {}  # oldest first, by key and precious
        self._flying: dict[int, Entry] = {}  # by packet identifier
        self._bytes = 0
        self._max_replies = max_replies
        self._max_bytes = max_bytes

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def flying(self) -> int:
        """Replies that are unacknowledged."""
        return len(self._flying)

    def put(self, key: Key, reply: Reply, until: float, precious: bool = True) -> None:
        """Takes a reply that must arrive."""
        self._remove(key, False)
        if precious:
            self._remove(key, True)
        self._entries[key, precious] = Entry(key, reply, until, precious=precious)
        self._bytes += len(reply.payload)
        before = self.dropped
        while len(self._entries) > self._max_replies or (
            self._bytes > self._max_bytes and len(self._entries) > 1
        ):
            cheap = (which for which in self._entries if not which[1])
            self._remove(*next(cheap, next(iter(self._entries))))
            self.dropped += 1
        if self.dropped > before:
            log.warning("too many replies wait: the oldest go", extra=fields(dropped=self.dropped))

    def take(self, now: float) -> Entry | None:
        """The next reply to send, if there is one and the broker may be sent another."""
        for entry in [e for e in self._entries.values() if e.until <= now]:
            self._remove(entry.key, entry.precious)
            self.expired += 1
        if len(self._flying) >= self.window:
            return None
        ready = (e for e in self._entries.values() if not e.flying and e.after <= now)
        return next(ready, None)

    def sent(self, packet: int, entry: Entry) -> None:
        """It went out under this packet identifier."""
        entry.flying = True
        self._flying[packet] = entry

    def acknowledged(self, packet: int, delivered: bool, now: float) -> None:
        """The broker has it; if not ``delivered``, there was nobody to give it to."""
        entry = self._flying.pop(packet, None)
        if entry is None:
            return
        entry.flying = False
        if not delivered and entry.precious:
            entry.after = now + entry.pause
            entry.pause = min(LAST_RETRY, 2 * entry.pause)
        elif self._entries.get((entry.key, entry.precious)) is entry:  # not replaced meanwhile
            self._remove(entry.key, entry.precious)

    def lost(self) -> None:
        """The connection broke: whatever was not acknowledged is sent again over the next."""
        for entry in self._flying.values():
            entry.flying = False
        self._flying.clear()

    def next_time(self) -> float:
        """When to look again, if nothing happens before: ``time.monotonic()``, or infinity."""
        if len(self._flying) >= self.window:
            return math.inf
        waiting = (e.after for e in self._entries.values() if not e.flying)
        return min(waiting, default=math.inf)

    def _remove(self, key: Key, precious: bool) -> None:
        entry = self._entries.pop((key, precious), None)
        if entry is not None:
            self._bytes -= len(entry.reply.payload)
