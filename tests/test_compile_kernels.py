"""Kernels of every instruction set that this machine or an emulated board has, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from tvm.tirx.script.builder import ir as T

from compile import numerics
from compile.checkpoint import Q4, Q8, Matrix
from compile.lower.cpu import vector
from compile.lower.cpu.activations import Activations
from compile.lower.cpu.cache import PAGE_POSITIONS, Cache, PageLayout
from compile.lower.cpu.isa import ISAS
from compile.lower.cpu.memory import Array, Expr
from compile.lower.cpu.norm import normalize
from compile.lower.cpu.pack import side_by_side
from compile.lower.cpu.tile import Emit, Tiles, multiply, multiply_many
from compile.quantize.nearest import quantize4, quantize8
from targets import TARGETS
from tests.kernels import Argument, aligned, kernel, kernel_targets, zeros

TARGET_NAMES = kernel_targets()
COLUMNS = 128


def activations(
    values: Argument, scales: Argument, offsets: Argument, sums: Argument, copies: int = 1
) -> Activations:
    return Activations(
        values.array("int8"),
        values.array("int32"),
        scales.array("float32"),
        offsets.array("int32"),
        sums.array("float32"),
        COLUMNS,
        copies,
    )


def into(out: Array) -> Emit:
    """What stores the sums of a single token."""
    return lambda _, row, v: out.store(row, v)


def matrices() -> dict[str, Matrix]:
    random = np.random.default_rng(3)
    values = random.standard_normal((16, COLUMNS)).astype(np.float32)
    # The extremes of both formats, where 16-bit sums could overflow; in row 0 nothing cancels.
    values[0] = 3
    worst = Q4(
        np.where(values > 0, 15, 0).astype(np.uint8), np.ones((16, COLUMNS // 32), np.float16)
    )
    wide = Q8(
        np.where(values > 0, -128, 127).astype(np.int8), np.ones((16, COLUMNS // 32), np.float16)
    )
    return {
        "symmetric-32": quantize4(values, 32, symmetric=True),
        "symmetric-64": quantize4(values, 64, symmetric=True),
        "symmetric-128": quantize4(values, 128, symmetric=True),
        "asymmetric-32": quantize4(values, 32, symmetric=False),
        "asymmetric-64": quantize4(values, 64, symmetric=False),
        "extreme-4": worst,
        "extreme-asymmetric": Q4(worst.q, worst.scale, -worst.scale),
        "int8": quantize8(values),
        "extreme-8": wide,
    }


@pytest.mark.parametrize("target", TARGET_NAMES)
@pytest.mark.parametrize("name", matrices())
def test_tile_is_the_numerics(target: str, name: str) -> None:
    isa = ISAS[TARGETS[target].isa]
    weight = matrices()[name]
    tokens, rows = isa.BLOCK
    bits = 4 if isinstance(weight, Q4) else 8
    minimum = weight.minimum if isinstance(weight, Q4) else None
    group = COLUMNS // weight.scale.shape[1]

    def emit(*a: Argument) -> None:
        tiles = Tiles(
            bits,
            a[0].array("uint8"),
            a[1].array("float16"),
            None if minimum is None else a[2].array("float16"),
            COLUMNS,
            group,
        )
        source, out = activations(a[3], a[4], a[5], a[6]), a[7].array("float32")
        block = [source.row(T.int32(m)) for m in range(tokens)]
        if hasattr(isa, "load"):
            multiply_many(isa, tiles, source, T.int32(tokens), out)
        else:
            multiply(isa, tiles, block, rows, lambda m, row, v: out.store(m * 16 + row, v))
        alone, one = activations(a[3], a[4], a[8], a[6], isa.COPIES), out.at(tokens * 16)
        for m in range(tokens):
            multiply(isa, tiles, [alone.row(T.int32(m))], 16, into(one.at(m * 16)))

    x = np.random.default_rng(4).standard_normal((tokens, COLUMNS)).astype(np.float32)
    x[0] = np.where(x[0] > 0, 1, -1)  # all at ±127
    x[1] = 1  # all at 127
    q, scale = numerics.quantize_activations(x)
    if isinstance(weight, Q4):
        packed = isa.layout.pack4(weight.q)
    else:
        packed = isa.layout.pack8((weight.q.astype(np.int16) + isa.BYTE_BIAS).astype(np.uint8))
    totals = q.sum(-1, dtype=np.int32)
    out = zeros((2 * tokens, 16), np.float32)
    kernel(target, 9, emit)(
        aligned(packed),
        aligned(side_by_side(weight.scale, 0)),
        aligned(side_by_side(weight.scale if minimum is None else minimum, 0)),
        aligned(q),
        aligned(scale),
        aligned(totals * np.int32(-8)),
        aligned(totals.astype(np.float32) * scale),
        out,
        aligned(np.repeat(totals * np.int32(-8), isa.COPIES)),
    )
    expected = numerics.linear(q, scale, weight)
    assert same_bits(out[:tokens], expected)
    assert same_bits(out[tokens:], expected)


@pytest.mark.parametrize("target", TARGET_NAMES)
def test_exp_and_silu_are_the_numerics(target: str) -> None:
    def emit(source: Argument, exp: Argument, silu: Argument) -> None:
        with T.serial(T.int32(2048)) as i:
            lanes = vector.bind(source.array("float32").load(i * 16, 16))
            exp.array("float32").store(i * 16, vector.exp(lanes))
            silu.array("float32").store(i * 16, vector.silu(lanes))

    random = np.random.default_rng(5)
    x = aligned((random.standard_normal(2048 * 16) * 30).astype(np.float32))
    x[:4] = (-1e30, 1e30, 0, -0.0)
    exp, silu = zeros(x.shape, np.float32), zeros(x.shape, np.float32)
    kernel(target, 3, emit)(x, exp, silu)
    assert same_bits(exp, numerics.exp(x))
    assert same_bits(silu, numerics.silu(x))


@pytest.mark.parametrize("target", TARGET_NAMES)
def test_norm_is_the_numerics(target: str) -> None:
    copies = ISAS[TARGETS[target].isa].COPIES

    def emit(*a: Argument) -> None:
        x, weight = a[0].array("float32"), a[1].array("float32")
        out = activations(a[2], a[3], a[4], a[5], copies)
        normalize(x, weight, 1e-5, out, ISAS[TARGETS[target].isa].TOGETHER)

    random = np.random.default_rng(6)
    x, weight = (aligned(random.standard_normal(COLUMNS).astype(np.float32)) for _ in range(2))
    q = zeros(COLUMNS, np.int8)
    scale, sums = (zeros(COLUMNS // 32, np.float32) for _ in range(2))
    offsets = zeros((COLUMNS // 32, copies), np.int32)
    kernel(target, 6, emit)(x, weight, q, scale, offsets, sums)
    expected, scales = numerics.quantize_activations(numerics.rms_norm(x[None], weight, 1e-5))
    assert (q.reshape(expected[0].shape) == expected[0]).all()
    assert same_bits(scale, scales[0])
    totals = expected[0].sum(-1, dtype=np.int32)
    assert (offsets == -8 * totals[:, None]).all()
    assert same_bits(sums, totals.astype(np.float32) * scales[0])


@pytest.mark.parametrize("target", TARGET_NAMES)
def test_cache_gives_back_what_it_was_given(target: str) -> None:
    """Every slot and group of a page, byte by byte."""
    isa = ISAS[TARGETS[target].isa]
    layout = PageLayout(64)
    slots, groups = PAGE_POSITIONS, 2

    def emit(source: Argument, memory: Argument, keys: Argument, values: Argument) -> None:
        cache = Cache(isa, memory.pointer, layout, 1, T.int32(1))
        page = cache.page(T.int32(0), T.int32(0), T.int32(0))

        def signed(data: Array, row: Expr, column: Expr) -> Expr:
            byte = T.cast(data.load(isa.layout.offset8(row, column)), "int32") - isa.BYTE_BIAS
            return T.cast(T.Select(byte > 127, byte - 256, byte), "float32")

        with T.serial(T.int32(slots)) as slot, T.serial(T.int32(groups)) as group:
            lanes = source.array("float32").at((slot * groups + group) * 32)
            halves = [vector.bind(lanes.load(i * 16, 16)) for i in range(2)]
            page.write_key(group, slot, *halves)
            page.write_value(group, slot, *halves)
        with T.serial(T.int32(slots)) as slot, T.serial(T.int32(32)) as i:
            key = page.keys.tile(slot // 16)
            for group in range(groups):
                at = (slot * groups + group) * 32 + i
                scale = key.scales.load(group * 16 + slot % 16)
                data = key.data.at(group * 512)
                keys.array("float32").store(at, signed(data, slot % 16, i) * scale)
                scale = page.scales(group).load(slot)
                data = page.values(group, i // 16)
                values.array("float32").store(at, signed(data, i % 16, slot) * scale)

    random = np.random.default_rng(7)
    x = aligned(random.standard_normal((slots, 64)).astype(np.float32))
    memory = zeros(layout.bytes, np.uint8)
    keys, values = zeros((slots, 64), np.float32), zeros((slots, 64), np.float32)
    kernel(target, 4, emit)(x, memory, keys, values)
    q, scale = numerics.quantize_activations(x)
    expected = (q * scale[..., None]).reshape(x.shape)
    assert same_bits(values, expected)
    assert same_bits(keys, expected)


@pytest.mark.parametrize("layout", ["quads", "stacked", "pairs"])
def test_packed_weights_are_where_offsets_say(layout: str) -> None:
    module = next(isa.layout for isa in ISAS.values() if layout == isa.layout.NAME)
    q = np.random.default_rng(8).integers(0, 16, (32, 64)).astype(np.uint8)
    four, eight = module.pack4(q), module.pack8(q)
    for row in range(32):
        for column in range(64):
            tile, group = row // 16, column // 32
            byte, shift, flip = module.offset4(row % 16, column % 32)
            assert four[tile, group, byte] >> shift & 15 ^ flip == q[row, column]
            assert eight[tile, group, module.offset8(row % 16, column % 32)] == q[row, column]


def same_bits(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    return np.array_equal(a.view(np.int32), np.asarray(b, np.float32).view(np.int32))
