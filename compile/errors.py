"""What the compiler reports to its user: one line saying what, where and what to do."""

from __future__ import annotations


class CompileError(Exception):
    """Any failure that the user can act on; ``str()`` is the whole message."""


class UnsupportedError(CompileError):
    """A model, tensor type or setting that is well-formed but not supported; it is named."""
