"""What tensors a Llama of given sizes has, and whether a checkpoint has just those."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from compile.checkpoint import ModelConfig
from compile.errors import CompileError, UnsupportedError
from compile.families import FAMILIES

MAX_LAYERS = 1024
MAX_HEAD_DIM = 1024
MAX_SIZE = 1 << 24  # of any other dimension; keeps every product far below 2**63

Shape = tuple[int, ...]


def check_config(path: Path, config: ModelConfig) -> None:
    """CompileError where a whole description, as another program wrote it, makes no sense."""
    if config.family not in FAMILIES:
        raise CompileError(f"{path}: family {config.family!r}: this version knows {list(FAMILIES)}")
    check_sizes(path, config)
    if len(config.rope_frequencies) != config.head_dim // 2:
        raise CompileError(f"{path}: {len(config.rope_frequencies)} rotary frequencies a head")


def check_sizes(path: Path, config: ModelConfig) -> None:
    """CompileError where a size is absurd or does not go with another.

    Rotary frequencies are not looked at: their number follows from sizes checked here.
    """
    limits = {
        "layers": (config.layers, MAX_LAYERS),
        "width": (config.width, MAX_SIZE),
        "heads": (config.heads, MAX_SIZE),
        "key-value heads": (config.kv_heads, MAX_SIZE),
        "head dimension": (config.head_dim, MAX_HEAD_DIM),
        "feed-forward width": (config.ffn, MAX_SIZE),
        "vocabulary": (config.vocab_size, MAX_SIZE),
        "context": (config.context, MAX_SIZE),
    }
    for what, (value, limit) in limits.items():
        if not 1 <= value <= limit:
            raise CompileError(f"{path}: {what} of {value}; it must be 1 to {limit}")
    if config.heads % config.kv_heads:
        raise CompileError(
            f"{path}: {config.heads} heads cannot share {config.kv_heads} key-value heads"
        )
    if config.head_dim % 2:
        raise CompileError(
            f"{path}: head dimension {config.head_dim} is odd; rotary positions need pairs"
        )
    if not 0 < config.norm_eps < 1:
        raise CompileError(f"{path}: norm epsilon {config.norm_eps} is not between 0 and 1")


def check_rope_base(path: Path, base: float) -> None:
    """CompileError where no rotary frequencies follow from it."""
    if not base > 1:
        raise CompileError(f"{path}: rotary base {base} is not above 1")


def tensor_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Every tensor of the model by its Hugging Face name: (size,) or (rows, columns)."""
    q_rows, kv_rows = config.heads * config.head_dim, config.kv_heads * config.head_dim
    layer: dict[str, Shape] = {
        "input_layernorm.weight": (config.width,),
        "self_attn.q_proj.weight": (q_rows, config.width),
        "self_attn.k_proj.weight": (kv_rows, config.width),
        "self_attn.v_proj.weight": (kv_rows, config.width),
        "self_attn.o_proj.weight": (config.width, q_rows),
        "post_attention_layernorm.weight": (config.width,),
        "mlp.gate_proj.weight": (config.ffn, config.width),
        "mlp.up_proj.weight": (config.ffn, config.width),
        "mlp.down_proj.weight": (config.width, config.ffn),
    }
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (config.vocab_size, config.width)}
    for index in range(config.layers):
        shapes |= {f"model.layers.{index}.{part}": shape for part, shape in layer.items()}
    shapes["model.norm.weight"] = (config.width,)
    if not config.tied:
        shapes["lm_head.weight"] = (config.vocab_size, config.width)
    return shapes


def parameters(config: ModelConfig) -> int:
    """Weights of the model, each counted once."""
    return sum(math.prod(shape) for shape in tensor_shapes(config).values())


def check_tensors(
    path: Path,
    expected: Mapping[str, Shape],
    found: Mapping[str, Shape],
    stored_as: Mapping[str, str],
) -> None:
    """CompileError where a tensor is missing, of another shape, or one we would not use.

    Args:
        path: the checkpoint, for the message.
        expected: shapes by Hugging Face name.
        found: shapes by the checkpoint's own names.
        stored_as: the checkpoint's name of each expected tensor.
    """
    for name, shape in expected.items():
        own = stored_as[name]
        if own not in found:
            raise CompileError(f"{path}: tensor {own!r} is missing")
        if found[own] != shape:
            raise CompileError(
                f"{path}: tensor {own!r} has the shape {list(found[own])}, "
                f"the model's sizes ask for {list(shape)}"
            )
    used = {stored_as[name] for name in expected}
    for own in found:
        if own not in used:
            reason = "biases are" if own.endswith(".bias") else "it is"
            raise UnsupportedError(
                f"{path}: tensor {own!r}: {reason} not part of a supported Llama"
            )
