"""One step of a decoder as one function: embed, all layers, output head, one parallel region.

Reads as the model does. Two functions are built from it: ``decode`` for a single token, ``prefill``
for up to MAX_ROWS tokens of any sequences. What a stage stands in is in
:mod:`compile.lower.cpu.frame`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from tvm.ir import GlobalVar, IRModule
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from compile.lower.cpu.activations import write
from compile.lower.cpu.attend import attend
from compile.lower.cpu.cache import PAGE_POSITIONS, HeadPage
from compile.lower.cpu.embedding import embed
from compile.lower.cpu.frame import UNIT, Frame
from compile.lower.cpu.isa import ISAS
from compile.lower.cpu.memory import Expr
from compile.lower.cpu.norm import normalize
from compile.lower.cpu.plan import MAX_ROWS, Plan, matrix_stages
from compile.lower.cpu.stages import Attend, GateAndUp, ProjectAndAdd, ProjectAndCache
from compile.lower.cpu.tile import ROWS, Tiles
from compile.lower.cpu.vector import LANES, bind, fma, silu


@dataclass(frozen=True)
class Lowered:
    """A model's steps.

    Attributes:
        module: TIR, functions ``decode`` and ``prefill``.
        stages: of each, the names of its stages, one for each barrier.
    """

    module: IRModule
    stages: dict[str, tuple[str, ...]]


def lower(plan: Plan, isa_name: str) -> Lowered:
    """The steps of a model for an instruction set."""
    isa = ISAS[isa_name]
    functions, stages = {}, {}
    for name, block in (("decode", (1, ROWS)), ("prefill", prefill_block(isa))):
        functions[GlobalVar(name)], stages[name] = build_step(plan, isa, name, block)
    return Lowered(IRModule(functions), stages)


def prefill_block(isa: ModuleType) -> tuple[int, int]:
    """Tokens and rows of a tile at once: all tokens where weights stay in registers instead."""
    tokens, rows = isa.BLOCK
    return (MAX_ROWS if isa.PASS else tokens), rows


def build_step(
    plan: Plan, isa: ModuleType, name: str, block: tuple[int, int]
) -> tuple[T.PrimFunc, tuple[str, ...]]:
    """One function and its stages; ``block``, tokens × rows, is the largest held in registers."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(name)
            T.func_attr({"global_symbol": name, "tirx.noalias": False})
            frame = Frame.with_arguments(plan, isa, block)
            # Raw pointers carry no device; stack allocation asks for one (1 is the CPU).
            with (
                T.attr(T.int32(0), "device_id", 0),
                T.attr(T.int32(0), "device_type", 1),
                T.attr(T.int32(0), "pragma_parallel_launch_point", 1),
            ):
                stages = emit(frame)
        return builder.get(), stages


def emit(frame: Frame) -> tuple[str, ...]:
    """All stages, in the order of the model; returns their names, one for each barrier."""
    embed_tokens(frame)
    before = len(frame.stages)
    with T.serial(frame.plan.config.layers) as layer:
        matrices = dict(matrix_stages(frame.plan))
        for stage in frame.plan.stages:
            match stage:
                case ProjectAndCache():
                    project_and_cache(frame, stage, frame.matrix(matrices[stage], layer), layer)
                case Attend():
                    attend(frame, layer)
                case ProjectAndAdd():
                    project_and_add(frame, stage, frame.matrix(matrices[stage], layer))
                case GateAndUp():
                    gate(frame, stage, frame.matrix(matrices[stage], layer), layer)
    first, layer_stages = frame.stages[:before], frame.stages[before:]
    del frame.stages[:]
    output(frame)
    return (*first, *layer_stages * frame.plan.config.layers, *frame.stages)


def embed_tokens(frame: Frame) -> None:
    """Rows of the embedding into the residual stream."""
    tiles = frame.matrix(frame.plan.weights.embedding, 0)
    with frame.stage("embed") as task, frame.share(frame.n, task) as row:
        embed(frame.isa, tiles, bind(frame.tokens.load(row)), frame.x(row))


