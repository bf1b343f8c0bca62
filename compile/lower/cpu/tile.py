"""Sixteen rows of a quantized matrix times some tokens: the inner loop of everything.

The integer part is the instruction set's (:mod:`compile.lower.cpu.isa`); what follows is the
numerics: for each group of 32 columns ``y = fma(d, s·Σqa, y)``, with a minimum also
``y = fma(m, s·Σa, y)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

from tvm.tirx.script.builder import ir as T

from compile.lower.cpu.activations import Activations
from compile.lower.cpu.memory import Array, Expr, local
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
        group: columns that share a scale.
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
        self, isa: ModuleType, g: Expr, parts: range
    ) -> tuple[list[Expr], list[Expr] | None]:
        """Scales and minimums of the parts in group ``g`` of 32 columns, as float32."""
        base = g // (self.group // 32) * ROWS

        # Eight float16 fill a register of 128 bits: two parts of four lanes.
        together = 2 if isa.LANES == 4 and len(parts) % 2 == 0 else 1

        def load(array: Array) -> list[Expr]:
            loaded = [
                bind(array.load(base + p * isa.LANES, together * isa.LANES))
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
    for first in range(0, ROWS // isa.LANES, per_pass):
        parts = range(first, first + per_pass)
        sums = [local("float32", rows) for _ in tokens]
        for array in sums:
            for i in range(per_pass):
                array.store(i * isa.LANES, splat(T.float32(0), isa.LANES))
        groups = tiles.columns // 32
        per_turn = isa.GROUPS if groups % isa.GROUPS == 0 else 1
        with T.serial(T.int64(0), T.int64(groups // per_turn)) as turn:
            some = [token.group(turn * per_turn) for token in tokens]
            scales = [bind(token.scales.load(0, per_turn)) for token in some]
            for i in range(per_turn):
                one = [token.group(i) for token in some]
                s = [splat_lane(scale, i, isa.LANES) for scale in scales]
                add_group(isa, tiles, one, s, parts, sums, turn * per_turn + i, ahead)
        for m in range(len(tokens)):
            for i, part in enumerate(parts):
                emit(m, part * isa.LANES, sums[m].load(i * isa.LANES, isa.LANES))


def multiply_many(
    isa: ModuleType, tiles: Tiles, source: Activations, count: Expr, sums: Array
) -> None:
    """The first tile of ``tiles`` times ``count`` rows of ``source``, rounded up to whole turns.

    A group's weights stay in registers while all tokens pass; ``sums``, float32 [tokens, 16], are
    in memory.
    """
    lanes, (tokens, rows) = isa.LANES, isa.PASS
    per_pass = rows // lanes
    turns = bind((count + (tokens - 1)) // tokens)
    with T.serial(turns * (tokens * ROWS // LANES)) as i:
        sums.store(i * LANES, constant(0.0))
    with T.serial(T.int64(0), T.int64(tiles.columns // 32)) as g:
        for first in range(0, ROWS // lanes, per_pass):
            parts = range(first, first + per_pass)
            data = tiles.data.at(g * (64 * tiles.bits))
            weights = isa.load(tiles.bits, tiles.zero, data, parts)
            scales = tiles.per_row(isa, g, parts)
            with T.serial(turns) as turn:
                for m in range(tokens):
                    token = bind(turn * tokens + m)
                    a = source.row(token).group(g)
                    (dots,) = isa.dot_loaded(tiles.bits, 0, weights, [a])
                    s = splat(bind(a.scales.load()), lanes)
                    add_dots(isa, scales, a, s, dots, sums.at(token * ROWS + first * lanes))


def add_group(
    isa: ModuleType,
    tiles: Tiles,
    tokens: Sequence[Activations],
    token_scales: Sequence[Expr],
    parts: range,
    sums: Sequence[Array],
    g: Expr,
    ahead: int,
) -> None:
    """Add one group of 32 columns to each token's ``sums``, float32 [parts·LANES]."""
    group_bytes = 64 * tiles.bits
    data = tiles.data.at(g * group_bytes)
    # The CPU's own prefetch ends at every 4 KiB page.
    for line in range(0, group_bytes if ahead else 0, CACHE_LINE):
        data.prefetch(ahead + line)
    dots = isa.dot(tiles.bits, tiles.zero, data, parts, tokens)
    scales = tiles.per_row(isa, g, parts)
    for m, token in enumerate(tokens):
        add_dots(isa, scales, token, token_scales[m], dots[m], sums[m])


def add_dots(
    isa: ModuleType,
    scales: tuple[list[Expr], list[Expr] | None],
    token: Activations,
    s: Expr,
    dots: Sequence[Expr],
    sums: Array,
) -> None:
    """Add a group's integer sums, scaled, to a token's ``sums``, float32 [parts·LANES].

    ``s`` is the token's scale of the group in every lane.
    """
    lanes = isa.LANES
    scale, minimum = scales
    for i, dot in enumerate(dots):
        y = sums.load(i * lanes, lanes)
        y = fma(scale[i], T.cast(dot, f"float32x{lanes}") * s, y)
        if minimum is not None:
            y = fma(minimum[i], splat(token.sums.load(), lanes), bind(y))
        sums.store(i * lanes, y)
