"""The attention stages of a step: which queries attend together, and which thread sees to them."""

from __future__ import annotations

from dataclasses import replace

from tvm.tirx.script.builder import ir as T

from compile.lower.cpu.activations import write
from compile.lower.cpu.attention import Pages, combine, score, weigh
from compile.lower.cpu.cache import PAGE_POSITIONS, HeadPage
from compile.lower.cpu.frame import UNIT, Frame
from compile.lower.cpu.memory import Array, Expr, local
from compile.lower.cpu.tile import ROWS
from compile.lower.cpu.vector import LANES, bind, splat


def attend(frame: Frame, layer: Expr) -> None:
    """Attention of every row; all query heads of a KV head together."""
    if frame.tokens_at_once == 1:
        attend_one(frame, layer)
    else:
        attend_rows(frame, layer)


def attend_one(frame: Frame, layer: Expr) -> None:
    """Of a single row: its heads are too few to share out, so pages are, and then groups."""
    config, share = frame.plan.config, frame.plan.query_share
    groups = config.head_dim // UNIT
    position = bind(frame.positions.load())
    count = bind(position // PAGE_POSITIONS + 1)
    scores = frame.region(frame.workspace, frame.plan.workspace.scores)
    pages = config.kv_heads * count
    columns = config.head_dim * share * (PAGE_POSITIONS // ROWS)
    with frame.stage("scores") as task, frame.share(pages, task, columns) as unit:
        head, p = bind(unit // count), bind(unit % count)
        first = head * share
        score(
            frame.isa,
            [frame.head("q", (first + i) * groups) for i in range(share)],
            [position] * share,
            frame.page(layer, head, T.int32(0), p),
            p * PAGE_POSITIONS,
            [scores.at((first + i) * frame.plan.padded_context) for i in range(share)],
        )
    context = frame.plan.padded_context
    with frame.stage("attention") as task:
        weights = frame.region(frame.workspace, frame.plan.workspace.weights).at(
            task * (share * context)
        )
        weighed, totals = local("int32", 1), local("float32", share)  # the last head's
        weighed.store(0, T.int32(-1))
        with frame.share(config.kv_heads * groups, task) as unit:
            head, group = bind(unit // groups), bind(unit % groups)
            with T.If(weighed.load() != head), T.Then():
                own = scores.at(head * (share * context))
                weigh_all(frame, [position] * share, count, own, weights, totals)
                weighed.store(0, head)
            combine_groups(
                frame,
                count,
                weights,
                totals,
                lambda page: frame.page(layer, head, T.int32(0), page),
                group,
                1,
                [(head * share + i) * groups for i in range(share)],
                task,
            )


def attend_rows(frame: Frame, layer: Expr) -> None:
    """Of many: consecutive rows of one sequence together, as far as there are such."""
    config, together = frame.plan.config, frame.plan.rows_together
    blocks = (frame.n + together - 1) // together
    with frame.stage("attention") as task, frame.share(blocks * config.kv_heads, task) as unit:
        row, head = bind(unit // config.kv_heads * together), bind(unit % config.kv_heads)
        last = bind(T.min(row + together, frame.n) - 1)
        same = frame.sequences.load(row) == frame.sequences.load(last)
        with T.If(T.And(last - row == together - 1, same)):
            with T.Then():
                attend_together(frame, layer, head, row, together, task)
            with T.Else(), T.serial(last - row + 1) as j:
                attend_together(frame, layer, head, bind(row + j), 1, task)


def attend_together(
    frame: Frame, layer: Expr, head: Expr, row: Expr, rows: int, task: Expr
) -> None:
    """The queries that ``rows`` rows of one sequence have for one KV head."""
    config, share = frame.plan.config, frame.plan.query_share
    groups, context = config.head_dim // UNIT, frame.plan.padded_context
    firsts = [
        ((row + r) * config.heads + head * share + i) * groups
        for r in range(rows)
        for i in range(share)
    ]
    positions = [
        position
        for position in [bind(frame.positions.load(row + r)) for r in range(rows)]
        for _ in range(share)
    ]
    count = bind(positions[-1] // PAGE_POSITIONS + 1)
    scores = frame.region(frame.workspace, frame.plan.workspace.scores).at(
        task * (frame.plan.queries_together * context)
    )

    def page(index: Expr) -> HeadPage:
        return frame.page(layer, head, row, index)

    with T.serial(count) as p:
        score(
            frame.isa,
            [frame.head("q", first) for first in firsts],
            positions,
            page(p),
            p * PAGE_POSITIONS,
            [scores.at(i * context) for i in range(len(firsts))],
        )
    totals = local("float32", len(firsts))
    weigh_all(frame, positions, count, scores, scores, totals)
    combine_groups(frame, count, scores, totals, page, T.int32(0), groups, firsts, task)


def weigh_all(
    frame: Frame,
    positions: list[Expr],
    count: Expr,
    scores: Array,
    weights: Array,
    totals: Array,
) -> None:
    """From scores, float32 [queries, context], to ``weights``, which may be the same, and sums."""
    context = frame.plan.padded_context
    for i, position in enumerate(positions):
        total = weigh(position, count, scores.at(i * context), weights.at(i * context))
        totals.store(i, total)


def combine_groups(
    frame: Frame,
    count: Expr,
    weights: Array,
    totals: Array,
    page: Pages,
    group: Expr,
    group_count: int,
    firsts: list[Expr],
    task: Expr,
) -> None:
    """From weights, float32 [queries, context], and their sums to groups of the quantized output.

    ``group`` is the first of them; ``firsts`` are the first groups of each query's output.
    """
    sums = frame.tile_sums(task)
    blended = replace(frame.quantized("blended"), copies=1)
    blended = blended.row(task * frame.plan.queries_together)
    with T.serial(group_count) as g:
        group = bind(group + g)
        combine(frame.isa, page, count, group, len(firsts), weights, blended, sums)
        attended = frame.quantized("attended")
        for start in range(0, len(firsts), frame.isa.TOGETHER):
            some = range(start, min(start + frame.isa.TOGETHER, len(firsts)))
            each = [splat(bind(totals.load(i))) for i in some]
            groups = [
                (
                    bind(sums.load(i * UNIT, LANES) / total),
                    bind(sums.load(i * UNIT + LANES, LANES) / total),
                )
                for i, total in zip(some, each, strict=True)
            ]
            write([attended.group(firsts[i] + group) for i in some], groups)
