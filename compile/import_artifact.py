"""A compiled model as a checkpoint again: the inverse of packing.

What stands in ``weights.bin`` in a kernel's order comes back by whole rows in Hugging Face's, its
integers and scales as they are. The formats follow from the manifest's tensor table.

    checkpoint = open_artifact(Path("smollm2-rpi5.edge"))
    checkpoint.tensor("model.layers.0.self_attn.q_proj.weight")     # Q4 [576, 576]
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compile import numerics
from compile.checkpoint import Q4, Q8, Matrix, ModelConfig, Tensor, TokenizerFiles
from compile.errors import CompileError, UnsupportedError
from compile.families import FAMILIES
from compile.llama_tensors import check_config, tensor_shapes
from compile.lower.cpu.isa import ISAS
from edge_llm import manifest as m
from edge_llm.artifact import Artifact
from edge_llm.errors import ArtifactError

ROWS = 16  # of a tile
UNIT_TILES = 2  # of gate, then as many of up

MATRICES = {
    "self_attn.q_proj.weight": "layers.attention.qkv",
    "self_attn.k_proj.weight": "layers.attention.qkv",
    "self_attn.v_proj.weight": "layers.attention.qkv",
    "self_attn.o_proj.weight": "layers.attention.output",
    "mlp.gate_proj.weight": "layers.feed_forward.gate_up",
    "mlp.up_proj.weight": "layers.feed_forward.gate_up",
    "mlp.down_proj.weight": "layers.feed_forward.down",
}
NORMS = {
    "input_layernorm.weight": "layers.attention.norm",
    "post_attention_layernorm.weight": "layers.feed_forward.norm",
}


@dataclass(frozen=True)
class Place:
    """Where a tensor stands: the manifest's name of its array, and the layer within."""

    array: str
    layer: int
    part: str  # the tensor's name within its layer, or "" outside


class ArtifactCheckpoint:
    """A :class:`compile.checkpoint.Checkpoint` over a mapped artifact."""

    def __init__(self, artifact: Artifact, config: ModelConfig) -> None:
        self.config = config
        self.tokenizer = _tokenizer(artifact)
        self._weights = np.frombuffer(artifact.entry("weights.bin"), np.uint8)
        self._arrays = {tensor.name: tensor for tensor in artifact.manifest.tensors}
        self._isa = ISAS[artifact.manifest.target.isa]
        shapes = tensor_shapes(config)
        self._places = {name: _place(name, config) for name in shapes}
        for name, place in self._places.items():
            self._check(place, shapes[name])

    def names(self) -> Iterable[str]:
        """Every tensor's name."""
        return self._places.keys()

    def tensor(self, name: str) -> Tensor:
        """One tensor; KeyError where there is none of that name."""
        place = self._places[name]
        if name.endswith("norm.weight"):
            norm: NDArray[np.float32] = self._array(place.array)[place.layer]
            return norm
        matrix = self._matrix(place, self._tiles(place))
        if place.part in ("self_attn.q_proj.weight", "self_attn.k_proj.weight"):
            order = np.argsort(numerics.rotary_order(self.config.head_dim))
            heads = np.arange(matrix.shape[0]).reshape(-1, self.config.head_dim)
            return matrix.rows(heads[:, order].reshape(-1))
        if not place.part:  # the rows that fill up the last tile go
            return matrix.rows(np.arange(self.config.vocab_size))
        return matrix

    def _check(self, place: Place, shape: tuple[int, ...]) -> None:
        """KeyError, ValueError or IndexError where the arrays are not those of the model's size."""
        array = self._array(place.array)[place.layer]
        if len(shape) == 1:
            found: tuple[int, ...] = array.shape
        else:
            _ = self._array(f"{place.array}.scales")[place.layer]
            rows = len(self._tiles(place)) * ROWS
            found = rows if place.part else min(rows, shape[0]), 32 * array.shape[1]
        if found != shape:
            raise ValueError(f"{place.array} is of {found}, not of {shape}")

    def _tiles(self, place: Place) -> NDArray[np.intp]:
        """Which of an array's tiles are the tensor's."""
        tiles = np.arange(self._arrays[place.array].shape[1])
        q = self.config.heads * self.config.head_dim // ROWS
        kv = self.config.kv_heads * self.config.head_dim // ROWS
        match place.part:
            case "self_attn.q_proj.weight":
                return tiles[:q]
            case "self_attn.k_proj.weight":
                return tiles[q : q + kv]
            case "self_attn.v_proj.weight":
                return tiles[q + kv :]
            case "mlp.gate_proj.weight":
                return tiles.reshape(-1, 2, UNIT_TILES)[:, 0].reshape(-1)
            case "mlp.up_proj.weight":
                return tiles.reshape(-1, 2, UNIT_TILES)[:, 1].reshape(-1)
        return tiles

    def _matrix(self, place: Place, tiles: NDArray[np.intp]) -> Matrix:
        """The rows of some tiles, in the order in which they stand."""
        packed = self._array(place.array)[place.layer][tiles]
        scale = _rows(self._array(f"{place.array}.scales")[place.layer][tiles])
        layout = self._isa.layout
        if self._arrays[place.array].layout == f"{layout.NAME}8":
            biased = layout.unpack8(packed)
            return Q8((biased - np.uint8(self._isa.BYTE_BIAS)).view(np.int8), scale)
        minimum = None
        if f"{place.array}.minimums" in self._arrays:
            minimum = _rows(self._array(f"{place.array}.minimums")[place.layer][tiles])
        return Q4(layout.unpack4(packed), scale, minimum)

    def _array(self, name: str) -> NDArray[Any]:
        """One of the manifest's arrays, a view of the file."""
        array = self._arrays[name]
        data = self._weights[array.offset : array.offset + array.size]
        return data.view(array.dtype).reshape(array.shape)


