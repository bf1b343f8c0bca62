"""ONNX decoders as the common exporters write them, of any tiny float checkpoint.

    write_genai(folder, checkpoint, quantize)       # onnxruntime-genai's builder: fused operations
    write_plain(folder, checkpoint)                 # torch.onnx, as optimum uses it: plain ones

Names of weights are kept where the exporter keeps them, and otherwise say nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compile import numerics
from compile.checkpoint import Checkpoint
from compile.genai_files import genai_files
from compile.reference import dequantized
from tests.tiny_model import TinyModel, huggingface_config, write_json

Array = NDArray[Any]


@dataclass(frozen=True)
class Packed:
    """Inputs of a MatMulNBits: data, scales and perhaps zero points, as the operator wants them."""

    arrays: tuple[Array, ...]
    bits: int
    block: int


Quantize = Callable[[str, Array], Packed | None]  # None leaves a matrix in float


@dataclass
class Graph:
    """Collects nodes and initializers."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)

    def __call__(
        self, op: str, *inputs: str, domain: str = "", outputs: Any = None, **a: Any
    ) -> str:
        """Add a node; the name of its first output is returned."""
        name = a.pop("name", f"n{len(self.nodes)}")
        outs = outputs or [f"{name}_output_0"]
        self.nodes.append(helper.make_node(op, inputs, outs, name, domain=domain, **a))
        return str(outs[0])

    def weight(self, name: str, value: Array) -> str:
        self.weights.setdefault(name, np.ascontiguousarray(value))
        return name

    def save(self, path: Path, model: Checkpoint, external: bool = False) -> None:
        """The file, with the inputs and outputs of a decoder with past."""
        config = model.config

        def value(name: str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, kind, None)

        cache = [(i, kind) for i in range(config.layers) for kind in ("key", "value")]
        inputs = [value(name, TensorProto.INT64) for name in ("input_ids", "attention_mask")]
        inputs += [value(f"past_key_values.{i}.{kind}") for i, kind in cache]
        outputs = [value("logits"), *(value(f"present.{i}.{kind}") for i, kind in cache)]
        weights = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, "main_graph", inputs, outputs, weights)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        proto = helper.make_model(graph, opset_imports=opsets)
        onnx.save(proto, path, save_as_external_data=external, location="weights.bin")


def write_beside(folder: Path, model: Checkpoint, tiny: TinyModel | None) -> None:
    """The settings and tokenizer an exporter leaves: config.json for ``tiny``, else genai's."""
    folder.mkdir(exist_ok=True)
    for name, content in genai_files(model.config, model.tokenizer, "model.onnx").items():
        if tiny is None or name != "genai_config.json":
            (folder / name).write_bytes(content)
    if tiny is not None:
        write_json(folder / "config.json", huggingface_config(tiny))


def write_genai(
    folder: Path,
    model: Checkpoint,
    quantize: Quantize = lambda _n, _w: None,
    external: bool = False,
) -> Path:
    """The builder's graph: q, k and v in one matrix, SkipSimplifiedLayerNormalization."""
    graph, config = Graph(), model.config
    write_beside(folder, model, None)

    def tensor(name: str) -> Array:
        return dequantized(model.tensor(name))

    def norm(x: str, skip: str | None, name: str, last: bool = False) -> tuple[str, str]:
        weight = graph.weight(name, tensor(name))
        if skip is None:
            out = graph("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=config.norm_eps)
            return out, x
        n = f"skip{len(graph.nodes)}"
        outs = [f"{n}_0"] if last else [f"{n}_0", "", "", f"{n}_3"]
        graph(
            "SkipSimplifiedLayerNormalization", x, skip, weight,
            domain="com.microsoft", outputs=outs, epsilon=config.norm_eps,
        )  # fmt: skip
        return outs[0], outs[-1]

    def linear(x: str, name: str, weight: Array, **a: Any) -> str:
        packed = quantize(name, weight)
        if packed is None:
            return graph("MatMul", x, graph.weight(f"{name}.weight", weight.T), **a)
        parts = ("weight_Q4", "weight_scales", "weight_zero_points")
        names = [graph.weight(f"{name}.{p}", v) for p, v in zip(parts, packed.arrays, strict=False)]
        return graph(
            "MatMulNBits", x, *names, domain="com.microsoft", N=weight.shape[0],
            K=weight.shape[1], bits=packed.bits, block_size=packed.block, **a,
        )  # fmt: skip

    tables = numerics.rope_tables(config.rope_frequencies, config.context)
    for name, table in zip(("cos_cache", "sin_cache"), tables, strict=True):
        graph.weight(name, table)
    embedding = graph.weight("model.embed_tokens.weight", tensor("model.embed_tokens.weight"))
    x, skip = graph("Gather", embedding, "input_ids"), None
    one = graph.weight("one", np.array([1]))
    count = graph("Sub", graph("ReduceSum", "attention_mask", one, keepdims=0), one)
    last = graph("Cast", count, to=TensorProto.INT32)
    total = graph("Gather", graph("Shape", "attention_mask"), graph.weight("at", np.array(1)))
    total = graph("Cast", total, to=TensorProto.INT32)
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}."
        h, x = norm(x, skip, f"{prefix}input_layernorm.weight")
        rows = [tensor(f"{prefix}self_attn.{n}_proj.weight") for n in "qkv"]
        qkv = linear(h, f"{prefix}attn.qkv_proj.MatMul", np.concatenate(rows))
        a = f"a{layer}"
        kinds = ("key", "value")
        graph(
            "GroupQueryAttention", qkv, "", "", *(f"past_key_values.{layer}.{k}" for k in kinds),
            last, total, "cos_cache", "sin_cache", "", "", domain="com.microsoft",
            outputs=[a, *(f"present.{layer}.{k}" for k in kinds)], num_heads=config.heads,
            kv_num_heads=config.kv_heads, do_rotary=1, local_window_size=-1, softcap=0.0,
        )  # fmt: skip
        o = linear(a, f"{prefix}attn.o_proj.MatMul", tensor(f"{prefix}self_attn.o_proj.weight"))
        h, x = norm(x, o, f"{prefix}post_attention_layernorm.weight")
        gate, up = (
            linear(h, f"{prefix}mlp.{n}.MatMul", tensor(f"{prefix}mlp.{n}.weight"))
            for n in ("gate_proj", "up_proj")
        )
        m = graph("Mul", graph("Mul", gate, graph("Sigmoid", gate)), up)
        skip = linear(m, f"{prefix}mlp.down_proj.MatMul", tensor(f"{prefix}mlp.down_proj.weight"))
    h, _ = norm(x, skip, "model.norm.weight", last=True)
    head = "model.embed_tokens.weight" if config.tied else "lm_head.weight"
    linear(h, "lm_head.MatMul", tensor(head), outputs=["logits"])
    graph.save(folder / "model.onnx", model, external)
    return folder / "model.onnx"


