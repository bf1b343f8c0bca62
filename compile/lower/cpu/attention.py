"""Attention over the pages of a sequence (:func:`compile.numerics.attend`).

In three parts, for several queries of one KV head at a time, so that its keys and values are read
and widened once for all of them: :func:`score` a page, :func:`weigh` a query's scores,
:func:`combine` the values of one group of 32 dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

from tvm.tirx.script.builder import ir as T

from compile.lower.cpu.activations import Activations
from compile.lower.cpu.cache import GROUP, PAGE_POSITIONS, HeadPage
from compile.lower.cpu.memory import Array, Expr, local
from compile.lower.cpu.tile import multiply
from compile.lower.cpu.vector import (
    LANES,
    add_lanes,
    bind,
    constant,
    exp,
    fma,
    max_lanes,
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
    for start in range(0, len(queries), at_once):

        def keep(m: int, row: int, sums: Expr, start: int = start) -> None:
            at = first + row
            seen = T.ramp(at, 1, isa.LANES) <= splat(positions[start + m], isa.LANES)
            shown = T.Select(seen, sums, constant(LOWEST, isa.LANES))
            scores[start + m].store(at, shown)

        multiply(isa, page.keys, queries[start : start + at_once], rows, keep)


def weigh(position: Expr, count: Expr, scores: Array, weights: Array) -> Expr:
    """``e^(score - largest)`` of every position in ``count`` pages; returns their sum."""
    largest = local("float32", LANES)
    largest.store(0, constant(LOWEST))
    with T.serial(count) as p:
        largest.store(0, T.max(largest.load(0, LANES), scores.load(p * PAGE_POSITIONS, LANES)))
    most = splat(max_lanes(bind(largest.load(0, LANES))))
    partial = local("float32", LANES)
    partial.store(0, constant(0.0))
    with T.serial(count) as p:
        at = p * PAGE_POSITIONS
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
    weights: Sequence[Array],
    sums: Array,
) -> None:
    """The weighted sum of the values of ``count`` pages, one group of 32 dimensions.

    Args:
        weights: float32, of each query, by position; 0 where it may not see.
        sums: float32 [queries, 32], what is written.
    """
    # Half of a group at a time where one would take eight registers of every query.
    passes = ((0, 1),) if isa.LANES > 4 else ((0,), (1,))
    at_once = max(1, isa.REGISTERS * 3 // 4 * isa.LANES // (len(passes[0]) * LANES))
    for start in range(0, len(weights), at_once):
        some = weights[start : start + at_once]
        for halves in passes:
            totals = [[local("float32", LANES) for _ in halves] for _ in some]
            for total in (total for each in totals for total in each):
                total.store(0, constant(0.0))
            with T.serial(count) as p:
                page = pages(p)
                if isa.PREFETCH:
                    page.prefetch_values(group, isa.PREFETCH)
                add_page(page, group, halves, [w.at(p * PAGE_POSITIONS) for w in some], totals)
            for i, each in enumerate(totals):
                for half, total in zip(halves, each, strict=True):
                    sums.store((start + i) * GROUP + half * LANES, total.load(0, LANES))


def add_page(
    page: HeadPage,
    group: Expr,
    halves: Sequence[int],
    weights: Sequence[Array],
    totals: Sequence[Sequence[Array]],
) -> None:
    """Add ``halves`` of a group of a page's 16 positions, one after the other."""
    scales = bind(page.value_scales(group))
    scaled = [local("float32", PAGE_POSITIONS) for _ in weights]
    for weight, product in zip(weights, scaled, strict=True):
        w = bind(weight.load(0, PAGE_POSITIONS))
        # Where a query sees nothing, neither does it see what another sequence left behind.
        product.store(0, T.Select(w > constant(0.0), w * scales, constant(0.0)))
    with T.serial(T.int32(PAGE_POSITIONS)) as slot:
        values = page.value(slot, group)
        for product, each in zip(scaled, totals, strict=True):
            w = splat(bind(product.load(slot)))
            for half, total in zip(halves, each, strict=True):
                total.store(0, fma(w, values[half], total.load(0, LANES)))
