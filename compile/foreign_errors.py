"""Other people's exceptions, said in one line of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from compile.errors import CompileError


def first_line(error: BaseException) -> str:
    """The first line of an exception's message that says something, else its type's name."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn whatever a library raises in this block into a CompileError beginning with ``what``.

    For libraries written in Rust, which raise plain ``Exception`` and, where they panic, a
    ``BaseException`` of a class that cannot be imported.
    """
    try:
        yield
    except CompileError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise CompileError(f"{what}: {first_line(error)}") from error
        raise
