"""Reads what clients publish and decides what it is: pure, message in, decision out.

read_request(message, rules)     # Asked, Refused with an error for the client, or Ignored
read_cancel(message, rules)      # the keys it may mean
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TypeAlias, TypeGuard

from edge_llm.errors import RequestError
from edge_llm.mqtt.messages import Address, Message, Topics
from edge_llm.wire import (
    MAX_ID,
    Fields,
    Generate,
    brief,
    check_model,
    decode,
    generate_of,
    invalid,
)

MAX_TOPIC = 1024  # bytes of a response topic
MAX_LEVELS = 100  # of a response topic; Mosquitto hangs up on who publishes to one of over 200


@dataclass(frozen=True)
class Rules:
    """What requests are held to.

    Attributes:
        topics: the device's own, which no answer may go to.
        response_prefixes: what a response topic must begin with.
        request_bytes: of a payload.
        model: the name of what is served.
    """

    topics: Topics
    response_prefixes: tuple[str, ...]
    request_bytes: int
    model: str


@dataclass(frozen=True)
class Asked:
    """A request to be answered.

    Attributes:
        digest: SHA-256 of the message: one with the same address and another digest is no
            duplicate, whatever its client believes.
    """

    address: Address
    generate: Generate
    expires: float | None
    digest: bytes


@dataclass(frozen=True)
class Refused:
    """A request that gets an error."""

    address: Address
    error: RequestError
    expires: float | None


@dataclass(frozen=True)
class Ignored:
    """A message that gets no answer, and why."""

    reason: str


@dataclass(frozen=True)
class Cancel:
    """A request that is no longer wanted; without a topic whoever's it is."""

    topic: str | None
    correlation: bytes


Decision: TypeAlias = Asked | Refused | Ignored


def read_request(message: Message, rules: Rules) -> Decision:
    """What a message on the topic ``generate`` asks for."""
    if message.retained:
        return Ignored("a retained request is nobody's")
    fields: Fields = {}
    error: RequestError | None = None
    try:
        check_payload(message, rules.request_bytes)
        fields = decode(message.payload)
    except RequestError as unreadable:
        error = unreadable
    address = address_of(message, fields)
    if address is None:
        return Ignored("no response topic")
    if not may_answer(address.topic, rules):
        return Ignored("the response topic is not one that answers may go to")
    try:
        if error is not None:
            raise error
        check_identity(message, fields)
        generate = generate_of(fields, message.expires)
        check_model(generate.model, rules.model)
    except RequestError as refused:
        return Refused(address, refused, message.expires)
    return Asked(address, generate, message.expires, hashlib.sha256(message.payload).digest())


def read_cancel(message: Message, rules: Rules) -> Cancel | Ignored:
    """Which request a message on the topic ``cancel`` means."""
    if message.retained:
        return Ignored("a retained cancellation is nobody's")
    if message.correlation is not None:
        return Cancel(message.response_topic, message.correlation)
    try:
        check_payload(message, rules.request_bytes)
        fields = decode(message.payload)
    except RequestError as error:
        return Ignored(f"a cancellation without correlation data: {error.kind}")
    id, topic = fields.get("id"), fields.get("reply_to")
    if not is_id(id) or not (topic is None or isinstance(topic, str)):
        return Ignored("a cancellation without correlation data or id")
    return Cancel(topic, id.encode())


def check_payload(message: Message, limit: int) -> None:
    """413 or 400 before anything is parsed."""
    size = len(message.payload)
    if size > limit:
        raise RequestError(
            413, "request_too_large", f"the request is {size} bytes, the limit is {limit}"
        )
    kind = (message.content_type or "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        error = f"the content type is {brief(kind)}, it must be application/json"
        raise RequestError(400, "invalid_request", error, "Content Type")


def address_of(message: Message, fields: Fields) -> Address | None:
    """Where to answer: by the properties of MQTT 5, else by ``reply_to`` and ``id``."""
    topic = message.response_topic
    if topic is None:
        reply_to = fields.get("reply_to")
        topic = reply_to if isinstance(reply_to, str) else None
    if topic is None:
        return None
    id = fields.get("id")
    correlation = message.correlation
    if correlation is not None and len(correlation) > MAX_ID:
        correlation = None  # it is refused, see check_identity
    return Address(topic, correlation, id if is_id(id) else None)


def check_identity(message: Message, fields: Fields) -> None:
    """400 where a client could not tell an answer from another."""
    if message.correlation is not None and len(message.correlation) > MAX_ID:
        raise invalid("Correlation Data", f"correlation data must be at most {MAX_ID} bytes")
    if "id" in fields and not is_id(fields["id"]):
        raise invalid("id", f"id must be a string of 1 to {MAX_ID} characters")
    if message.correlation is None and "id" not in fields:
        raise invalid("Correlation Data", "the request has neither correlation data nor an id")


def is_id(value: object) -> TypeGuard[str]:
    """Whether a value can identify a request in JSON."""
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_ID:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in value)


def may_answer(topic: str, rules: Rules) -> bool:
    """Whether answers may be published on a topic that a client has named."""
    try:
        size = len(topic.encode())
    except UnicodeEncodeError:
        return False
    return (
        size <= MAX_TOPIC
        and not set(topic) & set("+#")
        and topic.isprintable()  # a broker may hang up on control characters
        and topic.count("/") <= MAX_LEVELS
        and topic not in rules.topics
        and any(topic.startswith(p) and topic != p for p in rules.response_prefixes)
    )
