"""OpenAI's requests read into ours: what is taken, what is refused, and by which name."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_llm.errors import RequestError
from edge_llm.events import Finished
from edge_llm.http_api.openai import Shape, openai_error, read_chat, read_completion
from edge_llm.wire import decode

USER = {"role": "user", "content": "Hello"}
FINISHED = Finished("Hi.", "length", 5, 3, 0.0, 0.1, 0.2)


def test_a_chat_becomes_a_request() -> None:
    asked = read_chat(
        {
            "model": "smollm2",
            "messages": [{"role": "developer", "content": "Be brief."}, USER],
            "max_completion_tokens": 7,
            "temperature": 0.5,
            "seed": 1,
            "stop": "\n",
            "stream": True,
            "stream_options": {"include_usage": True},
            "user": "somebody",
        }
    )
    assert (asked.model, asked.stream, asked.include_usage) == ("smollm2", True, True)
    request = asked.request
    assert request.messages == ({"role": "system", "content": "Be brief."}, USER)
    assert (request.max_tokens, request.stop, request.raw) == (7, ("\n",), False)
    assert (request.sampling.temperature, request.sampling.seed) == (0.5, 1)


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    asked = read_chat({"messages": [{"role": "user", "content": parts}]})
    assert asked.request.messages == (USER,)


def test_an_answer_can_be_sent_back_as_it_came() -> None:
    """With the fields that OpenAI's client dumps: null where the model said nothing of the kind."""
    answer = {
        "role": "assistant",
        "content": "Hi.",
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }
    asked = read_chat({"messages": [USER, answer, USER]})
    assert asked.request.messages == (USER, {"role": "assistant", "content": "Hi."}, USER)


def test_a_completion_goes_on_with_the_prompt_as_it_is() -> None:
    for prompt in ("Once", ["Once"]):
        request = read_completion({"prompt": prompt}).request
        assert (request.prompt, request.raw, request.max_tokens) == ("Once", True, 16)
    assert read_completion({"prompt": "Once", "max_tokens": 99}).request.max_tokens == 99


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1},
        {"presence_penalty": 0, "frequency_penalty": 0.0},
        {"logprobs": False},
        {"tools": [], "tool_choice": "none", "parallel_tool_calls": True},
        {"response_format": {"type": "text"}},
        {"logit_bias": {}},
        {"store": False, "service_tier": "auto"},
    ],
    ids=str,
)
def test_what_changes_nothing_is_taken(fields: dict[str, object]) -> None:
    assert read_chat({"messages": [USER], **fields}).request.messages == (USER,)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 0}, "logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"functions": []}, "functions"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"sugar": 1}, "sugar"),
        ({"prompt": "a"}, "prompt"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"x": 1}}, "stream_options"),
        ({"stream_options": {"include_usage": 1}}, "stream_options"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"temperature": float("nan")}, "temperature"),
        ({"model": 1}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": ["Hello"]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{**USER, "tool_calls": []}]}, "messages[0].tool_calls"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0]",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, object], name: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_chat({"messages": [USER], **fields})
    assert (caught.value.status, caught.value.field) == (400, name)


@pytest.mark.parametrize("prompt", [None, 5, [], ["a", "b"], [1, 2], {}], ids=str)
def test_a_completion_has_one_prompt(prompt: object) -> None:
    with pytest.raises(RequestError) as caught:
        read_completion({} if prompt is None else {"prompt": prompt})
    assert (caught.value.status, caught.value.field) == (400, "prompt")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.sampled_from(
            ["messages", "prompt", "max_tokens", "stop", "n", "stream", "stream_options", "seed"]
        ),
        JSON,
    )
)
def test_any_fields_are_a_request_or_an_error_that_names_one(fields: dict[str, object]) -> None:
    body = decode(json.dumps(fields).encode())
    for read in (read_chat, read_completion):
        with contextlib.suppress(RequestError):
            read(body)
            continue
        with pytest.raises(RequestError) as caught:  # the same error again
            read(body)
        assert caught.value.status == 400
        assert caught.value.field


def test_answers_have_openais_shape() -> None:
    chat, text = Shape(True, "id", 1, "m"), Shape(False, "id", 1, "m")
    whole = chat.whole(FINISHED)
    assert whole["object"] == "chat.completion"
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": "Hi."}
    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    assert text.whole(FINISHED)["choices"][0]["text"] == "Hi."
    assert chat.chunk("Hi")["choices"][0]["delta"] == {"content": "Hi"}
    assert chat.chunk(None, FINISHED)["choices"][0]["delta"] == {}
    assert text.chunk("Hi")["choices"][0]["text"] == "Hi"
    assert chat.usage_chunk(FINISHED)["choices"] == []


def test_errors_have_openais_shape() -> None:
    error = openai_error(RequestError(400, "invalid_request", "n is wrong", "n"))
    assert error == {
        "error": {
            "message": "n is wrong",
            "type": "invalid_request",
            "param": "n",
            "code": "invalid_request",
        }
    }
    long = openai_error(RequestError(400, "invalid_request", "too long", "n" * 1000))
    assert len(long["error"]["param"]) == 500
