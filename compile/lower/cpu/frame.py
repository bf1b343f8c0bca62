"""What every stage of a step stands in: its arguments, its memory, and how its work is divided.

A stage is run by every thread on the chunks that it claims, and ends in a barrier. Within a unit of
work, rows are taken in blocks that fit into registers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from types import ModuleType

from tvm.tirx.script.builder import ir as T

from compile.lower.cpu.activations import Activations
from compile.lower.cpu.cache import Cache, HeadPage
from compile.lower.cpu.chunks import claimed
from compile.lower.cpu.memory import Array, Expr, Pointer
from compile.lower.cpu.plan import MatrixPlan, Plan, QuantizedRegions, Region
from compile.lower.cpu.tile import ROWS, Tiles, multiply, multiply_many
from compile.lower.cpu.vector import bind

UNIT = 32  # rows that one group of activations comes from: two tiles
CHUNK = 8192  # tiles · columns of a claim while decoding: some 4 µs, a claim takes 10 to 20 ns


@dataclass(frozen=True)
class Frame:
    """The function being built: its arguments and how it divides its work.

    Arguments, in order: pointers to weights, cache and workspace; int32 arrays tokens [n],
    positions [n], sequences [n], tables [sequences, table_columns], wanted [m]; float32 logits
    [m, padded vocabulary]; the int32 numbers n, m, table_columns, pages (of the cache), tasks.

    ``tokens_at_once`` × ``rows_at_once`` is the largest block held in registers; the function of
    a single token has blocks of one.
    """

    plan: Plan
    isa: ModuleType
    tokens_at_once: int
    rows_at_once: int  # of a tile
    weights: Pointer
    cache: Cache
    workspace: Pointer
    tokens: Array
    positions: Array
    sequences: Array
    tables: Array
    wanted: Array
    logits: Array
    n: Expr
    m: Expr
    table_columns: Expr
    tasks: Expr
    stages: list[str] = field(default_factory=list)  # names, in the order they were emitted

    @classmethod
    def with_arguments(cls, plan: Plan, isa: ModuleType, block: tuple[int, int]) -> Frame:
        """Declare the function's arguments."""
        weights, cache, workspace = (Pointer(name) for name in ("weights", "cache", "workspace"))
        names = ("tokens", "positions", "sequences", "tables", "wanted")
        indices = [Pointer(name) for name in names]
        logits = Pointer("logits")
        n, m, table_columns, pages, tasks = (
            T.arg(name, T.int32()) for name in ("n", "m", "table_columns", "pages", "tasks")
        )
        for dtype in ("uint8", "float16", "float32"):
            weights.view(dtype)
        for dtype in ("uint8", "float32"):
            cache.view(dtype)
        for dtype in ("int8", "int32", "float32"):
            workspace.view(dtype)
        for pointer in indices:
            pointer.view("int32")
        logits.view("float32")
        tokens, positions, sequences, tables, wanted = (p.array("int32") for p in indices)
        return cls(
            plan,
            isa,
            *block,
            weights,
            Cache(isa, cache, plan.page, plan.config.kv_heads, pages),
            workspace,
            *(tokens, positions, sequences, tables, wanted),
            logits.array("float32"),
            *(n, m, table_columns, tasks),
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[Expr]:
        """Run by every thread, which is given its number; ends in a barrier."""
        self.stages.append(name)
        with (
            T.attr(T.int32(0), "pragma_parallel_barrier_when_finish", 1),
            T.parallel(self.tasks) as task,
        ):
            yield task

    def share(self, units: Expr, task: Expr, columns: int = 0) -> AbstractContextManager[Expr]:
        """The units that this thread gets; ``columns`` are those of a unit's tiles together."""
        short = columns > 0 and self.tokens_at_once == 1  # otherwise a unit is worth a claim
        return claimed(units, task, max(1, CHUNK // columns) if short else 1)

    @contextmanager
    def blocks(self, rows: Expr) -> Iterator[tuple[Expr, Expr]]:
        """The first row of each block, and how many rows it has."""
        if self.tokens_at_once == 1:
            yield T.int32(0), rows
            return
        size = self.tokens_at_once
        with T.serial((rows + size - 1) // size) as b:
            first = bind(b * size)
            yield first, bind(T.min(size, rows - first))

    def multiply(self, tiles: Tiles, source: Activations, count: Expr, out: Array) -> None:
        """A tile times the first ``count`` rows, a whole block or what is left of one.

        The products are float32 ``out`` [count, 16].
        What is left is taken in blocks of half the size each, so that no row is computed in vain.
        """

        def part(first: Expr, size: int) -> None:
            rows = [source.row(first + m) for m in range(size)]
            height = self.rows_at_once if size > 1 else ROWS
            multiply(
                self.isa,
                tiles,
                rows,
                height,
                lambda m, row, v: out.store((first + m) * ROWS + row, v),
                ahead=self.isa.PREFETCH,
            )

        if self.tokens_at_once == 1:
            with T.If(count > 0), T.Then():
                part(T.int32(0), 1)
            return
        if self.isa.PASS:
            with T.If(count > 1):
                with T.Then():
                    multiply_many(self.isa, tiles, source, count, out)
                with T.Else(), T.If(count > 0), T.Then():
                    part(T.int32(0), 1)
            return
        with T.If(count == self.tokens_at_once):
            with T.Then():
                part(T.int32(0), self.tokens_at_once)
            with T.Else():
                size = self.tokens_at_once // 2
                while size:
                    with T.If(T.bitwise_and(count, size) != 0), T.Then():
                        larger = T.int32(-2 * size)
                        part(bind(T.bitwise_and(count, larger)), size)
                    size //= 2

    # What stands where.

    def region(self, pointer: Pointer, region: Region) -> Array:
        """A region of the plan as an array."""
        return pointer.array(region.dtype, region.offset)

    def matrix(self, matrix: MatrixPlan, layer: Expr) -> Tiles:
        """One layer of a stacked matrix."""
        tiles = Tiles(
            matrix.format.bits,
            self.region(self.weights, matrix.data),
            self.region(self.weights, matrix.scales),
            None if matrix.minimums is None else self.region(self.weights, matrix.minimums),
            matrix.columns,
            matrix.format.group,
        )
        return tiles.tile(layer * (matrix.rows // ROWS))

    def x(self, row: Expr) -> Array:
        """A row of the residual stream."""
        return self.region(self.workspace, self.plan.workspace.x).at(row * self.plan.config.width)

    def quantized(self, name: str) -> Activations:
        """The quantized vectors ``name`` of the workspace plan."""
        regions: QuantizedRegions = getattr(self.plan.workspace, name)
        return Activations(
            self.region(self.workspace, regions.values),
            self.workspace.array("int32", regions.values.offset),
            self.region(self.workspace, regions.scales),
            self.region(self.workspace, regions.offsets),
            self.region(self.workspace, regions.sums),
            regions.values.shape[1],
            self.isa.COPIES if self.tokens_at_once == 1 else 1,
        )

    def head(self, name: str, group: Expr) -> Activations:
        """One head of the quantized vectors ``name``, from its first group on."""
        whole = self.quantized(name).group(group)
        return replace(whole, columns=self.plan.config.head_dim)

    def tile_sums(self, task: Expr) -> Array:
        """A thread's scratch for what a unit sums up."""
        sums = self.plan.workspace.tile_sums
        return self.region(self.workspace, sums).at(task * sums.shape[1])

    def page(self, layer: Expr, head: Expr, row: Expr, page: Expr) -> HeadPage:
        """The memory of a logical page of the sequence that ``row`` belongs to."""
        table = self.sequences.load(row) * self.table_columns
        return self.cache.page(layer, head, self.tables.load(table + page))
