"""Sixteen rows of a quantized matrix times some tokens: the inner loop of everything.

The integer part is the instruction set's (:mod:`compile.lower.cpu.isa`), a group of 32 columns at
a time. What follows is the numerics: the groups of a span, which share a weight scale, add up
``u = fma(Σqa, s, u)``; then ``y = fma(d, u, y)``, with a minimum also ``y = fma(m, Σ s·Σa, y)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

from tvm.tirx.script.builder import ir as T

from compile.checkpoint import ACTIVATION_GROUP
from compile.lower.cpu.activations import Activations
from compile.lower.cpu.memory import Array, Expr, lanes_of, local
from compile.lower.cpu.vector import LANES, bind, constant, fma, halves, splat, splat_lane

ROWS = 16
CACHE_LINE = 64  # bytes


@dataclass(frozen=True)
class Tiles:
    """A packed matrix, or one layer of a stack of them.

    Attributes:
        bits: 4 or 8.
        data: uint8 [rows/16, columns/32, 64·bits] in the instruction set's layout.
        scales: float16 or float32 [rows/16, columns/group, 16].
        minimums: the same shape, or None.
        columns: length of a row.
        group: columns of a span, which share a scale.
    """

    bits: int
    data: Array
    scales: Array
    minimums: Array | None
    columns: int
    group: int

    @property
    def zero(self) -> int:
        """What a stored 4-bit value counts as nothing."""
        return 8 if self.bits == 4 and self.minimums is None else 0

    @property
    def span(self) -> int:
        """Groups of activations in a span."""
        return self.group // ACTIVATION_GROUP

    @property
    def group_bytes(self) -> int:
        """Bytes of ``data`` in a group of activations."""
        return ACTIVATION_GROUP * ROWS * self.bits // 8

    @property
    def tile_bytes(self) -> int:
        """Bytes of one tile's ``data``."""
        return self.columns * ROWS * self.bits // 8

    @property
    def tile_scales(self) -> int:
        """Elements of one tile's ``scales``."""
        return self.columns // self.group * ROWS

    def tile(self, index: Expr) -> Tiles:
        """The matrix from its tile ``index`` on."""
        scales = T.cast(index, "int64") * self.tile_scales
        return Tiles(
            self.bits,
            self.data.at(T.cast(index, "int64") * self.tile_bytes),
            self.scales.at(scales),
            None if self.minimums is None else self.minimums.at(scales),
            self.columns,
            self.group,
        )

    def per_row(
        self, isa: ModuleType, span: Expr, parts: range
    ) -> tuple[list[Expr], list[Expr] | None]:
        """Scales and minimums of the parts in a span, as float32."""
        # Eight float16 fill a register of 128 bits: two parts of four lanes.
        together = 2 if isa.LANES == 4 and len(parts) % 2 == 0 else 1

        def load(array: Array) -> list[Expr]:
            loaded = [
                bind(array.load(span * ROWS + p * isa.LANES, together * isa.LANES))
                for p in parts[::together]
            ]
            pieces = [piece for x in loaded for piece in (halves(x) if together == 2 else (x,))]
            return [bind(T.cast(piece, f"float32x{isa.LANES}")) for piece in pieces]

        return load(self.scales), None if self.minimums is None else load(self.minimums)


Emit = Callable[[int, int, Expr], None]  # token of the block, first row of a part, float32 sums


