"""GGUF files of the Llama architecture (Llama, SmolLM2, TinyLlama, Mistral) as checkpoints.

Q4_0, Q4_1 and Q8_0 keep their integers and scales; what llama.cpp arranges differently (names,
rotary rows) is put back in Hugging Face's order by whole rows, so no block is touched.

    checkpoint = open_gguf(Path("SmolLM2-135M-Instruct.Q4_1.gguf"))
    checkpoint.tensor("model.layers.0.self_attn.q_proj.weight")     # Q4 [576, 576]
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compile import rope
from compile.checkpoint import Q4, Q8, ModelConfig, Tensor, TokenizerFiles
from compile.errors import CompileError, UnsupportedError
from compile.gguf_blocks import DECODERS, decode
from compile.gguf_file import GGUFFile, read_gguf
from compile.gguf_tokenizer import read_tokenizer
from compile.llama_tensors import check_rope_base, check_sizes, check_tensors, tensor_shapes

OUTER_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
ROPE_FACTORS = "rope_freqs.weight"
# Every setting of the architecture that is read below or does not change what is computed.
# Another one might, so it is refused rather than ignored.
KNOWN_SETTINGS = frozenset(
    {
        "attention.causal",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.layer_norm_rms_epsilon",
        "attention.sliding_window",
        "attention.value_length",
        "block_count",
        "context_length",
        "embedding_length",
        "expert_count",
        "expert_used_count",
        "feed_forward_length",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scale_linear",
        "rope.scaling.factor",
        "rope.scaling.finetuned",
        "rope.scaling.original_context_length",
        "rope.scaling.type",
        "tensor_data_layout",
        "vocab_size",
    }
)


class GGUFCheckpoint:
    """A :class:`compile.checkpoint.Checkpoint` over a mapped GGUF."""

    def __init__(self, file: GGUFFile, config: ModelConfig, tokenizer: TokenizerFiles) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self._file = file
        self._stored_as = {name: _gguf_name(name) for name in tensor_shapes(config)}

    def names(self) -> Iterable[str]:
        """Every tensor's Hugging Face name."""
        return self._stored_as.keys()

    def tensor(self, name: str) -> Tensor:
        """One tensor, norms in float32; KeyError where there is none of that name."""
        own = self._stored_as[name]
        rows = self._file.rows(own)
        if name.endswith("q_proj.weight"):
            rows = rows[_rotary_order(self.config.heads, self.config.head_dim)]
        elif name.endswith("k_proj.weight"):
            rows = rows[_rotary_order(self.config.kv_heads, self.config.head_dim)]
        tensor = decode(self._file.tensors[own].type.name, rows)
        if not _finite(tensor):
            raise CompileError(f"{self._file.path}: tensor {own!r} holds infinite or NaN weights")
        if len(self._file.tensors[own].shape) > 1:
            return tensor
        values = tensor.dequantize() if isinstance(tensor, Q4 | Q8) else tensor
        return np.asarray(values[0], np.float32)


def open_gguf(path: Path) -> GGUFCheckpoint:
    """Open a GGUF; CompileError where it is damaged, UnsupportedError where it is no Llama."""
    file = read_gguf(path)
    _check_architecture(file)
    config = _config(file)
    expected = tensor_shapes(config)
    found = {name: info.shape for name, info in file.tensors.items() if name != ROPE_FACTORS}
    check_tensors(path, expected, found, {name: _gguf_name(name) for name in expected})
    for info in file.tensors.values():
        if info.type.name not in DECODERS:
            raise UnsupportedError(
                f"{path}: tensor {info.name!r} is stored as {info.type.name}; "
                f"supported are {', '.join(DECODERS)}"
            )
    return GGUFCheckpoint(file, config, read_tokenizer(file.metadata))


def _check_architecture(file: GGUFFile) -> None:
    """Refuse what is not a plain Llama, naming the first thing that differs."""
    metadata, path = file.metadata, file.path
    architecture = metadata.text("general.architecture")
    if architecture != "llama":
        raise UnsupportedError(f"{path}: architecture {architecture!r}; supported is 'llama'")
    if metadata.integer("split.count", 1) > 1:
        raise UnsupportedError(f"{path}: one part of a split GGUF; join the parts first")
    if experts := metadata.integer("llama.expert_count", 0):
        raise UnsupportedError(f"{path}: a mixture of {experts} experts is not supported")
    if not metadata.flag("llama.attention.causal", True):
        raise UnsupportedError(f"{path}: attention that is not causal is not supported")
    for key in metadata:
        setting = key.removeprefix("llama.")
        if setting != key and setting not in KNOWN_SETTINGS:
            raise UnsupportedError(f"{path}: the setting {key!r} is not supported")


