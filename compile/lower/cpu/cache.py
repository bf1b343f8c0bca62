"""The paged KV cache: int8 keys and values with a float32 scale a group of 32.

A page holds 32 positions of one KV head of one layer. Its keys are packed as two tiles of weights,
positions for rows; each group of 32 dimensions of its values as two tiles more, dimensions for rows
and positions for columns. So scores, and what is made of the values, are the same product as every
other. What is read together stands together: a head's keys page by page, their scales, then each
group of its values page by page, and the scales of each. So a sequence whose pages follow one
another is read in order, and a CPU fetches ahead what it needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from tvm.tirx.script.builder import ir as T

from compile.lower.cpu.activations import quantize
from compile.lower.cpu.memory import Array, Expr, Pointer, local
from compile.lower.cpu.tile import CACHE_LINE, ROWS, Tiles
from compile.lower.cpu.vector import LANES, bind

GROUP = 32  # dimensions that share a scale
TILE_BYTES = ROWS * GROUP  # of a group of columns of a tile of bytes
PAGE_POSITIONS = 32  # one group of what values are multiplied with


@dataclass(frozen=True)
class PageLayout:
    """Bytes of a head's page."""

    head_dim: int

    @property
    def groups(self) -> int:
        """Groups of 32 dimensions in a head."""
        return self.head_dim // GROUP

    @property
    def data(self) -> int:
        """Keys of all positions, or values."""
        return PAGE_POSITIONS * self.head_dim

    @property
    def scales(self) -> int:
        """Scales of either."""
        return PAGE_POSITIONS * self.groups * 4

    @property
    def bytes(self) -> int:
        """Keys and values."""
        return 2 * (self.data + self.scales)


@dataclass(frozen=True)
class HeadPage:
    """One head's keys and values of 32 positions.

    Attributes:
        keys: as a matrix [32 positions, head_dim] in rotary order.
        value_data: uint8, of the first group.
        value_scales: float32, of the first group.
        pages: int64, how many a group's values and scales stand before the next one's.
    """

    isa: ModuleType
    keys: Tiles
    value_data: Array
    value_scales: Array
    pages: Expr

    def write_key(self, group: Expr, slot: Expr, first: Expr, second: Expr) -> None:
        """Quantize 2 × 16 rotated lanes as a group of the key in ``slot``."""
        tile = self.keys.tile(slot // ROWS)
        row, scale = self._quantized(first, second)
        data = tile.data.at(group * TILE_BYTES)
        for column in range(GROUP):
            data.store(self.isa.layout.offset8(slot % ROWS, column), self._byte(row, column))
        tile.scales.store(group * ROWS + slot % ROWS, scale)

    def write_value(self, group: Expr, slot: Expr, first: Expr, second: Expr) -> None:
        """Quantize 2 × 16 lanes as a group of the value in ``slot``."""
        column, scale = self._quantized(first, second)
        for half in range(2):
            data = self.values(group, half)
            for row in range(ROWS):
                byte = self._byte(column, half * ROWS + row)
                data.store(self.isa.layout.offset8(row, slot), byte)
        self.scales(group).store(slot, scale)

    def values(self, group: Expr, half: Expr) -> Array:
        """A tile of values: 16 of a group's dimensions in all positions, its columns."""
        return self.value_data.at((group * self.pages * 2 + half) * TILE_BYTES)

    def scales(self, group: Expr) -> Array:
        """A group's scale in each slot."""
        return self.value_scales.at(group * self.pages * PAGE_POSITIONS)

    def prefetch_values(self, group: Expr) -> None:
        """Ask for a group's values, which will be read soon."""
        values = self.values(group, 0)
        for line in range(0, 2 * TILE_BYTES, CACHE_LINE):
            values.prefetch(line)

    def _quantized(self, first: Expr, second: Expr) -> tuple[Array, Expr]:
        """2 × 16 lanes as int32 [32], and their scale."""
        (values,), scale, _ = quantize([(first, second)])
        row = local("int32", 2 * LANES)
        for half, q in enumerate(values):
            row.store(half * LANES, q)
        return row, scale

    def _byte(self, row: Array, index: int) -> Expr:
        """As a tile holds it."""
        return T.cast(row.load(index) + T.int32(self.isa.BYTE_BIAS), "uint8")


@dataclass(frozen=True)
class Cache:
    """All pages: [layer, kv_head] of keys [page], scales [page], and [group, page] of values."""

    isa: ModuleType
    memory: Pointer
    layout: PageLayout
    kv_heads: int
    pages: Expr  # int32, pages a head has

    def page(self, layer: Expr, head: Expr, page: Expr) -> HeadPage:
        """One head's page."""
        layout = self.layout
        pages, page = (T.cast(count, "int64") for count in (self.pages, page))
        start = T.cast(layer * self.kv_heads + head, "int64") * (pages * layout.bytes)
        values = start + pages * (layout.data + layout.scales)

        def data(offset: Expr) -> Array:
            return self.memory.array("uint8").at(bind(offset))

        def scales(offset: Expr) -> Array:
            return self.memory.array("float32").at(bind(offset // 4))

        return HeadPage(
            self.isa,
            Tiles(
                bits=8,
                data=data(start + page * layout.data),
                scales=scales(start + pages * layout.data + page * layout.scales),
                minimums=None,
                columns=layout.head_dim,
                group=GROUP,
            ),
            data(values + page * (PAGE_POSITIONS * GROUP)),
            scales(values + pages * layout.data + page * (PAGE_POSITIONS * 4)),
            pages,
        )
