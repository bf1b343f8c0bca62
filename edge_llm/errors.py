"""What can go wrong, in one screen: every message is one line saying what, where and what to do.

Foreign exceptions are translated into these at the boundary where they appear; the command line
prints the message after ``error:`` and exits with 1, a transport sends :meth:`RequestError.body`.
"""

from __future__ import annotations


class EdgeLLMError(Exception):
    """Anything this package reports to a user; ``str()`` is the whole message."""


class ArtifactError(EdgeLLMError):
    """A model file that is cut short, altered, of another version, or not an artifact at all."""


class TargetError(EdgeLLMError):
    """An artifact compiled for a CPU that this machine is not."""


class ConfigError(EdgeLLMError):
    """A setting that is unknown, of the wrong type or out of range."""


class RequestError(EdgeLLMError):
    """A request that is refused or has failed.

    Args:
        status: an HTTP status code, on every transport.
        kind: a short machine-readable name, the ``type`` on the wire.
        message: one line for a person.
        field: the request's field at fault, if it is one.
    """

    def __init__(self, status: int, kind: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.field = field

    def body(self) -> dict[str, dict[str, str]]:
        """The error as the wire carries it: ``{"error": {"type", "message"[, "field"]}}``."""
        error = {"type": self.kind, "message": str(self)}
        if self.field is not None:
            error["field"] = self.field
        return {"error": error}
