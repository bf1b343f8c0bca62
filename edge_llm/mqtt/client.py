"""Asks a device something over MQTT 5: what an IoT client does, as a function.

for piece in ask(Broker.of("mqtt://127.0.0.1:1883"), "kitchen", "Is it safe to eat snow?"):
    print(piece.text, end="", flush=True)
print(piece.final["usage"])
"""

from __future__ import annotations

import json
import math
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from paho.mqtt.client import Client, ConnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge_llm.config import NAME, NAME_RULE
from edge_llm.errors import EdgeLLMError, RequestError
from edge_llm.mqtt.broker import Broker
from edge_llm.mqtt.messages import Topics
from edge_llm.request import Message

DUPLICATE = 409  # our own request came twice; its answer is on the way
LONGEST_EXPIRY = 2**32 - 1  # seconds that MQTT can say
QUIET_SECONDS = 10.0  # without a reply until the request is sent again
USER = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # whose name can be a level of a topic


@dataclass(frozen=True)
class Piece:
    """What is new of an answer.

    Attributes:
        text: what follows the pieces before; may be empty in the last.
        final: the device's last message, whole, with ``usage`` and ``timings``; None before it.
    """

    text: str
    final: dict[str, Any] | None = None


def ask(
    broker: Broker,
    device: str,
    prompt: str | Sequence[Message],
    *,
    seconds: float = 60.0,
    **fields: object,
) -> Iterator[Piece]:
    """Send a request and yield the answer as it comes.

    Args:
        broker: where both are connected.
        device: its name.
        prompt: what to ask, or the messages of a conversation.
        seconds: for all of it; the request expires then.
        fields: more of the request, like ``max_tokens``; see docs/wire.md.

    Raises:
        RequestError: the device refuses.
        EdgeLLMError: no broker, no device, no answer in time, or a name that cannot be one.
    """
    if not NAME.fullmatch(device):
        raise EdgeLLMError(f"device {device!r}: {NAME_RULE}")
    asked = {"prompt" if isinstance(prompt, str) else "messages": prompt, **fields}
    with Conversation(broker, device, time.monotonic() + seconds) as conversation:
        conversation.wait_for_device()
        conversation.publish(json.dumps(asked).encode())
        said, chunks = "", 0
        while True:
            status, body = conversation.next_reply()
            if status == DUPLICATE:
                continue
            if "error" in body:
                error = body["error"]
                raise RequestError(status, error["type"], error["message"], error.get("field"))
            if body["type"] == "chunk" and body["number"] == chunks + 1:
                chunks += 1
                said += body["text"]
                yield Piece(body["text"])
            elif body["type"] == "final":
                # Chunks may be lost, the final never: what follows a gap comes with it.
                yield Piece(body["text"][len(said) :], body)
                return


