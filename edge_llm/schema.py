"""Reads JSON into frozen dataclasses and takes nothing on trust.

A key that is unknown, missing, given twice or of the wrong type is an error that names it, and so
is a number out of range or a string that would not print on one line. A field with a default may be
missing. What is allowed stands in
the dataclass itself:

>>> @dataclass(frozen=True)
... class Board:
...     name: Text
...     cores: Annotated[int, Range(1, 64)]
>>> build(Board, load(b'{"name": "rpi5", "cores": 4}'))
Board(name='rpi5', cores=4)
>>> build(Board, load(b'{"name": "rpi5", "cores": 0}'))
Traceback (most recent call last):
edge_llm.errors.ArtifactError: cores: must be an integer from 1 to 64, not 0
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin
from typing import get_type_hints as type_hints

from edge_llm.errors import ArtifactError

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """Bounds of an integer, both included."""

    low: int
    high: int


@dataclass(frozen=True)
class Pattern:
    """What the whole of a string must match."""

    regex: str
    description: str


@dataclass(frozen=True)
class Length:
    """The most items a list may have."""

    high: int


Count = Annotated[int, Range(1, 2**31 - 1)]
Bytes = Annotated[int, Range(0, 2**48)]  # far above any board, far below overflow in a sum
Text = Annotated[str, Pattern(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{0,500}", "one line")]
Name = Annotated[str, Pattern(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}", "a plain name")]
Digest = Annotated[str, Pattern(r"[0-9a-f]{64}", "64 hexadecimal digits")]


def load(data: bytes) -> dict[str, object]:
    """The JSON object in ``data``: UTF-8, no key twice, no NaN."""
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ArtifactError(f"is not valid JSON ({str(error).splitlines()[0]})") from None
    if not isinstance(value, dict):
        raise ArtifactError("is not a JSON object")
    return value


def build(cls: type[T], value: object, key: str = "") -> T:
    """The dataclass ``cls`` from a JSON object; ArtifactError names the key at fault.

    ``key`` is where the object stands in a larger one.
    """
    result = _read(cls, value, key)
    assert isinstance(result, cls)
    return result


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key {_brief(key)} is given twice")
            seen.add(key)
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _read(kind: Any, value: Any, key: str) -> Any:
    """``value`` as the type ``kind``; ``key`` is the path to it, for messages."""
    if dataclasses.is_dataclass(kind):
        return _read_object(kind, value, key)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _read_bounded(arguments[0], arguments[1], value, key)
    if origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in arguments):
            allowed = " or ".join(json.dumps(choice) for choice in arguments)
            _refuse(key, f"must be {allowed}", value)
        return value
    if origin in (Union, types.UnionType):  # only "X | None" is used
        return None if value is None else _read(arguments[0], value, key)
    if origin is tuple:  # only "tuple[X, ...]" is used
        if type(value) is not list:
            _refuse(key, "must be a list", value)
        return tuple(_read(arguments[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    if type(value) is not kind:  # exact: a bool is not an int
        names = {int: "an integer", str: "a string", bool: "true or false", float: "a decimal"}
        _refuse(key, f"must be {names[kind]}", value)
    if kind is float and not math.isfinite(value):  # JSON has no infinity, but it has 1e999
        _refuse(key, "must be finite", value)
    return value


def _read_object(kind: Any, value: Any, key: str) -> Any:
    if type(value) is not dict:
        _refuse(key, "must be an object", value)
    hints = type_hints(kind, include_extras=True)
    prefix = f"{key}." if key else ""
    if unknown := next((name for name in value if name not in hints), None):
        raise ArtifactError(f"{prefix}{_brief(unknown)[1:-1]}: unknown key")
    needed = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]
    if missing := next((name for name in needed if name not in value), None):
        raise ArtifactError(f"{prefix}{missing}: missing")
    return kind(**{name: _read(hints[name], value[name], prefix + name) for name in value})


def _read_bounded(kind: Any, bound: Range | Pattern | Length, value: Any, key: str) -> Any:
    if isinstance(bound, Range):
        if type(value) is not int or not bound.low <= value <= bound.high:
            _refuse(key, f"must be an integer from {bound.low} to {bound.high}", value)
        return value
    result = _read(kind, value, key)
    if isinstance(bound, Pattern) and re.fullmatch(bound.regex, result) is None:
        _refuse(key, f"must be {bound.description}", value)
    if isinstance(bound, Length) and len(result) > bound.high:
        raise ArtifactError(f"{key}: must have at most {bound.high} items, not {len(result)}")
    return result


def _refuse(key: str, expected: str, value: object) -> NoReturn:
    raise ArtifactError(f"{key}: {expected}, not {_brief(value)}")


def _brief(value: object) -> str:
    """``value`` as JSON, short enough for a message."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, str):
        value = value[:40]
    text = json.dumps(value)
    return text if len(text) <= 44 else text[:40] + "…"
