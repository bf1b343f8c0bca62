"""A GGUF with random weights in the shape of a known model: its speed is the known model's.

    write_random_gguf(Path("llama-1b.gguf"), SHAPES["llama-3.2-1b"], tokenizer=smollm2_gguf)

Every matrix is Q4_0, embedding and head too; the architecture is Llama's, without biases. The
tokenizer is another model's, filled up with tokens that no text has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import gguf
import numpy as np
from numpy.typing import NDArray

from compile.gguf_file import read_gguf
from compile.gguf_metadata import Metadata

BLOCK, BLOCK_BYTES = 32, 18  # columns of a Q4_0 block, and a float16 scale with 16 bytes after it
SPREAD = 4.6  # standard deviation of q - 8, q uniform in 0…15
TEXT_KEYS = ("model", "pre")
ID_KEYS = ("bos_token_id", "eos_token_id")
CONTEXT = 4096


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama with tied embedding."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    rope_base: float


SHAPES: MappingProxyType[str, Shape] = MappingProxyType(
    {
        "llama-3.2-1b": Shape(16, 2048, 32, 8, 64, 8192, 128256, 5e5),
        "qwen2.5-0.5b": Shape(24, 896, 14, 2, 64, 4864, 151936, 1e6),
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
    for name, rows, columns in matrices(shape):
        kind = gguf.GGMLQuantizationType.Q4_0
        size = rows * columns // BLOCK * BLOCK_BYTES
        writer.add_tensor_info(name, (rows, columns), np.dtype(np.float16), size, kind)
    for name in norms(shape):
        writer.add_tensor_info(name, (shape.width,), np.dtype(np.float32), shape.width * 4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(0)
    for _, rows, columns in matrices(shape):
        writer.write_tensor_data(random_blocks(random, rows, columns))
    for _ in norms(shape):
        writer.write_tensor_data(np.ones(shape.width, np.float32))
    writer.close()
    os.replace(aside, path)


def matrices(shape: Shape) -> Iterator[tuple[str, int, int]]:
    """Name, rows and columns of every matrix."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "token_embd.weight", shape.vocab, shape.width
    for layer in range(shape.layers):
        yield f"blk.{layer}.attn_q.weight", queries, shape.width
        yield f"blk.{layer}.attn_k.weight", keys, shape.width
        yield f"blk.{layer}.attn_v.weight", keys, shape.width
        yield f"blk.{layer}.attn_output.weight", shape.width, queries
        yield f"blk.{layer}.ffn_gate.weight", shape.ffn, shape.width
        yield f"blk.{layer}.ffn_up.weight", shape.ffn, shape.width
        yield f"blk.{layer}.ffn_down.weight", shape.width, shape.ffn


def norms(shape: Shape) -> Iterator[str]:
    """The name of every vector, all of them of the model's width."""
    yield "output_norm.weight"
    for layer in range(shape.layers):
        yield f"blk.{layer}.attn_norm.weight"
        yield f"blk.{layer}.ffn_norm.weight"


def random_blocks(random: np.random.Generator, rows: int, columns: int) -> NDArray[np.uint8]:
    """Q4_0 blocks, uint8 [rows, bytes a row], that keep the size of what they multiply."""
    blocks = random.integers(0, 256, (rows * columns // BLOCK, BLOCK_BYTES), np.uint8)
    scales = random.uniform(0.5, 1.5, len(blocks)) / (SPREAD * columns**0.5)
    blocks[:, :2] = scales.astype("<f2")[:, None].view(np.uint8)
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
