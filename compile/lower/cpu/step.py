"""One step of a decoder as one function: embed, all layers, output head, one parallel region.

Reads as the model does. Every thread runs the same code on the chunks of a stage that it claims; a
stage ends in a barrier. Two functions are built from it: ``decode`` for a single token,
``prefill`` for up to MAX_ROWS tokens of any sequences, a block of them at a time in registers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from tvm.ir import GlobalVar, IRModule
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from compile.lower.cpu.activations import Activations
from compile.lower.cpu.attention import attend
from compile.lower.cpu.cache import PAGE_POSITIONS, Cache, HeadPage
from compile.lower.cpu.chunks import claimed
from compile.lower.cpu.embedding import embed
from compile.lower.cpu.isa import ISAS
from compile.lower.cpu.memory import Array, Expr, Pointer
from compile.lower.cpu.norm import normalize
from compile.lower.cpu.plan import MatrixPlan, Plan, Region, matrix_stages
from compile.lower.cpu.stages import Attend, GateAndUp, ProjectAndAdd, ProjectAndCache
from compile.lower.cpu.tile import ROWS, Tiles, multiply
from compile.lower.cpu.vector import LANES, bind, fma, silu

UNIT = 32  # rows that one group of activations comes from: two tiles
CHUNK = 8192  # tiles · columns of a claim while decoding: some 4 µs, a claim takes 10 to 20 ns


def lower(plan: Plan, isa_name: str) -> IRModule:
    """The TIR module of a model: functions ``decode`` and ``prefill``."""
    isa = ISAS[isa_name]
    return IRModule(
        {
            GlobalVar(name): build_step(plan, isa, name, tokens, rows)
            for name, tokens, rows in (("decode", 1, ROWS), ("prefill", *isa.BLOCK))
        }
    )


def build_step(plan: Plan, isa: ModuleType, name: str, tokens: int, rows: int) -> T.PrimFunc:
    """One function; ``tokens`` × ``rows`` is the block held in registers."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(name)
            T.func_attr({"global_symbol": name, "tirx.noalias": False})
            step = Step.with_arguments(plan, isa, tokens, rows)
            # Raw pointers carry no device; stack allocation asks for one (1 is the CPU).
            with (
                T.attr(T.int32(0), "device_id", 0),
                T.attr(T.int32(0), "device_type", 1),
                T.attr(T.int32(0), "pragma_parallel_launch_point", 1),
            ):
                step.run()
        return builder.get()


