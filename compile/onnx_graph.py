"""An ONNX graph as it is written: nodes in order, small constants inside, weights in a file beside.

Weights never are in the graph's own file: protobuf ends at 2 GB, and so they are in memory one at
a time, here as later in onnxruntime, which maps them.

    with onnx_files(Path("model.onnx")) as (graph_file, data):
        graph = GraphWriter(data, "model.onnx.data")
        x = graph.node("MatMul", ["x", graph.weight("w", array)], "/linear")
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper

from edge_llm.files import replacing

ALIGNMENT = 4096  # bytes: what the format's spec advises for mapping
OPSET, MICROSOFT = 21, "com.microsoft"
IR_VERSION = 10  # of onnxruntime 1.18 and later

Dims = Sequence[str | int]


class GraphWriter:
    """Nodes, constants and weights of one graph."""

    def __init__(self, data: BinaryIO, location: str) -> None:
        self._data = data
        self._location = location
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: dict[str, TensorProto] = {}

    def __contains__(self, name: str) -> bool:
        """Whether there is a constant or a weight of that name."""
        return name in self._tensors

    def node(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add an operation of ONNX; returns the name of its output, which is ``name``'s."""
        self.operation("", op, inputs, [f"{name}/output"], name, **attributes)
        return f"{name}/output"

    def operation(
        self,
        domain: str,
        op: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        name: str,
        **attributes: Any,
    ) -> None:
        """Add an operation of any domain, its outputs named."""
        node = helper.make_node(op, inputs, outputs, name, domain=domain, **attributes)
        self._nodes.append(node)

    def constant(self, name: str, value: NDArray[Any] | np.generic) -> str:
        """Add a small constant, once; returns its name."""
        if name not in self._tensors:
            self._tensors[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def weight(self, name: str, value: NDArray[Any]) -> str:
        """Write an array into the file of weights; returns its name."""
        tensor = TensorProto(
            name=name,
            data_type=helper.np_dtype_to_tensor_dtype(value.dtype),
            dims=value.shape,
            data_location=TensorProto.EXTERNAL,
        )
        self._data.write(bytes(-self._data.tell() % ALIGNMENT))
        place = {"location": self._location, "offset": self._data.tell(), "length": value.nbytes}
        for key, entry in place.items():
            tensor.external_data.add(key=key, value=str(entry))
        self._data.write(np.ascontiguousarray(value).data)
        self._tensors[name] = tensor
        return name

    def model(
        self,
        inputs: Sequence[ValueInfoProto],
        outputs: Sequence[ValueInfoProto],
        metadata: Mapping[str, str],
    ) -> bytes:
        """The graph's file."""
        graph = helper.make_graph(
            self._nodes, "decoder", inputs, outputs, list(self._tensors.values())
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="edge-llm"
        )
        helper.set_model_props(model, dict(metadata))
        return bytes(model.SerializeToString())


@contextmanager
def onnx_files(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The graph's file and ``NAME.data``, which take their places when both are whole.

    The old graph goes before the new weights come: a crash in between leaves no graph at all
    rather than one over the weights of another.
    """
    with replacing(path) as graph, replacing(path.with_name(f"{path.name}.data")) as data:
        yield graph, data
        data.flush()  # a full disk shows here at the latest
        path.unlink(missing_ok=True)


def value(name: str, dtype: int, dims: Dims) -> ValueInfoProto:
    """An input or output of the graph; a dimension is a number or the name of an unknown one."""
    return helper.make_tensor_value_info(name, dtype, list(dims))
