"""What is asked of a model: one request, checked once, the same for every transport.

A transport hands over what it parsed; types and ranges are checked here, so that a wrong
``temperature`` gets the same answer over MQTT, over the socket and from Python::

    Request(prompt="What is the capital of France?", sampling=Sampling(temperature=0.7, seed=1))
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from edge_llm.errors import RequestError

ROLES = ("system", "user", "assistant")
MAX_MESSAGES = 1024
MAX_STOPS = 16  # stop strings of one request
MAX_STOP_CHARACTERS = 256  # of one stop string; so much text may be held back
MAX_PRIORITY = 100

Message: TypeAlias = Mapping[str, str]  # {"role": one of ROLES, "content": text}


def _bad(name: str, message: str) -> RequestError:
    return RequestError(400, "invalid_request", message, name)


def _check_number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _bad(name, f"{name} must be a number")
    if not low <= value <= high:  # so is NaN, which compares with nothing
        raise _bad(name, f"{name} must be {_span(low, high)}, not {_shown(value)}")


def _check_integer(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _bad(name, f"{name} must be an integer")
    if not low <= value <= high:
        raise _bad(name, f"{name} must be {_span(low, high)}, not {_shown(value)}")


def _shown(value: float) -> str:
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    return str(value)


def _span(low: float, high: float) -> str:
    if low == -math.inf:
        return "a number"
    return f"at least {low}" if high == math.inf else f"between {low} and {high}"


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; the default is greedy.

    Attributes:
        temperature: 0 takes the likeliest token; 1 samples the model's own distribution.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens that together hold this probability; 1 keeps all.
        min_p: drop tokens less likely than this share of the likeliest; 0 drops none.
        repetition_penalty: over 1 makes tokens seen before less likely, under 1 more.
        seed: the same seed gives the same text on every machine; None draws a fresh one.

    Raises:
        RequestError: 400, naming the field that has a wrong type or is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature, 0, 100)
        _check_integer("top_k", self.top_k, 0, math.inf)
        _check_number("top_p", self.top_p, 0, 1)
        _check_number("min_p", self.min_p, 0, 1)
        _check_number("repetition_penalty", self.repetition_penalty, 0.01, 100)
        if self.seed is not None:
            _check_integer("seed", self.seed, -(2**63), 2**64 - 1)


@dataclass(frozen=True)
class Request:
    """One text to generate, from a prompt or from the messages of a conversation.

    Attributes:
        prompt: the text; put into the chat template as one user message unless ``raw``.
        messages: the conversation instead of a prompt, oldest first.
        raw: the prompt goes to the model as it is, special tokens in it included.
        max_tokens: tokens to generate at most; None goes on to the end of the context.
        sampling: how tokens are drawn.
        stop: texts that end the answer; they are not part of it.
        deadline: ``time.monotonic()`` after which nothing is started nor continued.
        priority: among waiting requests the largest is served first.

    Raises:
        RequestError: 400, naming the field that has a wrong type or is out of range.
    """

    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    raw: bool = False
    max_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    deadline: float | None = None
    priority: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.raw, bool):
            raise _bad("raw", "raw must be true or false")
        self._check_text()
        if self.max_tokens is not None:
            _check_integer("max_tokens", self.max_tokens, 1, math.inf)
        self._check_stop()
        if self.deadline is not None:
            _check_number("deadline", self.deadline, -math.inf, math.inf)
        _check_integer("priority", self.priority, -MAX_PRIORITY, MAX_PRIORITY)

    @property
    def characters(self) -> int:
        """Of the prompt, or of all messages."""
        return len(self.prompt or "") + sum(len(m["content"]) for m in self.messages or ())

    def _check_text(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise _bad("prompt", "give either prompt or messages")
        if self.messages is None:
            if not isinstance(self.prompt, str):
                raise _bad("prompt", "prompt must be a string")
            _check_encodable("prompt", self.prompt)
            return
        if self.raw:
            raise _bad("raw", "raw goes with prompt, not with messages")
        if not isinstance(self.messages, (tuple, list)):
            raise _bad("messages", "messages must be a list")
        if not 1 <= len(self.messages) <= MAX_MESSAGES:
            raise _bad("messages", f"messages must hold 1 to {MAX_MESSAGES} messages")
        for index, message in enumerate(self.messages):
            _check_message(f"messages[{index}]", message)

    def _check_stop(self) -> None:
        if not isinstance(self.stop, (tuple, list)):
            raise _bad("stop", "stop must be a list of strings")
        if len(self.stop) > MAX_STOPS:
            raise _bad("stop", f"stop holds {len(self.stop)} strings, the limit is {MAX_STOPS}")
        for text in self.stop:
            if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_CHARACTERS:
                raise _bad("stop", f"each stop must be 1 to {MAX_STOP_CHARACTERS} characters")


def _check_message(name: str, message: object) -> None:
    if not isinstance(message, Mapping):
        raise _bad(name, f"{name} must be an object with role and content")
    unknown = sorted(str(key) for key in message if key not in ("role", "content"))
    if unknown:
        raise _bad(f"{name}.{unknown[0]}", f"{name} has the unknown field {unknown[0]}")
    if message.get("role") not in ROLES:
        raise _bad(f"{name}.role", f"{name}.role must be one of {', '.join(ROLES)}")
    content = message.get("content")
    if not isinstance(content, str):
        raise _bad(f"{name}.content", f"{name}.content must be a string")
    _check_encodable(f"{name}.content", content)


def _check_encodable(name: str, text: str) -> None:
    # JSON can carry half a surrogate pair, which is no character and has no UTF-8.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _bad(name, f"{name} has half a surrogate pair at {error.start}") from None
