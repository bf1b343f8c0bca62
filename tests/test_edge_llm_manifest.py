"""The manifest: what is read back is what was written, and nothing else is taken for one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_llm.errors import ArtifactError
from edge_llm.manifest import Entry, Manifest, Memory, Weights
from tests.sample_artifact import sample_manifest

ENTRY = Entry(name="code.so", offset=0, size=0, sha256="0" * 64, crc32=0)
SAMPLE: dict[str, Any] = json.loads(sample_manifest(entries=(ENTRY,)).dump())


def key_paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*path, key)
            yield from key_paths(item, (*path, key))
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield (*path, index)
            yield from key_paths(item, (*path, index))


PATHS = list(key_paths(SAMPLE))


def changed(path: tuple[Any, ...], value: Any) -> bytes:
    """The sample's JSON with one value replaced."""
    document = json.loads(json.dumps(SAMPLE))
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return json.dumps(document).encode()


def format_1(**numerics: Any) -> bytes:
    """The sample's JSON in format 1, with some of its numerics replaced."""
    old = {"version": 1, "weights": "int4", "group": 32, "symmetric": False, "head": "int8"}
    old |= {"activations": "int8", "kv": "int8", **numerics}
    return json.dumps({**SAMPLE, "format": 1, "numerics": old}).encode()


def spelled(path: tuple[Any, ...]) -> str:
    """A key's path as messages spell it: ``tensors[0].shape``."""
    parts = [f"[{key}]" if isinstance(key, int) else f".{key}" for key in path]
    return "".join(parts).removeprefix(".")


def refusal(document: bytes) -> str:
    with pytest.raises(ArtifactError) as caught:
        Manifest.parse(document)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    return message


def test_round_trip_and_equal_bytes() -> None:
    manifest = sample_manifest()
    assert Manifest.parse(manifest.dump()) == manifest
    assert Manifest.parse(manifest.dump()).dump() == manifest.dump()


def test_null_license_and_names_in_any_language() -> None:
    model = replace(sample_manifest().model, license=None, name="Modèle 模型")
    manifest = sample_manifest(model=model)
    assert Manifest.parse(manifest.dump()) == manifest


@pytest.mark.parametrize("path", PATHS, ids=spelled)
def test_wrong_type_names_the_key(path: tuple[Any, ...]) -> None:
    values: tuple[Any, ...] = (1.5, -1, [[]], {"x": 1}, "line\nbreak", 2**80)
    for value in values[path[-1] == "norm_eps" :]:  # which is a decimal
        assert refusal(changed(path, value)).startswith(spelled(path))


def test_bool_is_no_integer_and_integer_no_bool() -> None:
    assert "model.layers: must be an integer from 1" in refusal(changed(("model", "layers"), True))
    assert "format: must be 1 or 2 or 3, not true" in refusal(changed(("format",), True))
    assert "numerics.symmetric: must be true or false, not 1" in refusal(format_1(symmetric=1))


OPTIONAL = ("prefill_threads", "decode_threads", "norm_eps", "rope_frequencies")


@pytest.mark.parametrize(
    "path",
    [path for path in PATHS if isinstance(path[-1], str) and path[-1] not in OPTIONAL],
    ids=spelled,
)
def test_missing_key_is_named(path: tuple[Any, ...]) -> None:
    document = json.loads(json.dumps(SAMPLE))
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    assert refusal(json.dumps(document).encode()) == f"{spelled(path)}: missing"


def test_what_came_later_may_be_left_out() -> None:
    document = json.loads(json.dumps(SAMPLE))
    for key in OPTIONAL:
        del document["execution" if key in document["execution"] else "model"][key]
    manifest = Manifest.parse(json.dumps(document).encode())
    assert manifest == sample_manifest(entries=(ENTRY,))
    execution = Manifest.parse(changed(("execution", "decode_threads"), 3)).execution
    assert (execution.prefill_threads, execution.decode_threads) == (None, 3)


def test_decimals_are_finite() -> None:
    model = replace(sample_manifest().model, norm_eps=1e-5, rope_frequencies=(1.0, 0.5))
    manifest = sample_manifest(model=model)
    assert Manifest.parse(manifest.dump()) == manifest
    infinite = manifest.dump().replace(b"1e-05", b"1e999")
    assert refusal(infinite).startswith("model.norm_eps: must be finite")
    whole = refusal(changed(("model", "rope_frequencies"), [1.0, 1]))
    assert whole == "model.rope_frequencies[1]: must be a decimal, not 1"


