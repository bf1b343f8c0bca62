"""One connection to a broker, from CONNECT until it breaks: paho-mqtt moved by asyncio.

    connection = await Connection.open(broker, terms, listener)
    packet = connection.publish("a/topic", b"…", qos=1)
    reason = await connection.lost

paho brings the protocol; sockets are waited for here, so that nothing of ours runs on a thread of
its. A connection is never used again: what was not acknowledged over one is sent over the next by
whoever cares, with the time that is left.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_llm.errors import ConfigError, EdgeLLMError
from edge_llm.logs import fields
from edge_llm.mqtt.broker import Broker
from edge_llm.mqtt.messages import Message, Reply

CONNECT_SECONDS = 10.0  # for the TCP connection, TLS, and the broker's CONNACK, each
CLOSE_SECONDS = 1.0
MAX_WINDOW = 16  # unacknowledged publications at a time, even where the broker allows more
MAX_PACKET = 268_435_455  # bytes, of any packet in MQTT
QOS = 0x06  # the bits of a PUBLISH's first byte
NOBODY = 0x10  # PUBACK, No matching subscribers
UNREADABLE = "Protocol error"  # why a connection ended over which came what paho cannot read

log = logging.getLogger(__name__)
# It says every packet at DEBUG; what it calls an error is one.
_paho_log = logging.getLogger("edge_llm.mqtt.paho")
_paho_log.setLevel(logging.ERROR)


class PassingClient(Client):
    """paho's client, but that a publication which it cannot read does not cost the connection.

    Brokers pass on some that paho refuses, and anyone may publish them. Where a later paho takes
    publications in by another method, they end the connection again, and nothing worse.
    """

    def _handle_publish(self) -> MQTTErrorCode:
        try:
            return super()._handle_publish()
        except Exception as error:
            log.warning("a publication cannot be read", extra=fields(reason=type(error).__name__))
            command, packet = self._in_packet["command"], bytes(self._in_packet["packet"])
            if command & QOS:
                topic_end = 2 + int.from_bytes(packet[:2], "big")
                self._send_puback(int.from_bytes(packet[topic_end : topic_end + 2], "big"))
            return MQTTErrorCode.MQTT_ERR_SUCCESS


class ConnectError(EdgeLLMError):
    """The broker could not be reached or did not let us in."""


@dataclass(frozen=True)
class Terms:
    """What is agreed with the broker at CONNECT.

    Attributes:
        client_id: the same every time, so that the broker knows our session again.
        keepalive_seconds: silence after which either side gives the connection up.
        session_seconds: for which the broker keeps our session, and requests for us, while we
            are away.
        max_packet_bytes: the largest that the broker may send.
        will_topic: where the broker says that we are gone, retained.
        will: what it says.
    """

    client_id: str
    keepalive_seconds: int
    session_seconds: int
    max_packet_bytes: int
    will_topic: str
    will: bytes


class Listener(Protocol):
    """Is told what happens, on the event loop's thread."""

    def received(self, message: Message) -> None: ...
    def acknowledged(self, packet: int, delivered: bool) -> None: ...


