"""What comes in and goes out over MQTT, free of any client library."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from edge_llm.wire import Body, encode

Key: TypeAlias = tuple[str, bytes]  # response topic and correlation: one request of one client


@dataclass(frozen=True)
class Topics:
    """A device's own topics."""

    generate: str
    cancel: str
    status: str
    metrics: str

    @classmethod
    def of(cls, device: str) -> Topics:
        prefix = f"edge-llm/{device}"
        return cls(
            f"{prefix}/generate", f"{prefix}/cancel", f"{prefix}/status", f"{prefix}/metrics"
        )

    def __contains__(self, topic: str) -> bool:
        return topic in (self.generate, self.cancel, self.status, self.metrics)


@dataclass(frozen=True)
class Message:
    """What a client has published.

    Attributes:
        topic: where.
        payload: what.
        response_topic: MQTT 5 property, None where it is absent; as are the next three.
        correlation: Correlation Data.
        content_type: Content Type.
        expires: ``time.monotonic()`` when its Message Expiry Interval is over.
        retained: it lay at the broker when we subscribed.
    """

    topic: str
    payload: bytes
    response_topic: str | None = None
    correlation: bytes | None = None
    content_type: str | None = None
    expires: float | None = None
    retained: bool = False


@dataclass(frozen=True)
class Address:
    """Where the answers to a request go, and how their reader knows them.

    Attributes:
        topic: the response topic.
        correlation: MQTT 5 Correlation Data, given back as it came.
        id: what clients without properties have instead; given back in the body.
    """

    topic: str
    correlation: bytes | None
    id: str | None

    @property
    def key(self) -> Key:
        """The same for a request and its duplicate."""
        if self.correlation is not None:
            return self.topic, self.correlation
        return self.topic, b"" if self.id is None else self.id.encode()


@dataclass(frozen=True)
class Reply:
    """One message to a client.

    Attributes:
        address: where to.
        status: HTTP status code: a User Property, and in the body for clients that gave an id.
        body: JSON.
        expires: ``time.monotonic()`` after which the client does not want it; None for no end.
        payload: the body as it is sent.
    """

    address: Address
    status: int
    body: Body = field(repr=False)
    expires: float | None = None
    payload: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        identity = {} if self.address.id is None else {"id": self.address.id, "status": self.status}
        object.__setattr__(self, "payload", encode({**identity, **self.body}))