def write_plain(folder: Path, model: Checkpoint, tiny: TinyModel) -> Path:
    """torch.onnx's graph: anonymous transposed weights, norms and attention in plain operations."""
    graph, config = Graph(), model.config
    write_beside(folder, model, tiny)

    def tensor(name: str) -> Array:
        return dequantized(model.tensor(name))

    def number(value: Any) -> str:
        return graph.weight(f"c{len(graph.weights)}", np.asarray(value))

    def norm(x: str, name: str) -> str:
        mean = graph("ReduceMean", graph("Pow", x, number(np.float32(2))), axes=[-1], keepdims=1)
        root = graph("Sqrt", graph("Add", mean, number(np.float32(config.norm_eps))))
        scaled = graph("Mul", x, graph("Div", number(np.float32(1)), root))
        return graph("Mul", graph.weight(name, tensor(name)), scaled)

    def linear(x: str, name: str, **a: Any) -> str:
        return graph("MatMul", x, number(tensor(name).T), **a)

    def heads(x: str, count: int) -> str:
        split = graph("Reshape", x, number(np.array([0, 0, count, config.head_dim])))
        return graph("Transpose", split, perm=[0, 2, 1, 3])

    def rotated(x: str) -> str:
        half = config.head_dim // 2
        ends = [number(np.array([i])) for i in (0, half, 2 * half, 3)]
        first = graph("Slice", x, ends[0], ends[1], ends[3])
        second = graph("Neg", graph("Slice", x, ends[1], ends[2], ends[3]))
        turned = graph("Concat", second, first, axis=-1)
        return graph("Add", graph("Mul", x, cos), graph("Mul", turned, sin))

    x = graph("Gather", number(tensor("model.embed_tokens.weight")), "input_ids")
    positions = graph("CumSum", "attention_mask", number(1))
    column = graph("Unsqueeze", graph("Cast", positions, to=1), number(np.array([1, 3])))
    frequencies = np.array(config.rope_frequencies, np.float32)
    angles = graph("Mul", column, number(np.concatenate([frequencies, frequencies])))
    cos, sin = graph("Cos", angles), graph("Sin", angles)
    mask = graph("Unsqueeze", graph("Cast", "attention_mask", to=1), number(np.array([1, 2])))
    for layer in range(config.layers):
        prefix, past = f"model.layers.{layer}.", f"past_key_values.{layer}"
        h = norm(x, f"{prefix}input_layernorm.weight")
        q, k, v = (linear(h, f"{prefix}self_attn.{n}_proj.weight") for n in "qkv")
        q, k = rotated(heads(q, config.heads)), rotated(heads(k, config.kv_heads))
        v = heads(v, config.kv_heads)
        k = graph("Concat", f"{past}.key", k, axis=2, outputs=[f"present.{layer}.key"])
        v = graph("Concat", f"{past}.value", v, axis=2, outputs=[f"present.{layer}.value"])
        k = graph("Transpose", k, perm=[0, 1, 3, 2])
        scale = number(np.float32(config.head_dim**0.5))
        scores = graph("Add", graph("Div", graph("MatMul", q, k), scale), mask)
        a = graph("MatMul", graph("Softmax", scores, axis=-1), v)
        shape = number(np.array([0, 0, config.heads * config.head_dim]))
        a = graph("Reshape", graph("Transpose", a, perm=[0, 2, 1, 3]), shape)
        x = graph("Add", x, linear(a, f"{prefix}self_attn.o_proj.weight"))
        h = norm(x, f"{prefix}post_attention_layernorm.weight")
        gate, up = (linear(h, f"{prefix}mlp.{n}.weight") for n in ("gate_proj", "up_proj"))
        m = graph("Mul", graph("Mul", gate, graph("Sigmoid", gate)), up)
        x = graph("Add", x, linear(m, f"{prefix}mlp.down_proj.weight"))
    head = "model.embed_tokens.weight" if config.tied else "lm_head.weight"
    linear(norm(x, "model.norm.weight"), head, outputs=["logits"])
    graph.save(folder / "model.onnx", model)
    return folder / "model.onnx"
