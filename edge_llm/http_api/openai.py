"""OpenAI's requests read into ours, and our answers put into OpenAI's shape. Pure functions.

Fields that change what an answer means and that this build cannot do (tools, several choices, log
probabilities) are refused by name; so is every unknown field. ``top_k``, ``min_p``
and ``repetition_penalty`` are ours, and go into the client's ``extra_body``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from edge_llm.errors import RequestError
from edge_llm.events import Finished
from edge_llm.request import Request
from edge_llm.wire import Body, Fields, brief, error_body, invalid, request_of, usage

COMPLETION_TOKENS = 16  # what OpenAI's /v1/completions gives when max_tokens is not said

OURS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop")
# Accepted where they say what would happen anyway.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "echo": (False,),
    "store": (False,),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),  # with no tools to choose from
    "parallel_tool_calls": (True, False),
}
# About the client, not about the answer.
IGNORED = ("user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key")
COMMON = frozenset(
    (*OURS, *NEUTRAL, *IGNORED, "model", "stream", "stream_options", "max_tokens", "priority")
)
CHAT_FIELDS = COMMON | {"messages", "max_completion_tokens"}
COMPLETION_FIELDS = COMMON | {"prompt"}


@dataclass(frozen=True)
class Asked:
    """One OpenAI request.

    Attributes:
        request: what the engine is asked.
        model: the name that the client gave.
        stream: whether the answer is sent as it comes.
        include_usage: whether the stream ends with token counts.
    """

    request: Request
    model: str | None
    stream: bool
    include_usage: bool


def read_chat(fields: Fields) -> Asked:
    """The body of /v1/chat/completions; RequestError 400 names the field at fault."""
    _check_known(fields, CHAT_FIELDS)
    if "max_tokens" in fields and "max_completion_tokens" in fields:
        raise invalid("max_tokens", "give max_tokens or max_completion_tokens, not both")
    asked: dict[str, object] = {name: fields[name] for name in OURS if name in fields}
    limit = fields.get("max_completion_tokens", fields.get("max_tokens"))
    if limit is not None:
        asked["max_tokens"] = limit
    messages = fields.get("messages")
    if not isinstance(messages, list):
        raise invalid("messages", "messages must be a list")
    asked["messages"] = [_message(f"messages[{i}]", m) for i, m in enumerate(messages)]
    return _asked(fields, asked)


def read_completion(fields: Fields) -> Asked:
    """The body of /v1/completions: the prompt goes to the model as it is."""
    _check_known(fields, COMPLETION_FIELDS)
    asked: dict[str, object] = {name: fields[name] for name in OURS if name in fields}
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise invalid("prompt", "prompt must be one string")
    asked |= {"prompt": prompt, "raw": True}
    asked["max_tokens"] = fields.get("max_tokens", COMPLETION_TOKENS)
    return _asked(fields, asked)


def _asked(fields: Fields, asked: Fields) -> Asked:
    stream, options = fields.get("stream", False), fields.get("stream_options", {})
    model = fields.get("model")
    if not isinstance(stream, bool):
        raise invalid("stream", "stream must be true or false")
    if not isinstance(options, dict) or set(options) - {"include_usage", "include_obfuscation"}:
        raise invalid("stream_options", "stream_options may hold include_usage")
    include_usage = options.get("include_usage", False)
    if not isinstance(include_usage, bool):
        raise invalid("stream_options", "stream_options.include_usage must be true or false")
    if model is not None and not isinstance(model, str):
        raise invalid("model", "model must be a string")
    if "priority" in fields:
        asked = {**asked, "priority": fields["priority"]}
    return Asked(request_of(asked), model, stream, include_usage)


def _check_known(fields: Fields, known: frozenset[str]) -> None:
    for name, value in fields.items():
        if name not in known:
            raise invalid(brief(name), f"{brief(name)} is not a field of this request")
        if name in NEUTRAL and not any(_same(value, neutral) for neutral in NEUTRAL[name]):
            only = json.dumps(NEUTRAL[name][0])
            raise invalid(name, f"{name} is not supported by this build, except as {only}")


def _same(value: object, neutral: object) -> bool:
    # To Python, 1 is True; to the API, a number of log probabilities is not the wish for them.
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _message(name: str, message: object) -> object:
    """A message with its parts of text joined and OpenAI's newer name of a role made the older."""
    if not isinstance(message, dict):
        return message  # refused by Request, by name
    # Answers that a client sends back have every field of an answer, most of them null.
    result = {key: value for key, value in message.items() if value is not None}
    content = result.get("content")
    if isinstance(content, list):
        result["content"] = "".join(_text(f"{name}.content[{i}]", p) for i, p in enumerate(content))
    if result.get("role") == "developer":
        result["role"] = "system"
    return result


def _text(name: str, part: object) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        text: str = part["text"]
        return text
    raise invalid(name, f"{name} must be a part of the type text")


@dataclass(frozen=True)
class Shape:
    """How one answer is written: OpenAI's chat completions and completions differ here.

    Attributes:
        chat: which of the two it is.
        id: of the answer.
        created: seconds since 1970.
        model: its name.
    """

    chat: bool
    id: str
    created: int
    model: str

    def whole(self, finished: Finished) -> Body:
        """The answer in one piece."""
        message = {"role": "assistant", "content": finished.text}
        said = {"message": message} if self.chat else {"text": finished.text}
        kind = "chat.completion" if self.chat else "text_completion"
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason_of(finished)}
        return {**self._head(kind), "choices": [choice], "usage": usage(finished)}

    def chunk(self, text: str | None, finished: Finished | None = None) -> Body:
        """A piece of a stream; its first has no text, its last has a reason."""
        delta: dict[str, Any] = {} if text is None else {"content": text}
        if text is None and finished is None:
            delta = {"role": "assistant", "content": ""}
        said = {"delta": delta} if self.chat else {"text": text or ""}
        reason = None if finished is None else reason_of(finished)
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
        return {**self._head(self._chunk_kind), "choices": [choice]}

    def usage_chunk(self, finished: Finished) -> Body:
        """Token counts behind the last piece."""
        return {**self._head(self._chunk_kind), "choices": [], "usage": usage(finished)}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _head(self, kind: str) -> Body:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def reason_of(finished: Finished) -> str:
    """``stop`` or ``length``: the two that OpenAI's clients know."""
    return "length" if finished.reason == "length" else "stop"


def expired() -> RequestError:
    """The error of an answer that took too long."""
    return RequestError(408, "timeout", "the answer took longer than this service allows")


def openai_error(error: RequestError) -> Body:
    """An error as OpenAI's clients read it."""
    inner = error_body(error)["error"]
    return {
        "error": {
            "message": inner["message"],
            "type": inner["type"],
            "param": inner.get("field"),
            "code": inner["type"],
        }
    }
