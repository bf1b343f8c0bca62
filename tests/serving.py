"""``edge-llm serve`` as a process of its own, and an MQTT client that asks it."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

DEVICE = "unit"
WAIT = 60.0  # seconds, for anything; the machine may be busy


class Serving:
    """The device runtime while the block lasts; ``log`` grows with what it says."""

    def __init__(self, artifact: Path, *options: str) -> None:
        command = [sys.executable, "-m", "edge_llm.cli", "serve", str(artifact), *options]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.log: list[str] = []
        self._said = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_for(self, text: str) -> str:
        """The first line of the log that holds ``text``."""
        with self._said:
            self._said.wait_for(
                lambda: any(text in line for line in self.log) or not self._reader.is_alive(), WAIT
            )
        lines = [line for line in self.log if text in line]
        assert lines, f"no {text!r} in: {''.join(self.log)}"
        return lines[0]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit status after a signal."""
        self.process.send_signal(number)
        return self.process.wait(WAIT)

    def __enter__(self) -> Serving:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._said:
                self.log.append(line)
                self._said.notify_all()
        with self._said:
            self._said.notify_all()


@dataclass(frozen=True)
class Heard:
    """A message as a client got it."""

    topic: str
    body: dict[str, Any]
    status: str | None
    correlation: bytes | None
    expiry: int | None
    qos: int


class Asker:
    """An IoT client: publishes requests, hears everything about the device."""

    def __init__(
        self,
        port: int,
        protocol: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv5,
        device: str = DEVICE,
    ) -> None:
        self._status_topic = f"edge-llm/{device}/status"
        self.reply_to = f"edge-llm/{DEVICE}/response/asker"
        self._v5 = protocol == MQTTProtocolVersion.MQTTv5
        self._heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()
        self._ready = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=protocol)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._client.reconnect_delay_set(1, 1)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._ready.wait(WAIT)

    def ask(
        self,
        payload: bytes | dict[str, Any],
        correlation: bytes | None = b"1",
        *,
        reply_to: str | None = "",
        expiry: int | None = None,
        topic: str = f"edge-llm/{DEVICE}/generate",
    ) -> None:
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if self._v5:
            target = self.reply_to if reply_to == "" else reply_to
            if target is not None:
                properties.ResponseTopic = target
            if correlation is not None:
                properties.CorrelationData = correlation
            if expiry is not None:
                properties.MessageExpiryInterval = expiry
        self._client.publish(topic, data, qos=1, properties=properties if self._v5 else None)

    def next(self, seconds: float = WAIT) -> Heard:
        return self._heard.get(timeout=seconds)

    def rest(self, seconds: float = 0.5) -> list[Heard]:
        """What still comes, until nothing has come for so long."""
        heard: list[Heard] = []
        with suppress(queue.Empty):
            while True:
                heard.append(self.next(seconds))
        return heard

    def until(self, kind: str, correlation: bytes | None = b"1") -> list[Heard]:
        """Replies up to the first of this kind: accepted, chunk, final or error."""
        deadline = time.monotonic() + WAIT
        replies: list[Heard] = []
        while True:
            heard = self.next(deadline - time.monotonic())
            if "/response/" not in heard.topic or heard.correlation != correlation:
                continue
            replies.append(heard)
            if kind in (heard.body.get("type"), "error" if "error" in heard.body else None):
                return replies

    def status(self, said: str) -> dict[str, Any]:
        """Wait for the device to say this of itself."""
        deadline = time.monotonic() + WAIT
        while True:
            heard = self.next(deadline - time.monotonic())
            if heard.topic.endswith("/status") and heard.body["status"] == said:
                return heard.body

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        # Without them nothing goes in circles, and paho's own sockets are closed now.
        self._client.on_connect = self._client.on_subscribe = self._client.on_message = None

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _on_connect(self, *_: Any) -> None:
        self._client.subscribe([("edge-llm/+/response/#", 1), (self._status_topic, 1)])

    def _on_subscribe(
        self, client: Client, data: Any, mid: int, reasons: list[ReasonCode], p: Properties | None
    ) -> None:
        self._ready.set()

    def _on_message(self, client: Client, data: Any, message: MQTTMessage) -> None:
        properties = message.properties
        heard = Heard(
            message.topic,
            json.loads(message.payload),
            dict(getattr(properties, "UserProperty", ())).get("status"),
            getattr(properties, "CorrelationData", None),
            getattr(properties, "MessageExpiryInterval", None),
            message.qos,
        )
        self._heard.put(heard)
