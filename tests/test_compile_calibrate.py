"""Calibration: grids, error feedback, and a model that is nearer to itself than when rounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile.checkpoint import Q4, Q8, Checkpoint
from compile.errors import CompileError
from compile.families import FAMILIES
from compile.graph import KINDS
from compile.importer import open_checkpoint
from compile.quantize.budget import divergence, log_softmax
from compile.quantize.calibrate import CalibratedCheckpoint, calibrate, segments
from compile.quantize.feedback import nearest_in, repaired, with_feedback
from compile.quantize.formats import INT8, Formats, MatrixFormat
from compile.quantize.grid import search
from compile.quantize.nearest import QuantizedCheckpoint, quantize
from compile.reference import Exact, Reference, dequantized
from tests.same_tensors import assert_same_tensor
from tests.tiny_model import write_tiny_gguf

FORMATS = [MatrixFormat.parse(t) for t in ("int4-g32", "int4-g64", "int4-g32-asym", "int8")]


@pytest.fixture
def weight() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((48, 128)).astype(np.float32)


@pytest.fixture
def hessian() -> np.ndarray:
    """Of inputs that are correlated and of different sizes, as a model's are."""
    random = np.random.default_rng(2)
    mix = random.standard_normal((128, 128)) * np.exp(random.standard_normal(128))
    x = random.standard_normal((4000, 128)) @ mix
    return x.T @ x


def error(weight: np.ndarray, rounded: np.ndarray, hessian: np.ndarray) -> float:
    """Squared error of the products over the inputs that the Hessian sums up."""
    off = (rounded - weight).astype(np.float64)
    return float(np.einsum("ri,ij,rj->", off, hessian, off))


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_feedback_keeps_products_nearer_than_rounding(
    weight: np.ndarray, hessian: np.ndarray, form: MatrixFormat
) -> None:
    fed = with_feedback(weight, hessian, form)
    assert MatrixFormat.of(fed) == form
    rounded = quantize(weight, form)
    assert error(weight, fed.dequantize(), hessian) < 0.8 * error(
        weight, rounded.dequantize(), hessian
    )


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_without_correlation_each_weight_takes_the_nearest_value(
    weight: np.ndarray, form: MatrixFormat
) -> None:
    matrix = nearest_in(weight, form)
    scale = np.repeat(matrix.scale.astype(np.float32), form.group, 1)
    low, high = (-127, 127) if isinstance(matrix, Q8) else (0, 15)
    q = matrix.q.astype(np.float32)
    for step in (-1, 1):
        allowed = (q + step >= low) & (q + step <= high)
        other = matrix.dequantize() + step * scale
        nearer = np.abs(other - weight) < np.abs(matrix.dequantize() - weight) - 1e-6
        assert not (allowed & nearer).any()
    assert (
        np.abs(matrix.dequantize() - weight).mean()
        <= 1.02 * np.abs(quantize(weight, form).dequantize() - weight).mean()
    )


@given(st.integers(0, 2**32 - 1), st.sampled_from(FORMATS), st.floats(1e-6, 1e3))
def test_a_grid_holds_what_it_gives(seed: int, form: MatrixFormat, size: float) -> None:
    values = np.random.default_rng(seed).standard_normal((form.group, 5)).astype(np.float32)
    grid = search(values * np.float32(size), np.ones(form.group, np.float32), form)
    q = grid.round(values * np.float32(size))
    assert q.min() >= grid.lowest
    assert q.max() <= grid.highest
    np.testing.assert_array_equal(grid.round(grid.value(q)), q)


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_zeros_stay_zeros(form: MatrixFormat) -> None:
    matrix = with_feedback(np.zeros((16, 128), np.float32), np.zeros((128, 128)), form)
    assert not matrix.dequantize().any()


def test_weights_that_float16_cannot_scale_are_refused() -> None:
    weight = np.full((16, 32), 1e7, np.float32)
    with pytest.raises(CompileError, match="too large"):
        with_feedback(weight, np.eye(32), MatrixFormat(4, 32, True))
    weight[0, 0] = np.nan
    with pytest.raises(CompileError, match="not numbers"):
        with_feedback(weight, np.eye(32), MatrixFormat(4, 32, True))


