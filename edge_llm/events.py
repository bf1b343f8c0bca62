"""What a request's submitter is told: Accepted, any number of Text, then one Finished or Failed.

Events are handed over on the engine's thread, in order; whoever takes them must not block::

    def on_event(event: Event) -> None:
        if isinstance(event, Text):
            outbox.put_nowait(event.text)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from edge_llm.errors import RequestError

Reason: TypeAlias = Literal["stop", "length", "cancelled", "expired"]


@dataclass(frozen=True)
class Accepted:
    """The request is in the queue.

    Attributes:
        position: requests that will be started before it; 0 is next.
    """

    position: int


@dataclass(frozen=True)
class Text:
    """The next piece of the answer: whole characters, never empty, never part of a stop string.

    Attributes:
        text: what follows the pieces before.
        tokens: tokens generated so far, those of this piece included.
    """

    text: str
    tokens: int


@dataclass(frozen=True)
class Finished:
    """The answer is over.

    Attributes:
        text: all of it, the concatenation of every :class:`Text`.
        reason: ``stop`` (the model's end token or a stop string), ``length`` (``max_tokens`` or
            the end of the context), ``cancelled``, or ``expired`` (its deadline has passed).
        prompt_tokens: tokens of the prompt, the chat template's included.
        completion_tokens: tokens generated, the end token included.
        queue_seconds: from when its tokens were known until its first pass over the weights.
        prefill_seconds: from then until the first token.
        decode_seconds: from the first token to the last.
    """

    text: str
    reason: Reason
    prompt_tokens: int
    completion_tokens: int
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float


@dataclass(frozen=True)
class Failed:
    """The request cannot be answered.

    Attributes:
        error: why, as every transport reports it.
    """

    error: RequestError


Event: TypeAlias = Accepted | Text | Finished | Failed
