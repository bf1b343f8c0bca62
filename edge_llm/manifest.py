"""What an artifact says about itself: model, numerics, target, sizes and hashes.

``manifest.json`` is the JSON of :class:`Manifest`, key for key; docs/artifact.md is its spec. The
compiler fills it in without ``entries``, which are added when the file is written.

>>> from edge_llm.artifact import Artifact
>>> with Artifact.open("smollm2-rpi5.edge") as artifact:                        # doctest: +SKIP
...     manifest = artifact.manifest
...     manifest.target.name, manifest.memory.certificate(context=2048, sequences=1) >> 20
('rpi5', 119)
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Annotated, Literal

from edge_llm import schema
from edge_llm.errors import ArtifactError
from edge_llm.schema import Bytes, Count, Digest, Length, Name, Pattern, Range, Text

FORMAT: Literal[3] = 3  # that is written; 1 and 2 are read as well
Dtype = Literal["uint8", "int8", "float16", "int32", "float32"]
TENSOR_ALIGNMENT = 64  # bytes; a cache line of every target
ITEM_BYTES = {"uint8": 1, "int8": 1, "float16": 2, "int32": 4, "float32": 4}

Version = Annotated[str, Pattern(r"[0-9]{1,3}\.[0-9]{1,3}", "a version like 2.31")]
WeightFormat = Annotated[
    str, Pattern(r"int8|int4-g(32|64|128)(-asym)?", "a format like int8 or int4-g64-asym")
]


@dataclass(frozen=True)
class Model:
    """The sizes of the decoder that was compiled."""

    name: Text
    family: Name
    source: Text  # where the weights came from, as the user gave it
    license: Text | None
    parameters: Annotated[int, Range(1, 2**48)]
    context: Count  # positions the compiled code can hold
    layers: Count
    width: Count
    heads: Count
    kv_heads: Count
    head_dim: Count
    ffn: Count
    vocab_size: Count
    # What only the code would know otherwise; null where an older compiler left it out.
    norm_eps: float | None = None
    rope_frequencies: Annotated[tuple[float, ...], Length(1024)] | None = None  # radians a position


@dataclass(frozen=True)
class Weights:
    """The format of each kind of matrices, over all layers.

    ``int4-g64``: 4 bits in groups of 64 columns that share a scale, d*(q-8), with ``-asym``
    d*q+m; ``int8``: d*q in groups of 32.
    """

    qkv: WeightFormat
    o: WeightFormat
    gate_up: WeightFormat
    down: WeightFormat
    head: WeightFormat  # embedding and output head


@dataclass(frozen=True)
class Numerics:
    """How numbers are held; two artifacts of equal numerics and weights give equal bits.

    ``version`` 1 has attention's weights in float32, 2 in int8 (docs/adr/0002).
    """

    version: Literal[1, 2]
    weights: Weights
    activations: Literal["int8"]
    kv: Literal["int8"]


@dataclass(frozen=True)
class Numerics1:
    """``numerics`` of format 1: one format for all layers, head and embedding in it or in int8."""

    version: Literal[1]
    weights: Literal["int4"]
    group: Literal[32, 64, 128]
    symmetric: bool
    head: Literal["int8", "int4"]
    activations: Literal["int8"]
    kv: Literal["int8"]

    def upgraded(self) -> Numerics:
        """The same in the words of today."""
        layers = f"int4-g{self.group}{'' if self.symmetric else '-asym'}"
        head = layers if self.head == "int4" else "int8"
        weights = Weights(layers, layers, layers, layers, head)
        return Numerics(self.version, weights, self.activations, self.kv)


@dataclass(frozen=True)
class Target:
    """The CPU the code was compiled for; ``features`` are named as in /proc/cpuinfo."""

    name: Name
    triple: Name  # of LLVM; begins with the machine
    isa: Name  # which kernels: avx2, avx_vnni, avx512_vnni, neon, dotprod
    features: Annotated[tuple[Name, ...], Length(64)]  # the code stops with SIGILL without one
    glibc: Version  # the oldest it links with

    @property
    def machine(self) -> str:
        """``x86_64`` or ``aarch64``, as uname says it."""
        return self.triple.split("-")[0]


@dataclass(frozen=True)
class Execution:
    """What the compiled step takes at most."""

    page_positions: Count  # positions a page of the KV cache holds
    page_bytes: Bytes  # keys and values of all layers in one page
    max_rows: Count  # tokens a step
    max_threads: Count
    workspace_bytes: Bytes
    prefill_threads: Count | None = None  # what suits the board; null is one a core
    decode_threads: Count | None = None


@dataclass(frozen=True)
class Memory:
    """The static memory plan, from which the certificate follows."""

    weights_bytes: Bytes
    workspace_bytes: Bytes
    page_bytes: Bytes
    page_positions: Count

    def certificate(self, context: int, sequences: int) -> int:
        """Peak bytes of weights, workspace, KV pages and page tables.

        Args:
            context: positions a sequence may reach.
            sequences: how many are held at once.

        The interpreter, its libraries and the tokenizer come on top.
        """
        if context < 1 or sequences < 1:
            raise ValueError(f"context {context} and sequences {sequences} must be at least 1")
        pages = math.ceil(context / self.page_positions) * sequences
        return self.weights_bytes + self.workspace_bytes + pages * (self.page_bytes + 4)


@dataclass(frozen=True)
class Compiler:
    """Versions of what made the artifact."""

    edge_llm: Name
    tvm: Name
    llvm: Name


@dataclass(frozen=True)
class Entry:
    """One entry of the file other than the manifest itself."""

    name: Name
    offset: Bytes  # of its data in the file
    size: Bytes
    sha256: Digest
    crc32: Annotated[int, Range(0, 2**32 - 1)]  # as the zip's own headers hold it


@dataclass(frozen=True)
class Tensor:
    """One array in weights.bin as it is stored; ``layout`` says what its bytes mean."""

    name: Name
    dtype: Dtype
    shape: Annotated[tuple[Count, ...], Length(8)]
    offset: Bytes  # in weights.bin
    size: Bytes  # bytes: items of the shape times the size of one
    layout: Name


@dataclass(frozen=True)
class Manifest:
    """All of ``manifest.json``; ``numerics`` as they are written today, whatever the format."""

    format: Literal[1, 2, 3]
    model: Model
    numerics: Numerics
    target: Target
    execution: Execution
    memory: Memory
    compiler: Compiler
    entries: Annotated[tuple[Entry, ...], Length(16)]
    tensors: Annotated[tuple[Tensor, ...], Length(100_000)]

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """Read ``manifest.json``; ArtifactError names the key at fault, or the newer format."""
        value = schema.load(data)
        version = value.get("format")
        if type(version) is int and version > FORMAT:
            known = f"this edge-llm reads up to {FORMAT}"
            raise ArtifactError(f"format {version}, {known}: upgrade edge-llm")
        if type(version) is int and version == 1 and "numerics" in value:
            old = schema.build(Numerics1, value["numerics"], "numerics")
            value["numerics"] = dataclasses.asdict(old.upgraded())
        manifest = schema.build(cls, value)
        manifest.check()
        return manifest

    @property
    def bits_per_weight(self) -> float:
        """Bits of the packed matrices for each of their weights, scales included."""
        norms = (2 * self.model.layers + 1) * self.model.width
        packed = sum(tensor.size for tensor in self.tensors if tensor.layout != "plain")
        return 8 * packed / max(1, self.model.parameters - norms)

    def dump(self) -> bytes:
        """The JSON of this manifest; the same manifest gives the same bytes."""
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8") + b"\n"

    def check(self) -> None:
        """Raise ArtifactError where two keys contradict each other."""
        for key in ("page_positions", "page_bytes", "workspace_bytes"):
            if getattr(self.execution, key) != getattr(self.memory, key):
                raise ArtifactError(f"memory.{key}: differs from execution.{key}")
        _check_unique("entries", [entry.name for entry in self.entries])
        _check_unique("tensors", [tensor.name for tensor in self.tensors])
        for i, tensor in enumerate(self.tensors):
            where = f"tensors[{i}] ({tensor.name})"
            if tensor.offset % TENSOR_ALIGNMENT:
                raise ArtifactError(f"{where}.offset: not a multiple of {TENSOR_ALIGNMENT}")
            if tensor.size != math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]:
                raise ArtifactError(f"{where}.size: {tensor.size} bytes do not make its shape")
            if tensor.offset + tensor.size > self.memory.weights_bytes:
                raise ArtifactError(f"{where}: ends after memory.weights_bytes")
        for entry in self.entries:
            if entry.name == "weights.bin" and entry.size != self.memory.weights_bytes:
                raise ArtifactError("memory.weights_bytes: differs from the size of weights.bin")


def _check_unique(key: str, names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ArtifactError(f"{key}: {name} is listed twice")
        seen.add(name)