def multiply(
    isa: ModuleType,
    tiles: Tiles,
    tokens: Sequence[Activations],
    rows: int,
    emit: Emit,
    ahead: int = 0,
) -> None:
    """The first tile of ``tiles`` times each token; ``rows`` of it at a time in registers.

    ``ahead`` is how many bytes further weights are asked for that will be read soon; 0 for none.
    """
    per_pass = rows // isa.LANES
    spans = tiles.columns // tiles.group
    per_turn = max(1, isa.GROUPS // tiles.span)
    per_turn = per_turn if spans % per_turn == 0 else 1
    groups = per_turn * tiles.span
    for first in range(0, ROWS // isa.LANES, per_pass):
        parts = range(first, first + per_pass)
        sums = [local("float32", rows) for _ in tokens]
        for array in sums:
            for i in range(per_pass):
                array.store(i * isa.LANES, splat(T.float32(0), isa.LANES))
        with T.serial(T.int64(0), T.int64(spans // per_turn)) as turn:
            some = [Groups.load(isa, token.group(turn * groups), groups) for token in tokens]
            for i in range(per_turn):
                held = [one.part(i * tiles.span, tiles.span) for one in some]
                add_span(isa, tiles, held, parts, sums, turn * per_turn + i, ahead)
        for m in range(len(tokens)):
            for i, part in enumerate(parts):
                emit(m, part * isa.LANES, sums[m].load(i * isa.LANES, isa.LANES))


def multiply_many(
    isa: ModuleType, tiles: Tiles, source: Activations, count: Expr, sums: Array, kept: Array
) -> None:
    """The first tile of ``tiles`` times ``count`` rows of ``source``, rounded up to whole turns.

    A group's weights stay in registers while all tokens pass; ``sums``, and in ``kept`` what a
    token has of a span so far, both float32 [tokens, 16], are in memory.
    """
    lanes, (tokens, rows) = isa.LANES, isa.PASS
    per_pass = rows // lanes
    turns = bind((count + (tokens - 1)) // tokens)
    with T.serial(turns * (tokens * ROWS // LANES)) as i:
        sums.store(i * LANES, constant(0.0))
    with T.serial(T.int64(0), T.int64(tiles.columns // tiles.group)) as span:
        first_group = span * tiles.span
        for first in range(0, ROWS // lanes, per_pass):
            parts = range(first, first + per_pass)
            for j in range(tiles.span):
                data = tiles.data.at((first_group + j) * tiles.group_bytes)
                weights = isa.load(tiles.bits, tiles.zero, data, parts)
                scales = tiles.per_row(isa, span, parts) if j == tiles.span - 1 else None
                with T.serial(turns) as turn:
                    for m in range(tokens):
                        token = bind(turn * tokens + m)
                        held = Groups.load(isa, source.row(token).group(first_group), tiles.span)
                        (dots,) = isa.dot_loaded(tiles.bits, 0, weights, [held.activations[j]])
                        at = token * ROWS + first * lanes
                        before = load_parts(kept.at(at), lanes, per_pass) if j else None
                        total = add_group(dots, held.scales[j], before)
                        if scales is None:
                            store_parts(kept.at(at), lanes, total)
                        else:
                            add_total(scales, held, total, sums.at(at))


@dataclass(frozen=True)
class Groups:
    """What a token has of some groups of 32 columns: activations, and scales in every lane."""

    activations: Sequence[Activations]
    scales: Sequence[Expr]

    @classmethod
    def load(cls, isa: ModuleType, token: Activations, count: int) -> Groups:
        """The first ``count`` groups of a token."""
        activations = [token.group(i) for i in range(count)]
        if isa.LANES != 4:
            return cls(activations, [splat(bind(a.scales.load()), isa.LANES) for a in activations])
        # Lanes of one register, where products take them as such.
        scales = bind(token.scales.load(0, count))
        return cls(activations, [splat_lane(scales, i, isa.LANES) for i in range(count)])

    def part(self, start: int, count: int) -> Groups:
        """Some of them."""
        some = slice(start, start + count)
        return Groups(self.activations[some], self.scales[some])


def add_span(
    isa: ModuleType,
    tiles: Tiles,
    tokens: Sequence[Groups],
    parts: range,
    sums: Sequence[Array],
    span: Expr,
    ahead: int,
) -> None:
    """Add a span to each token's ``sums``, float32 [parts·LANES]."""
    totals: list[list[Expr]] = []
    for j in range(tiles.span):
        data = tiles.data.at((span * tiles.span + j) * tiles.group_bytes)
        # The CPU's own prefetch ends at every 4 KiB page.
        for line in range(0, tiles.group_bytes if ahead else 0, CACHE_LINE):
            data.prefetch(ahead + line)
        group = [token.activations[j] for token in tokens]
        dots = isa.dot(tiles.bits, tiles.zero, data, parts, group)
        totals = [
            add_group(dots[m], token.scales[j], totals[m] if j else None)
            for m, token in enumerate(tokens)
        ]
    scales = tiles.per_row(isa, span, parts)
    for token, total, array in zip(tokens, totals, sums, strict=True):
        add_total(scales, token, total, array)


def add_group(dots: Sequence[Expr], s: Expr, before: Sequence[Expr] | None) -> list[Expr]:
    """A group's integer sums times a token's scale, added to those ``before`` in its span."""
    lanes = lanes_of(s)
    floats = [T.cast(dot, f"float32x{lanes}") for dot in dots]
    if before is None:
        return [bind(dot * s) for dot in floats]
    return [bind(fma(dot, s, u)) for dot, u in zip(floats, before, strict=True)]


def add_total(
    scales: tuple[list[Expr], list[Expr] | None], token: Groups, total: Sequence[Expr], sums: Array
) -> None:
    """Add a span, scaled, to a token's ``sums``, float32 [parts·LANES]."""
    scale, minimum = scales
    lanes = lanes_of(scale[0])
    if minimum is not None:
        first, *others = (activations.sums.load() for activations in token.activations)
        counted = splat(bind(sum(others, start=first)), lanes)
    for i, u in enumerate(total):
        y = fma(scale[i], u, sums.load(i * lanes, lanes))
        if minimum is not None:
            y = fma(minimum[i], counted, bind(y))
        sums.store(i * lanes, y)


def load_parts(array: Array, lanes: int, count: int) -> list[Expr]:
    """The first ``count`` vectors of an array."""
    return [bind(array.load(i * lanes, lanes)) for i in range(count)]


def store_parts(array: Array, lanes: int, values: Sequence[Expr]) -> None:
    """Vectors one after the other from an array's start."""
    for i, value in enumerate(values):
        array.store(i * lanes, value)
