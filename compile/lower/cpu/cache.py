"""The paged KV cache: int8 keys and values with a float32 scale a group of 32.

A page holds 32 positions of one KV head of one layer. Its keys are packed as two tiles of weights,
positions for rows; each group of 32 dimensions of its values as two tiles more, dimensions for rows
and positions for columns. So scores, and what is made of the values, are the same product as every
other. What is read together stands together: a head's keys page by page, then each group of its
values page by page. So a sequence whose pages follow one another is read in order, and a CPU
fetches ahead what it needs.
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
    def keys(self) -> int:
        """Keys of all positions and their scales."""
        return self.groups * self.group

    @property
    def group(self) -> int:
        """A group of 32 dimensions in all positions, and its scales."""
        return PAGE_POSITIONS * (GROUP + 4)

    @property
    def bytes(self) -> int:
        """Keys and values."""
        return 2 * self.keys

    @property
    def groups(self) -> int:
        """Groups of 32 dimensions in a head."""
        return self.head_dim // GROUP


@dataclass(frozen=True)
class Memory:
    """A place in the cache, in bytes and as the floats that some of it is."""

    bytes: Array  # uint8
    floats: Array  # float32, the same memory

    def at(self, offset: Expr) -> Memory:
        """The memory from byte ``offset`` on, a multiple of four."""
        return Memory(self.bytes.at(offset), self.floats.at(offset // 4))


@dataclass(frozen=True)
class HeadPage:
    """One head's keys and values of 32 positions."""

    isa: ModuleType
    layout: PageLayout
    key_memory: Memory
    value_memory: Memory  # of the first group
    value_stride: Expr  # int64, bytes from one group to the next

    @property
    def keys(self) -> Tiles:
        """The keys as a matrix [32 positions, head_dim] in rotary order."""
        return Tiles(
            bits=8,
            data=self.key_memory.bytes,
            scales=self.key_memory.floats.at(self._key_scales),
            minimums=None,
            columns=self.layout.head_dim,
            group=GROUP,
        )

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
        memory = self._values(group)
        column, scale = self._quantized(first, second)
        for row in range(GROUP):
            data = memory.bytes.at(row // ROWS * TILE_BYTES)
            data.store(self.isa.layout.offset8(row % ROWS, slot), self._byte(column, row))
        memory.floats.store(self._value_scales + slot, scale)

    def values(self, group: Expr, half: Expr) -> Array:
        """A tile of values: 16 of a group's dimensions in all positions, its columns."""
        return self._values(group).bytes.at(half * TILE_BYTES)

    def value_scales(self, group: Expr, half: int) -> Expr:
        """float32x16, a group's scale in each slot of half a page."""
        return self._values(group).floats.load(self._value_scales + half * LANES, LANES)

    def prefetch_values(self, group: Expr) -> None:
        """Ask for a group's values, which will be read soon."""
        memory = self._values(group).bytes
        for line in range(0, PAGE_POSITIONS * GROUP, CACHE_LINE):
            memory.prefetch(line)

    @property
    def _key_scales(self) -> int:
        return PAGE_POSITIONS * self.layout.head_dim // 4

    @property
    def _value_scales(self) -> int:
        return PAGE_POSITIONS * GROUP // 4

    def _quantized(self, first: Expr, second: Expr) -> tuple[Array, Expr]:
        """2 × 16 lanes as int32 [32], and their scale."""
        values, scale = quantize(first, second)
        row = local("int32", 2 * LANES)
        for half, q in enumerate(values):
            row.store(half * LANES, q)
        return row, scale

    def _byte(self, row: Array, index: int) -> Expr:
        """As a tile holds it."""
        return T.cast(row.load(index) + T.int32(self.isa.BYTE_BIAS), "uint8")

    def _values(self, group: Expr) -> Memory:
        return self.value_memory.at(T.cast(group, "int64") * self.value_stride)


@dataclass(frozen=True)
class Cache:
    """All pages: [layer, kv_head] of keys [page] and values [group, page]."""

    isa: ModuleType
    memory: Pointer
    layout: PageLayout
    kv_heads: int
    pages: Expr  # int32, pages a head has

    def page(self, layer: Expr, head: Expr, page: Expr) -> HeadPage:
        """One head's page."""
        layout = self.layout
        pages, page = (T.cast(count, "int64") for count in (self.pages, page))
        whole = Memory(self.memory.array("uint8"), self.memory.array("float32"))
        keys = T.cast(layer * self.kv_heads + head, "int64") * (pages * layout.bytes)
        values = keys + pages * layout.keys
        return HeadPage(
            self.isa,
            layout,
            whole.at(bind(keys + page * layout.keys)),
            whole.at(bind(values + page * layout.group)),
            pages * layout.group,
        )