def test_unknown_key_is_named() -> None:
    assert refusal(changed(("model", "colour"), "red")) == "model.colour: unknown key"
    assert refusal(changed(("x\n\x1b[31m" + "y" * 500,), 1)).endswith("unknown key")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[1]", "is not a JSON object"),
        (b'{"format": NaN}', "NaN is not a number of JSON"),
        (b'{"format": Infinity}', "Infinity is not a number of JSON"),
        (b'{"format": 1, "format": 1}', 'key "format" is given twice'),
        (b'{"format": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"{}", "format: missing"),
    ],
)
def test_not_a_manifest(document: bytes, message: str) -> None:
    assert message in refusal(document)


def test_newer_format_is_told_before_anything_else_is_interpreted() -> None:
    message = "format 4, this edge-llm reads up to 3: upgrade edge-llm"
    assert refusal(b'{"format": 4, "unheard-of": {"x": []}}') == message
    assert refusal(changed(("format",), 4)) == message
    assert refusal(changed(("format",), 0)) == "format: must be 1 or 2 or 3, not 0"


@pytest.mark.parametrize(
    ("numerics", "layers", "head"),
    [
        ({}, "int4-g32-asym", "int8"),
        ({"group": 128, "symmetric": True}, "int4-g128", "int8"),
        ({"head": "int4"}, "int4-g32-asym", "int4-g32-asym"),
    ],
)
def test_format_1_had_one_format_for_all_layers(
    numerics: dict[str, Any], layers: str, head: str
) -> None:
    manifest = Manifest.parse(format_1(**numerics))
    assert manifest.format == 1
    assert manifest.numerics.weights == Weights(layers, layers, layers, layers, head)


def test_format_2_is_read() -> None:
    numerics = {**SAMPLE["numerics"], "version": 1}
    manifest = Manifest.parse(json.dumps({**SAMPLE, "format": 2, "numerics": numerics}).encode())
    assert (manifest.format, manifest.numerics.version) == (2, 1)


def test_each_format_has_its_own_numerics_alone() -> None:
    assert refusal(changed(("format",), 1)) == "numerics.group: missing"
    assert refusal(format_1(group=33)) == "numerics.group: must be 32 or 64 or 128, not 33"
    document = json.loads(format_1())
    assert refusal(json.dumps({**document, "format": 2}).encode()).startswith("numerics.")
    del document["numerics"]
    assert refusal(json.dumps(document).encode()) == "numerics: missing"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("memory", "page_bytes"), 1, "memory.page_bytes: differs from execution.page_bytes"),
        (("memory", "weights_bytes"), 100, "tensors[0] (norms): ends after memory.weights_bytes"),
        (("tensors", 0, "offset"), 32, "tensors[0] (norms).offset: not a multiple of 64"),
        (("tensors", 0, "size"), 9220, "tensors[0] (norms).size: 9220 bytes do not make its shape"),
        (("tensors", 1, "name"), "norms", "tensors: norms is listed twice"),
        (("tensors", 0, "shape"), [2**31 - 1] * 8, "tensors[0] (norms).size: 9216 bytes do not"),
        (("tensors", 0, "shape"), [1] * 9, "tensors[0].shape: must have at most 8 items, not 9"),
        (("target", "glibc"), "2.31.1", "target.glibc: must be a version like 2.31"),
        (("target", "triple"), "../../etc", "target.triple: must be a plain name"),
        (
            ("numerics", "weights", "down"),
            "int4-g16",
            "numerics.weights.down: must be a format like int8 or int4-g64-asym",
        ),
    ],
)
def test_contradictions(path: tuple[Any, ...], value: Any, message: str) -> None:
    assert refusal(changed(path, value)).startswith(message)


@settings(deadline=None)
@given(
    path=st.sampled_from(PATHS),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    ),
)
def test_any_json_value_anywhere_is_read_or_refused_in_one_line(
    path: tuple[Any, ...], value: Any
) -> None:
    try:
        Manifest.parse(changed(path, value))
    except ArtifactError as error:
        assert str(error).isprintable()  # noqa: PT017 - most values are refused, not all


@settings(deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    refusal(data)


def test_certificate_counts_pages_and_tables() -> None:
    memory = Memory(weights_bytes=1000, workspace_bytes=100, page_bytes=50, page_positions=16)
    assert memory.certificate(context=16, sequences=1) == 1100 + 50 + 4
    assert memory.certificate(context=17, sequences=1) == 1100 + 2 * 54
    assert memory.certificate(context=17, sequences=3) == 1100 + 6 * 54
    for context, sequences in ((0, 1), (1, 0), (-1, 1)):
        with pytest.raises(ValueError, match="must be at least 1"):
            memory.certificate(context, sequences)


def test_specification_names_every_key() -> None:
    specification = (Path(__file__).parent.parent / "docs" / "artifact.md").read_text("utf-8")
    keys = {part for path in key_paths(SAMPLE) for part in path if isinstance(part, str)}
    assert not {key for key in keys if f"`{key}`" not in specification}
