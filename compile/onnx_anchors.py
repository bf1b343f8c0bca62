"""The parts of a decoder that have weights, found in an ONNX graph whatever exporter wrote it.

Three kinds: matrices, RMSNorms and the embedding. Exporters differ in what stands between, so that
is only walked over: a walk goes from a value against the flow of data to the nearest of these.

    anchors = Anchors(read_onnx(path))
    anchors.walk("logits").found        # the output head
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from onnx import NodeProto

from compile.onnx_file import OnnxFile, attributes, optional

# How many of a node's first inputs are data; the others are shapes, indices, masks or lengths.
DATA_INPUTS = {
    "Cast": 1,
    "ConstantOfShape": 0,
    "Expand": 1,
    "Gather": 1,
    "GatherND": 1,
    "GroupQueryAttention": 3,
    "MultiHeadAttention": 3,
    "Range": 0,
    "Reshape": 1,
    "RotaryEmbedding": 1,
    "Shape": 0,
    "Slice": 1,
    "Split": 1,
    "Squeeze": 1,
    "Transpose": 1,
    "Unsqueeze": 1,
}
FUSED_NORMS = {  # the place of the weight among the inputs
    "SimplifiedLayerNormalization": 1,
    "RMSNormalization": 1,
    "SkipSimplifiedLayerNormalization": 2,
}
BLOCK_OPERATIONS = (  # what packed rows are taken apart with
    *("BitShift", "BitwiseAnd", "Cast", "Concat", "Gather", "Reshape", "Unsqueeze"),
)


@dataclass(frozen=True)
class Stored:
    """A constant that a weight is made of, and whether it is the transpose that is meant."""

    name: str
    transposed: bool


@dataclass(frozen=True)
class Linear:
    """``x · weightᵀ``."""

    node: NodeProto
    x: str
    weight: Stored | None  # None where the node is a MatMulNBits
    rows: int

    def __hash__(self) -> int:
        return id(self.node)


@dataclass(frozen=True)
class Norm:
    """An RMSNorm over the sum of ``x``."""

    node: NodeProto
    x: tuple[str, ...]
    weight: str
    eps: float

    def __hash__(self) -> int:
        return id(self.node)


@dataclass(frozen=True)
class Embedding:
    """Rows looked up by token, from a float table or packed blocks (data, scales, zero points)."""

    node: NodeProto
    weight: Stored | None
    packed: tuple[str, ...]
    bits: int = 0

    def __hash__(self) -> int:
        return id(self.node)


Anchor = Linear | Norm | Embedding


@dataclass(frozen=True)
class Walk:
    """The nearest anchors behind a value, and the nodes between; not those of masks and tables."""

    found: frozenset[Anchor]
    passed: tuple[NodeProto, ...]


class Anchors:
    """Every anchor of a graph, by the value it gives."""

    def __init__(self, file: OnnxFile) -> None:
        self._file = file
        self.by_output: dict[str, Anchor] = {}
        self._places = {
            value: place for place, node in enumerate(file.graph.node) for value in node.output
        }
        for node in file.graph.node:
            anchor = self._linear(node) or self._norm(node) or self._embedding(node)
            if anchor is not None:
                self.by_output[node.output[0]] = anchor

    def of(self, kind: type[Anchor]) -> list[Anchor]:
        """Those of one kind, in the graph's order."""
        return [anchor for anchor in self.by_output.values() if isinstance(anchor, kind)]

    def walk(self, *values: str) -> Walk:
        """Against the flow of data from ``values``."""
        found: set[Anchor] = set()
        behind: dict[int, NodeProto] = {}  # by its place in the graph
        left = list(values)
        while left:
            value = left.pop()
            node = self._file.producer.get(value)
            if value in self.by_output:
                found.add(self.by_output[value])
            elif node is not None and self._places[value] not in behind:
                behind[self._places[value]] = node
                left += self._data(node)
        between: list[NodeProto] = []
        led = set(self.by_output)
        for _, node in sorted(behind.items()):
            if not led.isdisjoint(self._data(node)):
                between.append(node)
                led.update(node.output)
        return Walk(frozenset(found), tuple(between))

    def stored(self, value: str) -> Stored | None:
        """The constant behind a value, through a transpose and changes of type or form."""
        transposed, seen = False, set[str]()
        while not self._file.is_constant(value):
            node = self._file.producer.get(value)
            if value in seen:  # in a damaged graph a value may come from itself
                return None
            seen.add(value)
            if node is None or node.op_type not in ("Transpose", "Cast", "Identity", "Reshape"):
                return None
            transposed ^= node.op_type == "Transpose"
            value = node.input[0]
        return Stored(value, transposed)

    def _data(self, node: NodeProto) -> Iterable[str]:
        """The inputs of a node that its output's data come from."""
        if node.op_type == "SkipSimplifiedLayerNormalization":  # the sum, not the norm
            return list(node.input[:2])
        if node.op_type == "Where":
            return list(node.input[1:])
        return [i for i in node.input[: DATA_INPUTS.get(node.op_type, len(node.input))] if i]

    def _linear(self, node: NodeProto) -> Linear | None:
        file = self._file
        if node.op_type == "MatMulNBits":
            return Linear(node, node.input[0], None, int(attributes(node).get("N", 0)))
        if node.op_type not in ("MatMul", "Gemm") or len(node.input) < 2:
            return None
        weight = self.stored(node.input[1])
        if weight is None:
            maker = file.producer.get(node.input[1])
            if maker is not None and maker.op_type == "DequantizeLinear":
                raise file.unsupported(maker, "weights as QDQ; export with MatMulNBits")
            return None
        if not file.is_float(weight.name) or len(file.shape(weight.name)) != 2:
            return None
        transposed = weight.transposed
        if node.op_type == "Gemm":
            transposed ^= bool(attributes(node).get("transB", 0))
            if optional(node, 2) is not None:
                raise file.unsupported(node, "a bias is not part of a supported Llama")
        rows = file.shape(weight.name)[0 if transposed else 1]
        return Linear(node, node.input[0], Stored(weight.name, not transposed), rows)

    def _norm(self, node: NodeProto) -> Norm | None:
        """One node, or the Mul by the weight with which a norm of plain operations ends."""
        if node.op_type in FUSED_NORMS:
            at = FUSED_NORMS[node.op_type]
            if len(node.input) > at + 1 and node.input[at + 1]:
                raise self._file.unsupported(node, "a norm with a bias is not supported")
            weight = self.stored(node.input[at])
            if weight is None:
                raise self._file.unsupported(node, "its weight is not a constant")
            eps = float(attributes(node).get("epsilon", 1e-5))
            return Norm(node, tuple(node.input[:at]), weight.name, eps)
        if node.op_type != "Mul":
            return None
        for weight_at, other in ((0, 1), (1, 0)):
            weight = self.stored(node.input[weight_at])
            if weight is None or len(self._file.shape(weight.name)) != 1:
                continue
            if (scaled := self._scaled(node.input[other])) is not None:
                return Norm(node, (scaled[0],), weight.name, scaled[1])
        return None

    def _scaled(self, value: str) -> tuple[str, float] | None:
        """``x / sqrt(mean(x²) + eps)``: x and eps."""
        node = self._before(value)
        if node is None or node.op_type not in ("Mul", "Div"):
            return None
        if node.op_type == "Div":
            eps = self._root(node.input[1])
            return None if eps is None else (node.input[0], eps)
        for x, factor in (node.input, reversed(node.input)):
            inverse = self._before(factor)
            if inverse is None or inverse.op_type not in ("Reciprocal", "Div"):
                continue
            if inverse.op_type == "Div" and self._file.number(inverse.input[0]) != 1:
                continue
            if (eps := self._root(inverse.input[-1])) is not None:
                return x, eps
        return None

    def _root(self, value: str) -> float | None:
        """``sqrt(mean(x²) + eps)``: eps."""
        root = self._before(value)
        total = self._before(root.input[0]) if root and root.op_type == "Sqrt" else None
        if total is None or total.op_type != "Add":
            return None
        for eps, mean in (total.input, reversed(total.input)):
            maker, number = self._before(mean), self._file.number(eps)
            if number is not None and maker is not None and maker.op_type == "ReduceMean":
                return number
        return None

    def _embedding(self, node: NodeProto) -> Embedding | None:
        if node.op_type == "GatherBlockQuantized" and self._is_tokens(node.input[1]):
            given = [self.stored(i) for i in (node.input[0], *node.input[2:]) if i]
            names = tuple(stored.name for stored in given if stored is not None)
            if len(names) < 2 or self._file.is_float(names[0]):
                raise self._file.unsupported(node, "it has no packed data with scales")
            return Embedding(node, None, names, int(attributes(node).get("bits", 4)))
        if node.op_type == "Gather" and self._is_tokens(node.input[1]):
            table = self.stored(node.input[0])
            if table is not None and self._file.is_float(table.name):
                return Embedding(node, table, ())
        return self._blocks(node)

    def _blocks(self, node: NodeProto) -> Embedding | None:
        """Rows of packed blocks, ``(q - zero)·scale`` in plain operations, as we export them."""
        scaled = self._before(node.input[0]) if node.op_type == "Reshape" else None
        if scaled is None or scaled.op_type != "Mul":
            return None
        centred = self._before(scaled.input[0])
        if centred is None or centred.op_type != "Sub":
            return None
        tables = [self._table(centred.input[0]), self._table(scaled.input[1])]
        if self._file.number(centred.input[1]) is None:
            tables.append(self._table(centred.input[1]))
        names = tuple(table for table in tables if table is not None)
        if len(names) != len(tables):
            return None
        halves = any(n.op_type == "BitShift" for n in self._upstream(centred.input[0]))
        return Embedding(node, None, names, 4 if halves else 8)

    def _table(self, value: str) -> str | None:
        """The constant whose rows, looked up by token, are all that a value is made of."""
        nodes = self._upstream(value)
        if any(node.op_type not in BLOCK_OPERATIONS for node in nodes):
            return None
        gathers = [node for node in nodes if node.op_type == "Gather"]
        tables = {node.input[0] for node in gathers if self._is_tokens(node.input[1])}
        return tables.pop() if len(tables) == 1 else None

    def _upstream(self, value: str) -> list[NodeProto]:
        """All nodes behind a value, but those behind token ids."""
        found: dict[int, NodeProto] = {}
        left = [value]
        while left:
            node = self._file.producer.get(left.pop())
            if node is not None and id(node) not in found:
                found[id(node)] = node
                left += self._data(node)
        return list(found.values())

    def _is_tokens(self, value: str) -> bool:
        return self._through(value) == "input_ids"

    def _before(self, value: str) -> NodeProto | None:
        """The node that gives a value, changes of type left out."""
        return self._file.producer.get(self._through(value))

    def _through(self, value: str) -> str:
        """A value before it was changed in type."""
        seen: set[str] = set()
        while value not in seen:
            seen.add(value)
            node = self._file.producer.get(value)
            if node is not None and node.op_type in ("Cast", "Identity"):
                value = node.input[0]
        return value
