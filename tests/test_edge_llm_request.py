"""Requests: whatever a transport hands over is checked once, and a wrong field is named."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from edge_llm.errors import RequestError
from edge_llm.request import Request, Sampling

HELLO = [{"role": "user", "content": "Hello"}]


def test_what_is_right_is_taken_as_it_is() -> None:
    request = Request(
        messages=({"role": "system", "content": ""}, *HELLO, {"role": "assistant", "content": "é"}),
        max_tokens=1,
        sampling=Sampling(0.5, 40, 0.9, 0.05, 1.1, -1),
        stop=("\n", "é😀"),
        deadline=12.5,
        priority=-100,
    )
    assert request.messages is not None
    assert len(request.messages) == 3
    assert Request(prompt="").prompt == ""
    assert Sampling() == Sampling(0, 0, 1, 0, 1, None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.1}, "temperature must be between 0 and 100, not -0.1"),
        ({"temperature": math.nan}, "temperature must be between 0 and 100, not nan"),
        ({"temperature": math.inf}, "temperature must be between 0 and 100, not inf"),
        ({"temperature": "1"}, "temperature must be a number"),
        ({"temperature": True}, "temperature must be a number"),
        ({"temperature": None}, "temperature must be a number"),
        ({"top_k": -1}, "top_k must be at least 0, not -1"),
        ({"top_k": 1.5}, "top_k must be an integer"),
        ({"top_p": 1.01}, "top_p must be between 0 and 1, not 1.01"),
        ({"min_p": -1}, "min_p must be between 0 and 1, not -1"),
        ({"repetition_penalty": 0}, "repetition_penalty must be between 0.01 and 100, not 0"),
        ({"seed": 2**64}, f"seed must be between {-(2**63)} and {2**64 - 1}, not {2**64}"),
        ({"seed": False}, "seed must be an integer"),
    ],
)
def test_a_wrong_sampling_setting_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        Sampling(**fields)
    assert str(caught.value) == message
    assert (caught.value.status, caught.value.field) == (400, next(iter(fields)))


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({}, "prompt", "give either prompt or messages"),
        ({"prompt": "a", "messages": HELLO}, "prompt", "give either prompt or messages"),
        ({"prompt": 3}, "prompt", "prompt must be a string"),
        ({"prompt": "a\ud83d"}, "prompt", "prompt has half a surrogate pair at 1"),
        ({"messages": "Hello"}, "messages", "messages must be a list"),
        ({"messages": []}, "messages", "messages must hold 1 to 1024 messages"),
        ({"messages": HELLO * 1025}, "messages", "messages must hold 1 to 1024 messages"),
        ({"messages": HELLO, "raw": True}, "raw", "raw goes with prompt, not with messages"),
        (
            {"messages": ["Hello"]},
            "messages[0]",
            "messages[0] must be an object with role and content",
        ),
        (
            {"messages": [*HELLO, {"role": "root\n", "content": "x"}]},
            "messages[1].role",
            "messages[1].role must be one of system, user, assistant",
        ),
        (
            {"messages": [{"role": "user"}]},
            "messages[0].content",
            "messages[0].content must be a string",
        ),
        (
            {"messages": [{"role": "user", "content": "\udc00"}]},
            "messages[0].content",
            "messages[0].content has half a surrogate pair at 0",
        ),
        (
            {"messages": [{"role": "user", "content": "a", "name": "b"}]},
            "messages[0].name",
            "messages[0] has the unknown field name",
        ),
        ({"prompt": "a", "raw": 1}, "raw", "raw must be true or false"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens", "max_tokens must be at least 1, not 0"),
        ({"prompt": "a", "max_tokens": 1.0}, "max_tokens", "max_tokens must be an integer"),
        ({"prompt": "a", "stop": "\n"}, "stop", "stop must be a list of strings"),
        ({"prompt": "a", "stop": [""]}, "stop", "each stop must be 1 to 256 characters"),
        ({"prompt": "a", "stop": ["x" * 257]}, "stop", "each stop must be 1 to 256 characters"),
        ({"prompt": "a", "stop": [3]}, "stop", "each stop must be 1 to 256 characters"),
        ({"prompt": "a", "stop": ["x"] * 17}, "stop", "stop holds 17 strings, the limit is 16"),
        ({"prompt": "a", "deadline": "soon"}, "deadline", "deadline must be a number"),
        (
            {"prompt": "a", "deadline": math.nan},
            "deadline",
            "deadline must be a number, not nan",
        ),
        (
            {"prompt": "a", "priority": 101},
            "priority",
            "priority must be between -100 and 100, not 101",
        ),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        Request(**fields)
    assert str(caught.value) == message
    assert caught.value.body() == {
        "error": {"type": "invalid_request", "message": message, "field": field}
    }
    json.dumps(caught.value.body())


def test_a_number_of_any_size_is_answered_in_one_line() -> None:
    """JSON's integers have no limit, and their digits would fill a page."""
    for value in (10**4000, -(10**4000)):
        with pytest.raises(RequestError, match=r"not a number of 13288 bits"):
            Sampling(temperature=value)
        with pytest.raises(RequestError, match=r"not a number of 13288 bits"):
            Sampling(seed=value)
    assert Request(prompt="a", max_tokens=10**4000).max_tokens == 10**4000
