"""The paged KV cache: int8 keys and values with a float32 scale a group of 32.

A page holds 16 positions of one KV head of one layer. Its keys are packed as a tile of weights,
positions for rows, so that scores are the same product as every other. What is read together
stands together: a head's keys page by page, then each group of its values page by page. So a
sequence whose pages follow one another is read in order, and a CPU fetches ahead what it needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from tvm.tirx.script.builder import ir as T

from compile.lower.cpu.activations import quantize
from compile.lower.cpu.memory import Array, Expr, Pointer, local
from compile.lower.cpu.tile import CACHE_LINE, Tiles
from compile.lower.cpu.vector import LANES, bind

PAGE_POSITIONS = 16
GROUP = 32  # dimensions that share a scale


@dataclass(frozen=True)
class PageLayout:
    """Bytes of a head's page."""

    head_dim: int

    @property
    def keys(self) -> int:
        """Keys of 16 positions and their scales."""
        return self.groups * self.group

    @property
    def group(self) -> int:
        """A group of 32 dimensions in 16 positions, and its scales."""
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
    """One head's keys and values of 16 positions."""

    isa: ModuleType
    layout: PageLayout
    key_memory: Memory
    value_memory: Memory  # of the first group
    value_stride: Expr  # int64, bytes from one group to the next

    @property
    def keys(self) -> Tiles:
        """The keys as a matrix [16 positions, head_dim] in rotary order."""
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
        values, scale = quantize(first, second)
        row = local("int32", 2 * LANES)
        for half, q in enumerate(values):
            row.store(half * LANES, q)
        data = self.key_memory.bytes.at(group * (PAGE_POSITIONS * GROUP))
        for column in range(2 * LANES):
            stored = row.load(column) + T.int32(self.isa.BYTE_BIAS)
            data.store(self.isa.layout.offset8(slot, column), T.cast(stored, "uint8"))
        self.key_memory.floats.store(self._key_scales + group * PAGE_POSITIONS + slot, scale)

    def write_value(self, group: Expr, slot: Expr, first: Expr, second: Expr) -> None:
        """Quantize 2 × 16 lanes as a group of the value in ``slot``."""
        values, scale = quantize(first, second)
        memory = self._values(group)
        for half, q in enumerate(values):
            memory.bytes.store(slot * GROUP + half * LANES, T.cast(q, "uint8x16"))
        memory.floats.store(PAGE_POSITIONS * GROUP // 4 + slot, scale)

    def value(self, slot: Expr, group: Expr) -> tuple[Expr, Expr]:
        """2 × float32x16 unscaled lanes of a group of the value in ``slot``."""
        stored = self._values(group).bytes
        first, second = (
            bind(T.cast(T.cast(T.reinterpret(q, dtype="int8x16"), "int32x16"), "float32x16"))
            for q in [stored.load(slot * GROUP + half * LANES, LANES) for half in range(2)]
        )
        return first, second

    def value_scales(self, group: Expr) -> Expr:
        """float32x16, a group's scale in each slot."""
        return self._values(group).floats.load(PAGE_POSITIONS * GROUP // 4, PAGE_POSITIONS)

    def prefetch_values(self, group: Expr, ahead: int) -> None:
        """Ask for what stands ``ahead`` bytes behind a group's values: mostly a later page."""
        memory = self._values(group).bytes
        for line in range(0, self.layout.group, CACHE_LINE):
            memory.prefetch(ahead + line)

    @property
    def _key_scales(self) -> int:
        return PAGE_POSITIONS * self.layout.head_dim // 4

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
