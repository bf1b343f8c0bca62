"""An ONNX file opened for reading: who produces each value, and constants when they are asked for.

External data are mapped; a location in the file is taken as a path below its own folder, so a
graph cannot point outside.

    file = read_onnx(Path("model.onnx"))
    file.producer["logits"].op_type     # "MatMul"
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from compile.errors import CompileError, UnsupportedError
from compile.foreign_errors import translated

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
TYPES = (*FLOATS, TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32, TensorProto.INT64)
EXTERNAL = TensorProto.EXTERNAL


class OnnxFile:
    """One graph: nodes in order, and its constants by name."""

    def __init__(self, path: Path, model: onnx.ModelProto) -> None:
        self.path = path
        self.graph = model.graph
        self.metadata: Mapping[str, str] = {p.key: p.value for p in model.metadata_props}
        self.producer = {out: node for node in self.graph.node for out in node.output if out}
        self._constants = {tensor.name: tensor for tensor in self.graph.initializer}
        for node in self.graph.node:
            if node.op_type == "Constant" and (tensor := attributes(node).get("value")) is not None:
                self._constants[node.output[0]] = tensor

    @cached_property
    def inputs(self) -> frozenset[str]:
        """What a caller gives: names that are no initializer's."""
        return frozenset(value.name for value in self.graph.input) - self._constants.keys()

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """What a caller gets."""
        return tuple(value.name for value in self.graph.output)

    @cached_property
    def external(self) -> tuple[Path, ...]:
        """The files beside the graph that hold some of its constants."""
        locations = {
            entry.value
            for tensor in self._constants.values()
            if tensor.data_location == EXTERNAL
            for entry in tensor.external_data
            if entry.key == "location"
        }
        return tuple(sorted(map(self._beside, locations)))

    def is_constant(self, name: str) -> bool:
        """Whether a value stands in the file."""
        return name in self._constants

    def is_float(self, name: str) -> bool:
        """Whether a constant is of a type that weights have before they are quantized."""
        return self._constants[name].data_type in FLOATS

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a constant."""
        return tuple(self._constants[name].dims)

    def array(self, name: str) -> NDArray[Any]:
        """A constant; bfloat16 becomes float32."""
        tensor = self._constants[name]
        external = tensor.data_location == EXTERNAL
        with translated(f"{self.path}: tensor {name!r} cannot be read"):
            values = self._mapped(tensor) if external else numpy_helper.to_array(tensor)
        return values.astype(np.float32) if tensor.data_type == TensorProto.BFLOAT16 else values

    def number(self, name: str) -> float | None:
        """A constant of one element, else None."""
        if name not in self._constants or math.prod(self.shape(name)) != 1:
            return None
        return float(self.array(name).reshape(-1)[0])

    def unsupported(self, node: NodeProto, why: str) -> UnsupportedError:
        """The error that names a node."""
        return UnsupportedError(f"{self.path}: node {node.name!r} ({node.op_type}): {why}")

    def _mapped(self, tensor: TensorProto) -> NDArray[Any]:
        place = {entry.key: entry.value for entry in tensor.external_data}
        path = self._beside(place.get("location", ""))
        if tensor.data_type not in TYPES:
            kind = TensorProto.DataType.Name(tensor.data_type)
            raise UnsupportedError(f"{self.path}: tensor {tensor.name!r} is stored as {kind}")
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        shape, offset = tuple(tensor.dims), int(place.get("offset", 0))
        size = math.prod(shape) * dtype.itemsize
        if int(place.get("length", size)) != size or path.stat().st_size < offset + size:
            raise CompileError(
                f"{path}: cut short or another model's: tensor {tensor.name!r} takes {size} bytes "
                f"from {offset}, the file has {path.stat().st_size}"
            )
        return np.memmap(path, dtype, "r", offset, shape)

    def _beside(self, location: str) -> Path:
        parts = PurePosixPath(location)
        if not location or parts.is_absolute() or ".." in parts.parts:
            raise CompileError(f"{self.path}: external data at {location!r}: not a file beside it")
        path = self.path.parent / parts
        if not path.is_file():
            raise CompileError(f"{path.parent}: {path.name} is missing, {self.path.name} needs it")
        return path


def read_onnx(path: Path) -> OnnxFile:
    """Open a graph; CompileError where it is damaged or its external data are missing."""
    with translated(f"{path}: not an ONNX file, or a damaged one"):
        file = OnnxFile(path, onnx.load_model(path, load_external_data=False))
    if not file.graph.node:
        raise CompileError(f"{path}: not an ONNX file: it holds no graph")
    for tensor in file.graph.initializer:
        if tensor.data_location == EXTERNAL:
            file.array(tensor.name)
    return file


def attributes(node: NodeProto) -> dict[str, Any]:
    """A node's attributes by name."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def optional(node: NodeProto, index: int) -> str | None:
    """An input that may be left out."""
    return (node.input[index] or None) if index < len(node.input) else None
