"""The paged KV cache: int8 keys and values with a float32 scale a group of 32.

A page holds 16 positions of one KV head of one layer. Its keys are packed as a tile of weights,
positions for rows, so that scores are the same product as every other; its values stand row by
row. Pages of a head are neighbours: a sequence whose pages follow one another is read in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from tvm.tirx.script.builder import ir as T

from compile.lower.cpu.activations import quantize
from compile.lower.cpu.memory import Array, Expr, Pointer, local
from compile.lower.cpu.tile import Tiles
from compile.lower.cpu.vector import LANES, bind

PAGE_POSITIONS = 16


@dataclass(frozen=True)
class PageLayout:
    """Bytes of a head's page: keys, key scales, values, value scales."""

    head_dim: int

    @property
    def key_scales(self) -> int:
        return PAGE_POSITIONS * self.head_dim

    @property
    def values(self) -> int:
        return self.key_scales + self.scale_bytes

    @property
    def value_scales(self) -> int:
        return self.values + PAGE_POSITIONS * self.head_dim

    @property
    def bytes(self) -> int:
        return self.value_scales + self.scale_bytes

    @property
    def scale_bytes(self) -> int:
        return PAGE_POSITIONS * self.groups * 4

    @property
    def groups(self) -> int:
        """Groups of 32 dimensions in a head."""
        return self.head_dim // 32


@dataclass(frozen=True)
class HeadPage:
    """One head's keys and values of 16 positions."""

    isa: ModuleType
    layout: PageLayout
    bytes: Array  # uint8, from the page's first byte
    floats: Array  # float32, the same memory

    @property
    def keys(self) -> Tiles:
        """The keys as a matrix [16 positions, head_dim] in rotary order."""
        return Tiles(
            bits=8,
            data=self.bytes,
            scales=self.floats.at(self.layout.key_scales // 4),
            minimums=None,
            columns=self.layout.head_dim,
            group=32,
        )

    def write_key(self, group: Expr, slot: Expr, first: Expr, second: Expr) -> None:
        """Quantize 2 × 16 rotated lanes as a group of the key in ``slot``."""
        values, scale = quantize(first, second)
        row = local("int32", 2 * LANES)
        for half, q in enumerate(values):
            row.store(half * LANES, q)
        data = self.bytes.at(group * (PAGE_POSITIONS * 32))
        for column in range(2 * LANES):
            stored = row.load(column) + T.int32(self.isa.BYTE_BIAS)
            data.store(self.isa.layout.offset8(slot, column), T.cast(stored, "uint8"))
        at = self.layout.key_scales // 4 + group * PAGE_POSITIONS + slot
        self.floats.store(at, scale)

    def write_value(self, group: Expr, slot: Expr, first: Expr, second: Expr) -> None:
        """Quantize 2 × 16 lanes as a group of the value in ``slot``."""
        values, scale = quantize(first, second)
        at = self.layout.values + slot * self.layout.head_dim + group * 32
        for half, q in enumerate(values):
            self.bytes.store(at + half * LANES, T.cast(q, "uint8x16"))
        self.floats.store(self._value_scale(slot, group), scale)

    def value(self, slot: Expr, group: int) -> tuple[Expr, tuple[Expr, Expr]]:
        """The scale and 2 × float32x16 unscaled lanes of a group of the value in ``slot``."""
        at = self.layout.values + slot * self.layout.head_dim + group * 32
        lanes = [
            T.reinterpret(self.bytes.load(at + half * LANES, LANES), dtype="int8x16")
            for half in range(2)
        ]
        first, second = (bind(T.cast(T.cast(q, "int32x16"), "float32x16")) for q in lanes)
        return self.floats.load(self._value_scale(slot, group)), (first, second)

    def _value_scale(self, slot: Expr, group: Expr) -> Expr:
        return self.layout.value_scales // 4 + slot * self.layout.groups + group


@dataclass(frozen=True)
class Cache:
    """All pages: [layer, kv_head, page, bytes of a head's page]."""

    isa: ModuleType
    memory: Pointer
    layout: PageLayout
    kv_heads: int
    pages: Expr  # int32, pages a head has

    def page(self, layer: Expr, head: Expr, page: Expr) -> HeadPage:
        """One head's page."""
        row = T.cast(layer * self.kv_heads + head, "int64") * T.cast(self.pages, "int64")
        index = bind((row + T.cast(page, "int64")) * T.int64(self.layout.bytes))
        return HeadPage(
            self.isa,
            self.layout,
            self.memory.array("uint8").at(index),
            self.memory.array("float32").at(index // 4),
        )