class Connection:
    """See the module; made by :meth:`open`.

    Attributes:
        lost: done, with the reason, when the connection has ended.
        buffered: bytes of QoS 0 publications that the network has not taken yet.
        window: QoS 1 publications that may be unacknowledged at a time.
        max_packet_bytes: the largest that the broker takes.
    """

    def __init__(self, client: Client, listener: Listener) -> None:
        self.buffered = 0
        self.window = MAX_WINDOW
        self.max_packet_bytes = math.inf
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[str] = self._loop.create_future()
        self._connected: asyncio.Future[None] = self._loop.create_future()
        self._client = client
        self._listener = listener
        self._unwritten: dict[int, int] = {}  # QoS 0 packets and their bytes
        self._registered: socket.socket | None = None

    @classmethod
    async def open(
        cls, broker: Broker, terms: Terms, listener: Listener, afresh: bool = False
    ) -> Connection:
        """Connects; ConnectError says in one line what is wrong.

        ``afresh``: what the broker has kept for us is thrown away.
        """
        try:
            client = _client(broker, terms)
        except ConfigError as error:  # a certificate that is being replaced, say
            raise ConnectError(str(error)) from None
        connection = cls(client, listener)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = terms.session_seconds
        properties.MaximumPacketSize = min(terms.max_packet_bytes, MAX_PACKET)

        def connect() -> MQTTErrorCode:  # blocks while it looks up the name, connects, shakes hands
            return client.connect(
                broker.host,
                broker.port,
                terms.keepalive_seconds,
                clean_start=afresh,
                properties=properties,
            )

        try:
            await _on_a_thread(connect)
            connection._register()
            await asyncio.wait_for(connection._connected, CONNECT_SECONDS)
        except asyncio.TimeoutError:
            connection._disconnect()
            raise ConnectError("the broker does not answer") from None
        except ConnectError:
            raise
        except Exception as error:  # of a library's: it is tried again
            raise ConnectError(_one_line(error)) from None
        return connection

    def subscribe(self, *topics: str) -> None:
        """Asks for what is published on these topics from now on, QoS 1."""
        options = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
        self._client.subscribe([(topic, options) for topic in topics])

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool = False) -> int:
        """Hands a publication to the network; returns its packet identifier.

        The listener hears of the acknowledgement of one with QoS 1.
        """
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        return self._publish(topic, payload, qos, retain, properties)

    def reply(self, reply: Reply, qos: int) -> int:
        """As :meth:`publish`, with what MQTT 5 has for replies."""
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if reply.address.correlation is not None:
            properties.CorrelationData = reply.address.correlation
        if reply.expires is not None:
            left = reply.expires - time.monotonic()
            properties.MessageExpiryInterval = max(1, math.ceil(left))
        properties.UserProperty = ("status", str(reply.status))
        return self._publish(reply.address.topic, reply.payload, qos, False, properties)

    def tick(self) -> None:
        """To be called every second: asks a silent broker whether it is there."""
        self._client.loop_misc()

    async def close(self) -> None:
        """Says goodbye, so that the broker does not publish our will."""
        self._disconnect()
        await asyncio.wait([self.lost], timeout=CLOSE_SECONDS)

    def _publish(
        self, topic: str, payload: bytes, qos: int, retain: bool, properties: Properties
    ) -> int:
        properties.ContentType = "application/json"
        packet = self._client.publish(topic, payload, qos, retain, properties).mid
        if qos == 0:
            self._unwritten[packet] = len(payload)
            self.buffered += len(payload)
        return packet

    def _disconnect(self) -> None:
        self._client.disconnect()
        self._client.loop_write()

    # Sockets.

    def _register(self) -> None:
        sock = self._client.socket()
        if not isinstance(sock, socket.socket):  # lost again before CONNECT was written
            raise ConnectError("the broker hangs up")
        self._registered = sock
        # Not before: on the thread that connects paho calls them as well.
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_publish = self._on_publish
        self._client.on_message = self._on_message
        self._client.on_socket_register_write = self._wants_to_write
        self._client.on_socket_unregister_write = self._has_written
        self._client.on_socket_close = self._unregister
        self._loop.add_reader(sock, self._readable)
        if self._client.want_write():
            self._loop.add_writer(sock, self._writable)

    def _unregister(self, *_: object) -> None:
        if self._registered is not None:
            self._loop.remove_reader(self._registered)
            self._loop.remove_writer(self._registered)
            self._registered = None

    def _wants_to_write(self, *_: object) -> None:
        if self._registered is not None:
            self._loop.add_writer(self._registered, self._writable)

    def _has_written(self, *_: object) -> None:
        if self._registered is not None:
            self._loop.remove_writer(self._registered)

    def _readable(self) -> None:
        more = True
        try:
            while more and self._client.loop_read() == MQTTErrorCode.MQTT_ERR_SUCCESS:
                sock = self._client.socket()
                # What TLS has already taken from the socket wakes nobody up.
                more = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        except Exception as error:  # paho would read on from within the packet
            kind = type(error).__name__
            log.error("the broker sends what cannot be read", extra=fields(reason=kind))
            self._abandon()

    def _abandon(self) -> None:
        sock = self._registered
        self._unregister()
        if sock is not None:
            sock.close()
        if not self._connected.done():
            self._connected.set_exception(ConnectError(UNREADABLE))
        if not self.lost.done():
            self.lost.set_result(UNREADABLE)

    def _writable(self) -> None:
        self._client.loop_write()

    # paho's callbacks, all of them from the calls above.

    def _on_connect(
        self,
        client: Client,
        data: Any,
        flags: ConnectFlags,
        reason: ReasonCode,
        p: Properties | None,
    ) -> None:
        if self._connected.done():
            return
        if reason.is_failure:
            self._connected.set_exception(ConnectError(f"the broker refuses us: {reason}"))
            return
        self.window = min(MAX_WINDOW, getattr(p, "ReceiveMaximum", MAX_WINDOW))
        self.max_packet_bytes = getattr(p, "MaximumPacketSize", math.inf)
        self._connected.set_result(None)

    def _on_disconnect(
        self,
        client: Client,
        data: Any,
        flags: DisconnectFlags,
        reason: ReasonCode,
        p: Properties | None,
    ) -> None:
        self._unregister()
        if not self._connected.done():
            self._connected.set_exception(ConnectError(f"the broker hangs up: {reason}"))
        if not self.lost.done():
            self.lost.set_result(str(reason))

    def _on_subscribe(
        self, client: Client, data: Any, mid: int, reasons: list[ReasonCode], p: Properties
    ) -> None:
        for reason in reasons:
            if reason.is_failure:
                log.error("the broker refuses a subscription", extra=fields(reason=reason))

    def _on_publish(
        self, client: Client, data: Any, mid: int, reason: ReasonCode, p: Properties
    ) -> None:
        if mid in self._unwritten:
            self.buffered -= self._unwritten.pop(mid)
            return
        if reason.is_failure:
            log.warning("the broker refuses a publication", extra=fields(reason=reason))
        self._listener.acknowledged(mid, not reason.is_failure and reason.value != NOBODY)

    def _on_message(self, client: Client, data: Any, message: MQTTMessage) -> None:
        self._listener.received(_message(message))


