"""GGUF files: weights carried over exactly, damage and the unknown refused in one line."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compile.checkpoint import Q4, Q8, Tensor
from compile.errors import CompileError, UnsupportedError
from compile.gguf_file import read_gguf
from compile.gguf_types import BLOCK_TYPES
from compile.importer import open_checkpoint
from tests.tiny_model import (
    TinyModel,
    finish,
    permuted,
    tiny_gguf_tensors,
    tiny_gguf_writer,
    write_tiny_gguf,
)

K_SIZES = {"width": 256, "ffn": 256, "heads": 8}
NONE: Mapping[str, None] = {}
UP = "model.layers.0.mlp.up_proj.weight"
U32, U64, I32, F32, TEXT, FLAG = (
    gguf.GGUFValueType.UINT32,
    gguf.GGUFValueType.UINT64,
    gguf.GGUFValueType.INT32,
    gguf.GGUFValueType.FLOAT32,
    gguf.GGUFValueType.STRING,
    gguf.GGUFValueType.BOOL,
)


def in_float32(tensor: Tensor) -> np.ndarray[Any, Any]:
    return tensor.dequantize() if isinstance(tensor, Q4 | Q8) else tensor


def write_changed(
    path: Path,
    metadata: Mapping[str, tuple[Any, gguf.GGUFValueType] | None] = NONE,
    tensors: Mapping[str, tuple[np.ndarray[Any, Any], gguf.GGMLQuantizationType] | None] = NONE,
    **sizes: Any,
) -> Path:
    """A tiny GGUF with entries and tensors replaced, added, or with None left out."""
    model = TinyModel(**sizes)
    writer = tiny_gguf_writer(path, model)
    for key, entry in metadata.items():
        writer.kv_data[0].pop(key, None)
        if entry is not None:
            writer.add_key_value(key, *entry)
    for name, tensor in {**tiny_gguf_tensors(model), **tensors}.items():
        if tensor is not None:
            writer.add_tensor(name, tensor[0], raw_dtype=tensor[1])
    finish(writer)
    return path


def float_tensor(*shape: int) -> tuple[np.ndarray[Any, Any], gguf.GGMLQuantizationType]:
    return np.ones(shape, np.float32), gguf.GGMLQuantizationType.F32


@pytest.mark.parametrize(
    ("quantization", "sizes", "kind"),
    [
        ("F32", {}, np.float32),
        ("F16", {}, np.float16),
        ("BF16", {}, np.float32),
        ("Q8_0", {}, Q8),
        ("Q4_0", {}, Q4),
        ("Q4_1", {}, Q4),
        ("Q5_0", {}, np.float32),
        ("Q5_1", {}, np.float32),
        ("IQ4_NL", {}, np.float32),
        ("IQ4_XS", K_SIZES, np.float32),
        ("Q4_K", K_SIZES, np.float32),
        ("Q5_K", K_SIZES, np.float32),
        ("Q6_K", K_SIZES, np.float32),
    ],
)
def test_every_tensor_means_what_the_gguf_package_says(
    tmp_path: Path, quantization: str, sizes: dict[str, int], kind: Any
) -> None:
    model = write_tiny_gguf(tmp_path / "m.gguf", quantization=quantization, tied=False, **sizes)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    assert set(checkpoint.names()) == set(model.weights)
    for name, weights in model.weights.items():
        tensor = checkpoint.tensor(name)
        assert np.array_equal(in_float32(tensor), weights), name
    up = checkpoint.tensor(UP)
    assert kind in (type(up), getattr(up, "dtype", None))


def half(data: bytes) -> float:
    return float(struct.unpack("<e", data)[0])


def test_q4_0_is_carried_over_bit_for_bit(tmp_path: Path) -> None:
    model = write_tiny_gguf(tmp_path / "m.gguf", quantization="Q4_0")
    tensor = open_checkpoint(tmp_path / "m.gguf").tensor(UP)
    assert isinstance(tensor, Q4)
    assert tensor.minimum is None
    assert tensor.group == 32
    for row, stored in enumerate(model.blocks[UP]):
        for group in range(model.width // 32):
            block = stored[18 * group : 18 * (group + 1)].tobytes()
            assert tensor.scale[row, group] == half(block[:2])
            for column in range(32):
                byte = block[2 + column % 16]
                nibble = byte & 15 if column < 16 else byte >> 4
                assert tensor.q[row, 32 * group + column] == nibble


def test_q4_1_is_carried_over_bit_for_bit(tmp_path: Path) -> None:
    model = write_tiny_gguf(tmp_path / "m.gguf", quantization="Q4_1")
    tensor = open_checkpoint(tmp_path / "m.gguf").tensor(UP)
    assert isinstance(tensor, Q4)
    assert tensor.minimum is not None
    for row, stored in enumerate(model.blocks[UP]):
        for group in range(model.width // 32):
            block = stored[20 * group : 20 * (group + 1)].tobytes()
            assert tensor.scale[row, group] == half(block[:2])
            assert tensor.minimum[row, group] == half(block[2:4])
            for column in range(32):
                byte = block[4 + column % 16]
                nibble = byte & 15 if column < 16 else byte >> 4
                assert tensor.q[row, 32 * group + column] == nibble


def test_negative_zero_and_subnormal_scales_keep_their_bits(tmp_path: Path) -> None:
    blocks = TinyModel().blocks[UP].copy()
    blocks[:, :2] = np.frombuffer(b"\x00\x80", np.uint8)
    blocks[:, 18:20] = np.frombuffer(b"\x01\x00", np.uint8)
    kind = gguf.GGMLQuantizationType.Q4_0
    path = write_changed(tmp_path / "m.gguf", tensors={"blk.0.ffn_up.weight": (blocks, kind)})
    tensor = open_checkpoint(path).tensor(UP)
    assert isinstance(tensor, Q4)
    assert set(tensor.scale.view(np.uint16)[:, 0]) == {0x8000}
    assert set(tensor.scale.view(np.uint16)[:, 1]) == {1}


def test_rotary_rows_of_whole_heads_move_back(tmp_path: Path) -> None:
    rows = np.arange(128, dtype=np.float32)[:, None] * np.ones(64, np.float32)
    stored = permuted(rows, 4), gguf.GGMLQuantizationType.F32
    path = write_changed(
        tmp_path / "m.gguf", tensors={"blk.1.attn_q.weight": stored}, heads=4, quantization="F32"
    )
    tensor = open_checkpoint(path).tensor("model.layers.1.self_attn.q_proj.weight")
    assert np.array_equal(in_float32(tensor), rows)


def test_sizes_and_names_of_a_model(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "m.gguf", layers=3, kv_heads=2, rope_base=50000.0, context=512)
    config = open_checkpoint(tmp_path / "m.gguf").config
    assert (config.family, config.name, config.license) == ("llama", "Tiny", "apache-2.0")
    assert (config.layers, config.width, config.heads, config.kv_heads) == (3, 64, 2, 2)
    assert (config.head_dim, config.ffn, config.vocab_size, config.context) == (32, 96, 320, 512)
    assert config.tied
    assert config.rope_frequencies == pytest.approx([50000.0 ** (-i / 16) for i in range(16)])


def test_a_name_that_is_no_tensor(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "m.gguf")
    with pytest.raises(KeyError):
        open_checkpoint(tmp_path / "m.gguf").tensor("lm_head.weight")


def test_rope_scaling(tmp_path: Path) -> None:
    plain = np.array(open_checkpoint(write_changed(tmp_path / "m.gguf")).config.rope_frequencies)
    linear = open_checkpoint(
        write_changed(
            tmp_path / "l.gguf",
            {"llama.rope.scaling.type": ("linear", TEXT), "llama.rope.scaling.factor": (4.0, F32)},
        )
    ).config.rope_frequencies
    assert np.array_equal(linear, plain / 4)
    divisors = np.linspace(1, 8, 16, dtype=np.float32)
    tensors = {"rope_freqs.weight": (divisors, gguf.GGMLQuantizationType.F32)}
    divided = open_checkpoint(write_changed(tmp_path / "d.gguf", tensors=tensors)).config
    assert np.array_equal(divided.rope_frequencies, plain / divisors)


def test_a_sliding_window_limits_the_context(tmp_path: Path) -> None:
    path = write_changed(tmp_path / "m.gguf", {"llama.attention.sliding_window": (64, U32)})
    assert open_checkpoint(path).config.context == 64


def test_sizes_of_every_block_type() -> None:
    known = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {code: tuple(kind) for code, kind in BLOCK_TYPES.items()} == known


UNSUPPORTED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "architecture": ({"general.architecture": ("gemma3", TEXT)}, {}, "architecture 'gemma3'"),
    "experts": ({"llama.expert_count": (8, U32)}, {}, "8 experts"),
    "setting": ({"llama.attention.logit_softcap": (3.0, F32)}, {}, "attention.logit_softcap"),
    "split": ({"split.count": (2, U32)}, {}, "part of a split GGUF"),
    "bidirectional": ({"llama.attention.causal": (False, FLAG)}, {}, "not causal"),
    "partial rope": ({"llama.rope.dimension_count": (16, U32)}, {}, "dimension_count is 16"),
    "values": ({"llama.attention.value_length": (16, U32)}, {}, "value_length is 16"),
    "rope scaling": ({"llama.rope.scaling.type": ("yarn", TEXT)}, {}, "rope scaling 'yarn'"),
    "bias": ({}, {"blk.0.attn_q.bias": float_tensor(64)}, "'blk.0.attn_q.bias'"),
    "tensor": ({}, {"blk.0.attn_sinks.weight": float_tensor(2)}, "'blk.0.attn_sinks.weight'"),
    "tensor type": (
        {},
        {
            "blk.1.ffn_up.weight": (
                np.zeros((96, 80), np.uint8),
                gguf.GGMLQuantizationType.Q8_1,
            )
        },
        "'blk.1.ffn_up.weight' is stored as Q8_1",
    ),
    "tokenizer": ({"tokenizer.ggml.model": ("bert", TEXT)}, {}, "tokenizer 'bert'"),
    "pre-tokenizer": ({"tokenizer.ggml.pre": ("tekken", TEXT)}, {}, "pre-tokenizer 'tekken'"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_is_not_supported_is_named(tmp_path: Path, case: str) -> None:
    metadata, tensors, message = UNSUPPORTED[case]
    path = write_changed(tmp_path / "m.gguf", metadata, tensors)
    with pytest.raises(UnsupportedError) as caught:
        open_checkpoint(path)
    assert_one_line(str(caught.value), path, message)


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "missing setting": ({"llama.block_count": None}, {}, "llama.block_count is missing"),
    "wrong type": ({"llama.block_count": ("2", TEXT)}, {}, "must be a whole number, not str"),
    "no number": ({"llama.rope.freq_base": (float("nan"), F32)}, {}, "nan"),
    "many layers": ({"llama.block_count": (2**32 - 1, U32)}, {}, "layers of 4294967295"),
    "large head": ({"llama.attention.key_length": (2**62, U64)}, {}, "value_length"),
    "no heads": ({"llama.attention.head_count": (0, U32)}, {}, "0 heads"),
    "negative": ({"llama.attention.head_count_kv": (-1, I32)}, {}, "heads of -1"),
    "uneven heads": ({"llama.attention.head_count_kv": (3, U32)}, {}, "cannot share 3"),
    "shape": ({"llama.feed_forward_length": (64, U32)}, {}, "shape [96, 64]"),
    "missing tensor": ({}, {"blk.1.ffn_down.weight": None}, "'blk.1.ffn_down.weight' is missing"),
    "no epsilon": ({"llama.attention.layer_norm_rms_epsilon": (0.0, F32)}, {}, "epsilon 0.0"),
    "rope factors": ({}, {"rope_freqs.weight": float_tensor(8)}, "not F32 [16]"),
    "rope factor": ({"llama.rope.scaling.factor": (0.0, F32)}, {}, "rope scaling by 0.0"),
    "no tokenizer": ({"tokenizer.ggml.model": None}, {}, "no tokenizer"),
    "alignment": ({"general.alignment": (48, U32)}, {}, "not a power of two"),
    "end token": ({"tokenizer.ggml.eos_token_id": (320, U32)}, {}, "eos_token_id is 320"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(tmp_path: Path, case: str) -> None:
    metadata, tensors, message = WRONG[case]
    path = write_changed(tmp_path / "m.gguf", metadata, tensors)
    with pytest.raises(CompileError) as caught:
        open_checkpoint(path)
    assert_one_line(str(caught.value), path, message)


def assert_one_line(text: str, path: Path, part: str) -> None:
    assert part in text
    assert str(path) in text
    assert "\n" not in text


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_weights_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    norm = np.full(64, value, np.float32), gguf.GGMLQuantizationType.F32
    path = write_changed(tmp_path / "m.gguf", tensors={"output_norm.weight": norm})
    with pytest.raises(CompileError, match=r"'output_norm\.weight' holds infinite or NaN"):
        open_checkpoint(path).tensor("model.norm.weight")


# What a GGUF consists of, written by hand: whatever is put in is written as it is.
def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    numbers = struct.pack(f"<{len(shape)}Q", *shape)
    return text(name) + struct.pack("<I", len(shape)) + numbers + struct.pack("<IQ", kind, offset)


def header(
    entries: list[bytes],
    tensors: list[bytes],
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    tensor_count, entry_count = counts or (len(tensors), len(entries))
    start = b"GGUF" + struct.pack("<IQQ", version, tensor_count, entry_count)
    return start + b"".join(entries) + b"".join(tensors)


HUGE = 2**64 - 1
ARRAY_OF_TEXTS = struct.pack("<IQ", 8, 2**60)
DAMAGED = {
    "empty": (b"", "neither a GGUF, a folder of"),
    "magic only": (b"GGUF", "cut short or damaged: the version at byte 4 takes 4 bytes, 0 are"),
    "half a header": (b"GGUF" + struct.pack("<IQ", 3, 1), "the metadata count at byte 16"),
    "version": (header([], [], version=1), "GGUF version 1; supported are 2 and 3"),
    "big-endian": (header([], [], version=3 << 24), "big-endian"),
    "entry count": (header([], [], counts=(0, HUGE)), f"announces {HUGE} metadata entries"),
    "tensor count": (header([], [], counts=(HUGE, 0)), f"announces {HUGE} tensors"),
    "43 bytes": (
        header([entry("", 7, b"\1")], [], counts=(0, 2**40)) + b"\0" * 6,
        "announces 1099511627776 metadata entries at byte 24, but only 19 bytes are left",
    ),
    "48 bytes": (
        header([entry("", 9, struct.pack("<IQ", 0, 2**40))], []),
        "metadata '' at byte 48 takes 1099511627776 bytes",
    ),
    "array of texts": (header([entry("k", 9, ARRAY_OF_TEXTS)], []), "strings of metadata 'k'"),
    "array in an array": (
        header([entry("k", 9, struct.pack("<IQ", 9, 1))], []),
        "value type 9, which is not known",
    ),
    "value type": (header([entry("k", 13, b"\0" * 8)], []), "value type 13, which is not known"),
    "long text": (header([entry("k", 8, struct.pack("<Q", HUGE))], []), f"takes {HUGE} bytes"),
    "long key": (header([struct.pack("<Q", HUGE) + b"\0" * 5], []), f"has {HUGE} bytes, more than"),
    "key twice": (header([entry("k", 7, b"\1")] * 2, []), "metadata 'k' is there twice"),
    "truth value": (header([entry("k", 7, b"\2")], []), "truth value that is not 0 or 1"),
    "text not UTF-8": (header([entry("k", 8, text(b"\xff"))], []), "is not UTF-8"),
    "tensor twice": (header([], [tensor("t", (1,))] * 2), "tensor 't' is there twice"),
    "dimensions": (header([], [tensor("t", (1,) * 5)]), "5 dimensions, not 1 to 4"),
    "no dimensions": (header([], [tensor("tttttttt", ())]), "0 dimensions, not 1 to 4"),
    "empty shape": (header([], [tensor("t", (4, 0))]), "empty shape"),
    "huge shape": (header([], [tensor("t", (2**63, 2**63, 2**63, 2**63))]), "cut short"),
    "tensor type": (header([], [tensor("t", (32,), 99)]), "tensor type 99, which is not known"),
    "columns": (header([], [tensor("t", (33,), 2)]), "33 columns; Q4_0 needs a multiple of 32"),
    "offset": (header([], [tensor("t", (1,), 0, 4)]), "begins at 4, not at a multiple of 32"),
    "data missing": (header([], [tensor("t", (1,), 0)]), "cut short or damaged: tensor 't' needs"),
    "overlap": (
        header([], [tensor("a", (16,)), tensor("b", (4,), 0, 32)]) + b"\0" * 256,
        "tensors 'a' and 'b' overlap",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files(tmp_path: Path, case: str) -> None:
    content, message = DAMAGED[case]
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(CompileError) as caught:
        open_checkpoint(path)
    assert_one_line(str(caught.value), path, message)


def test_version_2_is_read(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "m.gguf")
    data = bytearray((tmp_path / "m.gguf").read_bytes())
    data[4] = 2
    (tmp_path / "m.gguf").write_bytes(data)
    assert open_checkpoint(tmp_path / "m.gguf").config.layers == 2


def test_cut_short_anywhere(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "m.gguf", layers=1)
    data = (tmp_path / "m.gguf").read_bytes()
    for size in [*range(4, 2000, 61), *range(2000, len(data), 4999), len(data) - 1]:
        (tmp_path / "cut.gguf").write_bytes(data[:size])
        with pytest.raises(CompileError, match="cut short"):
            open_checkpoint(tmp_path / "cut.gguf")


def outcome(path: Path) -> str:
    """Read the whole model: what the error says, or nothing."""
    try:
        checkpoint = open_checkpoint(path)
        for name in checkpoint.names():
            checkpoint.tensor(name)
    except CompileError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path]:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_tiny_gguf(path, layers=1, width=32, heads=1, ffn=32)
    return path.read_bytes(), path


ODD_NUMBERS = (0, 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)


@given(data=st.data())
@settings(max_examples=150, deadline=2000)
def test_any_change_of_bytes_is_a_model_or_an_error(
    small: tuple[bytes, Path], data: st.DataObject
) -> None:
    original, path = small
    changed = bytearray(original)
    # the settings, the token lists' beginnings, the tensor table, the weights
    table = original.index(b"token_embd.weight") - 8
    start = data.draw(st.sampled_from([0, 24, 600, table, 0]))
    positions = st.integers(start, min(start + 900, len(changed) - 8))
    for position in data.draw(st.lists(positions, min_size=1, max_size=4)):
        if data.draw(st.booleans()):
            changed[position] = data.draw(st.integers(0, 255))
        else:
            number = struct.pack("<Q", data.draw(st.sampled_from(ODD_NUMBERS)))
            changed[position : position + 8] = number
    path.write_bytes(changed)
    assert "\n" not in outcome(path)


@given(content=st.binary(max_size=200))
def test_any_bytes_after_the_magic_are_an_error(small: tuple[bytes, Path], content: bytes) -> None:
    path = small[1].with_name("random.gguf")
    path.write_bytes(b"GGUF\3\0\0\0" + content)
    with pytest.raises(CompileError):
        open_checkpoint(path)


def as_folder(path: Path) -> None:
    path.mkdir()


def as_pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (as_folder, "config.json is missing"),
        (as_pipe, "neither a file nor a folder"),
        (lambda path: None, "no such file or folder"),
        (lambda path: path.write_text("hello"), "neither a GGUF, a folder of"),
    ],
)
def test_what_is_no_model(tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    make(tmp_path / "model")
    with pytest.raises(CompileError, match=message):
        open_checkpoint(tmp_path / "model")


def test_a_real_model(smollm2_gguf: Path) -> None:
    checkpoint = open_checkpoint(smollm2_gguf)
    config = checkpoint.config
    assert (config.layers, config.width, config.heads, config.kv_heads) == (30, 576, 9, 3)
    assert (config.ffn, config.vocab_size, config.context, config.tied) == (1536, 49152, 8192, True)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(smollm2_gguf).tensors}
    for name, own, heads in [
        ("model.layers.7.self_attn.q_proj.weight", "blk.7.attn_q.weight", 9),
        ("model.layers.7.self_attn.k_proj.weight", "blk.7.attn_k.weight", 3),
        ("model.layers.29.mlp.down_proj.weight", "blk.29.ffn_down.weight", 0),
        ("model.embed_tokens.weight", "token_embd.weight", 0),
    ]:
        expected = gguf.quants.dequantize(stored[own].data, stored[own].tensor_type)
        mine = in_float32(checkpoint.tensor(name))
        assert np.array_equal(permuted(mine, heads) if heads else mine, expected), name


def test_a_mapped_file_is_not_copied(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "m.gguf", quantization="F32")
    file = read_gguf(tmp_path / "m.gguf")
    assert np.shares_memory(file.rows("output_norm.weight"), np.frombuffer(file.data, np.uint8))
