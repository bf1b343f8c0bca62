"""Small JSON settings files, read with a bound and by type."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from compile.errors import CompileError

MAX_BYTES = 256 << 20  # the largest tokenizer.json in use is an eighth of it


def read_bytes(path: Path) -> bytes:
    """The file's content; CompileError where it is missing or absurdly large."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise CompileError(f"{path.parent}: {path.name} is missing") from error
    except OSError as error:
        raise CompileError(f"{path}: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise CompileError(f"{path}: larger than {MAX_BYTES >> 20} MiB")
    return content


def read_text(path: Path) -> str:
    """The file's content as UTF-8 text."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CompileError(f"{path}: not UTF-8 at byte {error.start}") from error


class Settings:
    """A JSON object whose values are asked for by type; null counts as absent."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path = path
        self.values = {key: value for key, value in values.items() if value is not None}

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number; without a default it must be there."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, "a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number; without a default it must be there."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, "a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self._wrong(key, "a finite number")
        return number

    def text(self, key: str, default: str | None = None) -> str:
        """A string; without a default it must be there."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, "a string")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of strings; it must be there."""
        value = self._get(key, None)
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise self._wrong(key, "a list of strings")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A truth value."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def section(self, key: str) -> Settings:
        """An object within this one, empty where there is none."""
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            raise self._wrong(key, "an object")
        return Settings(self.path, value)

    def _get(self, key: str, default: object) -> object:
        value = self.values.get(key, default)
        if value is None:
            raise CompileError(f"{self.path}: {key!r} is missing")
        return value

    def _wrong(self, key: str, wanted: str) -> CompileError:
        return CompileError(f"{self.path}: {key!r} must be {wanted}")


def read_settings(path: Path) -> Settings:
    """A JSON object from a file; CompileError where it is missing or not one."""
    try:
        value = json.loads(read_bytes(path))
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise CompileError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CompileError(f"{path}: not a JSON object")
    return Settings(path, value)
