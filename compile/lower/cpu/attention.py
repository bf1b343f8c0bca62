"""Attention over the pages of a sequence (:func:`compile.numerics.attend`).

In three parts, for several queries of one KV head at a time, so that its keys and values are read
once for all of them: :func:`score` a page, :func:`weigh` a query's scores, :func:`combine` the
values of one group of 32 dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType

from tvm.tirx.script.builder import ir as T

from compile.lower.cpu.activations import Activations, write
from compile.lower.cpu.cache import GROUP, PAGE_POSITIONS, HeadPage
from compile.lower.cpu.memory import Array, Expr, local
from compile.lower.cpu.tile import ROWS, multiply
from compile.lower.cpu.vector import (
    LANES,
    across,
    add_lanes,
    bind,
    constant,
    exp,
    fma,
    splat,
)

LOWEST = -3.0e38  # the score of a position that is not there

Pages = Callable[[Expr], HeadPage]  # from a sequence's logical page to the memory it has


def score(
    isa: ModuleType,
    queries: Sequence[Activations],
    positions: Sequence[Expr],
    page: HeadPage,
    first: Expr,
    scores: Sequence[Array],
) -> None:
    """Each query's scores of the page whose first position is ``first``.

    Args:
        positions: int32, of each query: later ones it may not see.
        scores: float32, of each query, by position.
    """
    at_once, rows = isa.BLOCK
    with T.serial(PAGE_POSITIONS // ROWS) as tile:
        for start in range(0, len(queries), at_once):

            def keep(m: int, row: int, sums: Expr, start: int = start) -> None:
                at = first + tile * ROWS + row
                seen = T.ramp(at, 1, isa.LANES) <= splat(positions[start + m], isa.LANES)
                shown = T.Select(seen, sums, constant(LOWEST, isa.LANES))
                scores[start + m].store(at, shown)

            multiply(isa, page.keys.tile(tile), queries[start : start + at_once], rows, keep)


def weigh(position: Expr, count: Expr, scores: Array, weights: Array) -> Expr:
    """``e^(score - largest)`` of every position in ``count`` pages; returns their sum."""
    largest = local("float32", LANES)
    largest.store(0, constant(LOWEST))
    with T.serial(count * (PAGE_POSITIONS // LANES)) as i:
        largest.store(0, T.max(largest.load(0, LANES), scores.load(i * LANES, LANES)))
    most = splat(across([bind(largest.load(0, LANES))], T.max))
    partial = local("float32", LANES)
    partial.store(0, constant(0.0))
    with T.serial(count * (PAGE_POSITIONS // LANES)) as i:
        at = i * LANES
        seen = T.ramp(at, 1, LANES) <= splat(position)
        e = bind(T.Select(seen, exp(scores.load(at, LANES) - most), constant(0.0)))
        weights.store(at, e)
        partial.store(0, partial.load(0, LANES) + e)
    return add_lanes(bind(partial.load(0, LANES)))


def combine(
    isa: ModuleType,
    pages: Pages,
    count: Expr,
    group: Expr,
    queries: int,
    weights: Array,
    blended: Activations,
    sums: Array,
) -> None:
    """The weighted sum of the values of ``count`` pages, one group of 32 dimensions.

    Args:
        weights: float32 [queries, columns of ``blended``], by position; 0 where one may not see.
        blended: a row a query, for the weights times the values' scales.
        sums: float32 [queries, 32], what is written.
    """
    with T.serial(count) as p:
        page = pages(p)
        if isa.PREFETCH:  # memory has time meanwhile
            page.prefetch_values(group)
        scales = [bind(page.scales(group).load(half * LANES, LANES)) for half in range(2)]
        # Some at a time, because the sums over lanes of one wait for no other's.
        together = next(n for n in (3, 2, 1) if queries % n == 0)
        with T.serial(queries // together) as turn:
            targets, groups = [], []
            for i in range(together):
                query = bind(turn * together + i)
                at = query * blended.columns + p * PAGE_POSITIONS
                halves = [bind(weights.load(at + half * LANES, LANES)) for half in range(2)]
                # Where a query sees nothing, neither does it see what another sequence left behind.
                a, b = (
                    bind(T.Select(w > constant(0.0), w * scale, constant(0.0)))
                    for w, scale in zip(halves, scales, strict=True)
                )
                targets.append(blended.row(query).group(p))
                groups.append((a, b))
            for some in range(0, together, isa.TOGETHER):
                write(targets[some : some + isa.TOGETHER], groups[some : some + isa.TOGETHER])
    at_once, rows = isa.BLOCK
    whole, rest = divmod(queries, at_once)
    with T.serial(GROUP // ROWS) as half:
        for part in range(0, ROWS // isa.LANES, rows // isa.LANES):
            parts = range(part, part + rows // isa.LANES)
            add = partial(add_values, isa, pages, count, group, half, parts, blended, sums)
            if whole:
                with T.serial(whole) as turn:
                    add(turn * at_once, at_once)
            if rest:
                add(T.int32(whole * at_once), rest)


def add_values(
    isa: ModuleType,
    pages: Pages,
    count: Expr,
    group: Expr,
    half: Expr,
    parts: range,
    blended: Activations,
    sums: Array,
    first: Expr,
    queries: int,
) -> None:
    """``parts`` of half a group's dimensions, of as many queries as registers hold at once."""
    lanes = isa.LANES
    totals = [local("float32", len(parts) * lanes) for _ in range(queries)]
    for total in totals:
        for i in range(len(parts)):
            total.store(i * lanes, constant(0.0, lanes))
    with T.serial(count) as p:
        tokens = [blended.row(first + i).group(p) for i in range(queries)]
        dots = isa.dot(8, 0, pages(p).values(group, half), parts, tokens)
        for token, each, total in zip(tokens, dots, totals, strict=True):
            scale = splat(bind(token.scales.load()), lanes)
            for i, dot in enumerate(each):
                y = fma(T.cast(dot, f"float32x{lanes}"), scale, total.load(i * lanes, lanes))
                total.store(i * lanes, y)
    for query, total in enumerate(totals):
        for i, part in enumerate(parts):
            at = (first + query) * GROUP + half * ROWS + part * lanes
            sums.store(at, total.load(i * lanes, lanes))
