"""Which matrix of an ONNX graph is which tensor of a Llama: told by the flow of data, not by names.

The graph's outputs present.N.key and .value say which matrices give keys and values; their norm
feeds the queries; what reads all three is the output projection; the norm over the stream it is
added to feeds gate and up, of which the gate is the one behind a Sigmoid; what reads both is down.
Every walk from one to the next may pass only what a Llama does there; anything else is named.

    roles = Decoder(file, Anchors(file)).roles()
    roles["model.layers.0.self_attn.q_proj.weight"]     # Role(matrix, rows)
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from onnx import NodeProto

from compile.errors import UnsupportedError
from compile.onnx_anchors import Anchor, Anchors, Embedding, Linear, Norm, Walk
from compile.onnx_file import OnnxFile, attributes, optional

PRESENT = re.compile(r"present\D*\.(\d+)\.(?:\w+\.)?(key|value)")
FUSED_ATTENTION = ("GroupQueryAttention", "MultiHeadAttention")
FORMS = frozenset(
    {"Cast", "Expand", "Flatten", "Gather", "GatherND", "Identity", "Reshape", "Slice", "Squeeze"}
    | {"Transpose", "Unsqueeze"}
)
STREAM = frozenset({"Add", "Cast", "Identity", "SkipSimplifiedLayerNormalization"})
GATED = frozenset({"Cast", "Mul", "QuickGelu", "Sigmoid", "Swish"})
ROTATED = FORMS | {"Add", "Concat", "Mul", "Neg", "RotaryEmbedding", "Split", "Sub"}
ATTENTION = (
    ROTATED
    | {"Attention", "Div", "FusedMatMul", "GroupQueryAttention", "IsNaN", "MatMul"}
    | {"MultiHeadAttention", "Softmax", "Where"}
)


@dataclass(frozen=True)
class Role:
    """Where a tensor is found: all of an anchor's weight, or some of its rows."""

    anchor: Anchor
    rows: tuple[int, int] | None = None


