"""A GGUF with random weights in the shape of a known model: its speed is the known model's.

    write_random_gguf(Path("llama-1b.gguf"), SHAPES["llama-3.2-1b"], tokenizer=smollm2_gguf)

The layers are Q4_0, embedding and head what llama.cpp's tool makes of them beside that; the
architecture is Llama's, without biases. The tokenizer is another model's, filled up with tokens
that no text has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import gguf
import numpy as np
from numpy.typing import NDArray

from compile.gguf_file import read_gguf
from compile.gguf_metadata import Metadata

TEXT_KEYS = ("model", "pre")
ID_KEYS = ("bos_token_id", "eos_token_id")
CONTEXT = 4096


class Type(NamedTuple):
    """A ggml type of which random bytes can be made.

    Attributes:
        columns: of a block.
        bytes: of a block.
        scale: where its float16 scale stands, negative from the end.
        spread: standard deviation of a weight of random bytes and scale 1.
    """

    columns: int
    bytes: int
    scale: int
    spread: float


TYPES: MappingProxyType[str, Type] = MappingProxyType(
    {
        "Q4_0": Type(32, 18, 0, 4.6),  # q - 8, q uniform in 0…15
        "Q8_0": Type(32, 34, 0, 73.9),  # uniform in -128…127
        "Q6_K": Type(256, 210, -2, 18.5 * 73.9),  # uniform in -32…31, times such an int8
    }
)


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama with tied embedding; ``head`` is its type beside layers in Q4_0."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    rope_base: float
    head: str


SHAPES: MappingProxyType[str, Shape] = MappingProxyType(
    {
        "llama-3.2-1b": Shape(16, 2048, 32, 8, 64, 8192, 128256, 5e5, "Q6_K"),
        "qwen2.5-0.5b": Shape(24, 896, 14, 2, 64, 4864, 151936, 1e6, "Q8_0"),
    }
)


def write_random_gguf(path: Path, shape: Shape, tokenizer: Path) -> None:
    """Write the model, tensor by tensor, in the memory of the largest; whole or not at all.

    Args:
        path: the file to write.
        shape: of the model.
        tokenizer: a GGUF with a byte-level tokenizer of at most ``shape.vocab`` tokens.
    """
    aside = path.with_name(f".{path.name}.part")
    writer = gguf.GGUFWriter(aside, "llama")
    add_sizes(writer, path.stem, shape)
    add_tokenizer(writer, read_gguf(tokenizer).metadata, shape.vocab)
    for name, rows, columns, type_ in matrices(shape):
        size = rows * columns // TYPES[type_].columns * TYPES[type_].bytes
        kind = gguf.GGMLQuantizationType[type_]
        writer.add_tensor_info(name, (rows, columns), np.dtype(np.float16), size, kind)
    for name in norms(shape):
        writer.add_tensor_info(name, (shape.width,), np.dtype(np.float32), shape.width * 4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(0)
    for _, rows, columns, type_ in matrices(shape):
        writer.write_tensor_data(random_blocks(random, rows, columns, TYPES[type_]))
    for _ in norms(shape):
        writer.write_tensor_data(np.ones(shape.width, np.float32))
    writer.close()
    os.replace(aside, path)


def matrices(shape: Shape) -> Iterator[tuple[str, int, int, str]]:
    """Name, rows, columns and type of every matrix."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "token_embd.weight", shape.vocab, shape.width, shape.head
    for layer in range(shape.layers):
        for name, rows, columns in (
            ("attn_q", queries, shape.width),
            ("attn_k", keys, shape.width),
            ("attn_v", keys, shape.width),
            ("attn_output", shape.width, queries),
            ("ffn_gate", shape.ffn, shape.width),
            ("ffn_up", shape.ffn, shape.width),
            ("ffn_down", shape.width, shape.ffn),
        ):
            yield f"blk.{layer}.{name}.weight", rows, columns, "Q4_0"


def norms(shape: Shape) -> Iterator[str]:
    """The name of every vector, all of them of the model's width."""
    yield "output_norm.weight"
    for layer in range(shape.layers):
        yield f"blk.{layer}.attn_norm.weight"
        yield f"blk.{layer}.ffn_norm.weight"


def random_blocks(
    random: np.random.Generator, rows: int, columns: int, type_: Type
) -> NDArray[np.uint8]:
    """Blocks, uint8 [rows, bytes a row], that keep the size of what they multiply."""
    blocks = random.integers(0, 256, (rows * columns // type_.columns, type_.bytes), np.uint8)
    scales = random.uniform(0.5, 1.5, len(blocks)) / (type_.spread * columns**0.5)
    at = type_.scale % type_.bytes
    blocks[:, at : at + 2] = scales.astype("<f2")[:, None].view(np.uint8)
    return blocks.reshape(rows, -1)


def add_sizes(writer: gguf.GGUFWriter, name: str, shape: Shape) -> None:
    """What the importers want to know besides the tokenizer."""
    writer.add_name(name)
    writer.add_block_count(shape.layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab)


def add_tokenizer(writer: gguf.GGUFWriter, source: Metadata, vocab: int) -> None:
    """The tokenizer of another file, filled up to ``vocab`` tokens."""
    key = "tokenizer.ggml.{}".format
    tokens = source.texts(key("tokens"))
    filled = vocab - len(tokens)
    kinds = source.integers(key("token_type")).tolist()
    for name in TEXT_KEYS:
        writer.add_string(key(name), source.text(key(name)))
    for name in ID_KEYS:
        writer.add_uint32(key(name), source.integer(key(name)))
    writer.add_token_list([*tokens, *(f"[unused{index}]" for index in range(filled))])
    writer.add_token_types([*kinds, *([gguf.TokenType.UNUSED] * filled)])
    writer.add_token_merges(list(source.texts(key("merges"))))
