"""Hugging Face folders of the Llama architecture (model_type llama, mistral) as checkpoints.

The folder holds config.json, one or several safetensors files, tokenizer.json and, where the
model has them, tokenizer_config.json, chat_template.jinja and generation_config.json.

    checkpoint = open_huggingface(Path("SmolLM2-135M-Instruct"))
    checkpoint.tensor("model.embed_tokens.weight")      # float16 or float32 [49152, 576]
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from compile import rope
from compile.checkpoint import ModelConfig, Tensor, TokenizerFiles
from compile.errors import CompileError, UnsupportedError
from compile.huggingface_tokenizer import read_tokenizer
from compile.json_file import Settings, read_settings
from compile.llama_tensors import check_rope_base, check_sizes, check_tensors, tensor_shapes
from compile.safetensors_folder import SafetensorsFolder

MODEL_TYPES = ("llama", "mistral")
# In old checkpoints: what the configuration says as well.
REDUNDANT = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


class HuggingFaceCheckpoint:
    """A :class:`compile.checkpoint.Checkpoint` over a folder."""

    def __init__(
        self, folder: SafetensorsFolder, config: ModelConfig, tokenizer: TokenizerFiles
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self._folder = folder
        self._names = tuple(tensor_shapes(config))

    def names(self) -> Iterable[str]:
        """Every tensor's name."""
        return self._names

    def tensor(self, name: str) -> Tensor:
        """One tensor, norms in float32; KeyError where there is none of that name."""
        if name not in self._names:
            raise KeyError(name)
        values = self._folder.read(name)
        if not np.isfinite(values).all():
            path = self._folder.tensors[name].path
            raise CompileError(f"{path}: tensor {name!r} holds infinite or NaN weights")
        return values.astype(np.float32) if values.ndim == 1 else values


def open_huggingface(folder: Path) -> HuggingFaceCheckpoint:
    """Open a folder; CompileError where something is missing or damaged."""
    if not (folder / "config.json").exists():
        raise CompileError(f"{folder}: config.json is missing; is this a Hugging Face model?")
    settings = read_settings(folder / "config.json")
    check_architecture(settings)
    config = read_config(folder, settings)
    weights = SafetensorsFolder(folder)
    expected = tensor_shapes(config)
    found = {
        name: tensor.shape
        for name, tensor in weights.tensors.items()
        if not REDUNDANT.fullmatch(name) and not (config.tied and name == "lm_head.weight")
    }
    check_tensors(folder, expected, found, {name: name for name in expected})
    weights.check_types(expected)
    return HuggingFaceCheckpoint(weights, config, read_tokenizer(folder, settings, config))


def check_architecture(settings: Settings) -> None:
    """Refuse what is not a plain Llama, naming the first thing that differs."""
    path = settings.path
    kind = settings.text("model_type")
    if kind not in MODEL_TYPES:
        supported = ", ".join(MODEL_TYPES)
        raise UnsupportedError(f"{path}: model_type {kind!r}; supported are {supported}")
    for key in ("attention_bias", "mlp_bias"):
        if settings.flag(key, False):
            raise UnsupportedError(f"{path}: {key} is true; a Llama with biases is not supported")
    if (activation := settings.text("hidden_act", "silu")) != "silu":
        raise UnsupportedError(f"{path}: hidden_act {activation!r}; supported is 'silu'")
    if settings.number("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedError(f"{path}: partial_rotary_factor other than 1 is not supported")
    if "quantization_config" in settings:
        method = settings.section("quantization_config").text("quant_method", "unnamed")
        raise UnsupportedError(
            f"{path}: weights quantized by {method!r}; give the original ones or a GGUF"
        )


def read_config(folder: Path, settings: Settings) -> ModelConfig:
    """The sizes that a config.json gives; CompileError where one is missing or absurd."""
    width = settings.integer("hidden_size")
    heads = settings.integer("num_attention_heads")
    if heads < 1 or (width % heads and "head_dim" not in settings):
        raise CompileError(
            f"{settings.path}: a width of {width} cannot be divided by {heads} heads"
        )
    head_dim = settings.integer("head_dim", width // heads)
    context = settings.integer("max_position_embeddings", 2048)
    if settings.flag("use_sliding_window", True) and "sliding_window" in settings:
        # up to the window's size, the window changes nothing
        context = min(context, settings.integer("sliding_window"))
    config = ModelConfig(
        family="llama",
        name=folder.resolve().name,
        layers=settings.integer("num_hidden_layers"),
        width=width,
        heads=heads,
        kv_heads=settings.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        ffn=settings.integer("intermediate_size"),
        vocab_size=settings.integer("vocab_size"),
        context=context,
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        rope_frequencies=(),
        tied=settings.flag("tie_word_embeddings", False),
    )
    check_sizes(settings.path, config)
    return replace(
        config,
        norm_eps=float(np.float32(config.norm_eps)),  # as a GGUF of the same model has it
        rope_frequencies=tuple(_rope_frequencies(settings, head_dim).tolist()),
    )


def _rope_frequencies(settings: Settings, head_dim: int) -> rope.Frequencies:
    """Scaled as ``rope_scaling`` says, or ``rope_parameters`` as newer configurations call it.

    Of both the first counts, as for transformers.
    """
    path = settings.path
    newer = settings.section("rope_parameters")
    scaling = settings.section("rope_scaling")
    if not scaling.values:
        scaling = newer
    otherwise = newer.number("rope_theta", 10000.0)
    base = scaling.number("rope_theta", settings.number("rope_theta", otherwise))
    check_rope_base(path, base)
    plain = rope.frequencies(base, head_dim)
    kind = scaling.text("rope_type", scaling.text("type", "default"))
    if kind == "default":
        return plain
    if kind not in ("linear", "llama3"):
        raise UnsupportedError(f"{path}: rope scaling {kind!r}; supported are linear and llama3")
    factor = scaling.number("factor")
    if not factor >= 1:
        raise CompileError(f"{path}: rope scaling by {factor}; it must be 1 or more")
    if kind == "linear":
        return plain / factor
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    original = scaling.number("original_max_position_embeddings")
    if not (0 < low < high and original > 0):
        raise CompileError(
            f"{path}: rope scaling from {low} to {high} over {original} positions makes no sense"
        )
    return rope.llama3(plain, factor, low, high, original)
