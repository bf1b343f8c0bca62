"""What other people's exceptions say, in one line."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of an exception's message that says something, else its type's name."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