def open_artifact(path: Path) -> ArtifactCheckpoint:
    """Open an artifact; CompileError where it is damaged or lacks what only its code knows."""
    try:
        artifact = Artifact.open(path)
    except ArtifactError as error:
        raise CompileError(str(error)) from None
    try:
        return ArtifactCheckpoint(artifact, _config(path, artifact.manifest))
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise CompileError(f"{path}: its tensors are not those of its model: {error}") from None


def _config(path: Path, manifest: m.Manifest) -> ModelConfig:
    model = manifest.model
    if model.family not in FAMILIES or manifest.target.isa not in ISAS:
        raise UnsupportedError(
            f"{path}: family {model.family} for {manifest.target.isa}: this version knows "
            f"{', '.join(FAMILIES)} for {', '.join(ISAS)}"
        )
    if model.norm_eps is None or model.rope_frequencies is None:
        raise UnsupportedError(
            f"{path}: its manifest lacks norm_eps and rope_frequencies: compile the model again"
        )
    config = ModelConfig(
        family=model.family,
        name=model.name,
        layers=model.layers,
        width=model.width,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        ffn=model.ffn,
        vocab_size=model.vocab_size,
        context=model.context,
        norm_eps=model.norm_eps,
        rope_frequencies=model.rope_frequencies,
        tied=all(tensor.name != "embedding" for tensor in manifest.tensors),
        license=model.license,
    )
    check_config(path, config)
    return config


def _tokenizer(artifact: Artifact) -> TokenizerFiles:
    generation = json.loads(bytes(artifact.entry("generation.json")))
    generation["eos_token_ids"] = tuple(generation["eos_token_ids"])
    template = None
    if "chat_template.jinja" in artifact:
        template = bytes(artifact.entry("chat_template.jinja")).decode()
    return TokenizerFiles(
        tokenizer_json=bytes(artifact.entry("tokenizer.json")), chat_template=template, **generation
    )


def _place(name: str, config: ModelConfig) -> Place:
    """Where the tensor that Hugging Face calls ``name`` stands."""
    outer = {
        "model.norm.weight": "norm",
        "lm_head.weight": "output",
        "model.embed_tokens.weight": "output" if config.tied else "embedding",
    }
    if name in outer:
        return Place(outer[name], 0, "")
    layer, part = name.removeprefix("model.layers.").split(".", 1)
    return Place((MATRICES | NORMS)[part], int(layer), part)


def _rows(scales: NDArray[np.float16]) -> NDArray[np.float16]:
    """float16 [rows/16, groups, 16], a tile's scales side by side → [rows, groups]."""
    return np.ascontiguousarray(scales.transpose(0, 2, 1)).reshape(-1, scales.shape[1])
