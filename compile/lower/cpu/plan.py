"""The static memory plan of a model on a CPU: where each weight, activation and page stands.

Computed from the sizes alone, before any weight is read; packing writes by it, the step reads by
it, and the artifact's memory certificate is its sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from compile.checkpoint import ModelConfig
from compile.errors import UnsupportedError
from compile.graph import KINDS, Graph, Kind, Linear, Norm
from compile.lower.cpu.cache import PAGE_POSITIONS, PageLayout
from compile.lower.cpu.stages import (
    GateAndUp,
    ProjectAndAdd,
    ProjectAndCache,
    Stage,
    fuse,
)
from compile.quantize.formats import Formats, MatrixFormat

ALIGNMENT = 64  # bytes: a cache line, and the widest vector
ROWS = 16  # of a tile
MAX_ROWS = 128  # tokens of one step
MAX_THREADS = 16
MAX_QUERIES = 8  # of one KV head that attend together
UNIT_TILES = 4  # of the widest unit: two of gate, two of up


@dataclass(frozen=True)
class Region:
    """A named piece of ``weights.bin``; offsets and sizes in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    layout: str

    @property
    def size(self) -> int:
        bits = int("".join(c for c in self.dtype if c.isdigit()))
        count = bits // 8
        for extent in self.shape:
            count *= extent
        return count


@dataclass(frozen=True)
class MatrixPlan:
    """A matrix of every layer, stacked: packed values, scales and, if asymmetric, minimums."""

    name: str
    rows: int  # of a layer, a multiple of 16
    columns: int
    format: MatrixFormat
    data: Region  # uint8 [layers, rows/16, columns/32, 64·bits]
    scales: Region  # float16 [layers, rows/16, columns/group, 16]
    minimums: Region | None


