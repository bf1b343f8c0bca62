"""A token's row of the embedding, taken out of the tiles that are also the output head's."""

from __future__ import annotations

from types import ModuleType

from tvm.tirx.script.builder import ir as T

from compile.lower.cpu.memory import Array, Expr
from compile.lower.cpu.tile import ROWS, Tiles
from compile.lower.cpu.vector import bind, fma


def embed(isa: ModuleType, tiles: Tiles, token: Expr, out: Array) -> None:
    """Dequantize row ``token`` into float32 ``out`` [columns]."""
    tile = tiles.tile(token // ROWS)
    row = bind(token % ROWS)
    with T.serial(T.int32(0), T.int32(tiles.columns)) as column:
        group, scale_at = column // 32, column // tiles.group * ROWS + row
        data = tile.data.at(group * (64 * tiles.bits))
        scale = T.cast(tile.scales.load(scale_at), "float32")
        if tiles.bits == 8:
            stored = T.cast(data.load(isa.layout.offset8(row, column % 32)), "int32")
            signed = stored - isa.BYTE_BIAS if isa.BYTE_BIAS else sign_extend(stored)
            out.store(column, T.cast(signed, "float32") * scale)
        else:
            byte, shift, flip = isa.layout.offset4(row, column % 32)
            q = T.bitwise_and(T.shift_right(T.cast(data.load(byte), "int32"), shift), T.int32(15))
            q = T.bitwise_xor(q, flip)
            if tile.minimums is None:
                out.store(column, T.cast(q - 8, "float32") * scale)
            else:
                minimum = T.cast(tile.minimums.load(scale_at), "float32")
                out.store(column, fma(T.cast(q, "float32"), scale, minimum))


def sign_extend(byte: Expr) -> Expr:
    """The int32 value of a byte that holds an int8."""
    return T.shift_right(T.shift_left(byte, T.int32(24)), T.int32(24))
