"""A checkpoint of our own in one file: what a stage of the compiler made, for the next one.

A safetensors file whose metadata hold the sizes and the tokenizer; the same
checkpoint gives the same bytes. A quantized matrix is stored as
``NAME.q`` (uint8 [rows, columns / 2], the even column in the low nibble; or int8 [rows, columns]),
``NAME.scale`` and, if asymmetric, ``NAME.minimum``, both float16.

    store(Path("student.safetensors"), checkpoint)
    checkpoint = open_stored(Path("student.safetensors"))
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from compile.checkpoint import Q4, Q8, Checkpoint, ModelConfig, Tensor, TokenizerFiles
from compile.errors import CompileError
from compile.foreign_errors import translated
from compile.llama_tensors import check_config, check_tensors, tensor_shapes
from edge_llm.files import replacing

KEY = "edge-llm"  # of the metadata: one, as several are written in no certain order
FORMAT = "checkpoint 1"


def store(path: Path, checkpoint: Checkpoint) -> None:
    """Write every tensor of ``checkpoint``; ``path`` is whole or what it was before.

    Args:
        path: the file to write, by convention ``*.safetensors``.
        checkpoint: float and quantized tensors as they shall be stored.
    """
    arrays = {
        part: array
        for name in checkpoint.names()
        for part, array in parts(name, checkpoint.tensor(name)).items()
    }
    description = {
        "format": FORMAT,
        "config": asdict(checkpoint.config),
        "tokenizer": asdict(checkpoint.tokenizer)
        | {"tokenizer_json": checkpoint.tokenizer.tokenizer_json.decode()},
    }
    specs = {
        name: safetensors.TensorSpec(
            dtype=array.dtype.name,
            shape=array.shape,
            data_ptr=array.ctypes.data,
            data_len=array.nbytes,
        )
        for name, array in arrays.items()
    }
    with translated(f"cannot write {path}"), replacing(path) as file:
        safetensors.serialize_file(specs, Path(file.name), {KEY: json.dumps(description)})


def open_stored(path: Path) -> StoredCheckpoint:
    """Open a file that :func:`store` wrote; CompileError where it is damaged or another's."""
    with translated(f"{path}: not a checkpoint of ours, or a damaged one"):
        file: Any = safetensors.safe_open(path, framework="numpy")
        description = json.loads((file.metadata() or {}).get(KEY, "{}"))
        if description.get("format") != FORMAT:
            raise CompileError(f"{path}: a safetensors file by itself; give the model's folder")
        checkpoint = StoredCheckpoint(path, file, description)
        shapes = {name: checkpoint.shape(name) for name in checkpoint.names()}
        expected = tensor_shapes(checkpoint.config)
        check_tensors(path, expected, shapes, {name: name for name in expected})
        return checkpoint


class StoredCheckpoint:
    """A checkpoint read from one file, a tensor at a time."""

    def __init__(self, path: Path, file: Any, description: Mapping[str, Any]) -> None:
        self._file = file
        config = description["config"]
        frequencies = tuple(config["rope_frequencies"])
        self.config = ModelConfig(**config | {"rope_frequencies": frequencies})
        check_config(path, self.config)
        tokenizer = description["tokenizer"]
        plain = {
            "tokenizer_json": tokenizer["tokenizer_json"].encode(),
            "eos_token_ids": tuple(tokenizer["eos_token_ids"]),
        }
        self.tokenizer = TokenizerFiles(**tokenizer | plain)
        self._keys = frozenset(file.keys())

    def names(self) -> Iterable[str]:
        """Every tensor's name, sorted."""
        bare = {key.removesuffix(".q") for key in self._keys}
        return sorted(name for name in bare if not name.endswith((".scale", ".minimum")))

    def tensor(self, name: str) -> Tensor:
        """One tensor; KeyError where there is none of that name."""
        if name in self._keys:
            return self._array(name)
        if f"{name}.q" not in self._keys:
            raise KeyError(name)
        q, scale = self._array(f"{name}.q"), self._array(f"{name}.scale")
        if q.dtype == np.int8:
            return Q8(q, scale)
        minimum = f"{name}.minimum"
        return Q4(unpacked(q), scale, self._array(minimum) if minimum in self._keys else None)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, from the file's header alone; KeyError where a part of it is missing."""
        if name in self._keys:
            return tuple(self._file.get_slice(name).get_shape())
        if f"{name}.scale" not in self._keys:
            raise KeyError(f"{name}.scale")
        q = self._file.get_slice(f"{name}.q")
        rows, columns = q.get_shape()
        eight = q.get_dtype() == "I8"
        columns *= 1 if eight else 2
        scales = [[rows, columns // group] for group in ((32,) if eight else (32, 64, 128))]
        for part in ("scale", "minimum"):
            key = f"{name}.{part}"
            if key in self._keys and self._file.get_slice(key).get_shape() not in scales:
                raise CompileError(f"{key}: not one a group of 32, 64 or 128 columns")
        return rows, columns

    def _array(self, key: str) -> NDArray[Any]:
        array: NDArray[Any] = self._file.get_tensor(key)
        return array


def parts(name: str, tensor: Tensor) -> dict[str, NDArray[Any]]:
    """The arrays that a tensor is stored as."""
    if isinstance(tensor, Q4):
        low, high = tensor.q[:, ::2], tensor.q[:, 1::2]
        arrays = {f"{name}.q": low | high << 4, f"{name}.scale": tensor.scale}
        if tensor.minimum is not None:
            arrays[f"{name}.minimum"] = tensor.minimum
    elif isinstance(tensor, Q8):
        arrays = {f"{name}.q": tensor.q, f"{name}.scale": tensor.scale}
    else:
        arrays = {name: tensor}
    return {key: np.ascontiguousarray(array) for key, array in arrays.items()}


def unpacked(q: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [rows, columns / 2] of two nibbles each → uint8 [rows, columns]."""
    return np.stack((q & 15, q >> 4), axis=-1).reshape(len(q), -1)
