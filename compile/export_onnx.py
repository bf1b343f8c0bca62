"""A checkpoint as an ONNX decoder with a KV cache, for onnxruntime and what builds on it.

Quantized matrices become MatMulNBits, float ones MatMul; attention is GroupQueryAttention, which
rotates and keeps the cache; all computation is float32. Inputs and outputs have the names that
onnxruntime-genai and optimum use: input_ids, attention_mask, past_key_values.N.key and .value;
logits, present.N.key and .value.

    export_onnx(open_checkpoint(Path("model.gguf")), Path("out/model.onnx"))
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, ValueInfoProto

from compile import numerics
from compile.checkpoint import Q4, Q8, Checkpoint, Tensor
from compile.errors import CompileError
from compile.families import FAMILIES
from compile.genai_files import genai_files, write_beside
from compile.graph import Attention, Gate, Linear, Norm, Operation, Residual, Rope
from compile.onnx_graph import MICROSOFT, GraphWriter, onnx_files, value
from compile.onnx_matrix import NBits, pack

CONFIG = "edge_llm.config"  # the metadata that hold the sizes, for reading the file again

Report = Callable[[str, float], None]


def export_onnx(
    checkpoint: Checkpoint, path: Path, report: Report = lambda _stage, _done: None
) -> None:
    """Write the graph, its weights (``NAME.data``), and beside them the tokenizer and settings.

    Raises:
        CompileError: with one line for the user; ``path`` is then no half-written graph.
    """
    beside = genai_files(checkpoint.config, checkpoint.tokenizer, path.name)
    try:
        write_beside(path.parent, beside)
        with onnx_files(path) as (file, data):
            graph = GraphWriter(data, f"{path.name}.data")
            file.write(Decoder(checkpoint, graph).write(report))
    except OSError as error:
        raise CompileError(f"cannot write {path}: {error.strerror}") from None


class Decoder:
    """Writes a checkpoint's operations, in their order, into one graph."""

    def __init__(self, checkpoint: Checkpoint, graph: GraphWriter) -> None:
        self._checkpoint = checkpoint
        self._config = checkpoint.config
        self._graph = graph
        self._values: dict[str, str] = {}  # the family's names → the graph's

    def write(self, report: Report) -> bytes:
        """The graph's file; the weights are written on the way."""
        config, operations = self._config, FAMILIES[self._config.family](self._config)
        report("export", 0.0)
        self._shared()
        name = operations.embedding.weight
        self._values[operations.embedding.out] = self._embedding(name, self._tensor(name))
        for layer in range(config.layers):
            for operation in operations.layer:
                self._write(operation, layer)
            report("export", (layer + 1) / (config.layers + 1))
        for operation in operations.output:
            self._write(operation, None)
        self._graph.operation("", "Identity", [self._values["logits"]], ["logits"], "/logits")
        model = self._model()
        report("export", 1.0)
        return model

    def _write(self, operation: Operation, layer: int | None) -> None:
        """One operation, under the name of the module it comes from."""
        graph, values = self._graph, self._values
        prefix = "/model" if layer is None else f"/model/layers.{layer}"

        match operation:
            case Norm(out, x, weight, eps):
                name = weight.format(layer=layer)
                scale = graph.weight(name, np.asarray(self._tensor(name), np.float32))
                values[out] = graph.node(
                    "SimplifiedLayerNormalization",
                    [values[x], scale],
                    _module(name),
                    axis=-1,
                    epsilon=eps,
                    stash_type=1,
                )
            case Linear(out, x, weight):
                values[out] = self._linear(values[x], weight.format(layer=layer))
            case Rope():
                pass  # GroupQueryAttention rotates
            case Attention(out, q, k, v):
                values[out] = self._attention(values[q], values[k], values[v], prefix, layer)
            case Gate(out, gate, up):
                name = f"{prefix}/mlp/act_fn"
                sigmoid = graph.node("Sigmoid", [values[gate]], f"{name}/Sigmoid")
                silu = graph.node("Mul", [values[gate], sigmoid], f"{name}/Mul")
                values[out] = graph.node("Mul", [silu, values[up]], f"{prefix}/mlp/Mul")
            case Residual(x, y):
                values[x] = graph.node("Add", [values[x], values[y]], f"{prefix}/{y}/Add")

    def _shared(self) -> None:
        """What every layer's attention reads: lengths from the mask, and the rotary tables."""
        graph, config, mask = self._graph, self._config, "/model/attention_mask"
        one, axis = graph.constant("one", np.int64(1)), graph.constant("axis_1", np.array([1]))
        count = graph.node("ReduceSum", ["attention_mask", axis], f"{mask}/ReduceSum", keepdims=0)
        last = graph.node("Sub", [count, one], f"{mask}/Sub")
        shape = graph.node("Shape", ["attention_mask"], f"{mask}/Shape")
        total = graph.node("Gather", [shape, one], f"{mask}/Gather", axis=0)
        tables = numerics.rope_tables(config.rope_frequencies, config.context)
        self._lengths = [
            graph.node("Cast", [length], f"{length}/Cast", to=TensorProto.INT32)
            for length in (last, total)
        ]
        self._tables = [
            graph.weight(name, table)
            for name, table in zip(("cos_cache", "sin_cache"), tables, strict=True)
        ]

    def _attention(self, q: str, k: str, v: str, prefix: str, layer: int | None) -> str:
        out, kinds = f"{prefix}/self_attn/output", ("key", "value")
        self._graph.operation(
            MICROSOFT,
            "GroupQueryAttention",
            [
                *(q, k, v),
                *(f"past_key_values.{layer}.{kind}" for kind in kinds),
                *(*self._lengths, *self._tables),
            ],
            [out, *(f"present.{layer}.{kind}" for kind in kinds)],
            f"{prefix}/self_attn/GroupQueryAttention",
            num_heads=self._config.heads,
            kv_num_heads=self._config.kv_heads,
            do_rotary=1,
            scale=float(1 / np.sqrt(self._config.head_dim)),
        )
        return out

    def _linear(self, x: str, weight: str) -> str:
        """``x · weightᵀ``."""
        graph, module = self._graph, _module(weight)
        tensor = self._tensor(weight)
        if isinstance(tensor, Q4 | Q8):
            packed = pack(tensor)
            out = f"{module}/MatMulNBits/output"
            graph.operation(
                MICROSOFT,
                "MatMulNBits",
                [x, *self._packed(weight, packed)],
                [out],
                f"{module}/MatMulNBits",
                K=tensor.shape[1],
                N=tensor.shape[0],
                bits=packed.bits,
                block_size=packed.block,
            )
            return out
        if weight in graph:
            # the embedding, as the output head
            transposed = graph.node("Transpose", [weight], f"{module}/Transpose", perm=[1, 0])
        else:
            transposed = graph.weight(f"{weight}.transposed", tensor.T)
        return graph.node("MatMul", [x, self._float(transposed, tensor)], f"{module}/MatMul")

    def _embedding(self, weight: str, tensor: Tensor) -> str:
        """``weight[input_ids]``; of quantized rows only those are taken apart."""
        graph, module = self._graph, _module(weight)
        if not isinstance(tensor, Q4 | Q8):
            graph.weight(weight, tensor)
            return self._float(
                graph.node("Gather", [weight, "input_ids"], f"{module}/Gather"), tensor
            )
        packed = pack(tensor)
        names = self._packed(weight, packed)
        data, scale, *zero = (
            graph.node("Gather", [name, "input_ids"], f"/{name}/Gather") for name in names
        )
        last = graph.constant("axis_last", np.array([-1]))
        if packed.bits == 4:
            low = graph.constant("low_nibble", np.uint8(15))
            four = graph.constant("nibble_bits", np.uint8(4))
            halves = (
                graph.node("BitwiseAnd", [data, low], f"{module}/BitwiseAnd"),
                graph.node("BitShift", [data, four], f"{module}/BitShift", direction="RIGHT"),
            )
            pairs = [graph.node("Unsqueeze", [h, last], f"{h}/Unsqueeze") for h in halves]
            data = graph.node("Concat", pairs, f"{module}/Concat", axis=-1)
        blocks = graph.constant("blocks", np.array([0, 0, packed.scale.shape[1], packed.block]))
        data = graph.node("Reshape", [data, blocks], f"{module}/Reshape_blocks")
        q = graph.node("Cast", [data], f"{module}/Cast", to=TensorProto.FLOAT)
        scale, *zero = (
            graph.node("Unsqueeze", [name, last], f"{name}/Unsqueeze") for name in (scale, *zero)
        )
        middle = zero or [graph.constant("middle", np.float32(packed.middle))]
        centred = graph.node("Sub", [q, *middle], f"{module}/Sub")
        scaled = graph.node("Mul", [centred, scale], f"{module}/Mul")
        shape = graph.constant("width", np.array([0, 0, self._config.width]))
        return graph.node("Reshape", [scaled, shape], f"{module}/Reshape")

    def _packed(self, weight: str, packed: NBits) -> list[str]:
        """The names of a packed matrix's arrays, written unless the embedding was the same."""
        arrays: dict[str, NDArray[Any] | None] = {
            "q": packed.data,
            "scale": packed.scale,
            "zero_point": packed.zero,
        }
        return [
            name if (name := f"{weight}.{part}") in self._graph else self._graph.weight(name, array)
            for part, array in arrays.items()
            if array is not None
        ]

    def _float(self, name: str, tensor: Tensor) -> str:
        """float16 weights are stored as they are and widened when they are used."""
        if isinstance(tensor, Q4 | Q8) or tensor.dtype == np.float32:
            return name
        return self._graph.node("Cast", [name], f"/{name}/Cast", to=TensorProto.FLOAT)

    def _tensor(self, name: str) -> Tensor:
        return self._checkpoint.tensor(name)

    def _model(self) -> bytes:
        """The file: nodes, inputs, outputs and the sizes."""
        config = self._config

        def cache(prefix: str, length: str) -> list[ValueInfoProto]:
            return [
                value(
                    f"{prefix}.{layer}.{kind}",
                    TensorProto.FLOAT,
                    ("batch_size", config.kv_heads, length, config.head_dim),
                )
                for layer in range(config.layers)
                for kind in ("key", "value")
            ]

        return self._graph.model(
            [
                value("input_ids", TensorProto.INT64, ("batch_size", "sequence_length")),
                value("attention_mask", TensorProto.INT64, ("batch_size", "total_sequence_length")),
                *cache("past_key_values", "past_sequence_length"),
            ],
            [
                value(
                    "logits",
                    TensorProto.FLOAT,
                    ("batch_size", "sequence_length", config.vocab_size),
                ),
                *cache("present", "total_sequence_length"),
            ],
            {CONFIG: json.dumps(asdict(config))},
        )


def _module(weight: str) -> str:
    """The name of a tensor's module as a path: ``/model/layers.0/mlp/up_proj``."""
    parts = weight.removesuffix(".weight").replace("model.layers.", "model/layers.")
    head, slash, rest = parts.partition("/")
    if not slash:
        return "/" + parts.replace(".", "/")
    layer, _, inner = rest.removeprefix("layers.").partition(".")
    return f"/{head}/layers.{layer}/{inner.replace('.', '/')}"
