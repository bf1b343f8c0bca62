"""Which formats a checkpoint's matrices get, by themselves and where a user chooses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compile.checkpoint import Q4, Q8, Checkpoint
from compile.errors import CompileError
from compile.importer import open_checkpoint
from compile.quantize.formats import INT4, INT8, Choices, Formats, MatrixFormat, parse_kinds
from compile.quantize.nearest import QuantizedCheckpoint
from compile.stored import store
from tests.tiny_model import write_tiny_gguf

HEAD = "model.embed_tokens.weight"
ASYMMETRIC = MatrixFormat(4, 32, symmetric=False)
TEXTS = {
    "int4-g32": (4, 32, True, 4.5),
    "int4-g64": (4, 64, True, 4.25),
    "int4-g128": (4, 128, True, 4.125),
    "int4-g32-asym": (4, 32, False, 5.0),
    "int4-g64-asym": (4, 64, False, 4.5),
    "int4-g128-asym": (4, 128, False, 4.25),
    "int8": (8, 32, True, 8.5),
}
MIXED = Formats(*(MatrixFormat.parse(text) for text in ("int8", "int4-g64", "int4-g32-asym")))


def tiny(folder: Path, layers: str, head: str, **sizes: object) -> Checkpoint:
    path = folder / f"{layers}-{head}.gguf"
    write_tiny_gguf(path, quantization=layers, head_quantization=head, **sizes)
    return open_checkpoint(path)


@pytest.mark.parametrize("text", TEXTS)
def test_a_format_is_its_text(text: str) -> None:
    form = MatrixFormat.parse(text)
    assert (form.bits, form.group, form.symmetric, form.bits_per_weight) == TEXTS[text]
    assert str(form) == text


@pytest.mark.parametrize("text", ["", "int4", "int4-g16", "int8-asym", "int4-g32-asym ", "Q4_0"])
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(CompileError, match=r"no format .*: write int8, int4-gN or"):
        MatrixFormat.parse(text)
    with pytest.raises(CompileError, match="no kind of matrices 'up': choose qkv, o, gate_up"):
        parse_kinds([("up", "int8")])


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_a_head_of_four_bits_stays_as_it_is(tmp_path: Path, kind: str) -> None:
    checkpoint = tiny(tmp_path, "Q4_0", kind)
    formats = Formats.of(checkpoint)
    assert formats == replace(Formats(), head=INT4 if kind == "Q4_0" else ASYMMETRIC)
    own, kept = checkpoint.tensor(HEAD), QuantizedCheckpoint(checkpoint, formats).tensor(HEAD)
    assert isinstance(own, Q4)
    assert isinstance(kept, Q4)
    assert np.array_equal(own.q, kept.q)
    assert np.array_equal(own.scale.view(np.int16), kept.scale.view(np.int16))
    assert Formats.of(checkpoint, Choices(head_bits=8)).head == INT8


@pytest.mark.parametrize(("layers", "head"), [("Q4_1", "Q8_0"), ("F16", "F16"), ("F32", "F16")])
def test_any_other_head_gets_eight_bits(tmp_path: Path, layers: str, head: str) -> None:
    checkpoint = tiny(tmp_path, layers, head)
    formats = Formats.of(checkpoint)
    assert formats.head == INT8
    assert formats.down == (ASYMMETRIC if layers == "Q4_1" else INT4)
    assert isinstance(QuantizedCheckpoint(checkpoint, formats).tensor(HEAD), Q8)


def test_layers_of_eight_bits_stay_so_unless_four_are_asked_for(tmp_path: Path) -> None:
    checkpoint = tiny(tmp_path, "Q8_0", "Q8_0")
    assert Formats.of(checkpoint) == Formats(INT8, INT8, INT8, INT8, INT8)
    four = Formats.of(checkpoint, Choices(group=32))
    assert (four.qkv, four.head) == (INT4, INT8)


def test_a_mixed_kind_gets_what_holds_its_four_bit_matrices(tmp_path: Path) -> None:
    """Some of gate_up Q4_1, most Q4_0: asymmetric holds both exactly. Head: all or 8 bits."""
    checkpoint = tiny(tmp_path, "Q4_0", "Q4_0", tied=False)
    other = tiny(tmp_path, "Q4_1", "F16", tied=False)

    class Mixed:
        config, tokenizer, names = checkpoint.config, checkpoint.tokenizer, checkpoint.names

        def tensor(self, name: str) -> object:
            return (other if "1.mlp.up" in name or "lm_head" in name else checkpoint).tensor(name)

    mixed: Checkpoint = Mixed()  # type: ignore[assignment]
    formats = Formats.of(mixed)
    assert formats == Formats(gate_up=ASYMMETRIC)
    name = "model.layers.0.mlp.up_proj.weight"
    own, kept = mixed.tensor(name), QuantizedCheckpoint(mixed, formats).tensor(name)
    assert isinstance(own, Q4)
    assert isinstance(kept, Q4)
    assert np.array_equal(own.q, kept.q)


def test_what_a_user_chooses(tmp_path: Path) -> None:
    checkpoint = tiny(tmp_path, "Q4_1", "Q8_0")
    wide = MatrixFormat(4, 64, symmetric=False)
    assert Formats.of(checkpoint, Choices(group=64)) == Formats(wide, wide, wide, wide, INT8)
    assert Formats.of(checkpoint, Choices(symmetric=True)) == Formats()
    assert Formats.of(checkpoint, Choices(head_bits=4)).head == ASYMMETRIC
    assert Formats.of(checkpoint, Choices(group=64, head_bits=4)) == Formats(
        wide, wide, wide, wide, wide
    )
    down = Formats.of(checkpoint, Choices(group=64, kinds={"down": INT8}))
    assert down == Formats(wide, wide, wide, INT8, INT8)
    with pytest.raises(CompileError, match="group size 48"):
        Formats.of(checkpoint, Choices(group=48))
    with pytest.raises(CompileError, match="in 3 bits"):
        Formats.of(checkpoint, Choices(head_bits=3))


def test_a_stored_checkpoint_is_in_its_own_formats(tmp_path: Path) -> None:
    checkpoint = tiny(tmp_path, "F16", "F16")
    store(tmp_path / "m.safetensors", QuantizedCheckpoint(checkpoint, MIXED))
    assert Formats.of(open_checkpoint(tmp_path / "m.safetensors")) == MIXED


def test_the_average_counts_a_tied_embedding_once(tmp_path: Path) -> None:
    for tied in (True, False):
        checkpoint = tiny(tmp_path, "Q4_0", "Q8_0", tied=tied)
        layers = 2 * (64 * 64 * 2 + 2 * 32 * 64 + 3 * 64 * 96)
        head = 320 * 64 * (1 if tied else 2)
        expected = (layers * 4.5 + head * 8.5) / (layers + head)
        assert Formats.of(checkpoint).bits_per_weight(checkpoint.config) == expected
