"""What travels: any bytes are a request or an error that says what is wrong with them."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_llm import wire
from edge_llm.errors import RequestError
from edge_llm.events import Finished
from edge_llm.request import Request

FINISHED = Finished("Grüße, 世界", "stop", 5, 3, 0.25, 0.5, 0.25)


def read(fields: object) -> wire.Generate:
    return wire.read_generate(json.dumps(fields).encode())


def refused(data: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        wire.read_generate(data)
    return caught.value


def test_every_field_arrives() -> None:
    generate = read(
        {
            "prompt": "Hello",
            "raw": True,
            "max_tokens": 7,
            "temperature": 0.5,
            "top_k": 40,
            "top_p": 0.9,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "seed": -1,
            "stop": ["\n", "."],
            "priority": 3,
            "model": "smollm2",
            "stream": False,
            "id": "1",
            "reply_to": "a/b",
        }
    )
    request = generate.request
    assert (generate.stream, generate.model) == (False, "smollm2")
    assert (request.prompt, request.raw, request.max_tokens) == ("Hello", True, 7)
    assert (request.stop, request.priority) == (("\n", "."), 3)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.5, 40, 0.9)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.seed) == (0.1, 1.1, -1)


def test_the_least_request_is_greedy_and_streamed() -> None:
    assert read({"prompt": "Hello"}) == wire.Generate(Request(prompt="Hello"), True, None)


def test_null_is_not_given() -> None:
    generate = read({"prompt": "Hello", "messages": None, "seed": None, "stop": None})
    assert generate.request == Request(prompt="Hello")


def test_one_stop_need_not_be_a_list() -> None:
    assert read({"prompt": "Hello", "stop": "\n"}).request.stop == ("\n",)


def test_messages_are_a_conversation() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert read({"messages": messages}).request.messages == tuple(messages)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b'{"prompt": 5}', "prompt"),
        (b'{"prompt": "a", "messages": []}', "prompt"),
        (b"{}", "prompt"),
        (b'{"messages": {}}', "messages"),
        (b'{"messages": []}', "messages"),
        (b'{"messages": [5]}', "messages[0]"),
        (b'{"messages": [{"role": "king", "content": "a"}]}', "messages[0].role"),
        (b'{"messages": [{"role": "user", "content": null}]}', "messages[0].content"),
        (b'{"messages": [{"role": "user", "content": "a", "x": 1}]}', "messages[0].x"),
        (b'{"prompt": "a", "raw": 1}', "raw"),
        (b'{"prompt": "a", "max_tokens": true}', "max_tokens"),
        (b'{"prompt": "a", "max_tokens": 0}', "max_tokens"),
        (b'{"prompt": "a", "max_tokens": 1.0}', "max_tokens"),
        (b'{"prompt": "a", "temperature": "0"}', "temperature"),
        (b'{"prompt": "a", "temperature": true}', "temperature"),
        (b'{"prompt": "a", "temperature": NaN}', "temperature"),
        (b'{"prompt": "a", "temperature": 1e999}', "temperature"),
        (b'{"prompt": "a", "top_p": -0.1}', "top_p"),
        (b'{"prompt": "a", "top_p": Infinity}', "top_p"),
        (b'{"prompt": "a", "top_k": -1}', "top_k"),
        (b'{"prompt": "a", "seed": 99999999999999999999}', "seed"),
        (b'{"prompt": "a", "stop": [""]}', "stop"),
        (b'{"prompt": "a", "stop": 5}', "stop"),
        (b'{"prompt": "a", "priority": 1000}', "priority"),
        (b'{"prompt": "a", "stream": 1}', "stream"),
        (b'{"prompt": "a", "model": []}', "model"),
        (b'{"prompt": "a", "sugar": 1}', "sugar"),
        (b'{"prompt": "a", "seed": 1, "seed": 2}', "seed"),
        (b'{"prompt": "\\ud800"}', "prompt"),
    ],
    ids=str,
)
def test_an_error_names_the_field(data: bytes, field: str) -> None:
    error = refused(data)
    assert (error.status, error.field) == (400, field)
    assert field.split("[")[0] in str(error)


@pytest.mark.parametrize(
    "data",
    [b"", b"nonsense", b"[]", b'"prompt"', b"\xff", b'{"prompt": "a"', b"[" * 100_000],
    ids=lambda data: repr(data[:12]),
)
def test_what_is_no_json_object_is_said_in_one_line(data: bytes) -> None:
    error = refused(data)
    assert (error.status, error.kind) == (400, "invalid_json")
    assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["schema", "grammar"])
def test_constraints_are_not_for_this_build(name: str) -> None:
    error = refused(json.dumps({"prompt": "a", name: {}}).encode())
    assert (error.status, error.field) == (422, name)
    assert "not supported by this build" in str(error)


def test_another_model_is_not_here() -> None:
    wire.check_model(None, "smollm2")
    wire.check_model("smollm2", "smollm2")
    with pytest.raises(RequestError, match="no model llama here, only smollm2") as caught:
        wire.check_model("llama", "smollm2")
    assert caught.value.status == 404


FIELDS = st.dictionaries(
    st.sampled_from(sorted(wire.FIELDS)) | st.text(max_size=3),
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.lists(st.text(max_size=2) | st.integers(), max_size=2)
    | st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": st.text()}), max_size=2),
    max_size=4,
)


@given(st.binary(max_size=64) | FIELDS.map(lambda fields: json.dumps(fields).encode()))
@example(b'{"prompt": "a", "max_tokens": %d}' % 10**4000)
@example(b'{"prompt": "a", "temperature": -%d}' % 10**4000)
@example(b'{"prompt": "a", "top_k": 1%s}' % (b"0" * 10_000))
@example(b'{"prompt": "a", "\\udc00": 1}')
@example(b'{"prompt": "a", "%s": 1}' % (b"x" * 100_000))
@example(b'{"prompt": "a"}' + b" " * 1000)
def test_any_bytes_are_a_request_or_an_error_that_can_be_sent(data: bytes) -> None:
    try:
        generate = wire.read_generate(data)
    except RequestError as error:
        body = wire.encode(wire.error_body(error))
    else:
        assert isinstance(generate.request, Request)
        return
    assert len(body) < 4000
    assert set(json.loads(body)["error"]) <= {"type", "message", "field"}


def test_bodies_are_compact_utf8() -> None:
    assert wire.encode(wire.accepted_body(2)) == b'{"type":"accepted","position":2}'
    chunk = wire.encode(wire.chunk_body(1, "Grüße"))
    assert chunk == '{"type":"chunk","number":1,"text":"Grüße"}'.encode()


def test_a_final_stands_on_its_own() -> None:
    body = json.loads(wire.encode(wire.final_body(FINISHED, 2)))
    assert body == {
        "type": "final",
        "text": "Grüße, 世界",
        "chunks": 2,
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
        "timings": {
            "queue_seconds": 0.25,
            "prefill_seconds": 0.5,
            "decode_seconds": 0.25,
            "time_to_first_token_seconds": 0.75,
            "decode_tokens_per_second": 8.0,
        },
    }


def test_an_answer_of_one_token_has_no_rate() -> None:
    one = Finished("a", "length", 5, 1, 0.0, 0.5, 0.0)
    assert wire.timings(one)["decode_tokens_per_second"] == 0


def test_an_error_is_one_short_line_whatever_it_quotes() -> None:
    with pytest.raises(RequestError) as caught:
        wire.read_generate(b'{"a\\n\\u001b[31m\\ud800": 1}')
    body = wire.error_body(caught.value)["error"]
    for name in ("message", "field"):
        assert body[name].isprintable()
        assert "a\N{REPLACEMENT CHARACTER}" in body[name]
    long = wire.error_body(RequestError(400, "invalid_request", "x" * 1000, "y" * 1000))
    assert len(long["error"]["message"]) == len(long["error"]["field"]) == 500


@pytest.mark.parametrize(("status", "later"), [(429, True), (503, True), (400, False)])
def test_a_full_queue_says_when_to_come_again(status: int, later: bool) -> None:
    body = wire.error_body(RequestError(status, "a_type", "a message"))
    assert ("retry_after" in body["error"]) == later