def project_and_cache(frame: Frame, stage: ProjectAndCache, tiles: Tiles, layer: Expr) -> None:
    """q, k and v; each unit of 32 rows rotates its pairs and is quantized where it belongs."""
    config = frame.plan.config
    per_head = config.head_dim // UNIT
    queries, keys = config.heads * per_head, config.kv_heads * per_head

    def finish(unit: Expr, row: Expr, rows: list[list[Expr]]) -> None:
        (halves,) = rows
        position = bind(frame.positions.load(row))

        def rotated() -> tuple[Expr, Expr]:
            at = position * (config.head_dim // 2) + unit % per_head * LANES
            cos, sin = (
                bind(frame.region(frame.weights, region).load(at, LANES))
                for region in (frame.plan.weights.cos, frame.plan.weights.sin)
            )
            first, second = halves
            return (
                bind(fma(first, cos, -bind(second * sin))),
                bind(fma(second, cos, bind(first * sin))),
            )

        def page(head: Expr) -> HeadPage:
            return frame.page(layer, head, row, position // PAGE_POSITIONS)

        slot = position % PAGE_POSITIONS
        with T.If(unit < queries):
            with T.Then():
                scale = float(np.float32(1 / np.sqrt(config.head_dim)))
                group = row * queries + unit
                frame.quantized("q").group(group).write(*rotated(), factor=scale)
            with T.Else(), T.If(unit < queries + keys):
                with T.Then():
                    key = bind(unit - queries)
                    page(key // per_head).write_key(key % per_head, slot, *rotated())
                with T.Else():
                    value = bind(unit - queries - keys)
                    page(value // per_head).write_value(value % per_head, slot, *halves)

    normalized_stage(frame, stage, tiles, layer, queries + 2 * keys, 2, finish)


def project_and_add(frame: Frame, stage: ProjectAndAdd, tiles: Tiles) -> None:
    """A product added to the residual stream."""
    source = frame.quantized("gated" if stage.of_gate else "attended")
    units = frame.plan.config.width // ROWS
    name = "down" if stage.of_gate else "attention output"
    with (
        frame.stage(name) as task,
        frame.share(units, task, tiles.columns) as tile,
        frame.blocks(frame.n) as (first, count),
    ):
        sums = frame.tile_sums(task)
        frame.multiply(tiles.tile(tile), source.row(first), count, sums)
        with T.serial(count) as m:
            x = frame.x(first + m).at(tile * ROWS)
            x.store(0, x.load(0, LANES) + sums.load(m * ROWS, LANES))


def gate(frame: Frame, stage: GateAndUp, tiles: Tiles, layer: Expr) -> None:
    """silu(gate) · up, 32 rows of each at a time: one group of the next product's input."""
    groups = frame.plan.config.ffn // UNIT

    def finish(unit: Expr, row: Expr, rows: list[list[Expr]]) -> None:
        gated = frame.quantized("gated")
        targets = [gated.group((row + i) * groups + unit) for i in range(len(rows))]
        products = [
            (bind(silu(gates[0]) * ups[0]), bind(silu(gates[1]) * ups[1]))
            for gates, ups in ((parts[:2], parts[2:]) for parts in rows)
        ]
        write(targets, products)

    normalized_stage(frame, stage, tiles, layer, groups, 4, finish, frame.isa.TOGETHER)


def output(frame: Frame) -> None:
    """Final norm and logits of the wanted rows."""
    norm, _ = frame.plan.output
    weight = frame.region(frame.weights, frame.plan.weights.norms[norm.weight])
    normed = frame.quantized("normed")
    tiles = frame.matrix(frame.plan.weights.head, 0)

    def normalize_row(index: Expr, target: Expr) -> None:
        row = bind(frame.wanted.load(index))
        normalize(frame.x(row), weight, norm.eps, normed.row(target), frame.isa.TOGETHER)

    one = frame.tokens_at_once == 1
    if not one:
        with frame.stage("norm") as task, frame.share(frame.m, task) as index:
            normalize_row(index, index)
    with frame.stage("head") as task:
        if one:
            with T.If(frame.m > 0), T.Then():
                normalize_row(0, task)
        units = frame.plan.padded_vocab // ROWS
        with (
            frame.share(units, task, tiles.columns) as tile,
            frame.blocks(frame.m) as (first, count),
        ):
            sums = frame.tile_sums(task)
            source = normed.row(task if one else first)
            frame.multiply(tiles.tile(tile), source, count, sums)
            with T.serial(count) as m:
                at = T.cast(first + m, "int64") * frame.plan.padded_vocab + tile * ROWS
                frame.logits.store(at, sums.load(m * ROWS, LANES))


def normalized_stage(
    frame: Frame,
    stage: ProjectAndCache | GateAndUp,
    tiles: Tiles,
    layer: Expr,
    units: int,
    tiles_per_unit: int,
    finish: Callable[[Expr, Expr, list[list[Expr]]], None],
    rows_at_once: int = 1,
) -> None:
    """Norm, then ``units`` of several tiles.

    ``finish`` gets a unit, a row, and of that row and what follows it each tile's 16 sums: of
    ``rows_at_once``, and of single ones that are left.
    """
    region = frame.plan.weights.norms[stage.norm.weight]
    weight = frame.region(frame.weights, region).at(layer * frame.plan.config.width)
    normed, together = frame.quantized("normed"), frame.isa.TOGETHER
    one = frame.tokens_at_once == 1
    if not one:
        with frame.stage("norm") as task, frame.share(frame.n, task) as row:
            normalize(frame.x(row), weight, stage.norm.eps, normed.row(row), together)
    name = "q, k, v" if isinstance(stage, ProjectAndCache) else "gate and up"
    with frame.stage(name) as task:
        if one:
            normalize(frame.x(0), weight, stage.norm.eps, normed.row(task), together)
        columns = tiles.columns * tiles_per_unit
        with frame.share(units, task, columns) as unit, frame.blocks(frame.n) as (first, count):
            source = normed.row(task if one else first)
            sums = frame.tile_sums(task)
            with T.serial(tiles_per_unit) as i:
                out = sums.at(i * (frame.tokens_at_once * ROWS))
                frame.multiply(tiles.tile(unit * tiles_per_unit + i), source, count, out)

            def finish_rows(m: Expr, rows: int) -> None:
                lanes = [
                    [
                        bind(sums.load((i * frame.tokens_at_once + m + row) * ROWS, LANES))
                        for i in range(tiles_per_unit)
                    ]
                    for row in range(rows)
                ]
                finish(unit, bind(first + m), lanes)

            at_once = 1 if one else rows_at_once
            with T.serial(count // at_once) as turn:
                finish_rows(bind(turn * at_once), at_once)
            if at_once > 1:
                with T.serial(count % at_once) as rest:
                    finish_rows(bind(count - count % at_once + rest), 1)
