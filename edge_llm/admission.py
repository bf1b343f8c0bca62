"""What is refused before it is queued: a prompt that the context cannot hold, or that is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edge_llm.errors import RequestError
from edge_llm.request import Request


def check_bytes(request: Request, limit: int, longest: Callable[[], int]) -> None:
    """Refuses before tokenizing what would not fit if all its tokens were the longest.

    Args:
        request: whose text is measured, in UTF-8.
        limit: tokens.
        longest: bytes of the longest token; asked where tokens of one byte would not fit.

    Raises:
        RequestError: 413, with length and limit.
    """
    texts = [message["content"] for message in request.messages or ()]
    size = sum(len(text.encode()) for text in (*texts, request.prompt or ""))
    if size > limit and size > limit * longest():
        raise _too_long(f"prompt is {size} bytes, the limit is {limit * longest()}")


def check_tokens(ids: Sequence[int], limit: int, vocab_size: int) -> None:
    """Refuses a prompt without tokens, with too many, or with some that the model does not have.

    Raises:
        RequestError: 400, or 413 with length and limit.
    """
    if len(ids) == 0:
        raise RequestError(400, "invalid_request", "the prompt has no tokens", "prompt")
    if len(ids) > limit:
        raise _too_long(f"prompt is {len(ids)} tokens, the limit is {limit}")
    wrong = next((token for token in ids if not 0 <= token < vocab_size), None)
    if wrong is not None:
        message = f"the prompt has token {wrong}, the model has 0 to {vocab_size - 1}"
        raise RequestError(400, "invalid_request", message, "prompt")


def _too_long(message: str) -> RequestError:
    return RequestError(413, "prompt_too_long", message)
