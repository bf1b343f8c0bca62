"""ONNX decoders of the common exporters as checkpoints: optimum and torch.onnx in plain operations,
onnxruntime-genai's model builder, and our own export.

Integers of MatMulNBits are kept; what is beside the graph (config.json or genai_config.json, and
the tokenizer) gives the sizes.

    checkpoint = open_onnx(Path("smollm2/model.onnx"))
    checkpoint.tensor("model.layers.0.self_attn.q_proj.weight")     # Q4, or float [576, 576]
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compile import rope
from compile.checkpoint import Q4, Q8, ModelConfig, Tensor, TokenizerFiles
from compile.errors import CompileError, UnsupportedError
from compile.export_onnx import CONFIG
from compile.foreign_errors import translated
from compile.huggingface_tokenizer import read_tokenizer
from compile.import_huggingface import MODEL_TYPES, check_architecture, read_config
from compile.json_file import Settings, read_settings
from compile.llama_tensors import check_config, check_tensors, tensor_shapes
from compile.onnx_anchors import Anchors, Embedding, Linear, Norm
from compile.onnx_decoder import Decoder, Role
from compile.onnx_file import OnnxFile, attributes, optional, read_onnx
from compile.onnx_matrix import NBits, unpack

logger = logging.getLogger(__name__)

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


class OnnxCheckpoint:
    """A :class:`compile.checkpoint.Checkpoint` over a graph and its data."""

    config: ModelConfig
    tokenizer: TokenizerFiles

    def __init__(self, file: OnnxFile, roles: dict[str, Role]) -> None:
        self._file = file
        self.roles = roles
        self._told = False  # that something was rounded

    def names(self) -> Iterable[str]:
        """Every tensor's Hugging Face name."""
        return tensor_shapes(self.config).keys()

    def tensor(self, name: str) -> Tensor:
        """One tensor, norms in float32; KeyError where there is none of that name."""
        if name not in tensor_shapes(self.config):
            raise KeyError(name)
        with translated(f"{self._file.path}: {name} cannot be read"):
            tensor = self.read(name)
        floats = (tensor.scale,) if isinstance(tensor, Q4 | Q8) else (tensor,)
        if not all(np.isfinite(values).all() for values in floats):
            raise CompileError(f"{self._file.path}: {name} holds infinite or NaN weights")
        return tensor

    def read(self, name: str) -> Tensor:
        """The tensor that has a role, whether or not the configuration counts it."""
        role, file = self.roles[name], self._file
        if isinstance(role.anchor, Norm):
            return np.asarray(file.array(role.anchor.weight), np.float32)
        if (stored := role.anchor.weight) is None:
            return self._packed(role)
        array = file.array(stored.name)
        rows = slice(*(role.rows or (None,)))
        return np.ascontiguousarray((array.T if stored.transposed else array)[rows])

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor that has a role, from the graph alone."""
        anchor, file = self.roles[name].anchor, self._file
        if isinstance(anchor, Norm):
            return file.shape(anchor.weight)
        if anchor.weight is not None:
            rows, columns = file.shape(anchor.weight.name)
            shape = (columns, rows) if anchor.weight.transposed else (rows, columns)
        elif isinstance(anchor, Linear):
            shape = anchor.rows, int(attributes(anchor.node)["K"])
        else:
            data = file.shape(anchor.packed[0])
            shape = data[0], math.prod(data[1:]) * 8 // anchor.bits
        begin, end = self.roles[name].rows or (0, shape[0])
        return end - begin, shape[1]

    def _packed(self, role: Role) -> Tensor:
        """A matrix of MatMulNBits, or an embedding packed like one."""
        anchor, file = role.anchor, self._file
        if isinstance(anchor, Linear):
            settings = attributes(anchor.node)
            bits, columns = int(settings.get("bits", 4)), int(settings["K"])
            for index, what in ((4, "a group index"), (5, "a bias")):
                if optional(anchor.node, index):
                    raise file.unsupported(anchor.node, f"{what} is not supported")
            names = [n for i in (1, 2, 3) if (n := optional(anchor.node, i))]
        else:
            assert isinstance(anchor, Embedding)
            bits, names = anchor.bits, list(anchor.packed)
            columns = math.prod(file.shape(names[0])[1:]) * 8 // bits
        if bits not in (4, 8) or not all(file.is_constant(name) for name in names):
            raise file.unsupported(anchor.node, f"{bits} bits, or not constant; 4 and 8 are read")
        data, scale, *zero = (file.array(name) for name in names)
        if data.dtype != np.uint8:
            raise file.unsupported(anchor.node, f"packed as {data.dtype}; uint8 is supported")
        rows = len(data)
        scale = scale.reshape(rows, -1).astype(np.float32)
        packed = NBits(
            bits,
            block=data.size // rows * 8 // bits // scale.shape[1],
            data=data.reshape(rows, -1),
            scale=scale,
            zero=_zero_points(zero[0], bits, scale.shape) if zero else None,
        )
        tensor, exact = unpack(packed.slice(*(role.rows or (0, rows))), columns)
        if not exact and not self._told:
            self._told = True
            logger.warning(
                "%s: scales or zero points are finer than float16 and were rounded to it "
                "(relative error below 0.05 %%); integers are kept",
                file.path,
            )
        return tensor


def open_onnx(path: Path) -> OnnxCheckpoint:
    """Open a graph; CompileError where it is damaged, UnsupportedError where it is no Llama."""
    with translated(f"{path}: damaged, or not as exporters write it"):
        return _opened(read_onnx(path))


def _opened(file: OnnxFile) -> OnnxCheckpoint:
    path, settings = file.path, _settings(file)
    decoder = Decoder(file, Anchors(file))
    checkpoint = OnnxCheckpoint(file, decoder.roles())
    config = _config(file, settings, checkpoint, decoder)
    if decoder.layers != config.layers:
        raise CompileError(
            f"{path}: the graph has {decoder.layers} layers, {settings.path.name} says "
            f"{config.layers}"
        )
    for node in decoder.attention:
        scale = float(attributes(node).get("scale", 0)) or config.head_dim**-0.5
        if not math.isclose(scale, config.head_dim**-0.5, rel_tol=1e-3):
            raise file.unsupported(node, f"scale {scale:g} is not 1 / √{config.head_dim}")
    checkpoint.config = replace(config, tied=_tied(checkpoint))
    expected = tensor_shapes(checkpoint.config)
    names = {name: name for name in expected}
    found = {
        name: checkpoint.shape(name)
        for name in checkpoint.roles
        if name in expected or name != HEAD  # which a graph has even where it is the embedding
    }
    check_tensors(path, expected, found, names)
    checkpoint.tokenizer = read_tokenizer(path.parent, settings, checkpoint.config)
    return checkpoint


def _settings(file: OnnxFile) -> Settings:
    """config.json, else the model's section of genai_config.json, beside the graph."""
    folder = file.path.parent
    if (folder / "config.json").exists():
        settings = read_settings(folder / "config.json")
        check_architecture(settings)
        return settings
    if not (folder / "genai_config.json").exists():
        raise CompileError(
            f"{folder}: config.json is missing; exporters leave it, or genai_config.json, "
            f"beside {file.path.name}"
        )
    settings = read_settings(folder / "genai_config.json").section("model")
    if (kind := settings.text("type")) not in MODEL_TYPES:
        supported = ", ".join(MODEL_TYPES)
        raise UnsupportedError(f"{settings.path}: type {kind!r}; supported are {supported}")
    return settings


