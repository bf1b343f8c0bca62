"""The device on a real broker: requests, refusals, duplicates, deadlines, lost connections."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from tests.broker import Broker
from tests.conftest import Smollm2Artifact
from tests.serving import DEVICE, Asker, Serving

QUESTION = {"prompt": "What is the capital of France?"}
ANSWER = "The capital of France is Paris."
LONG = {"prompt": "Tell a long story about the sea.", "max_tokens": 400}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture(scope="module")
def device(smollm2_artifact: Smollm2Artifact, broker: Broker) -> Iterator[Serving]:
    options = ("--mqtt", broker.url, "--device", DEVICE, "--context", "512")
    with Serving(smollm2_artifact(), *options) as serving:
        serving.wait_for("connected")
        yield serving


@pytest.fixture
def asker(device: Serving, broker: Broker) -> Iterator[Asker]:
    with Asker(broker.port) as asker:
        asker.status("online")  # it has subscribed, and is done with the test before
        yield asker


pytestmark = pytest.mark.slow


def test_request_accepted_chunks_final(asker: Asker) -> None:
    asker.ask(QUESTION)
    accepted, *chunks, final = asker.until("final")
    assert (accepted.body, accepted.status) == ({"type": "accepted", "position": 0}, "202")
    assert [c.body["number"] for c in chunks] == list(range(1, len(chunks) + 1))
    assert "".join(c.body["text"] for c in chunks) == final.body["text"] == ANSWER
    assert final.status == "200"
    assert final.body["chunks"] == len(chunks)
    assert final.body["finish_reason"] == "stop"
    assert final.body["usage"]["completion_tokens"] == 8
    assert final.body["timings"]["time_to_first_token_seconds"] > 0


def test_no_stream_is_one_reply(asker: Asker) -> None:
    asker.ask({**QUESTION, "stream": False}, b"no stream")
    accepted, final = asker.until("final", b"no stream")
    assert (accepted.body["type"], final.body["text"]) == ("accepted", ANSWER)


def test_mqtt_311_client(device: Serving, broker: Broker) -> None:
    with Asker(broker.port, MQTTProtocolVersion.MQTTv311) as asker:
        asker.ask({**QUESTION, "id": "seven", "reply_to": asker.reply_to})
        replies = asker.until("final", None)
        assert all(reply.body["id"] == "seven" for reply in replies)
        assert replies[-1].body["text"] == ANSWER
        assert replies[-1].body["status"] == 200


@pytest.mark.parametrize(
    ("payload", "status", "names"),
    [
        (b"{", "400", "JSON"),
        (b"[]", "400", "object"),
        (b'{"prompt": "x", "colour": 1}', "400", "colour"),
        (b'{"prompt": 7}', "400", "prompt"),
        (b'{"prompt": "x", "max_tokens": true}', "400", "max_tokens"),
        (b'{"prompt": "x", "temperature": NaN}', "400", "temperature"),
        (b'{"prompt": "x", "stop": [1]}', "400", "stop"),
        (b'{"messages": [{"role": "user"}]}', "400", "messages[0].content"),
        (b'{"prompt": "x", "schema": {}}', "422", "schema"),
        (b'{"prompt": "x", "model": "another"}', "404", "another"),
        (b'{"prompt": "%s"}' % (b"word " * 600), "413", "the limit is 511"),
    ],
)
def test_refusals_say_what_is_wrong(asker: Asker, payload: bytes, status: str, names: str) -> None:
    asker.ask(payload, payload[:40])
    (reply,) = asker.until("error", payload[:40])
    assert reply.status == status
    assert names in reply.body["error"]["message"]
    assert "\n" not in reply.body["error"]["message"]


def test_nothing_is_published_where_it_may_not(device: Serving, asker: Asker) -> None:
    asker.ask(QUESTION, b"a", reply_to="edge-llm/another/response/x")
    asker.ask(QUESTION, b"b", reply_to=f"edge-llm/{DEVICE}/generate")
    asker.ask(QUESTION, b"c", reply_to=None)
    asker.ask(QUESTION, b"last")
    heard = asker.until("final", b"last")
    assert heard[-1].body["text"] == ANSWER
    assert {reply.correlation for reply in heard} == {b"last"}
    assert {reply.correlation for reply in asker.rest()} <= {None}
    device.wait_for("no response topic")


def test_a_duplicate_is_answered_again_and_not_run_again(asker: Asker) -> None:
    asker.ask({**QUESTION, "temperature": 1.0}, b"twice")
    first = asker.until("final", b"twice")[-1]
    asker.ask({**QUESTION, "temperature": 1.0}, b"twice")
    (again,) = asker.until("final", b"twice")  # no accepted, no chunk
    assert again.body == first.body


def test_another_question_under_the_same_correlation_is_answered_itself(asker: Asker) -> None:
    asker.ask(QUESTION, b"reused")
    first = asker.until("final", b"reused")[-1]
    asker.ask({**QUESTION, "prompt": "2 + 2 is", "raw": True, "max_tokens": 3}, b"reused")
    assert asker.until("final", b"reused")[-1].body["text"] != first.body["text"]


def test_a_duplicate_of_a_running_request_is_409(asker: Asker) -> None:
    asker.ask(LONG, b"running")
    asker.until("chunk", b"running")
    asker.ask(LONG, b"running")
    assert asker.until("error", b"running")[-1].status == "409"
    assert asker.until("final", b"running")[-1].body["finish_reason"] in ("stop", "length")


def test_cancel(asker: Asker) -> None:
    asker.ask(LONG, b"cancelled")
    asker.until("chunk", b"cancelled")
    asker.ask(b"", b"cancelled", topic=f"edge-llm/{DEVICE}/cancel")
    final = asker.until("final", b"cancelled")[-1]
    assert final.body["finish_reason"] == "cancelled"
    assert final.body["usage"]["completion_tokens"] < 400


def test_nothing_follows_the_deadline(asker: Asker) -> None:
    """One second for an answer of which the first part alone takes longer."""
    for i in range(2):
        asker.ask(LONG, b"before%d" % i)
    asker.ask(LONG, b"late", expiry=1)
    for i in range(2):
        asker.until("final", b"before%d" % i)
    asker.ask(QUESTION, b"after")
    replies = [asker.next()]
    while replies[-1].correlation != b"after" or replies[-1].body.get("type") != "final":
        replies.append(asker.next())
    assert not [r for r in replies if r.correlation == b"late" and r.body["type"] == "final"]


def test_status_is_retained_and_the_will_says_offline(
    smollm2_artifact: Smollm2Artifact, broker: Broker
) -> None:
    options = ("--mqtt", broker.url, "--device", "killed")
    for number, status in ((signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)):
        with (
            Serving(smollm2_artifact(), *options) as serving,
            Asker(broker.port, device="killed") as asker,
        ):
            online = asker.status("online")
            assert set(online) == {"status", "boot", "model", "artifact"}
            assert serving.stop(number) == status
            assert asker.status("offline")["boot"] == online["boot"]


def test_a_broker_that_comes_late(smollm2_artifact: Smollm2Artifact, mosquitto: Broker) -> None:
    mosquitto.stop()
    options = ("--mqtt", mosquitto.url, "--device", DEVICE)
    with Serving(smollm2_artifact(), *options) as serving:
        line = serving.wait_for("no connection to the broker")
        assert "retry_seconds" in line
        mosquitto.start()
        with Asker(mosquitto.port) as asker:
            asker.status("online")
            asker.ask(QUESTION)
            assert asker.until("final")[-1].body["text"] == ANSWER


def test_an_accepted_request_survives_the_broker(
    smollm2_artifact: Smollm2Artifact, mosquitto: Broker
) -> None:
    """The broker dies amid an answer; the final comes when it, and then the client, is back."""
    options = ("--mqtt", mosquitto.url, "--device", DEVICE, "--context", "1024")
    with Serving(smollm2_artifact(), *options) as serving, Asker(mosquitto.port) as asker:
        asker.status("online")  # it has subscribed
        asker.ask({**LONG, "max_tokens": 300}, b"survivor", expiry=120)
        asker.until("chunk", b"survivor")
        mosquitto.stop()
        serving.wait_for("no connection to the broker")
        mosquitto.start()
        final = asker.until("final", b"survivor")[-1]
        assert final.body["usage"]["completion_tokens"] <= 300
        assert final.body["finish_reason"] in ("stop", "length")
        assert final.body["text"]