def test_a_matrix_is_repaired_for_the_inputs_there_are(weight: np.ndarray) -> None:
    random = np.random.default_rng(3)
    x = random.standard_normal((4000, 128)).astype(np.float32)
    y = x + 0.3 * random.standard_normal((4000, 128)).astype(np.float32)
    after = repaired(weight, (y.T @ y).astype(np.float64), (x.T @ y).astype(np.float64))

    def off(w: np.ndarray) -> float:
        return float(np.square(x @ weight.T - y @ w.T).sum())

    assert off(after) < 0.95 * off(weight)
    same = (x.T @ x).astype(np.float64)
    np.testing.assert_allclose(repaired(weight, same, same), weight, atol=1e-6)


def test_segments_are_the_layer_cut_before_each_new_input(tiny: Checkpoint) -> None:
    graph = FAMILIES["llama"](tiny.config)
    parts = list(segments(graph.layer, "x"))
    assert tuple(op for part, _ in parts for op in part) == graph.layer
    assert [keep for _, keep in parts] == [["h", "x"], ["a", "x"], ["h", "x"], ["m", "x"], ["x"]]


@pytest.fixture
def tiny(tmp_path: Path, request: pytest.FixtureRequest) -> Checkpoint:
    write_tiny_gguf(
        tmp_path / "tiny.gguf", tied=getattr(request, "param", True), quantization="F32"
    )
    return open_checkpoint(tmp_path / "tiny.gguf")


@pytest.mark.parametrize("tiny", [True, False], indirect=True, ids=["tied", "untied"])
@pytest.mark.parametrize("head", ["int4-g32", "int8"])
def test_a_calibrated_model_is_nearer_to_its_teacher(tiny: Checkpoint, head: str) -> None:
    form = MatrixFormat(4, 32, True)
    formats = Formats(form, form, form, INT8, MatrixFormat.parse(head))
    random = np.random.default_rng(4)
    tokens = random.integers(0, tiny.config.vocab_size, (24, 32)).astype(np.int32)
    told: list[float] = []
    quantized = calibrate(tiny, formats, tokens, lambda _stage, done: told.append(done))
    assert told == sorted(told)
    assert told[-1] == 1.0
    for kind, names in FAMILIES["llama"](tiny.config).matrices(tiny.config.layers).items():
        assert {MatrixFormat.of(quantized.tensor(name)) for name in names} == {formats[kind]}
    held = random.integers(0, tiny.config.vocab_size, 200).tolist()
    exact = log_softmax(Reference(tiny, Exact()).logits(held))
    near, rounded = (
        divergence(exact, Reference(model, Exact()).logits(held))
        for model in (quantized, QuantizedCheckpoint(tiny, formats))
    )
    assert near < 0.97 * rounded


def test_a_matrix_that_is_in_its_format_stays_as_it_is(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "q.gguf", quantization="Q4_1")
    model = open_checkpoint(tmp_path / "q.gguf")
    own = MatrixFormat(4, 32, False)
    formats = Formats(own, own, MatrixFormat(4, 32, True), own, MatrixFormat(4, 32, True))
    quantized = calibrate(model, formats, np.arange(96, dtype=np.int32).reshape(3, 32))
    matrices = FAMILIES["llama"](model.config).matrices(model.config.layers)
    for kind in KINDS:
        assert {MatrixFormat.of(quantized.tensor(n)) for n in matrices[kind]} == {formats[kind]}
        for name in matrices[kind] if formats[kind] == own else ():
            assert_same_tensor(quantized.tensor(name), model.tensor(name), name)


def test_calibration_is_the_same_each_time(tiny: Checkpoint) -> None:
    tokens = np.arange(96, dtype=np.int32).reshape(3, 32)
    formats = Formats()
    one, other = (calibrate(tiny, formats, tokens) for _ in range(2))
    for name in FAMILIES["llama"](tiny.config).matrices(tiny.config.layers)["down"]:
        first, second = one.tensor(name), other.tensor(name)
        assert isinstance(first, Q4)
        assert isinstance(second, Q4)
        np.testing.assert_array_equal(first.q, second.q)
        np.testing.assert_array_equal(first.scale, second.scale)


def test_weights_that_are_no_numbers_are_refused_by_name(tiny: Checkpoint) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    damaged = CalibratedCheckpoint(tiny)
    weight = dequantized(tiny.tensor(name)).copy()
    weight[0, 0] = np.nan
    damaged.matrices[name] = weight  # type: ignore[assignment]
    with pytest.raises(CompileError, match="infinities or NaN"):
        calibrate(damaged, Formats(), np.arange(64, dtype=np.int32).reshape(2, 32))
