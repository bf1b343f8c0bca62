"""What the MQTT service decides, without a broker: requests, duplicates, chunks, replies, waits."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_llm.mqtt.backoff import LEAST, MOST, Backoff
from edge_llm.mqtt.coalescer import Coalescer
from edge_llm.mqtt.duplicates import Duplicates
from edge_llm.mqtt.intake import (
    Asked,
    Cancel,
    Ignored,
    Refused,
    Rules,
    read_cancel,
    read_request,
)
from edge_llm.mqtt.messages import Address, Message, Reply, Topics
from edge_llm.mqtt.outbox import FIRST_RETRY, LAST_RETRY, Outbox

TOPICS = Topics.of("unit")
REPLY_TO = "edge-llm/unit/response/me"
RULES = Rules(TOPICS, ("edge-llm/unit/response/",), 4096, "smollm2")


def request(
    payload: object = None,
    response_topic: str | None = REPLY_TO,
    correlation: bytes | None = b"1",
    **more: object,
) -> Message:
    data = payload if isinstance(payload, bytes) else json.dumps(payload or {"prompt": "a"})
    data = data if isinstance(data, bytes) else data.encode()
    return Message(
        TOPICS.generate,
        data,
        response_topic,
        correlation,
        **more,  # type: ignore[arg-type]
    )


def reply(text: str = "a", expires: float | None = None, topic: str = REPLY_TO) -> Reply:
    return Reply(Address(topic, b"1", None), 200, {"text": text}, expires)


# Requests


def test_a_request_of_mqtt_5_is_known_by_its_properties() -> None:
    decision = read_request(request(expires=5.0), RULES)
    assert isinstance(decision, Asked)
    assert decision.address == Address(REPLY_TO, b"1", None)
    assert decision.address.key == (REPLY_TO, b"1")
    assert decision.expires == decision.generate.request.deadline == 5.0


def test_a_request_of_mqtt_311_is_known_by_its_fields() -> None:
    body = {"prompt": "a", "id": "é", "reply_to": REPLY_TO}
    decision = read_request(request(body, None, None), RULES)
    assert isinstance(decision, Asked)
    assert decision.address == Address(REPLY_TO, None, "é")
    assert decision.address.key == (REPLY_TO, "é".encode())
    answer = json.loads(Reply(decision.address, 200, {"type": "final"}).payload)
    assert answer == {"id": "é", "status": 200, "type": "final"}


def test_properties_come_before_fields() -> None:
    body = {"prompt": "a", "id": "x", "reply_to": "somewhere/else"}
    decision = read_request(request(body), RULES)
    assert isinstance(decision, Asked)
    assert decision.address == Address(REPLY_TO, b"1", "x")
    assert decision.address.key == (REPLY_TO, b"1")


BAD: list[tuple[Message, int, str | None]] = [
    (request(b"nonsense"), 400, None),
    (request({"prompt": 5}), 400, "prompt"),
    (request({"prompt": "a", "sugar": 1}), 400, "sugar"),
    (request({"prompt": "a", "schema": {}}), 422, "schema"),
    (request({"prompt": "a", "model": "llama"}), 404, "model"),
    (request(b" " * 5000), 413, None),
    (request(content_type="text/plain"), 400, "Content Type"),
    (request(correlation=None), 400, "Correlation Data"),
    (request(correlation=b"x" * 129), 400, "Correlation Data"),
    (request({"prompt": "a", "id": 5}), 400, "id"),
    (request({"prompt": "a", "id": ""}, correlation=None), 400, "id"),
    (request({"prompt": "a", "id": "\ud800"}), 400, "id"),
    (request({"prompt": 5, "id": "x", "reply_to": REPLY_TO}, None, None), 400, "prompt"),
]


@pytest.mark.parametrize(("message", "status", "field"), BAD, ids=range(len(BAD)))
def test_a_bad_request_is_refused_by_name(message: Message, status: int, field: str | None) -> None:
    decision = read_request(message, RULES)
    assert isinstance(decision, Refused)
    assert (decision.error.status, decision.error.field) == (status, field)
    assert decision.address.topic == REPLY_TO


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8"])
def test_json_may_say_that_it_is(kind: str) -> None:
    assert isinstance(read_request(request(content_type=kind), RULES), Asked)


def test_the_length_of_what_is_too_long_is_said() -> None:
    decision = read_request(request(b" " * 5000), RULES)
    assert isinstance(decision, Refused)
    assert str(decision.error) == "the request is 5000 bytes, the limit is 4096"


UNANSWERABLE = [
    request(response_topic=None),
    request(b"nonsense", response_topic=None),
    request({"prompt": "a", "reply_to": 5}, None, None),
    request(response_topic="edge-llm/unit/response/"),
    request(response_topic="edge-llm/other/response/me"),
    request(response_topic="edge-llm/unit/response/+"),
    request(response_topic="edge-llm/unit/response/#"),
    request(response_topic="edge-llm/unit/response/\0"),
    request(response_topic="edge-llm/unit/response/" + "x" * 2000),
    request(response_topic="edge-llm/unit/response/\x01"),  # brokers hang up on this, and on that
    request(response_topic="edge-llm/unit/response/" + "/" * 150),
    request({"prompt": "a", "reply_to": REPLY_TO + "\ud800"}, None, None),
    request(retained=True),
]


@pytest.mark.parametrize("message", UNANSWERABLE, ids=range(len(UNANSWERABLE)))
def test_what_may_not_be_answered_is_not(message: Message) -> None:
    assert isinstance(read_request(message, RULES), Ignored)


@pytest.mark.parametrize("topic", ["generate", "cancel", "status", "metrics"])
def test_the_devices_own_topics_get_no_answers(topic: str) -> None:
    rules = Rules(TOPICS, ("edge-llm/unit/",), 4096, "smollm2")
    message = request(response_topic=f"edge-llm/unit/{topic}")
    assert isinstance(read_request(message, rules), Ignored)


@given(
    st.binary(max_size=40),
    st.none() | st.text(max_size=30),
    st.none() | st.binary(max_size=8),
    st.none() | st.text(max_size=8),
)
def test_any_message_has_a_decision(
    payload: bytes, topic: str | None, correlation: bytes | None, kind: str | None
) -> None:
    for response_topic in (topic, f"edge-llm/unit/response/{topic}"):
        message = Message(TOPICS.generate, payload, response_topic, correlation, kind)
        decision = read_request(message, RULES)
        if not isinstance(decision, Ignored):
            assert decision.address.topic.startswith(RULES.response_prefixes[0])
        assert isinstance(read_cancel(message, RULES), (Cancel, Ignored))


def test_a_cancellation_means_a_correlation() -> None:
    def cancel(payload: bytes, correlation: bytes | None, topic: str | None = None) -> object:
        return read_cancel(Message(TOPICS.cancel, payload, topic, correlation), RULES)

    assert cancel(b"", b"1") == Cancel(None, b"1")
    assert cancel(b"", b"1", REPLY_TO) == Cancel(REPLY_TO, b"1")
    assert cancel(b'{"id": "x"}', None) == Cancel(None, b"x")
    assert cancel(b'{"id": "x", "reply_to": "a"}', None) == Cancel("a", b"x")
    for payload in (b"", b"nonsense", b"{}", b'{"id": 5}', b'{"id": "x", "reply_to": 5}'):
        assert isinstance(cancel(payload, None), Ignored)


# Duplicates


def test_a_reply_is_remembered_until_its_time_is_over() -> None:
    memory = Duplicates()
    key = (REPLY_TO, b"1")
    memory.remember(key, b"a", reply("first"), until=10)
    memory.remember(key, b"a", reply("second"), until=10)
    assert memory.reply(key, b"a", now=9) == reply("second")
    assert memory.reply((REPLY_TO, b"2"), b"a", now=9) is None
    assert memory.reply(key, b"b", now=9) is None  # something else was asked
    assert memory.reply(key, b"a", now=10) is None
    assert memory.reply(key, b"a", now=9) is None  # forgotten for good


def test_the_oldest_replies_are_forgotten_where_there_are_too_many() -> None:
    memory = Duplicates(max_replies=2, max_bytes=200)
    keys = [(REPLY_TO, b"%d" % i) for i in range(4)]
    for key in keys[:3]:
        memory.remember(key, b"a", reply(), until=10)
    assert [memory.reply(key, b"a", 0) is not None for key in keys] == [False, True, True, False]
    memory.remember(keys[3], b"a", reply("x" * 150), until=10)
    memory.remember(keys[0], b"a", reply("x" * 150), until=10)
    assert [memory.reply(key, b"a", 0) is not None for key in keys] == [True, False, False, False]


# Chunks


def test_the_first_piece_goes_at_once_and_the_next_are_gathered() -> None:
    chunks = Coalescer(seconds=0.1)
    assert chunks.wait(0.0) is None
    assert chunks.take(0.0) is None
    chunks.add("a")
    assert chunks.wait(0.0) == 0
    assert chunks.take(0.0) == "a"
    chunks.add("b")
    assert chunks.take(0.05) is None
    assert chunks.wait(0.05) == pytest.approx(0.05)
    chunks.add("c")
    assert chunks.take(0.1) == "bc"
    assert chunks.wait(0.1) is None
    chunks.add("d")
    assert chunks.take(0.11, last=True) == "d"
    assert chunks.take(0.11, last=True) is None
    assert chunks.count == 3


# Replies on their way


def drain(outbox: Outbox, now: float) -> list[str]:
    """Takes all that may be sent, and returns the texts; packets are numbered from 100."""
    texts: list[str] = []
    while entry := outbox.take(now):
        outbox.sent(100 + len(texts), entry)
        texts.append(entry.reply.body["text"])
    return texts


def test_a_reply_stays_until_it_is_acknowledged() -> None:
    outbox = Outbox()
    outbox.put((REPLY_TO, b"1"), reply(), until=10)
    assert drain(outbox, now=0) == ["a"]
    assert drain(outbox, now=0) == []
    outbox.lost()
    assert drain(outbox, now=0) == ["a"]
    outbox.acknowledged(99, True, now=0)  # of something else
    assert len(outbox) == 1
    outbox.acknowledged(100, True, now=0)
    assert len(outbox) == 0
    outbox.lost()
    assert drain(outbox, now=0) == []


def test_no_more_fly_than_the_broker_allows() -> None:
    outbox = Outbox()
    outbox.window = 2
    for i in range(3):
        outbox.put((REPLY_TO, b"%d" % i), reply(str(i)), until=10)
    assert drain(outbox, now=0) == ["0", "1"]
    assert outbox.next_time() == math.inf  # an acknowledgement must come first
    outbox.acknowledged(100, True, now=0)
    assert outbox.next_time() == -math.inf
    assert drain(outbox, now=0) == ["2"]


def test_nothing_is_sent_after_its_time() -> None:
    outbox = Outbox()
    outbox.put((REPLY_TO, b"1"), reply("late"), until=10)
    outbox.put((REPLY_TO, b"2"), reply("timely"), until=20)
    assert drain(outbox, now=10) == ["timely"]
    assert outbox.expired == 1
    assert len(outbox) == 1


def test_a_reply_that_nobody_hears_is_tried_again_ever_less_often() -> None:
    outbox = Outbox()
    outbox.put((REPLY_TO, b"1"), reply(), until=1000)
    now, pauses = 0.0, []
    for _ in range(12):
        assert drain(outbox, now) == ["a"]
        outbox.acknowledged(100, False, now)
        pauses.append(outbox.next_time() - now)
        assert drain(outbox, now) == []
        now = outbox.next_time()
    assert pauses[0] == FIRST_RETRY
    assert pauses[1] == 2 * FIRST_RETRY
    assert pauses[-1] == LAST_RETRY


def test_what_is_not_precious_goes_first() -> None:
    outbox = Outbox(max_replies=2)
    outbox.window = 9
    outbox.put((REPLY_TO, b"1"), reply("answer"), until=10)
    for i in range(5):
        outbox.put((REPLY_TO, b"bad %d" % i), reply(str(i)), until=10, precious=False)
    assert drain(outbox, now=0) == ["answer", "4"]
    for packet in (100, 101):
        outbox.acknowledged(packet, False, now=0)  # nobody is there
    assert drain(outbox, now=5) == ["answer"]


def test_a_newer_reply_takes_the_place_of_an_older_one() -> None:
    outbox = Outbox()
    key = (REPLY_TO, b"1")
    outbox.put(key, reply("409"), until=10, precious=False)
    assert drain(outbox, now=0) == ["409"]
    outbox.put(key, reply("final"), until=10)
    outbox.acknowledged(100, True, now=0)  # the older one's
    assert len(outbox) == 1
    assert drain(outbox, now=0) == ["final"]


def test_a_refusal_does_not_take_the_place_of_an_answer() -> None:
    outbox = Outbox()
    outbox.window = 9
    key = (REPLY_TO, b"1")
    outbox.put(key, reply("answer"), until=10)
    for text in ("400", "another 400"):
        outbox.put(key, reply(text), until=10, precious=False)
    assert drain(outbox, now=0) == ["answer", "another 400"]
    outbox.put(key, reply("newer"), until=10)
    assert len(outbox) == 1
    assert drain(outbox, now=0) == ["newer"]


def test_the_oldest_replies_are_dropped_where_there_are_too_many(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outbox = Outbox(max_replies=3, max_bytes=200)
    outbox.window = 9
    for i in range(4):
        outbox.put((REPLY_TO, b"%d" % i), reply(str(i)), until=10)
    assert outbox.dropped == 1
    outbox.put((REPLY_TO, b"9"), reply("x" * 300), until=10)  # alone it may be larger
    assert outbox.dropped == 4
    assert caplog.messages == ["too many replies wait: the oldest go"] * 2
    assert drain(outbox, now=0) == ["x" * 300]


# Waits


def test_waits_grow_and_differ() -> None:
    longest = Backoff(chance=lambda: 1.0)
    waits = [longest.next(0) for _ in range(9)]
    assert waits[:3] == [LEAST, 2 * LEAST, 4 * LEAST]
    assert waits[-1] == MOST
    shortest = Backoff(chance=lambda: 0.0)
    assert [shortest.next(0) for _ in range(9)] == [wait / 2 for wait in waits]


def test_only_a_connection_that_lasted_starts_the_waits_anew() -> None:
    backoff = Backoff(chance=lambda: 1.0)
    assert [backoff.next(1.0) for _ in range(3)] == [LEAST, 2 * LEAST, 4 * LEAST]
    assert backoff.next(MOST) == LEAST