class Layout:
    """Regions one after the other, each aligned."""

    def __init__(self) -> None:
        self.regions: list[Region] = []
        self.size = 0

    def add(self, name: str, dtype: str, shape: tuple[int, ...], layout: str = "plain") -> Region:
        """The next region."""
        region = Region(name, dtype, shape, self.size, layout)
        self.regions.append(region)
        self.size += -(-region.size // ALIGNMENT) * ALIGNMENT
        return region


@dataclass(frozen=True)
class WeightPlan:
    """``weights.bin``: the stages' matrices by stage, norms by tensor name, rotary tables."""

    matrices: tuple[MatrixPlan, ...]  # of a layer's stages that have one, in their order
    head: MatrixPlan
    embedding: MatrixPlan  # the same as ``head`` where they are tied
    norms: dict[str, Region]  # float32 [layers, width], or [1, width] for the output's
    cos: Region  # float32 [context, head_dim / 2]
    sin: Region
    regions: tuple[Region, ...]
    size: int


@dataclass(frozen=True)
class QuantizedRegions:
    """Quantized vectors (:class:`compile.lower.cpu.activations.Activations`)."""

    values: Region
    scales: Region
    offsets: Region
    sums: Region


@dataclass(frozen=True)
class WorkspacePlan:
    """What a step writes besides the cache: quantized vectors and scores."""

    x: Region  # float32 [rows, width]: the residual stream
    normed: QuantizedRegions
    q: QuantizedRegions
    attended: QuantizedRegions
    gated: QuantizedRegions
    blended: QuantizedRegions  # of each thread: what values are multiplied with
    scores: Region  # float32 [heads, or threads · queries together; context]
    weights: Region  # float32 [threads · query heads of a KV head, context]
    tile_sums: Region  # float32 [threads, sums that a unit of any stage keeps aside]
    size: int


@dataclass(frozen=True)
class Plan:
    """Everything the code generator needs to know of a model."""

    config: ModelConfig
    graph: Graph
    context: int
    formats: Formats
    layout: str  # of tiles: "quads", "stacked" or "pairs"

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """A layer's fused stages."""
        return fuse(self.graph.layer)

    @cached_property
    def output(self) -> tuple[Norm, Linear]:
        """The norm and the matrix behind the last layer."""
        norm, head = self.graph.output
        if not isinstance(norm, Norm) or not isinstance(head, Linear):
            raise UnsupportedError("a model must end in a norm and an output matrix")
        return norm, head

    @property
    def padded_vocab(self) -> int:
        """Rows of the output matrix: the vocabulary rounded up to whole tiles."""
        return -(-self.config.vocab_size // ROWS) * ROWS

    @property
    def padded_context(self) -> int:
        """Positions rounded up to whole pages."""
        return -(-self.context // PAGE_POSITIONS) * PAGE_POSITIONS

    @property
    def query_share(self) -> int:
        """Query heads that read the same KV head."""
        return self.config.heads // self.config.kv_heads

    @property
    def rows_together(self) -> int:
        """Consecutive rows of a prompt whose queries of one KV head attend together."""
        return max(1, MAX_QUERIES // self.query_share)

    @property
    def queries_together(self) -> int:
        """Queries that attend together in a prefill."""
        return self.rows_together * self.query_share

    @property
    def tile_sums(self) -> int:
        """Floats of a unit: the tiles of all tokens, or a group of each query's output."""
        return max(UNIT_TILES * MAX_ROWS * ROWS, 32 * self.queries_together)

    @property
    def page(self) -> PageLayout:
        """One head's page."""
        return PageLayout(self.config.head_dim)

    @property
    def page_bytes(self) -> int:
        """Bytes of a page over all heads and layers."""
        return self.page.bytes * self.config.kv_heads * self.config.layers

    @cached_property
    def weights(self) -> WeightPlan:
        """Where each weight stands."""
        config, layout = self.config, Layout()
        matrices = []
        norms = {}
        for stage in self.stages:
            if isinstance(stage, ProjectAndCache | GateAndUp):
                shape = (config.layers, config.width)
                norms[stage.norm.weight] = layout.add(norm_name(stage), "float32", shape)
            if (kind := matrix_kind(stage)) is not None:
                matrices.append(self._matrix(layout, LAYER_MATRICES[kind], kind, config.layers))
        norm, _ = self.output
        norms[norm.weight] = layout.add("norm", "float32", (1, config.width))
        head = self._matrix(layout, "output", "head", 1)
        embedding = head if config.tied else self._matrix(layout, "embedding", "head", 1)
        half = (self.context, config.head_dim // 2)
        cos, sin = (layout.add(name, "float32", half) for name in ("rope.cos", "rope.sin"))
        return WeightPlan(
            tuple(matrices),
            head,
            embedding,
            norms,
            cos,
            sin,
            tuple(layout.regions),
            layout.size,
        )

    @cached_property
    def workspace(self) -> WorkspacePlan:
        """Where each intermediate stands."""
        config, layout = self.config, Layout()

        def quantized(name: str, rows: int, columns: int) -> QuantizedRegions:
            groups = (rows, columns // 32)
            return QuantizedRegions(
                layout.add(name, "int8", (rows, columns)),
                layout.add(f"{name}.scales", "float32", groups),
                layout.add(f"{name}.offsets", "int32", groups),
                layout.add(f"{name}.sums", "float32", groups),
            )

        heads = config.heads * config.head_dim
        # Of a single token every thread normalizes a copy of its own: no barrier between. It may
        # have an offset for each row of a tile, where others have one.
        single = MAX_THREADS * ROWS
        return WorkspacePlan(
            x=layout.add("x", "float32", (MAX_ROWS, config.width)),
            normed=quantized("normed", max(MAX_ROWS, single), config.width),
            q=quantized("q", MAX_ROWS, heads),
            attended=quantized("attended", MAX_ROWS, heads),
            gated=quantized("gated", MAX_ROWS, config.ffn),
            blended=quantized("blended", MAX_THREADS * self.queries_together, self.padded_context),
            scores=layout.add(
                "scores",
                "float32",
                (max(config.heads, MAX_THREADS * self.queries_together), self.padded_context),
            ),
            weights=layout.add(
                "weights", "float32", (MAX_THREADS * self.query_share, self.padded_context)
            ),
            tile_sums=layout.add("tile_sums", "float32", (MAX_THREADS, self.tile_sums)),
            size=layout.size,
        )

    def matrix_shape(self, kind: Kind) -> tuple[int, int]:
        """Rows and columns of a kind's matrix: of one layer, of the head or the embedding."""
        config = self.config
        heads = config.heads * config.head_dim
        shapes: dict[Kind, tuple[int, int]] = {
            "qkv": (heads + 2 * config.kv_heads * config.head_dim, config.width),
            "o": (config.width, heads),
            "gate_up": (2 * config.ffn, config.width),
            "down": (config.width, config.ffn),
            "head": (self.padded_vocab, config.width),
        }
        return shapes[kind]

    def _matrix(self, layout: Layout, name: str, kind: Kind, layers: int) -> MatrixPlan:
        (rows, columns), form = self.matrix_shape(kind), self.formats[kind]
        tiles = (layers, rows // ROWS)
        data = (*tiles, columns // 32, 64 * form.bits)
        scales = (*tiles, columns // form.group, ROWS)
        return MatrixPlan(
            name,
            rows,
            columns,
            form,
            layout.add(name, "uint8", data, f"{self.layout}{form.bits}"),
            layout.add(f"{name}.scales", "float16", scales, "rows16"),
            None if form.symmetric else layout.add(f"{name}.minimums", "float16", scales, "rows16"),
        )

    def check(self) -> None:
        """Raise UnsupportedError for sizes that the kernels do not cover, naming them."""
        config = self.config
        if not 1 <= self.context <= config.context:
            raise UnsupportedError(
                f"context {self.context}: {config.name} was trained for 1 to {config.context} "
                "positions"
            )
        for what, value, multiple in (
            ("width", config.width, 32),
            ("head size", config.head_dim, 32),
            ("feed-forward size", config.ffn, 32),
            ("query heads", config.heads, config.kv_heads),
        ):
            if value % multiple:
                raise UnsupportedError(
                    f"{config.name}: {what} {value} is not a multiple of {multiple}, "
                    "which the CPU kernels need"
                )
        for kind in KINDS:
            (_, columns), form = self.matrix_shape(kind), self.formats[kind]
            if columns % form.group:
                raise UnsupportedError(
                    f"{config.name}: rows of {kind} have {columns} columns, which is not a "
                    f"multiple of {form.group}: choose another format than {form}"
                )


# Names of the layers' matrices in the artifact's tensor table.
LAYER_MATRICES: dict[Kind, str] = {
    "qkv": "layers.attention.qkv",
    "o": "layers.attention.output",
    "gate_up": "layers.feed_forward.gate_up",
    "down": "layers.feed_forward.down",
}


def matrix_kind(stage: Stage) -> Kind | None:
    """The kind of a stage's matrix, if it has one."""
    match stage:
        case ProjectAndCache():
            return "qkv"
        case ProjectAndAdd(of_gate=False):
            return "o"
        case GateAndUp():
            return "gate_up"
        case ProjectAndAdd():
            return "down"
    return None


def norm_name(stage: ProjectAndCache | GateAndUp) -> str:
    """The name of a stage's norm in the artifact's tensor table."""
    block = "attention" if isinstance(stage, ProjectAndCache) else "feed_forward"
    return f"layers.{block}.norm"


def matrix_stages(plan: Plan) -> Iterator[tuple[Stage, MatrixPlan]]:
    """A layer's stages that have a matrix, each with its plan."""
    stages = [stage for stage in plan.stages if matrix_kind(stage) is not None]
    yield from zip(stages, plan.weights.matrices, strict=True)
