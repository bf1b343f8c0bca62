"""A device on a real broker whose engine says what a test tells it to.

with Unit(Broker("127.0.0.1", mosquitto.port)) as unit:
    unit.engine.next_job().finish(text="Paris.")
"""

from __future__ import annotations

import time
from collections.abc import Callable

from edge_llm.config import Limits, Mqtt
from edge_llm.desk import Card, Desk
from edge_llm.mqtt.broker import Broker
from edge_llm.mqtt.service import Service
from tests.fake_engine import WAIT, FakeEngine, Loop
from tests.serving import DEVICE


class Unit:
    """A device on a broker, whose engine is the test's.

    Attributes:
        engine: to be told what to say.
        desk: between it and the service.
        service: connects as soon as it can.
        loop: everything runs on.
        served: done when the service has ended.
    """

    def __init__(self, broker: Broker, request_bytes: int = 4096) -> None:
        self.loop = Loop()
        self.engine = FakeEngine()
        card = Card("smollm2", "f" * 64, 512)
        self.desk = self.loop.call(lambda: Desk(self.engine, card, request_seconds=3600))
        mqtt = Mqtt(broker, (f"edge-llm/{DEVICE}/response/",))
        self.service = Service(self.desk, mqtt, DEVICE, Limits(request_bytes=request_bytes))
        self.served = self.loop.start(self.service.run())

    def __enter__(self) -> Unit:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.engine.close()
        self.loop.run(self.service.close())
        self.loop.close()


def wait_until(condition: Callable[[], bool]) -> None:
    """Looks again and again until it is so."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