def _client(broker: Broker, terms: Terms) -> Client:
    client = PassingClient(
        CallbackAPIVersion.VERSION2, client_id=terms.client_id, protocol=MQTTProtocolVersion.MQTTv5
    )
    client.enable_logger(_paho_log)
    client.suppress_exceptions = True  # logged as errors; they must not end the event loop's turn
    client.connect_timeout = CONNECT_SECONDS
    client.max_inflight_messages_set(MAX_WINDOW)
    client.will_set(terms.will_topic, terms.will, qos=1, retain=True)
    if broker.user is not None:
        client.username_pw_set(broker.user, broker.password)
    context = broker.tls_context()
    if context is not None:
        client.tls_set_context(context)
    return client


def _message(message: MQTTMessage) -> Message:
    properties = message.properties
    left = getattr(properties, "MessageExpiryInterval", None)
    return Message(
        message.topic,
        bytes(message.payload),
        getattr(properties, "ResponseTopic", None),
        getattr(properties, "CorrelationData", None),
        getattr(properties, "ContentType", None),
        None if left is None else time.monotonic() + left,
        message.retain,
    )


async def _on_a_thread(function: Callable[[], object]) -> None:
    """Run a blocking function on a thread that nobody waits for when the process ends."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            function()
        except Exception as raised:  # whatever it is, whoever waits must hear of it
            # Its frames hold a socket that paho leaves open where TLS fails.
            error = raised.with_traceback(None)
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=run, name="edge-llm-connect", daemon=True).start()
    await done


def _one_line(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (reason.splitlines() or [type(error).__name__])[0]