def _config(
    file: OnnxFile, settings: Settings, checkpoint: OnnxCheckpoint, decoder: Decoder
) -> ModelConfig:
    """The sizes: as we wrote them, as config.json has them, or as the graph shows them."""
    if CONFIG in file.metadata:
        with translated(f"{file.path}: metadata {CONFIG}"):
            given: dict[str, Any] = json.loads(file.metadata[CONFIG])
            frequencies = tuple(float(f) for f in given["rope_frequencies"])
            config = ModelConfig(**(given | {"rope_frequencies": frequencies}))
            check_config(file.path, config)
            return config
    if settings.path.name == "config.json":
        return read_config(file.path.parent, settings)
    return _from_graph(file, settings, checkpoint, decoder)


def _from_graph(
    file: OnnxFile, settings: Settings, checkpoint: OnnxCheckpoint, decoder: Decoder
) -> ModelConfig:
    """Of the model builder's graphs: it leaves the sizes, the graph has the rest."""
    sizes = settings.section("decoder")
    node = decoder.attention[0] if decoder.attention else None
    tables = [n for i in (7, 8) if node is not None and (n := optional(node, i))]
    if node is None or len(tables) != 2 or not all(map(file.is_constant, tables)):
        raise UnsupportedError(
            f"{file.path.parent}: config.json is missing, and the attention of {file.path.name} "
            "has no rotary tables to take its place"
        )
    frequencies = rope.from_tables(*(file.array(name) for name in tables))
    context = settings.integer("context_length")
    if (window := int(attributes(node).get("local_window_size", -1))) > 0:
        context = min(context, window)  # up to the window's size, the window changes nothing
    norm = checkpoint.roles["model.norm.weight"].anchor
    assert isinstance(norm, Norm)
    config = ModelConfig(
        family="llama",
        name=file.path.resolve().parent.name,
        layers=sizes.integer("num_hidden_layers"),
        width=sizes.integer("hidden_size"),
        heads=sizes.integer("num_attention_heads"),
        kv_heads=sizes.integer("num_key_value_heads"),
        head_dim=sizes.integer("head_size"),
        ffn=checkpoint.shape("model.layers.0.mlp.gate_proj.weight")[0],
        vocab_size=settings.integer("vocab_size"),
        context=context,
        norm_eps=norm.eps,
        rope_frequencies=tuple(frequencies.tolist()),
        tied=False,
    )
    check_config(file.path, config)
    return config


def _tied(checkpoint: OnnxCheckpoint) -> bool:
    """Whether the output head is the embedding, weight by weight, whatever a setting says."""
    if checkpoint.shape(HEAD) != checkpoint.shape(EMBEDDING):
        return False
    head, embedding = checkpoint.read(HEAD), checkpoint.read(EMBEDDING)
    if type(head) is not type(embedding):
        return False
    return all(
        one is other or (one is not None and other is not None and np.array_equal(one, other))
        for one, other in zip(_arrays(head), _arrays(embedding), strict=True)
    )


def _arrays(tensor: Tensor) -> tuple[NDArray[Any] | None, ...]:
    if isinstance(tensor, Q4):
        return tensor.q, tensor.scale, tensor.minimum
    return (tensor.q, tensor.scale) if isinstance(tensor, Q8) else (tensor,)


def _zero_points(
    zero: NDArray[Any], bits: int, shape: tuple[int, ...]
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """One a block: float as they are, packed ones taken apart, a row's last nibble left out."""
    if zero.dtype != np.uint8:
        return zero.astype(np.float32).reshape(shape)
    rows = zero.reshape(shape[0], -1)
    if bits == 4:
        rows = np.stack((rows & 15, rows >> 4), axis=-1).reshape(shape[0], -1)
    return rows[:, : shape[1]]
