"""The MQTT service on a real broker, with an engine that does exactly what a test wants."""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_llm import desk as desks
from edge_llm.errors import RequestError
from edge_llm.mqtt import broker as brokers
from edge_llm.mqtt import service as services
from edge_llm.mqtt.coalescer import Coalescer
from edge_llm.mqtt.connection import Connection, PassingClient
from edge_llm.mqtt.messages import Topics
from edge_llm.request import Request
from tests.broker import Broker, certificate
from tests.fake_device import Unit, wait_until
from tests.fake_engine import WAIT
from tests.serving import DEVICE, Asker, Heard

HELLO = {"prompt": "Hello"}
TOPICS = Topics.of(DEVICE)


Start = Callable[[brokers.Broker], Unit]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts devices, and ends them after the test."""
    started: list[Unit] = []

    def start(broker: brokers.Broker) -> Unit:
        started.append(Unit(broker))
        return started[-1]

    yield start
    for unit in started:
        unit.close()


@pytest.fixture
def unit(mosquitto: Broker, start: Start) -> Unit:
    return start(brokers.Broker("127.0.0.1", mosquitto.port))


@pytest.fixture
def asker(unit: Unit, mosquitto: Broker) -> Iterator[Asker]:
    with Asker(mosquitto.port) as asker:
        asker.status("online")
        yield asker


def test_replies_carry_status_time_left_and_quality(unit: Unit, asker: Asker) -> None:
    asker.ask(HELLO, b"\0\xff", expiry=100)
    job = unit.engine.next_job()
    assert job.request.prompt == "Hello"
    assert job.request.deadline is not None
    job.accept(3)
    job.say("Par")
    job.say("is.")
    job.finish()
    accepted, *chunks, final = asker.until("final", b"\0\xff")
    assert accepted.body == {"type": "accepted", "position": 3}
    assert "".join(chunk.body["text"] for chunk in chunks) == final.body["text"] == "Paris."
    assert [reply.status for reply in (accepted, final)] == ["202", "200"]
    assert {reply.qos for reply in (accepted, *chunks)} == {0}
    assert final.qos == 1
    for reply in (accepted, *chunks, final):
        assert reply.expiry is not None
        assert 0 < reply.expiry <= 100


def test_nothing_is_said_after_the_deadline(unit: Unit, asker: Asker) -> None:
    asker.ask(HELLO, b"late", expiry=1)
    job = unit.engine.next_job()
    job.accept()
    asker.until("accepted", b"late")
    assert job.request.deadline is not None
    time.sleep(max(0.0, job.request.deadline - time.monotonic()))
    job.say("too late")
    job.finish("expired")
    asker.ask(HELLO, b"late but not late", expiry=60)
    unit.engine.next_job().finish()
    assert [r.correlation for r in _replies(asker, b"late but not late")] == [b"late but not late"]


def _replies(asker: Asker, last: bytes) -> list[Heard]:
    """Every reply to anybody up to the final one of ``last``."""
    heard: list[Heard] = []
    while not heard or heard[-1].correlation != last:
        message = asker.next()
        if "/response/" in message.topic:
            heard.append(message)
    return heard


def test_what_the_device_gives_up_is_408(unit: Unit, asker: Asker) -> None:
    asker.ask(HELLO)
    unit.engine.next_job().finish("expired")
    (error,) = asker.until("error")
    assert (error.status, error.body["error"]["type"]) == ("408", "timeout")


def test_a_full_queue_is_no_answer_and_may_be_asked_again(unit: Unit, asker: Asker) -> None:
    unit.engine.refusal = RequestError(429, "queue_full", "try again later")
    asker.ask(HELLO)
    (error,) = asker.until("error")
    assert error.status == "429"
    assert error.body["error"]["retry_after"] > 0
    unit.engine.refusal = None
    asker.ask(HELLO)
    unit.engine.next_job().finish()
    assert asker.until("final")[-1].status == "200"


def test_a_failure_amid_an_answer_is_reported(unit: Unit, asker: Asker) -> None:
    asker.ask(HELLO)
    job = unit.engine.next_job()
    job.say("Par")
    job.fail(RequestError(500, "model_error", "a step failed"))
    error = asker.until("error")[-1]
    assert (error.status, error.body["error"]["type"]) == ("500", "model_error")


def test_a_duplicate_is_told_so_or_gets_the_same_reply(unit: Unit, asker: Asker) -> None:
    asker.ask(HELLO)
    job = unit.engine.next_job()
    asker.ask(HELLO)
    assert asker.until("error")[-1].status == "409"
    asker.ask(b"nonsense", b"1")  # whatever it says
    assert asker.until("error")[-1].status == "409"
    job.say("Paris.")
    job.finish()
    first = asker.until("final")[-1]
    asker.ask(HELLO)
    assert asker.until("final")[-1].body == first.body
    assert unit.engine.asked() == 1


def test_a_request_can_be_cancelled_before_the_engine_has_it(unit: Unit, asker: Asker) -> None:
    unit.engine.gate.clear()
    asker.ask(HELLO)
    asker.ask(b"", topic=TOPICS.cancel)
    asker.ask(HELLO)
    assert asker.until("error")[-1].status == "409"  # so both were taken
    unit.engine.gate.set()
    assert unit.engine.next_job().cancelled.wait(WAIT)
    assert asker.until("final")[-1].body["finish_reason"] == "cancelled"


def test_one_client_does_not_cancel_anothers_request(unit: Unit, asker: Asker) -> None:
    asker.ask(HELLO)
    job = unit.engine.next_job()
    asker.ask(b"", topic=TOPICS.cancel, reply_to=f"edge-llm/{DEVICE}/response/other")
    asker.ask(b"", b"2", topic=TOPICS.cancel)
    asker.ask(HELLO)
    assert asker.until("error")[-1].status == "409"
    assert not job.cancelled.is_set()
    job.finish()
    assert asker.until("final")[-1].body["finish_reason"] == "stop"


def test_clients_of_mqtt_311_cancel_by_id(unit: Unit, mosquitto: Broker) -> None:
    with Asker(mosquitto.port, MQTTProtocolVersion.MQTTv311) as asker:
        asker.status("online")
        asker.ask({**HELLO, "id": "7", "reply_to": asker.reply_to})
        job = unit.engine.next_job()
        asker.ask({"id": "7"}, topic=TOPICS.cancel)
        assert job.cancelled.wait(WAIT)
        final = asker.until("final", None)[-1].body
        assert (final["id"], final["status"]) == ("7", 200)
        assert final["finish_reason"] == "cancelled"


def test_a_broker_that_was_away_gets_the_final(unit: Unit, asker: Asker, mosquitto: Broker) -> None:
    asker.ask(HELLO)
    job = unit.engine.next_job()
    job.accept()
    asker.until("accepted")
    mosquitto.stop()
    job.say("Paris.")
    job.finish()
    mosquitto.start()
    assert asker.until("final")[-1].body["text"] == "Paris."


def test_a_final_waits_for_its_subscriber(
    unit: Unit, mosquitto: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a broker's restart, when a client comes back later than the device."""
    delivered: list[bool] = []
    acknowledged = unit.service.acknowledged

    def listen(packet: int, heard: bool) -> None:
        delivered.append(heard)
        acknowledged(packet, heard)

    with Asker(mosquitto.port) as early:
        early.status("online")
    with client(mosquitto.port, []) as publisher:
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ResponseTopic = f"edge-llm/{DEVICE}/response/later"
        properties.CorrelationData = b"1"
        publisher.publish(TOPICS.generate, json.dumps(HELLO), 1, properties=properties)
        job = unit.engine.next_job()
    monkeypatch.setattr(unit.service, "acknowledged", listen)
    job.say("Paris.")
    job.finish()
    wait_until(lambda: delivered.count(False) > 1)  # the status has had nobody either
    with Asker(mosquitto.port) as late:
        assert late.until("final")[-1].body["text"] == "Paris."