@dataclass(frozen=True)
class Step:
    """The function being built: its arguments and how it divides its work.

    Arguments, in order: pointers to weights, cache and workspace; int32 arrays tokens [n],
    positions [n], sequences [n], tables [sequences, table_columns], wanted [m]; float32 logits
    [m, padded vocabulary]; the int32 numbers n, m, table_columns, pages (of the cache), tasks.
    """

    plan: Plan
    isa: ModuleType
    block: int  # tokens at once
    block_rows: int  # rows of a tile at once
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

    @classmethod
    def with_arguments(cls, plan: Plan, isa: ModuleType, block: int, rows: int) -> Step:
        """Declare the function's arguments."""
        weights, cache, workspace = (Pointer(name) for name in ("weights", "cache", "workspace"))
        names = ("tokens", "positions", "sequences", "tables", "wanted")
        arrays = [Pointer(name) for name in names]
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
        for pointer in arrays:
            pointer.view("int32")
        logits.view("float32")
        return cls(
            plan,
            isa,
            block,
            rows,
            weights,
            Cache(isa, cache, plan.page, plan.config.kv_heads, pages),
            workspace,
            **{name: pointer.array("int32") for name, pointer in zip(names, arrays, strict=True)},
            logits=logits.array("float32"),
            n=n,
            m=m,
            table_columns=table_columns,
            tasks=tasks,
        )

    def run(self) -> None:
        """Emit the step."""
        self.embed()
        with T.serial(self.plan.config.layers) as layer:
            matrices = dict(matrix_stages(self.plan))
            for stage in self.plan.stages:
                match stage:
                    case ProjectAndCache():
                        self.project_and_cache(stage, self.matrix(matrices[stage], layer), layer)
                    case Attend():
                        self.attend(layer)
                    case ProjectAndAdd():
                        self.project_and_add(stage, self.matrix(matrices[stage], layer))
                    case GateAndUp():
                        self.gate(stage, self.matrix(matrices[stage], layer), layer)
        self.output()

    # The stages, in the order of the model.

    def embed(self) -> None:
        """Rows of the embedding into the residual stream."""
        tiles = self.matrix(self.plan.weights.embedding, 0)
        with self.stage() as task, self.share(self.n, task) as row:
            embed(self.isa, tiles, bind(self.tokens.load(row)), self.x(row))

    def project_and_cache(self, stage: ProjectAndCache, tiles: Tiles, layer: Expr) -> None:
        """q, k and v; each unit of 32 rows rotates its pairs and is quantized where it belongs."""
        config = self.plan.config
        per_head = config.head_dim // UNIT
        queries, keys = config.heads * per_head, config.kv_heads * per_head

        def finish(unit: Expr, row: Expr, halves: list[Expr]) -> None:
            position = bind(self.positions.load(row))

            def rotated() -> tuple[Expr, Expr]:
                at = position * (config.head_dim // 2) + unit % per_head * LANES
                cos, sin = (
                    bind(self.region(self.weights, region).load(at, LANES))
                    for region in (self.plan.weights.cos, self.plan.weights.sin)
                )
                first, second = halves
                return (
                    bind(fma(first, cos, -bind(second * sin))),
                    bind(fma(second, cos, bind(first * sin))),
                )

            def page(head: Expr) -> HeadPage:
                return self.page(layer, head, row, position // PAGE_POSITIONS)

            slot = position % PAGE_POSITIONS
            with T.If(unit < queries):
                with T.Then():
                    scale = float(np.float32(1 / np.sqrt(config.head_dim)))
                    group = row * queries + unit
                    self.quantized("q").group(group).write(*rotated(), factor=scale)
                with T.Else(), T.If(unit < queries + keys):
                    with T.Then():
                        key = bind(unit - queries)
                        page(key // per_head).write_key(key % per_head, slot, *rotated())
                    with T.Else():
                        value = bind(unit - queries - keys)
                        page(value // per_head).write_value(value % per_head, slot, *halves)

        self.normalized_stage(stage, tiles, layer, queries + 2 * keys, 2, finish)

    def attend(self, layer: Expr) -> None:
        """Every query head of every row."""
        config = self.plan.config
        per_head = config.head_dim // UNIT
        share = config.heads // config.kv_heads
        with self.stage() as task, self.share(self.n * config.heads, task) as unit:
            row, head = bind(unit // config.heads), bind(unit % config.heads)
            q, out = (self.head(name, unit * per_head) for name in ("q", "attended"))
            attend(
                self.isa,
                q,
                lambda page: self.page(layer, head // share, row, page),
                bind(self.positions.load(row)),
                self.scores(task),
                out,
            )

    def project_and_add(self, stage: ProjectAndAdd, tiles: Tiles) -> None:
        """A product added to the residual stream."""
        source = self.quantized("gated" if stage.of_gate else "attended")
        units = self.plan.config.width // ROWS
        with (
            self.stage() as task,
            self.share(units, task, tiles.columns) as tile,
            self.blocks() as first,
        ):

            def add(m: int, row: int, sums: Expr) -> None:
                x = self.x(first + m).at(tile * ROWS + row)
                x.store(0, x.load(0, self.isa.LANES) + sums)

            self.multiply(tiles.tile(tile), source, first, add)

    def gate(self, stage: GateAndUp, tiles: Tiles, layer: Expr) -> None:
        """silu(gate) · up, 32 rows of each at a time: one group of the next product's input."""
        groups = self.plan.config.ffn // UNIT

        def finish(unit: Expr, row: Expr, parts: list[Expr]) -> None:
            gates, ups = parts[:2], parts[2:]
            first, second = (bind(silu(g) * u) for g, u in zip(gates, ups, strict=True))
            self.quantized("gated").group(row * groups + unit).write(first, second)

        self.normalized_stage(stage, tiles, layer, groups, 4, finish)

    def output(self) -> None:
        """Final norm and logits of the wanted rows."""
        norm, _ = self.plan.output
        weight = self.region(self.weights, self.plan.weights.norms[norm.weight])
        normed = self.quantized("normed")
        tiles = self.matrix(self.plan.weights.head, 0)

        def normalize_row(index: Expr, target: Expr) -> None:
            row = bind(self.wanted.load(index))
            normalize(self.x(row), weight, norm.eps, normed.row(target))

        if self.block > 1:
            with self.stage() as task, self.share(self.m, task) as index:
                normalize_row(index, index)
        with self.stage() as task:
            if self.block == 1:
                with T.If(self.m > 0), T.Then():
                    normalize_row(0, task)
            with self.share(self.plan.padded_vocab // ROWS, task, tiles.columns) as tile:
                whole = bind(self.m // self.block)
                with T.serial(whole) as b:
                    self.logits_of(tiles, tile, normed, task, b * self.block, self.block)
                if self.block > 1:
                    with T.serial(self.m - whole * self.block) as i:
                        self.logits_of(tiles, tile, normed, task, whole * self.block + i, 1)

    def logits_of(
        self, tiles: Tiles, tile: Expr, normed: Activations, task: Expr, first: Expr, count: int
    ) -> None:
        """One tile's logits of ``count`` wanted rows."""
        rows = self.block_rows if count > 1 else ROWS

        def write(m: int, row: int, sums: Expr) -> None:
            at = T.cast(first + m, "int64") * self.plan.padded_vocab + tile * ROWS + row
            self.logits.store(at, sums)

        sources = [normed.row(task if self.block == 1 else first + m) for m in range(count)]
        multiply(self.isa, tiles.tile(tile), sources, rows, write)

    # How stages are made.

    def normalized_stage(
        self,
        stage: ProjectAndCache | GateAndUp,
        tiles: Tiles,
        layer: Expr,
        units: int,
        tiles_per_unit: int,
        finish: Callable[[Expr, Expr, list[Expr]], None],
    ) -> None:
        """Norm, then ``units`` of several tiles; ``finish`` gets a row's 16 sums of each tile."""
        region = self.plan.weights.norms[stage.norm.weight]
        weight = self.region(self.weights, region).at(layer * self.plan.config.width)
        normed = self.quantized("normed")
        if self.block > 1:
            with self.stage() as task, self.share(self.n, task) as row:
                normalize(self.x(row), weight, stage.norm.eps, normed.row(row))
        with self.stage() as task:
            if self.block == 1:
                normalize(self.x(0), weight, stage.norm.eps, normed.row(task))
            columns = tiles.columns * tiles_per_unit
            with self.share(units, task, columns) as unit, self.blocks() as first:
                sums = self.tile_sums(task)
                with T.serial(tiles_per_unit) as i:
                    out = sums.at(i * (self.block * ROWS))
                    self.multiply(
                        tiles.tile(unit * tiles_per_unit + i),
                        normed,
                        task if self.block == 1 else first,
                        lambda m, row, value: out.store(m * ROWS + row, value),
                    )
                with T.serial(T.min(self.block, self.n - first)) as m:
                    lanes = [
                        bind(sums.load((i * self.block + m) * ROWS, LANES))
                        for i in range(tiles_per_unit)
                    ]
                    finish(unit, bind(first + m), lanes)

    def multiply(
        self, tiles: Tiles, source: Activations, first: Expr, emit: Callable[[int, int, Expr], None]
    ) -> None:
        """A tile times the block of rows from ``first`` on."""
        tokens = [source.row(first + m) for m in range(self.block)]
        multiply(self.isa, tiles, tokens, self.block_rows, emit)

    @contextmanager
    def stage(self) -> Iterator[Expr]:
        """Run by every thread, which is given its number; ends in a barrier."""
        with (
            T.attr(T.int32(0), "pragma_parallel_barrier_when_finish", 1),
            T.parallel(self.tasks) as task,
        ):
            yield task

    def share(self, units: Expr, task: Expr, columns: int = 0) -> AbstractContextManager[Expr]:
        """The units that this thread gets; ``columns`` are those of a unit's tiles together."""
        short = columns > 0 and self.block == 1  # otherwise a unit is worth a claim
        return claimed(units, task, max(1, CHUNK // columns) if short else 1)

    @contextmanager
    def blocks(self) -> Iterator[Expr]:
        """The first row of each block; rows behind the last are computed and not used."""
        if self.block == 1:
            yield T.int32(0)
            return
        with T.serial((self.n + self.block - 1) // self.block) as b:
            yield bind(b * self.block)

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
        values, scales, totals = getattr(self.plan.workspace, name)
        return Activations(
            self.region(self.workspace, values),
            self.workspace.array("int32", values.offset),
            self.region(self.workspace, scales),
            self.region(self.workspace, totals),
            values.shape[1],
        )

    def head(self, name: str, group: Expr) -> Activations:
        """One head of the quantized vectors ``name``, from its first group on."""
        whole = self.quantized(name).group(group)
        return Activations(
            whole.values, whole.quads, whole.scales, whole.totals, self.plan.config.head_dim
        )

    def scores(self, task: Expr) -> Array:
        """A thread's scratch for attention scores."""
        scores = self.region(self.workspace, self.plan.workspace.scores)
        return scores.at(task * self.plan.padded_context)

    def tile_sums(self, task: Expr) -> Array:
        """A thread's scratch for the products of a unit's tiles, [tiles, block, 16]."""
        sums = self.plan.workspace.tile_sums
        return self.region(self.workspace, sums).at(task * sums.shape[1])

    def page(self, layer: Expr, head: Expr, row: Expr, page: Expr) -> HeadPage:
        """The memory of a logical page of the sequence that ``row`` belongs to."""
        table = self.sequences.load(row) * self.table_columns
        return self.cache.page(layer, head, self.tables.load(table + page))
