"""A device on its broker: takes requests, sends answers, says how it is; comes back when it breaks.

    service = Service(desk, config.mqtt, "kitchen", config.limits)
    await service.run()         # until it is cancelled

Everything here happens on the event loop's thread. What must arrive lies in the outbox until the
broker has it; chunks are sent if the connection takes them, and dropped if not.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from dataclasses import asdict, dataclass

from edge_llm import wire
from edge_llm.board import temperature_celsius, throttled
from edge_llm.config import Limits, Mqtt
from edge_llm.desk import Desk, Stream
from edge_llm.errors import RequestError
from edge_llm.events import Accepted, Failed, Finished, Text
from edge_llm.logs import fields
from edge_llm.mqtt.backoff import Backoff
from edge_llm.mqtt.coalescer import Coalescer
from edge_llm.mqtt.connection import UNREADABLE, ConnectError, Connection, Terms
from edge_llm.mqtt.duplicates import Duplicates
from edge_llm.mqtt.intake import Asked, Ignored, Refused, Rules, read_cancel, read_request
from edge_llm.mqtt.messages import Address, Key, Message, Reply, Topics
from edge_llm.mqtt.outbox import Outbox
from edge_llm.wire import Body

MAX_BUFFERED = 256 << 10  # bytes of chunks that the network has not taken; more are dropped
PACKETS = 8  # a packet may be as large as so many requests, so that one too long gets its 413
PACKET_ROOM = 4 << 10  # bytes of a reply's packet besides its payload, at most
TICK_SECONDS = 1.0
FLUSH_SECONDS = 2.0  # for the broker to take the last replies before we disconnect
STOPPING = RequestError(503, "unavailable", "the service is stopping: try again later")
TOO_LARGE = RequestError(500, "answer_too_large", "the answer is larger than the broker takes")
DUPLICATE = RequestError(409, "duplicate", "this request is being answered already")
BROKEN = RequestError(500, "internal_error", "the request failed: see the device's log")
REMEMBERED = (200, 408)  # statuses that a duplicate gets again; what was refused is looked at again

log = logging.getLogger(__name__)


@dataclass
class Answering:
    """A request that is being answered.

    Attributes:
        task: answers it.
        stream: its events, once the engine has it.
        cancelled: its client does not want it any more.
    """

    task: asyncio.Task[None]
    stream: Stream | None = None
    cancelled: bool = False

    def cancel(self) -> None:
        """Ends it within one token; it still has its final reply."""
        self.cancelled = True
        if self.stream is not None:
            self.stream.cancel()


class Service:
    """See the module.

    Args:
        desk: answers the requests.
        mqtt: where the broker is.
        device: our name in topics.
        limits: on requests.
    """

    def __init__(self, desk: Desk, mqtt: Mqtt, device: str, limits: Limits) -> None:
        self._desk = desk
        self._mqtt = mqtt
        self._limits = limits
        self._topics = Topics.of(device)
        self._rules = Rules(
            self._topics, mqtt.response_prefixes, limits.request_bytes, desk.card.name
        )
        self._boot = secrets.token_hex(8)
        self._terms = Terms(
            client_id=f"edge-llm-{device}",
            keepalive_seconds=mqtt.keepalive_seconds,
            session_seconds=limits.keep_seconds,
            max_packet_bytes=PACKETS * limits.request_bytes,
            will_topic=self._topics.status,
            will=self._status("offline"),
        )
        self._connection: Connection | None = None
        self._outbox = Outbox()
        self._duplicates = Duplicates()
        self._answering: dict[Key, Answering] = {}
        self._said = ""
        self._status_packet: int | None = None  # our last status, while it is unacknowledged
        self._leaving = False
        self._closed = False
        self._wake = asyncio.Event()
        desk.watch(self._publish_status)

    async def run(self) -> None:
        """Connect and serve, again and again, until cancelled or closed."""
        backoff = Backoff()
        url, reason = self._mqtt.broker.url, ""
        while True:
            lasted = 0.0
            # What cannot be read would be delivered to us again, each time first of all.
            afresh = reason == UNREADABLE
            try:
                connection = await Connection.open(self._mqtt.broker, self._terms, self, afresh)
            except ConnectError as error:
                reason = str(error)
            else:
                began = time.monotonic()
                reason = await self._serve(connection)
                lasted = time.monotonic() - began
                if self._closed:
                    return
            pause = backoff.next(lasted)
            log.warning(
                "no connection to the broker",
                extra=fields(broker=url, reason=reason, retry_seconds=round(pause, 1)),
            )
            await asyncio.sleep(pause)

    def leave(self) -> None:
        """Say that we are going; what is asked from now on gets what the desk says, 503."""
        self._leaving = True
        self._publish_status()

    async def close(self) -> None:
        """End what is still being answered, send what is ready, and disconnect."""
        self.leave()
        self._closed = True
        tasks = [answering.task for answering in self._answering.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        until = time.monotonic() + FLUSH_SECONDS
        while (connection := self._connection) is not None and time.monotonic() < until:
            self._wake.clear()
            self._send_finals()
            if not len(self._outbox) and self._said == "offline":
                break
            await self._sleep(connection, min(until, self._outbox.next_time()) - time.monotonic())
        if self._connection is not None:
            await self._connection.close()

    # While there is a connection.

    async def _serve(self, connection: Connection) -> str:
        """Until the connection is lost; returns why."""
        if self._closed:  # while it was connecting
            await connection.close()
            return "closed"
        log.info("connected", extra=fields(broker=self._mqtt.broker.url))
        self._connection = connection
        self._said, self._status_packet = "", None
        connection.subscribe(self._topics.generate, self._topics.cancel)
        self._publish_status()
        next_metrics = 0.0
        try:
            while not connection.lost.done():
                now = time.monotonic()
                connection.tick()
                if now >= next_metrics:
                    next_metrics = now + self._mqtt.metrics_seconds
                    connection.publish(self._topics.metrics, self._metrics(), 0, retain=True)
                self._wake.clear()
                self._send_finals()
                await self._sleep(connection, min(TICK_SECONDS, self._outbox.next_time() - now))
            return connection.lost.result()
        finally:
            if connection.lost.done():
                self._connection = None
                self._outbox.lost()

    async def _sleep(self, connection: Connection, seconds: float) -> None:
        """Until something is to be sent, the connection is lost, or so many seconds."""
        woken = asyncio.ensure_future(self._wake.wait())
        waiting: set[asyncio.Future[object]] = {woken, connection.lost}  # type: ignore[arg-type]
        try:
            await asyncio.wait(
                waiting, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            woken.cancel()

    def _send_finals(self) -> None:
        connection = self._connection
        while connection is not None and not connection.lost.done():
            self._outbox.window = connection.window - (self._status_packet is not None)
            entry = self._outbox.take(time.monotonic())
            if entry is None:
                return
            reply = entry.reply
            if len(reply.payload) + PACKET_ROOM > connection.max_packet_bytes:
                # The broker would hang up on us, and again each time we came back with it.
                log.error("an answer is larger than the broker takes")
                reply = Reply(reply.address, 500, wire.error_body(TOO_LARGE), reply.expires)
            self._outbox.sent(connection.reply(reply, qos=1), entry)

    # What the connection tells (its Listener).

    def received(self, message: Message) -> None:
        """A client has published."""
        if message.topic == self._topics.cancel:
            self._cancel(message)
        elif message.topic == self._topics.generate:
            self._request(message)

    def acknowledged(self, packet: int, delivered: bool) -> None:
        """The broker has taken a publication."""
        if packet == self._status_packet:
            self._status_packet = None
        self._outbox.acknowledged(packet, delivered, time.monotonic())
        self._publish_status()  # which may have changed meanwhile
        self._wake.set()

    # Requests.

    def _request(self, message: Message) -> None:
        decision = read_request(message, self._rules)
        if isinstance(decision, Ignored):
            log.warning("a request is ignored", extra=fields(reason=decision.reason))
            return
        now = time.monotonic()
        if decision.expires is not None and decision.expires <= now:
            return
        key = decision.address.key
        if key in self._answering:
            self._refuse(decision.address, DUPLICATE, decision.expires)
        elif isinstance(decision, Refused):
            self._refuse(decision.address, decision.error, decision.expires)
        elif (reply := self._duplicates.reply(key, decision.digest, now)) is not None:
            self._put(key, reply)
        else:
            self._answering[key] = Answering(asyncio.ensure_future(self._answer(decision)))

    def _cancel(self, message: Message) -> None:
        decision = read_cancel(message, self._rules)
        if isinstance(decision, Ignored):
            log.warning("a cancellation is ignored", extra=fields(reason=decision.reason))
            return
        for key, answering in self._answering.items():
            if decision.correlation == key[1] and decision.topic in (None, key[0]):
                answering.cancel()

    async def _answer(self, asked: Asked) -> None:
        """From a request to its final reply."""
        key = asked.address.key
        answering = self._answering[key]
        try:
            async with self._desk.ask(asked.generate.request) as stream:
                answering.stream = stream
                if answering.cancelled:  # before the engine had it
                    stream.cancel()
                await self._relay(asked, stream)
        except RequestError as error:
            self._finish(asked, error)
        except asyncio.CancelledError:
            self._finish(asked, STOPPING)
            raise
        except Exception:
            log.exception("a request failed")
            self._finish(asked, BROKEN)
        finally:
            del self._answering[key]

    async def _relay(self, asked: Asked, stream: Stream) -> None:
        """Accepted, chunks of text as they are due, and the end."""
        chunks = Coalescer()
        while True:
            event = await stream.next(chunks.wait(time.monotonic()))
            over = isinstance(event, Finished | Failed)
            if isinstance(event, Accepted):
                self._send(asked.address, 202, wire.accepted_body(event.position), asked.expires)
            elif isinstance(event, Text) and asked.generate.stream:
                chunks.add(event.text)
            text = chunks.take(time.monotonic(), last=over)
            if text is not None:
                body = wire.chunk_body(chunks.count, text)
                self._send(asked.address, 200, body, asked.expires)
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished):
                self._finished(asked, event, chunks.count)
                return

    def _finished(self, asked: Asked, finished: Finished, chunks: int) -> None:
        if finished.reason != "expired":
            self._finish(asked, wire.final_body(finished, chunks))
        elif asked.expires is None or asked.expires > time.monotonic():
            error = RequestError(408, "timeout", "the answer took longer than the device allows")
            self._finish(asked, error)
        else:  # the client's own deadline: it wants nothing any more
            log.info("expired", extra=fields(tokens=finished.completion_tokens))

    # Replies.

    def _finish(self, asked: Asked, outcome: Body | RequestError) -> None:
        """The last reply to a request that was begun."""
        address, expires = asked.address, asked.expires
        if isinstance(outcome, RequestError):
            reply = Reply(address, outcome.status, wire.error_body(outcome), expires)
        else:
            reply = Reply(address, 200, outcome, expires)
        log.info("answered", extra=fields(status=reply.status, bytes=len(reply.payload)))
        if reply.status in REMEMBERED:
            self._duplicates.remember(address.key, asked.digest, reply, self._until(reply))
        self._put(address.key, reply)

    def _refuse(self, address: Address, error: RequestError, expires: float | None) -> None:
        """The only reply to a request that is not begun."""
        log.info("refused", extra=fields(status=error.status, type=error.kind))
        reply = Reply(address, error.status, wire.error_body(error), expires)
        self._put(address.key, reply, precious=False)

    def _put(self, key: Key, reply: Reply, precious: bool = True) -> None:
        """A reply that must arrive, or else may be lost where its client has gone."""
        self._outbox.put(key, reply, self._until(reply), precious)
        self._wake.set()

    def _until(self, reply: Reply) -> float:
        """When a reply is of no use any more."""
        if reply.expires is not None:
            return reply.expires
        return time.monotonic() + self._limits.keep_seconds

    def _send(self, address: Address, status: int, body: Body, expires: float | None) -> None:
        """A reply that may be lost."""
        connection = self._connection
        if expires is not None and expires <= time.monotonic():
            return
        if connection is not None and connection.buffered < MAX_BUFFERED:
            connection.reply(Reply(address, status, body, expires), qos=0)

    # How we are.

    def _publish_status(self) -> None:
        said = "offline" if self._leaving else "busy" if self._desk.active else "online"
        connection = self._connection
        if connection is None or said == self._said or self._status_packet is not None:
            return  # one at a time: whoever floods us does not fill our memory with what we say
        if self._outbox.flying < connection.window:
            self._said = said
            payload = self._status(said)
            self._status_packet = connection.publish(self._topics.status, payload, 1, retain=True)

    def _status(self, said: str) -> bytes:
        card = self._desk.card
        return wire.encode(
            {"status": said, "boot": self._boot, "model": card.name, "artifact": card.sha256}
        )

    def _metrics(self) -> bytes:
        board = {"temperature_celsius": temperature_celsius(), "throttled": throttled()}
        return json.dumps({**asdict(self._desk.metrics()), **board}).encode()