def test_a_stalled_broker_costs_chunks_and_never_the_final(
    unit: Unit, asker: Asker, mosquitto: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "Coalescer", lambda: Coalescer(seconds=0))
    asker.ask(HELLO)
    job = unit.engine.next_job()
    job.accept()
    asker.until("accepted")
    piece, pieces = "x" * 65536, 400
    mosquitto.signal(signal.SIGSTOP)
    for _ in range(pieces):  # 26 MB
        job.say(piece)
    job.finish(text="short")
    mosquitto.signal(signal.SIGCONT)
    *chunks, final = asker.until("final")
    assert final.body["text"] == "short"
    assert final.body["chunks"] == pieces
    assert len(chunks) < pieces
    numbers = [chunk.body["number"] for chunk in chunks]
    assert numbers == sorted(set(numbers))


def test_a_slow_subscriber_gets_the_final(
    unit: Unit, mosquitto: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads nothing of 40 MB, in fewer messages than Mosquitto keeps for anybody."""
    monkeypatch.setattr(services, "Coalescer", lambda: Coalescer(seconds=0))
    slow = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    heard: list[MQTTMessage] = []
    slow.on_message = lambda client, data, message: heard.append(message)
    topic = f"edge-llm/{DEVICE}/response/slow"
    slow.connect("127.0.0.1", mosquitto.port)
    slow.subscribe(topic, qos=1)
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.ResponseTopic, properties.CorrelationData = topic, b"1"
    with Asker(mosquitto.port) as asker:
        asker.status("online")
        sent = slow.publish(TOPICS.generate, b'{"prompt": "Hello"}', 1, properties=properties)
        while not sent.is_published():
            slow.loop(0.1)
        job = unit.engine.next_job()
        for _ in range(600):
            job.say("x" * 65536)
        job.finish(text="short")
        asker.until("final")  # it hears the same, and is not slow
    deadline = time.monotonic() + WAIT
    while not (heard and b'"final"' in heard[-1].payload) and time.monotonic() < deadline:
        slow.loop(0.1)
    slow.disconnect()
    assert b'"text":"short"' in heard[-1].payload


def test_an_answer_that_the_broker_does_not_take_becomes_an_error(
    tmp_path: Path, start: Start
) -> None:
    with Broker(tmp_path, "max_packet_size 20000") as broker:
        unit = start(brokers.Broker("127.0.0.1", broker.port))
        with Asker(broker.port) as asker:
            asker.status("online")
            asker.ask({**HELLO, "stream": False})
            unit.engine.next_job().finish(text="x" * 30_000)
            (error,) = asker.until("error")
            assert (error.status, error.body["error"]["type"]) == ("500", "answer_too_large")


def test_it_says_how_it_is(unit: Unit, asker: Asker) -> None:
    asker.ask(HELLO)
    busy = asker.status("busy")
    assert (busy["model"], busy["artifact"]) == ("smollm2", "f" * 64)
    unit.engine.next_job().finish()
    asker.status("online")


def test_it_takes_its_leave(unit: Unit, asker: Asker) -> None:
    asker.ask(HELLO, b"running")
    job = unit.engine.next_job()
    job.accept()
    asker.until("accepted", b"running")
    unit.loop.run(unit.desk.drain(0))
    unit.loop.call(unit.service.leave)
    asker.status("offline")
    asker.ask(HELLO, b"too late")
    error = asker.until("error", b"too late")[-1]
    assert (error.status, "retry_after" in error.body["error"]) == ("503", True)
    unit.loop.run(unit.service.close())
    assert asker.until("error", b"running")[-1].status == "503"
    assert job.cancelled.is_set()


def test_metrics_are_retained(unit: Unit, asker: Asker, mosquitto: Broker) -> None:
    heard: list[MQTTMessage] = []
    with client(mosquitto.port, heard) as late:
        late.subscribe(TOPICS.metrics)
        wait_until(lambda: bool(heard))
    metrics = json.loads(heard[0].payload)
    assert heard[0].retain
    assert {"queued", "decode_tokens_per_second", "time_to_first_token_seconds"} <= set(metrics)
    assert {"resident_bytes", "temperature_celsius", "throttled"} <= set(metrics)


# paho forgets to close the socket of a TLS handshake that failed.
@pytest.mark.filterwarnings("ignore:.*unclosed <ssl:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:unclosed <ssl:ResourceWarning")
def test_a_certificate_is_shown_and_demanded(
    tmp_path: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edge_llm.mqtt")
    (tmp_path / "broker").mkdir()
    for name in ("broker", "unit"):
        certificate(tmp_path / name)
    settings = (
        f"cafile {tmp_path}/unit.pem",
        f"certfile {tmp_path}/broker.pem",
        f"keyfile {tmp_path}/broker.key",
        "require_certificate true",
    )
    with Broker(tmp_path / "broker", *settings) as broker:
        unknown = brokers.Broker("127.0.0.1", broker.port, True)
        start(unknown)
        wait_until(lambda: "certificate verify failed" in _reasons(caplog))
        assert "connected" not in caplog.messages
        known = replace(unknown, ca_file=f"{tmp_path}/broker.pem")
        start(
            replace(known, certificate_file=f"{tmp_path}/unit.pem", key_file=f"{tmp_path}/unit.key")
        )
        wait_until(lambda: "connected" in caplog.messages)


def test_a_wrong_password_is_said(
    tmp_path: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    users = tmp_path / "users"
    users.write_text("")
    with Broker(tmp_path, f"password_file {users}", "allow_anonymous false") as broker:
        start(brokers.Broker("127.0.0.1", broker.port, user="unit", password="hush"))
        wait_until(lambda: "the broker refuses us: Not authorized" in _reasons(caplog))
    assert "hush" not in caplog.text + _reasons(caplog)


def test_what_cannot_be_read_is_passed_over(
    unit: Unit, asker: Asker, mosquitto: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edge_llm.mqtt")
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.ContentType = "\ufeff"  # which paho refuses to read; brokers pass it on
    with client(mosquitto.port, []) as strange:
        for qos in (0, 1):
            for _ in range(20):  # more than may be unacknowledged
                strange.publish(TOPICS.generate, b"{}", qos, properties=properties)
        strange.publish(TOPICS.generate, b"{}", 1, properties=properties).wait_for_publish(WAIT)
    asker.ask(HELLO)
    unit.engine.next_job().finish(text="Here I am.")
    assert asker.until("final")[-1].body["text"] == "Here I am."
    assert caplog.messages.count("a publication cannot be read") == 41
    assert "no connection to the broker" not in caplog.messages


def test_what_ends_the_connection_is_not_delivered_for_ever(
    unit: Unit,
    asker: Asker,
    mosquitto: Broker,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO, "edge_llm.mqtt")
    monkeypatch.delattr(PassingClient, "_handle_publish")  # as with another paho
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.ContentType = "\ufeff"  # which paho refuses to read; brokers pass it on
    with client(mosquitto.port, []) as strange:
        strange.publish(TOPICS.generate, b"{}", 1, properties=properties).wait_for_publish(WAIT)
    wait_until(lambda: "connected" in caplog.messages)  # again
    asker.status("online")
    asker.ask(HELLO)
    unit.engine.next_job().finish(text="Here I am.")
    assert asker.until("final")[-1].body["text"] == "Here I am."
    assert caplog.messages.count("no connection to the broker") == 1


def test_a_packet_may_be_as_large_as_mqtt_has_them(mosquitto: Broker) -> None:
    with Unit(brokers.Broker("127.0.0.1", mosquitto.port), 1 << 26), Asker(mosquitto.port) as asker:
        asker.status("online")


def test_what_goes_wrong_while_it_connects_is_tried_again(
    mosquitto: Broker, start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    broker = brokers.Broker("127.0.0.1", mosquitto.port)
    rotated = start(replace(broker, tls=True, ca_file=str(tmp_path / "not yet there")))
    wait_until(lambda: "not yet there" in _reasons(caplog))
    # A broker that hangs up at once leaves paho without a socket.
    monkeypatch.setattr(Client, "connect", lambda *_, **__: None)
    reset = start(broker)
    wait_until(lambda: "the broker hangs up" in _reasons(caplog))
    assert not rotated.served.done()
    assert not reset.served.done()
    monkeypatch.undo()
    with Asker(mosquitto.port) as asker:
        asker.status("online")


def test_a_broker_that_takes_nothing_does_not_fill_the_memory(
    unit: Unit, asker: Asker, mosquitto: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[bytes] = []
    publish = Connection.publish

    def counted(self: Connection, topic: str, payload: bytes, qos: int, retain: bool) -> int:
        if topic == TOPICS.status:
            said.append(payload)
        return publish(self, topic, payload, qos, retain)

    monkeypatch.setattr(Connection, "publish", counted)
    unit.engine.refusal = RequestError(413, "request_too_large", "no")
    mosquitto.signal(signal.SIGSTOP)
    for _ in range(20):
        unit.loop.run(_refused(unit))
    mosquitto.signal(signal.SIGCONT)
    unit.engine.refusal = None
    asker.ask(HELLO)
    asker.status("busy")
    unit.engine.next_job().finish()
    asker.until("final")
    assert len(said) < 10


async def _refused(unit: Unit) -> None:
    with pytest.raises(RequestError, match="no"):
        async with unit.desk.ask(Request(prompt="Hello")):
            pass


def test_prompts_in_hand_are_bounded_together(
    unit: Unit, asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desks, "MAX_CHARACTERS", 1000)
    asker.ask({"prompt": "x" * 1001}, b"alone")  # which may be as long as any
    job = unit.engine.next_job()
    asker.ask(HELLO, b"second")
    (error,) = asker.until("error", b"second")
    assert (error.status, error.body["error"]["type"]) == ("429", "queue_full")
    job.finish()
    asker.until("final", b"alone")
    asker.ask(HELLO, b"third")
    unit.engine.next_job().finish()
    asker.until("final", b"third")


def _reasons(caplog: pytest.LogCaptureFixture) -> str:
    return " ".join(str(getattr(record, "fields", "")) for record in caplog.records)


@contextmanager
def client(port: int, heard: list[MQTTMessage]) -> Iterator[Client]:
    """A client of MQTT 5 on a thread of its own; what it receives is put into ``heard``."""
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.on_message = lambda client, data, message: heard.append(message)
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        yield client
    finally:
        client.disconnect()
        client.loop_stop()
        client.on_message = None
