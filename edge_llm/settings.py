"""Settings from a TOML file, with options of the command line over them, each checked once.

>>> file = {"http": {"listen": "127.0.0.1:1"}}
>>> settings = Settings(file, "edge-llm.toml", {"threads": ("--threads", 4)})
>>> settings.text("http.listen"), settings.integer("threads", None, 1, 64)
('127.0.0.1:1', 4)
>>> settings.integer("sequences", 1, 1, 64)
1

Keys are dotted paths. Whatever was never asked for is unknown, and an error. Values are not
quoted in messages: they may be secrets, or lead to one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

from edge_llm.errors import ConfigError

MAX_FILE = 1 << 20  # bytes

T = TypeVar("T")


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        ConfigError: it cannot be read, is larger than 1 MiB, or is not TOML.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > MAX_FILE:
        raise ConfigError(f"{path}: is larger than {MAX_FILE} bytes")
    if sys.version_info >= (3, 11):  # here: most starts read no such file
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # as are TOMLDecodeError, UnicodeDecodeError
        raise ConfigError(f"{path}: is not TOML: {str(error).splitlines()[0]}") from None


class Settings:
    """Values by dotted key.

    Args:
        values: of the file.
        source: its name, for messages; None where there is no file: options are all there is.
        options: by key the option's name and its value; None is one that was not given.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        source: str | None,
        options: Mapping[str, tuple[str, object]],
    ) -> None:
        self._values: dict[str, object] = dict(_flat(values))
        self._options: dict[str, str] = {}
        self._prefix = "" if source is None else f"{source}: "
        for key, (name, value) in options.items():
            if value is not None:
                self._values[key] = value
            if value is not None or source is None:
                self._options[key] = name
        self._asked: set[str] = set()

    def label(self, key: str) -> str:
        """How a message begins that is about the key: as an option, or with its file."""
        return self._options.get(key, self._prefix + key)

    def name(self, key: str) -> str:
        """How a message names the key beside another one."""
        return self._options.get(key, key.rpartition(".")[2])

    def given(self, table: str) -> bool:
        """Whether any key of a table has a value."""
        return any(key == table or key.startswith(f"{table}.") for key in self._values)

    def text(self, key: str) -> str | None:
        """A string that is not empty, or None where none is given."""
        value = self._take(key, None)
        if value is not None and (not isinstance(value, str) or not value or "\0" in value):
            raise ConfigError(f"{self.label(key)}: must be a string, and not an empty one")
        return value

    def texts(self, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
        """A list of 1 to 16 strings."""
        value = self._take(key, list(default))
        if (
            not isinstance(value, list)
            or not 1 <= len(value) <= 16
            or not all(isinstance(item, str) for item in value)
        ):
            raise ConfigError(f"{self.label(key)}: must be a list of 1 to 16 strings")
        return tuple(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._take(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.label(key)}: must be true or false")
        return value

    @overload
    def integer(self, key: str, default: int, low: int, high: int) -> int: ...
    @overload
    def integer(self, key: str, default: None, low: int, high: int) -> int | None: ...
    def integer(self, key: str, default: int | None, low: int, high: int) -> int | None:
        """An integer between two bounds, both included."""
        value = self._take(key, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ConfigError(f"{self.label(key)}: must be an integer from {low} to {high}")
        return value

    def refuse_unknown(self) -> None:
        """Call it last: whatever has not been asked for by then is an error."""
        unknown = sorted(set(self._values) - self._asked)
        if unknown:
            table = unknown[0].rpartition(".")[0]
            known = sorted(
                key.rpartition(".")[2] for key in self._asked if key.rpartition(".")[0] == table
            )
            advice = f" (known here: {', '.join(known)})" if known else ""
            raise ConfigError(f"{self.label(unknown[0])}: unknown key{advice}")

    def _take(self, key: str, default: object) -> Any:
        self._asked.add(key)
        return self._values.get(key, default)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    """Dotted keys and their values; an empty table has none."""
    found: list[tuple[str, object]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((prefix + key, value))
    return found
