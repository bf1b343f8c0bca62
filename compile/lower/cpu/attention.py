"""Attention of one query over the pages of its sequence (:func:`compile.numerics.attend`)."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from tvm.tirx.script.builder import ir as T

from compile.lower.cpu.activations import Activations
from compile.lower.cpu.cache import PAGE_POSITIONS, HeadPage
from compile.lower.cpu.memory import Array, Expr, local
from compile.lower.cpu.tile import ROWS, multiply
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


def attend(
    isa: ModuleType,
    q: Activations,
    pages: Pages,
    position: Expr,
    scores: Array,
    out: Activations,
) -> None:
    """Positions 0 … ``position`` weighted by their softmax score, quantized into ``out``.

    ``scores`` is float32 scratch for every position, rounded up to a page.
    """
    count = bind(position // PAGE_POSITIONS + 1)
    largest = score(isa, q, pages, position, count, scores)
    total = weigh(position, count, scores, largest)
    groups = q.columns // 32
    sums = local("float32", q.columns)
    for i in range(2 * groups):
        sums.store(i * LANES, constant(0.0))
    with T.serial(count) as p:
        page = pages(p)
        with T.serial(T.min(PAGE_POSITIONS, position + 1 - p * PAGE_POSITIONS)) as slot:
            weight = bind(scores.load(p * PAGE_POSITIONS + slot))
            for group in range(groups):
                scale, halves = page.value(slot, group)
                w = splat(bind(weight * scale))
                for half, lanes in enumerate(halves):
                    at = (2 * group + half) * LANES
                    sums.store(at, fma(w, lanes, sums.load(at, LANES)))
    for group in range(groups):
        first, second = (
            bind(sums.load((2 * group + half) * LANES, LANES) / splat(total)) for half in range(2)
        )
        out.group(group).write(first, second)


def score(
    isa: ModuleType,
    q: Activations,
    pages: Pages,
    position: Expr,
    count: Expr,
    scores: Array,
) -> Expr:
    """Fill ``scores`` page by page; returns the largest."""
    largest = local("float32", LANES)
    largest.store(0, constant(LOWEST))
    with T.serial(count) as p:
        products = local("float32", ROWS)
        multiply(isa, pages(p).keys, [q], ROWS, lambda _, row, sums: products.store(row, sums))
        s = bind(T.Select(visible(p, position), products.load(0, LANES), constant(LOWEST)))
        scores.store(p * PAGE_POSITIONS, s)
        largest.store(0, T.max(largest.load(0, LANES), s))
    return max_lanes(bind(largest.load(0, LANES)))


def weigh(position: Expr, count: Expr, scores: Array, largest: Expr) -> Expr:
    """Turn ``scores`` into ``e^(score - largest)``; returns their sum."""
    partial = local("float32", LANES)
    partial.store(0, constant(0.0))
    with T.serial(count) as p:
        e = exp(scores.load(p * PAGE_POSITIONS, LANES) - splat(largest))
        e = bind(T.Select(visible(p, position), e, constant(0.0)))
        scores.store(p * PAGE_POSITIONS, e)
        partial.store(0, partial.load(0, LANES) + e)
    return add_lanes(bind(partial.load(0, LANES)))


def visible(page: Expr, position: Expr) -> Expr:
    """Which of a page's positions the query may see."""
    return T.ramp(page * PAGE_POSITIONS, 1, LANES) <= splat(position)