class Conversation:
    """A connection to the broker for one request.

    Where it breaks paho makes it anew. Then, and whenever nothing comes for a while, the request is
    sent again: a device that has it already says so, and one that has answered answers the same.
    """

    def __init__(self, broker: Broker, device: str, until: float) -> None:
        self._broker = broker
        self._device = device
        self._until = until
        self._topics = Topics.of(device)
        self._reply_to = reply_topic(device, broker.user)
        self._correlation = secrets.token_bytes(16)
        self._payload: bytes | None = None
        self._arrived: SimpleQueue[MQTTMessage | EdgeLLMError] = SimpleQueue()
        self._client = Client(
            CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5, client_id=""
        )
        self._client.on_connect = self._subscribe
        self._client.on_message = self._receive
        self._client.on_subscribe = self._subscribed
        if broker.user is not None:
            try:
                self._client.username_pw_set(broker.user, broker.password)
            except ValueError as error:
                raise EdgeLLMError(f"user {broker.user!r}: {error}") from None
        if (context := broker.tls_context()) is not None:
            self._client.tls_set_context(context)

    def __enter__(self) -> Conversation:
        try:
            self._client.connect(self._broker.host, self._broker.port)
        except (OSError, ValueError) as error:  # ValueError: a host that cannot be one
            reason = getattr(error, "strerror", None) or str(error)
            raise EdgeLLMError(f"cannot reach the broker {self._broker.url}: {reason}") from None
        self._client.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        # So that it is freed now.
        self._client.on_connect = self._client.on_message = self._client.on_subscribe = None

    def wait_for_device(self) -> None:
        """Until its retained status says that it is there."""
        problem = f"no device {self._device} on {self._broker.url}: is `edge-llm serve` running?"
        while True:
            message = self._next(problem)
            if message is not None and message.topic == self._topics.status:
                status = read_object(message.payload).get("status")
                if status in ("online", "busy"):
                    return
                if status == "offline":
                    problem = f"the device {self._device} is offline"

    def publish(self, payload: bytes) -> None:
        """Send the request, with the time that is left as its expiry."""
        self._payload = payload
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ResponseTopic = self._reply_to
        properties.CorrelationData = self._correlation
        properties.ContentType = "application/json"
        left = int(self._until - time.monotonic())
        properties.MessageExpiryInterval = min(max(1, left), LONGEST_EXPIRY)
        self._client.publish(self._topics.generate, payload, qos=1, properties=properties)

    def next_reply(self) -> tuple[int, dict[str, Any]]:
        """The status and the body of the next reply to our request."""
        while True:
            message = self._next(f"no answer from {self._device} in time", QUIET_SECONDS)
            if message is None:
                assert self._payload is not None  # there is no reply before the request
                self.publish(self._payload)
                continue
            properties = message.properties
            if getattr(properties, "CorrelationData", None) != self._correlation:
                continue
            status = dict(getattr(properties, "UserProperty", ())).get("status", "200")
            body = read_object(message.payload)
            if status.isdigit() and ("error" in body or "type" in body):
                return int(status), body

    def _next(self, problem: str, patience: float = math.inf) -> MQTTMessage | None:
        """The next message, None if there is none in so many seconds; ``problem`` at the end."""
        left = self._until - time.monotonic()
        try:
            arrived = self._arrived.get(timeout=max(0.0, min(patience, left)))
        except Empty:
            if patience < left:
                return None
            raise EdgeLLMError(problem) from None
        if isinstance(arrived, EdgeLLMError):
            raise arrived
        return arrived

    def _subscribe(
        self,
        client: Client,
        data: Any,
        flags: ConnectFlags,
        reason: ReasonCode,
        p: Properties | None,
    ) -> None:
        if reason.is_failure:
            refusal = f"the broker {self._broker.url} refuses us: {reason}"
            self._arrived.put(EdgeLLMError(refusal))
            return
        client.subscribe([(self._reply_to, 1), (self._topics.status, 1)])
        if self._payload is not None:
            self.publish(self._payload)

    def _subscribed(
        self, client: Client, data: Any, mid: int, reasons: list[ReasonCode], p: Properties | None
    ) -> None:
        for topic, reason in zip((self._reply_to, self._topics.status), reasons, strict=False):
            if reason.is_failure:
                refusal = f"the broker {self._broker.url} does not let us read {topic}: {reason}"
                self._arrived.put(EdgeLLMError(refusal))

    def _receive(self, client: Client, data: Any, message: MQTTMessage) -> None:
        self._arrived.put(message)


def reply_topic(device: str, user: str | None) -> str:
    """A topic for the answers to one client, below its user's name where the broker is told one.

    So a broker's rules can keep users from reading each other's answers.
    """
    own = f"{user}/" if user is not None and USER.fullmatch(user) else ""
    return f"edge-llm/{device}/response/{own}{secrets.token_hex(8)}"


def read_object(payload: bytes | bytearray) -> dict[str, Any]:
    """A JSON object; empty where a payload is none, as anyone may publish anything."""
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
