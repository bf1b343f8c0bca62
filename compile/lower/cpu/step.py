"""One step of a decoder as one function: embed, all layers, output head, one parallel region.

Reads as the model does. Every thread runs the same code on its share of each stage; a stage ends
in a barrier. Two functions are built from it: ``decode`` for a single token, ``prefill`` for up
to MAX_ROWS tokens of any sequences, a block of them at a time in registers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
from tvm.ir import GlobalVar, IRModule
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from compile.lower.cpu.activations import Activations
from compile.lower.cpu.attention import Pages, combine, score, weigh
from compile.lower.cpu.cache import PAGE_POSITIONS, Cache, HeadPage
from compile.lower.cpu.embedding import embed
from compile.lower.cpu.isa import ISAS
from compile.lower.cpu.memory import Array, Expr, Pointer
from compile.lower.cpu.norm import normalize
from compile.lower.cpu.plan import (
    MAX_ROWS,
    MatrixPlan,
    Plan,
    QuantizedRegions,
    Region,
    matrix_stages,
)
from compile.lower.cpu.stages import Attend, GateAndUp, ProjectAndAdd, ProjectAndCache
from compile.lower.cpu.tile import ROWS, Tiles, multiply, multiply_many
from compile.lower.cpu.vector import LANES, bind, fma, silu, splat

UNIT = 32  # rows that one group of activations comes from: two tiles


def lower(plan: Plan, isa_name: str) -> IRModule:
    """The TIR module of a model: functions ``decode`` and ``prefill``."""
    isa = ISAS[isa_name]
    return IRModule(
        {
            GlobalVar(name): build_step(plan, isa, name, tokens, rows)
            for name, tokens, rows in (("decode", 1, ROWS), ("prefill", *prefill_block(isa)))
        }
    )


def prefill_block(isa: ModuleType) -> tuple[int, int]:
    """Tokens and rows of a tile at once: all tokens where weights stay in registers instead."""
    tokens, rows = isa.BLOCK
    return (MAX_ROWS if hasattr(isa, "load") else tokens), rows


def build_step(plan: Plan, isa: ModuleType, name: str, tokens: int, rows: int) -> T.PrimFunc:
    """One function; ``tokens`` × ``rows`` is the largest block held in registers."""
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
        """Attention of every row; all query heads of a KV head together."""
        if self.tokens_at_once == 1:
            self.attend_one(layer)
        else:
            self.attend_rows(layer)

    def attend_one(self, layer: Expr) -> None:
        """Of a single row: its heads are too few to share out, so pages are, and then groups."""
        config, share = self.plan.config, self.plan.query_share
        groups = config.head_dim // UNIT
        position = bind(self.positions.load())
        count = bind(position // PAGE_POSITIONS + 1)
        scores = self.region(self.workspace, self.plan.workspace.scores)
        with self.stage() as task, self.share(config.kv_heads * count, task) as unit:
            head, p = bind(unit // count), bind(unit % count)
            first = head * share
            score(
                self.isa,
                [self.head("q", (first + i) * groups) for i in range(share)],
                [position] * share,
                self.page(layer, head, T.int32(0), p),
                p * PAGE_POSITIONS,
                [scores.at((first + i) * self.plan.score_columns) for i in range(share)],
            )
        with self.stage() as task, self.share(config.kv_heads * groups, task) as unit:
            head, group = bind(unit // groups), bind(unit % groups)
            weights = self.region(self.workspace, self.plan.workspace.weights).at(
                task * (share * self.plan.score_columns)
            )
            self.weigh_and_combine(
                [position] * share,
                count,
                scores.at(head * (share * self.plan.score_columns)),
                weights,
                lambda page: self.page(layer, head, T.int32(0), page),
                [group],
                [(head * share + i) * groups for i in range(share)],
                task,
            )

    def attend_rows(self, layer: Expr) -> None:
        """Of many: consecutive rows of one sequence together, as far as there are such."""
        config, together = self.plan.config, self.plan.rows_together
        blocks = (self.n + together - 1) // together
        with self.stage() as task:
            count = (blocks * config.kv_heads - task + self.tasks - 1) // self.tasks
            with T.serial(count) as i:
                unit = bind(task + i * self.tasks)
                row, head = bind(unit // config.kv_heads * together), bind(unit % config.kv_heads)
                last = bind(T.min(row + together, self.n) - 1)
                same = self.sequences.load(row) == self.sequences.load(last)
                with T.If(T.And(last - row == together - 1, same)):
                    with T.Then():
                        self.attend_together(layer, head, row, together, task)
                    with T.Else(), T.serial(last - row + 1) as j:
                        self.attend_together(layer, head, bind(row + j), 1, task)

    def attend_together(self, layer: Expr, head: Expr, row: Expr, rows: int, task: Expr) -> None:
        """The queries that ``rows`` rows of one sequence have for one KV head."""
        config, share = self.plan.config, self.plan.query_share
        groups, context = config.head_dim // UNIT, self.plan.score_columns
        firsts = [
            ((row + r) * config.heads + head * share + i) * groups
            for r in range(rows)
            for i in range(share)
        ]
        positions = [
            position
            for position in [bind(self.positions.load(row + r)) for r in range(rows)]
            for _ in range(share)
        ]
        count = bind(positions[-1] // PAGE_POSITIONS + 1)
        scores = self.region(self.workspace, self.plan.workspace.scores).at(
            task * (self.plan.queries_together * context)
        )

        def page(index: Expr) -> HeadPage:
            return self.page(layer, head, row, index)

        with T.serial(count) as p:
            score(
                self.isa,
                [self.head("q", first) for first in firsts],
                positions,
                page(p),
                p * PAGE_POSITIONS,
                [scores.at(i * context) for i in range(len(firsts))],
            )
        self.weigh_and_combine(positions, count, scores, scores, page, range(groups), firsts, task)

    def weigh_and_combine(
        self,
        positions: list[Expr],
        count: Expr,
        scores: Array,
        weights: Array,
        page: Pages,
        groups: Iterable[Expr],
        firsts: list[Expr],
        task: Expr,
    ) -> None:
        """From scores, float32 [queries, context], to groups of the quantized output.

        ``firsts`` are the first groups of each query's output; ``weights`` may be ``scores``.
        """
        context = self.plan.score_columns
        totals = [
            weigh(position, count, scores.at(i * context), weights.at(i * context))
            for i, position in enumerate(positions)
        ]
        sums = self.tile_sums(task)
        for group in groups:
            rows = [weights.at(i * context) for i in range(len(positions))]
            combine(self.isa, page, count, group, rows, sums)
            for i, (first, total) in enumerate(zip(firsts, totals, strict=True)):
                halves = [
                    bind(sums.load(i * UNIT + half * LANES, LANES) / splat(total))
                    for half in range(2)
                ]
                self.quantized("attended").group(first + group).write(*halves)

    def project_and_add(self, stage: ProjectAndAdd, tiles: Tiles) -> None:
        """A product added to the residual stream."""
        source = self.quantized("gated" if stage.of_gate else "attended")
        units = self.plan.config.width // ROWS
        with (
            self.stage() as task,
            self.share(units, task) as tile,
            self.blocks(self.n) as (first, count),
        ):
            sums = self.tile_sums(task)
            self.multiply(tiles.tile(tile), source.row(first), count, sums)
            with T.serial(count) as m:
                x = self.x(first + m).at(tile * ROWS)
                x.store(0, x.load(0, LANES) + sums.load(m * ROWS, LANES))

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

        if self.tokens_at_once > 1:
            with self.stage() as task, self.share(self.m, task) as index:
                normalize_row(index, index)
        with self.stage() as task:
            if self.tokens_at_once == 1:
                with T.If(self.m > 0), T.Then():
                    normalize_row(0, task)
            tiles_in_all = self.plan.padded_vocab // ROWS
            with self.share(tiles_in_all, task) as tile, self.blocks(self.m) as (first, count):
                sums = self.tile_sums(task)
                source = normed.row(task if self.tokens_at_once == 1 else first)
                self.multiply(tiles.tile(tile), source, count, sums)
                with T.serial(count) as m:
                    at = T.cast(first + m, "int64") * self.plan.padded_vocab + tile * ROWS
                    self.logits.store(at, sums.load(m * ROWS, LANES))

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
        if self.tokens_at_once > 1:
            with self.stage() as task, self.share(self.n, task) as row:
                normalize(self.x(row), weight, stage.norm.eps, normed.row(row))
        with self.stage() as task:
            if self.tokens_at_once == 1:
                normalize(self.x(0), weight, stage.norm.eps, normed.row(task))
            with self.share(units, task) as unit, self.blocks(self.n) as (first, count):
                source = normed.row(task if self.tokens_at_once == 1 else first)
                sums = self.tile_sums(task)
                with T.serial(tiles_per_unit) as i:
                    out = sums.at(i * (self.tokens_at_once * ROWS))
                    self.multiply(tiles.tile(unit * tiles_per_unit + i), source, count, out)
                with T.serial(count) as m:
                    lanes = [
                        bind(sums.load((i * self.tokens_at_once + m) * ROWS, LANES))
                        for i in range(tiles_per_unit)
                    ]
                    finish(unit, bind(first + m), lanes)

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
        if self.tokens_at_once == MAX_ROWS:
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

    @contextmanager
    def stage(self) -> Iterator[Expr]:
        """Run by every thread, which is given its number; ends in a barrier."""
        with (
            T.attr(T.int32(0), "pragma_parallel_barrier_when_finish", 1),
            T.parallel(self.tasks) as task,
        ):
            yield task

    @contextmanager
    def share(self, units: Expr, task: Expr) -> Iterator[Expr]:
        """This thread's run of consecutive units."""
        start = bind(units * task // self.tasks)
        with T.serial(units * (task + 1) // self.tasks - start) as i:
            yield bind(start + i)

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
