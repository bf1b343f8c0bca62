"""What travels: requests read from JSON, and the bodies of everything that is answered.

Pure functions between bytes and dataclasses, the same for MQTT and, where the OpenAI API leaves
room, for HTTP. Nothing is taken on trust: a field that is unknown, given twice, of the wrong type
or out of range is a RequestError that names it::

    asked = read_generate(b'{"prompt": "What is the capital of France?", "max_tokens": 32}')
    encode(accepted_body(position=0))       # b'{"type":"accepted","position":0}'

A generation request has ``prompt`` or ``messages``, and any of ``raw``, ``max_tokens``,
``temperature``, ``top_k``, ``top_p``, ``min_p``, ``repetition_penalty``, ``seed``, ``stop``,
``priority`` (as :class:`edge_llm.request.Request` has them), ``model``, ``stream`` (true unless it
says false) and, for clients without MQTT 5 properties, ``id`` and ``reply_to``. A field that is
null counts as not given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from edge_llm.errors import RequestError
from edge_llm.events import Finished
from edge_llm.request import Request, Sampling

Fields: TypeAlias = Mapping[str, object]
Body: TypeAlias = dict[str, Any]

MAX_MESSAGE = 500  # characters of an error message, which may quote the request
MAX_ID = 128  # characters of an id, bytes of correlation data
RETRY_AFTER = 5  # seconds, where the queue is full

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
REQUEST = ("prompt", "messages", "raw", "max_tokens", "stop", "priority")
CONSTRAINED = ("schema", "grammar")  # known, and not something this build can do
TRANSPORT = ("model", "stream", "id", "reply_to")
FIELDS = frozenset((*SAMPLING, *REQUEST, *CONSTRAINED, *TRANSPORT))


@dataclass(frozen=True)
class Generate:
    """A generation request.

    Attributes:
        request: what the engine is asked.
        stream: whether text is wanted before the whole answer is there.
        model: the model it is meant for; None means whichever is served.
    """

    request: Request
    stream: bool
    model: str | None


# Requests


def decode(data: bytes) -> dict[str, object]:
    """The JSON object in ``data``, without its null fields.

    Raises:
        RequestError: 400 where it is no JSON object in UTF-8, or has a field twice.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        reason = str(error).splitlines()[0]
        raise RequestError(400, "invalid_json", f"the request is not JSON: {reason}") from None
    if not isinstance(value, dict):
        raise RequestError(400, "invalid_json", "the request is not a JSON object")
    return {name: item for name, item in value.items() if item is not None}


def read_generate(data: bytes, deadline: float | None = None) -> Generate:
    """:func:`decode` and :func:`generate_of` in one."""
    return generate_of(decode(data), deadline)


def generate_of(fields: Fields, deadline: float | None = None) -> Generate:
    """The generation request in a decoded JSON object.

    Args:
        fields: of the object.
        deadline: ``time.monotonic()`` after which nothing is started nor continued.

    Raises:
        RequestError: 400 naming the field at fault, 422 for a constraint on the answer.
    """
    for name in fields:
        if name not in FIELDS:
            raise invalid(name, f"{brief(name)} is not a field of a request")
    for name in CONSTRAINED:
        if name in fields:
            message = f"{name} is not supported by this build: ask without it"
            raise RequestError(422, "unsupported", message, name)
    stream, model = fields.get("stream", True), fields.get("model")
    if not isinstance(stream, bool):
        raise invalid("stream", "stream must be true or false")
    if model is not None and not isinstance(model, str):
        raise invalid("model", "model must be a string")
    return Generate(request_of(fields, deadline), stream, model)


def request_of(fields: Fields, deadline: float | None = None) -> Request:
    """The engine's request in those ``fields`` that are its own; others are not looked at.

    Raises:
        RequestError: 400 naming the field at fault.
    """
    sampling = {name: fields[name] for name in SAMPLING if name in fields}
    request = {name: fields[name] for name in REQUEST if name in fields}
    for name in ("stop", "messages"):
        value = request.get(name)
        if isinstance(value, list):
            request[name] = tuple(value)
        elif name == "stop" and isinstance(value, str):
            request[name] = (value,)
    # Types are checked by the two, whatever they are handed.
    given: dict[str, Any] = {**request, "sampling": Sampling(**sampling)}  # type: ignore[arg-type]
    return Request(**given, deadline=deadline)


def check_model(asked: str | None, served: str) -> None:
    """404 where a request is meant for another model."""
    if asked is not None and asked != served:
        message = f"there is no model {brief(asked)} here, only {served}"
        raise RequestError(404, "model_not_found", message, "model")


def invalid(field: str, message: str) -> RequestError:
    """A 400 that names the field at fault."""
    return RequestError(400, "invalid_request", message, field)


def brief(text: str) -> str:
    """A name from a request, short enough for a message."""
    return text if len(text) <= 64 else text[:64] + "…"


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for name, value in pairs:
        if name in result:
            raise invalid(brief(name), f"{brief(name)} is given twice")
        result[name] = value
    return result


# Answers


def accepted_body(position: int) -> Body:
    """The request waits behind ``position`` others."""
    return {"type": "accepted", "position": position}


def chunk_body(number: int, text: str) -> Body:
    """The next piece of the answer; ``number`` counts from 1."""
    return {"type": "chunk", "number": number, "text": text}


def final_body(finished: Finished, chunks: int) -> Body:
    """The whole answer, which stands on its own even if every chunk was lost."""
    return {
        "type": "final",
        "text": finished.text,
        "chunks": chunks,
        "finish_reason": finished.reason,
        "usage": usage(finished),
        "timings": timings(finished),
    }


def error_body(error: RequestError) -> Body:
    """What was wrong, in one short line, whatever it quotes of the request."""
    body: Body = {"error": {name: one_line(text) for name, text in error.body()["error"].items()}}
    if error.status in (429, 503):
        body["error"]["retry_after"] = RETRY_AFTER
    return body


def one_line(text: str) -> str:
    """A text that fits into a message, without what a terminal would take for more than text."""
    shown = (c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:MAX_MESSAGE])
    return "".join(shown)


def usage(finished: Finished) -> dict[str, int]:
    """Tokens that were read and written, named as the OpenAI API does."""
    return {
        "prompt_tokens": finished.prompt_tokens,
        "completion_tokens": finished.completion_tokens,
        "total_tokens": finished.prompt_tokens + finished.completion_tokens,
    }


def timings(finished: Finished) -> dict[str, float]:
    """Seconds, to the microsecond, and tokens per second after the first; 0 where there is none."""
    later = max(finished.completion_tokens - 1, 0)
    rate = later / finished.decode_seconds if finished.decode_seconds > 0 else 0.0
    figures = {
        "queue_seconds": finished.queue_seconds,
        "prefill_seconds": finished.prefill_seconds,
        "decode_seconds": finished.decode_seconds,
        "time_to_first_token_seconds": finished.queue_seconds + finished.prefill_seconds,
        "decode_tokens_per_second": rate,
    }
    return {name: round(value, 6) for name, value in figures.items()}


def encode(body: Body) -> bytes:
    """Compact JSON in UTF-8."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    # What a message quotes may hold half a surrogate pair; \udc00 is how JSON writes one.
    return text.encode("utf-8", "backslashreplace")
