"""Weights in the order the kernels read them: written once here, so the device repacks nothing."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from compile import numerics
from compile.checkpoint import Q4, Q8, Checkpoint, Matrix
from compile.errors import CompileError
from compile.lower.cpu.isa import ISAS
from compile.lower.cpu.plan import ROWS, MatrixPlan, Plan, Region, matrix_stages
from compile.lower.cpu.stages import GateAndUp, ProjectAndAdd, ProjectAndCache, Stage
from compile.quantize.nearest import concatenate
from compile.reference import dequantized

Bytes = NDArray[np.uint8]
UNIT = 32


def pack(
    plan: Plan,
    isa_name: str,
    checkpoint: Checkpoint,
    out: Bytes,
    progress: Callable[[float], None] = lambda _: None,
) -> None:
    """Fill ``out``, uint8 [plan.weights.size], from a quantized checkpoint.

    ``progress`` is told the share done, 0 to 1. One layer's matrices are in memory at a time.
    """
    packer = Packer(plan, ISAS[isa_name], checkpoint, out)
    layers = plan.config.layers
    for layer in range(layers):
        packer.layer(layer)
        progress((layer + 1) / (layers + 1))
    packer.output()
    progress(1.0)


class Packer:
    """Writes one model's ``weights.bin``."""

    def __init__(self, plan: Plan, isa: ModuleType, checkpoint: Checkpoint, out: Bytes) -> None:
        self._plan = plan
        self._isa = isa
        self._checkpoint = checkpoint
        self._out = out

    def layer(self, layer: int) -> None:
        """All of one layer's matrices and norms."""
        for stage, matrix in matrix_stages(self._plan):
            self._write_matrix(matrix, layer, self._rows_of(stage, layer))
            if isinstance(stage, ProjectAndCache | GateAndUp):
                self._write_norm(stage.norm.weight, layer)

    def output(self) -> None:
        """Final norm, output head, embedding and the rotary tables."""
        norm, head = self._plan.output
        weights = self._plan.weights
        self._write_norm(norm.weight, 0)
        self._write_matrix(weights.head, 0, self._matrix(head.weight))
        if weights.embedding is not weights.head:
            embedding = self._matrix(self._plan.graph.embedding.weight)
            self._write_matrix(weights.embedding, 0, embedding)
        tables = numerics.rope_tables(self._plan.config.rope_frequencies, self._plan.context)
        for region, table in zip((weights.cos, weights.sin), tables, strict=True):
            self._write(region, 0, 1, table)

    def _rows_of(self, stage: Stage, layer: int) -> Matrix:
        """A stage's matrices in one, rows in the order its units want."""
        match stage:
            case ProjectAndCache(_, q, k, v):
                parts = [self._rotary(self._matrix(name, layer)) for name in (q, k)]
                return concatenate([*parts, self._matrix(v, layer)])
            case GateAndUp(_, gate, up):
                both = concatenate([self._matrix(gate, layer), self._matrix(up, layer)])
                units = np.arange(both.shape[0]).reshape(2, -1, UNIT)
                return both.rows(units.transpose(1, 0, 2).reshape(-1))
            case ProjectAndAdd(weight):
                return self._matrix(weight, layer)
        raise ValueError(f"{stage} has no matrix")

    def _rotary(self, matrix: Matrix) -> Matrix:
        """Rows of every head in rotary order."""
        head_dim = self._plan.config.head_dim
        heads = np.arange(matrix.shape[0]).reshape(-1, head_dim)
        return matrix.rows(heads[:, numerics.rotary_order(head_dim)].reshape(-1))

    def _matrix(self, name: str, layer: int | None = None) -> Matrix:
        tensor = self._checkpoint.tensor(name.format(layer=layer))
        if not isinstance(tensor, Q4 | Q8):
            raise CompileError(f"{name.format(layer=layer)} is not quantized")
        return tensor

    def _write_norm(self, name: str, layer: int) -> None:
        region = self._plan.weights.norms[name]
        values = dequantized(self._checkpoint.tensor(name.format(layer=layer)))
        self._write(region, layer, region.shape[0], values)

    def _write_matrix(self, plan: MatrixPlan, layer: int, matrix: Matrix) -> None:
        """Pack a layer's matrix, filled up with rows of zeros to whole tiles."""
        if matrix.shape[0] > plan.rows or matrix.shape[1] != plan.columns:
            raise CompileError(f"{plan.name}: {list(matrix.shape)} where {plan.rows} rows fit")
        missing = plan.rows - matrix.shape[0]
        layers = plan.data.shape[0]
        layout = self._isa.layout
        if isinstance(matrix, Q4):
            packed = layout.pack4(np.pad(matrix.q, ((0, missing), (0, 0))))
        else:
            biased = (matrix.q.astype(np.int16) + self._isa.BYTE_BIAS).astype(np.uint8)
            packed = layout.pack8(np.pad(biased, ((0, missing), (0, 0))))
        self._write(plan.data, layer, layers, packed)
        self._write(plan.scales, layer, layers, side_by_side(matrix.scale, missing))
        if plan.minimums is not None and isinstance(matrix, Q4) and matrix.minimum is not None:
            self._write(plan.minimums, layer, layers, side_by_side(matrix.minimum, missing))

    def _write(self, region: Region, index: int, count: int, values: NDArray[np.generic]) -> None:
        """Put piece ``index`` of ``count`` equal ones into a region."""
        size = region.size // count
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        if data.size != size:
            raise CompileError(f"{region.name}: {data.size} bytes where the plan has {size}")
        start = region.offset + index * size
        self._out[start : start + size] = data


def side_by_side(scales: NDArray[np.float16], missing: int) -> NDArray[np.float16]:
    """float16 [rows, groups] → [rows/16, groups, 16]: a tile's scales as its lanes want them."""
    padded = np.pad(scales, ((0, missing), (0, 0)))
    return padded.reshape(-1, ROWS, padded.shape[1]).transpose(0, 2, 1)