class Decoder:
    """Reads one graph as a Llama."""

    def __init__(self, file: OnnxFile, anchors: Anchors) -> None:
        self._file = file
        self._anchors = anchors
        self._linears = [a for a in anchors.by_output.values() if isinstance(a, Linear)]
        self._norms = [a for a in anchors.by_output.values() if isinstance(a, Norm)]
        self._behind = {linear: anchors.walk(linear.x) for linear in self._linears}
        self._streams = {norm: anchors.walk(*norm.x) for norm in self._norms}
        self.attention: list[NodeProto] = []  # of each layer, where it is one node
        self.layers = 0  # known once the roles are

    def roles(self) -> dict[str, Role]:
        """Every tensor by its Hugging Face name; UnsupportedError names what does not fit."""
        presents = self._presents()
        self.layers = len(presents)
        if not self._linears or "input_ids" not in self._file.inputs:
            raise self._refused("it takes no input_ids: not a text decoder")
        head = self._one(self._anchors.walk("logits"), Linear, "the output head", FORMS)
        roles = {"lm_head.weight": Role(head)}
        stream: set[Anchor] = {self._embedding()}
        roles["model.embed_tokens.weight"] = Role(next(iter(stream)))
        for layer, (key, value) in enumerate(presents):
            prefix = f"model.layers.{layer}."
            qkv = self._attention(key, value, layer)
            roles |= {f"{prefix}self_attn.{name}_proj.weight": role for name, role in qkv.items()}
            norm = self._norm_of(qkv["k"].anchor, stream, f"layer {layer}")
            roles[f"{prefix}input_layernorm.weight"] = Role(norm)
            inputs = frozenset(role.anchor for role in qkv.values())
            o = self._reader(inputs, ATTENTION, f"layer {layer}: output projection")
            stream.add(o)
            norm, gate, up = self._gated(stream, layer)
            down = self._reader(frozenset({gate, up}), GATED, f"layer {layer}: down projection")
            stream.add(down)
            roles |= {
                f"{prefix}self_attn.o_proj.weight": Role(o),
                f"{prefix}post_attention_layernorm.weight": Role(norm),
                f"{prefix}mlp.gate_proj.weight": Role(gate),
                f"{prefix}mlp.up_proj.weight": Role(up),
                f"{prefix}mlp.down_proj.weight": Role(down),
            }
        roles["model.norm.weight"] = Role(self._norm_of(head, stream, "output"))
        return roles

    def _presents(self) -> list[tuple[str, str]]:
        """The outputs that hold each layer's keys and values."""
        found: dict[int, dict[str, str]] = {}
        for name in self._file.outputs:
            if match := PRESENT.fullmatch(name):
                found.setdefault(int(match[1]), {})[match[2]] = name
        layers = [found.get(layer, {}) for layer in range(len(found))]
        if "logits" not in self._file.outputs or not layers:
            raise self._refused(
                "its outputs are not logits and present.N.key and .value; export a causal "
                "decoder with its KV cache"
            )
        if any(len(pair) != 2 for pair in layers):
            raise self._refused("some layers lack their output present.N.key or .value")
        return [(pair["key"], pair["value"]) for pair in layers]

    def _embedding(self) -> Anchor:
        """What the first norm reads."""
        reachable = [walk.found for walk in self._streams.values()]
        for found in reachable:
            if len(found) == 1 and isinstance(anchor := next(iter(found)), Embedding):
                return anchor
        raise self._refused("no RMSNorm reads an embedding of input_ids")

    def _attention(self, key: str, value: str, layer: int) -> dict[str, Role]:
        """The matrices, or rows of one, that give queries, keys and values."""
        node = self._file.producer.get(key)
        if node is not None and node.op_type in FUSED_ATTENTION:
            self._check_fused(node)
            self.attention.append(node)
            names = [name for i in range(3) if (name := optional(node, i)) is not None]
            if len(names) == 1:
                return self._packed(node, names[0], layer)
            walks = [self._anchors.walk(name) for name in names]
            parts = zip("qkv", walks, strict=True)
            return {n: Role(self._one(w, Linear, f"layer {layer}: {n}", ROTATED)) for n, w in parts}
        k = self._one(self._anchors.walk(key), Linear, f"layer {layer}: keys", ATTENTION)
        v = self._one(self._anchors.walk(value), Linear, f"layer {layer}: values", ATTENTION)
        source = self._behind[_linear(k)].found
        others = [
            linear
            for linear in self._linears
            if linear not in (k, v) and self._behind[linear].found == source
        ]
        if k is v or len(others) != 1:
            raise self._refused(f"layer {layer}: not one matrix each for queries, keys and values")
        return {"q": Role(others[0]), "k": Role(k), "v": Role(v)}

    def _packed(self, node: NodeProto, value: str, layer: int) -> dict[str, Role]:
        """Queries, keys and values below each other in one matrix, heads' rows alike."""
        both = _linear(self._one(self._anchors.walk(value), Linear, f"layer {layer}: qkv", FORMS))
        settings = attributes(node)
        heads, kv_heads = settings["num_heads"], settings.get("kv_num_heads", 0)
        if not kv_heads or both.rows % (heads + 2 * kv_heads):
            raise self._file.unsupported(node, f"{both.rows} rows do not make its heads")
        size = both.rows // (heads + 2 * kv_heads)
        ends = (0, heads * size, (heads + kv_heads) * size, both.rows)
        spans = zip("qkv", ends[:-1], ends[1:], strict=True)
        return {name: Role(both, (begin, end)) for name, begin, end in spans}

    def _check_fused(self, node: NodeProto) -> None:
        """Refuse what would compute something else than a Llama."""
        settings: dict[str, Any] = attributes(node)
        for key in ("softcap", "rotary_interleaved", "smooth_softmax", "do_rotary"):
            wanted = (0, 1) if key == "do_rotary" else (0,)
            if settings.get(key, 0) not in wanted:
                raise self._file.unsupported(node, f"{key} {settings[key]} is not supported")
        # Biases, and what newer versions add to scores; positions by themselves change nothing.
        for index in (10, 11) if node.op_type == "GroupQueryAttention" else (3, 5):
            if (name := optional(node, index)) is not None:
                raise self._file.unsupported(node, f"its input {name!r} is not supported")

    def _gated(self, stream: Collection[Anchor], layer: int) -> tuple[Norm, Linear, Linear]:
        """The norm of the feed-forward block and the two matrices that read it."""
        norms = [norm for norm, walk in self._streams.items() if walk.found == set(stream)]
        for norm in norms:
            readers = [linear for linear in self._linears if self._behind[linear].found == {norm}]
            if len(readers) == 2:
                self._check(self._streams[norm], STREAM)
                gate = self._gate(readers, layer)
                return norm, gate, readers[1] if gate is readers[0] else readers[0]
        raise self._refused(f"layer {layer}: no RMSNorm that feeds a gate and its other half")

    def _gate(self, both: list[Linear], layer: int) -> Linear:
        """Of two matrices the one that goes through the Sigmoid."""
        for walk in self._behind.values():
            if walk.found != set(both):
                continue
            for node in walk.passed:
                if node.op_type in ("Sigmoid", "Swish", "QuickGelu"):
                    default = 1.702 if node.op_type == "QuickGelu" else 1.0
                    if float(attributes(node).get("alpha", default)) != 1.0:
                        raise self._file.unsupported(node, "the activation is not SiLU")
                    found = self._anchors.walk(node.input[0]).found
                    if len(found) == 1 and next(iter(found)) in both:
                        return _linear(next(iter(found)))
            self._check(walk, GATED)
        raise self._refused(f"layer {layer}: no SiLU gate")

    def _norm_of(self, linear: Anchor, stream: Collection[Anchor], where: str) -> Norm:
        """The norm that a matrix reads; it must be over the whole residual stream so far."""
        behind = self._behind[_linear(linear)]
        norm = self._one(behind, Norm, f"{where}: norm", FORMS)
        assert isinstance(norm, Norm)
        self._check(self._streams[norm], STREAM)
        if self._streams[norm].found != set(stream):
            raise self._file.unsupported(norm.node, "it does not read the residual stream alone")
        return norm

    def _reader(self, inputs: frozenset[Anchor], allowed: Collection[str], what: str) -> Linear:
        """The one matrix that reads all of these and nothing else."""
        readers = [linear for linear, walk in self._behind.items() if walk.found == inputs]
        if len(readers) != 1:
            raise self._refused(f"{what}: {len(readers)} matrices where one is expected")
        self._check(self._behind[readers[0]], allowed)
        return readers[0]

    def _one(self, walk: Walk, kind: type[Anchor], what: str, allowed: Collection[str]) -> Anchor:
        """The one anchor of a kind that a walk must find."""
        self._check(walk, allowed)
        if len(walk.found) != 1 or not isinstance(anchor := next(iter(walk.found)), kind):
            raise self._refused(f"{what}: {len(walk.found)} sources where one is expected")
        return anchor

    def _check(self, walk: Walk, allowed: Collection[str]) -> None:
        """Refuse nodes that a Llama does not have there, and biases."""
        for node in walk.passed:
            if node.op_type not in allowed:
                raise self._file.unsupported(node, "not part of a supported Llama")
            if node.op_type == "RotaryEmbedding" and attributes(node).get("interleaved", 0):
                raise self._file.unsupported(node, "interleaved 1 is not supported")
            if node.op_type == "Add":
                for name in node.input:
                    added = self._anchors.stored(name)
                    if added is not None and math.prod(self._file.shape(added.name)) > 1:
                        raise self._file.unsupported(node, "a bias is not part of a Llama")

    def _refused(self, why: str) -> UnsupportedError:
        return UnsupportedError(f"{self._file.path}: {why}")


def _linear(anchor: Anchor) -> Linear:
    assert isinstance(anchor, Linear)
    return anchor