def _config(file: GGUFFile) -> ModelConfig:
    metadata, path = file.metadata, file.path
    width = metadata.integer("llama.embedding_length")
    heads = metadata.integer("llama.attention.head_count")
    if heads < 1 or (width % heads and "llama.attention.key_length" not in metadata):
        raise CompileError(f"{path}: a width of {width} cannot be divided by {heads} heads")
    head_dim = metadata.integer("llama.attention.key_length", width // heads)
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if metadata.integer(key, head_dim) != head_dim:
            raise UnsupportedError(
                f"{path}: {key} is {metadata.integer(key)}; only the head dimension, "
                f"{head_dim}, is supported"
            )
    context = metadata.integer("llama.context_length")
    if window := metadata.integer("llama.attention.sliding_window", 0):
        context = min(context, window)  # up to the window's size, the window changes nothing
    config = ModelConfig(
        family="llama",
        name=metadata.text("general.name", path.stem),
        layers=metadata.integer("llama.block_count"),
        width=width,
        heads=heads,
        kv_heads=metadata.integer("llama.attention.head_count_kv", heads),
        head_dim=head_dim,
        ffn=metadata.integer("llama.feed_forward_length"),
        vocab_size=len(metadata.texts("tokenizer.ggml.tokens")),
        context=context,
        norm_eps=metadata.number("llama.attention.layer_norm_rms_epsilon"),
        rope_frequencies=(),
        tied="output.weight" not in file.tensors,
        license=metadata.text("general.license") if "general.license" in metadata else None,
    )
    check_sizes(path, config)
    return replace(config, rope_frequencies=tuple(_rope_frequencies(file, head_dim).tolist()))


def _rope_frequencies(file: GGUFFile, head_dim: int) -> rope.Frequencies:
    """With linear scaling from the metadata, and Llama 3's from a tensor of divisors."""
    metadata, path = file.metadata, file.path
    base = metadata.number("llama.rope.freq_base", 10000.0)
    check_rope_base(path, base)
    frequencies = rope.frequencies(base, head_dim)
    kind = metadata.text("llama.rope.scaling.type", "linear")
    if kind not in ("none", "linear"):
        raise UnsupportedError(f"{path}: rope scaling {kind!r}; supported are linear and Llama 3's")
    if kind == "linear":
        old_name = metadata.number("llama.rope.scale_linear", 1.0)
        factor = metadata.number("llama.rope.scaling.factor", old_name)
        if not factor >= 1:
            raise CompileError(f"{path}: rope scaling by {factor}; it must be 1 or more")
        frequencies = frequencies / factor
    if ROPE_FACTORS not in file.tensors:
        return frequencies
    info = file.tensors[ROPE_FACTORS]
    if info.type.name != "F32" or info.shape != (head_dim // 2,):
        raise CompileError(
            f"{path}: tensor {ROPE_FACTORS!r} is {info.type.name} {list(info.shape)}, "
            f"not F32 [{head_dim // 2}]"
        )
    factors = np.asarray(file.rows(ROPE_FACTORS).view("<f4")[0], np.float64)
    if not (np.isfinite(factors) & (factors >= 1)).all():
        raise CompileError(f"{path}: tensor {ROPE_FACTORS!r} holds factors below 1")
    return np.divide(frequencies, factors)


def _gguf_name(name: str) -> str:
    """llama.cpp's name of the tensor that Hugging Face calls ``name``."""
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    layer, part = name.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{LAYER_NAMES[part]}"


def _rotary_order(heads: int, head_dim: int) -> NDArray[np.intp]:
    """For each row in Hugging Face's order, its row in the file.

    llama.cpp rotates neighbouring rows 2i and 2i+1 of a head, Hugging Face rows i and
    i + head_dim/2; its converter interleaves a head's two halves, and this is the way back.
    """
    order = np.arange(heads * head_dim).reshape(heads, head_dim // 2, 2)
    return np.ascontiguousarray(order.swapaxes(1, 2)).ravel()


def _finite(tensor: Tensor) -> bool:
    """Whether no weight is infinite or NaN; of a quantized matrix the scales decide."""
    if isinstance(tensor, Q8):
        return bool(np.isfinite(tensor.scale).all())
    if isinstance(tensor, Q4):
        minimum = tensor.scale if tensor.minimum is None else tensor.minimum
        return bool(np.isfinite(tensor.scale).all() and np.isfinite(minimum).all())
    return bool(np.isfinite(tensor).all())
