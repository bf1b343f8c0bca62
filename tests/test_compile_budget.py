"""Mixed precision under a budget: what is predicted is what comes, and the budget is kept."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from compile.allowance import ArtifactSize, Bits, Fits, allowance
from compile.checkpoint import Checkpoint
from compile.errors import CompileError, UnsupportedError
from compile.families import FAMILIES
from compile.graph import KINDS, Kind
from compile.importer import open_checkpoint
from compile.lower.cpu.cache import PAGE_POSITIONS
from compile.lower.cpu.plan import Plan
from compile.pipeline import Options, compile_model
from compile.quantize.budget import (
    FORMATS,
    Costs,
    candidates,
    choose,
    divergence,
    log_softmax,
    sensitivity,
    sizes,
)
from compile.quantize.formats import INT4, INT8, Choices, Formats, MatrixFormat
from compile.quantize.nearest import QuantizedCheckpoint
from compile.reference import Exact, Reference
from edge_llm.manifest import Memory
from targets import TARGETS
from tests.tiny_model import write_tiny_gguf

TOKENS = np.random.default_rng(5).integers(3, 320, (4, 64))
SIZES = {"quantization": "F16", "width": 128, "ffn": 192, "heads": 4, "kv_heads": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("budget") / "tiny.gguf"
    write_tiny_gguf(path, **SIZES)
    return path


@pytest.fixture(scope="module")
def tiny(model: Path) -> Checkpoint:
    return open_checkpoint(model)


@pytest.fixture(scope="module")
def costs(tiny: Checkpoint) -> Costs:
    return sensitivity(tiny, TOKENS, candidates(tiny.config))


def measured(checkpoint: Checkpoint, formats: Formats) -> float:
    """Mean KL of the model rounded in these formats, sequence by sequence."""
    rounded = Reference(QuantizedCheckpoint(checkpoint, formats), Exact())
    exact = Reference(checkpoint, Exact())
    return float(
        np.mean(
            [
                divergence(log_softmax(exact.logits(tokens)), rounded.logits(tokens))
                for tokens in TOKENS.tolist()
            ]
        )
    )


def predicted(costs: Costs, formats: Formats) -> float:
    return sum(costs[kind][formats[kind]] for kind in KINDS)


def test_groups_divide_the_rows(tiny: Checkpoint) -> None:
    found = candidates(tiny.config)
    assert found["qkv"] == FORMATS
    assert {form.group for form in found["down"]} == {32, 64}


def test_cost_of_a_kind_is_the_divergence_of_it_alone(tiny: Checkpoint, costs: Costs) -> None:
    """Against a whole model in 8 bits but for one kind, which adds next to nothing."""
    for kind in ("qkv", "down", "head"):
        formats = Formats(**{**dict.fromkeys(KINDS, INT8), kind: INT4})
        assert measured(tiny, formats) == pytest.approx(costs[kind][INT4], rel=0.1)
        assert 0 <= costs[kind][INT8] < costs[kind][INT4] / 20


def test_costs_are_the_same_again(tiny: Checkpoint, costs: Costs) -> None:
    some: dict[Kind, tuple[MatrixFormat, ...]] = {"o": (INT4,), "head": (INT8,)}
    again = sensitivity(tiny, TOKENS, some)
    assert again == {kind: {form: costs[kind][form] for form in some[kind]} for kind in some}


def test_summed_costs_rank_models_as_their_divergence_does(tiny: Checkpoint, costs: Costs) -> None:
    random = np.random.default_rng(6)
    drawn = [
        Formats(**{kind: list(costs[kind])[random.integers(len(costs[kind]))] for kind in KINDS})
        for _ in range(16)
    ]
    real = np.array([measured(tiny, formats) for formats in drawn])
    sums = np.array([predicted(costs, formats) for formats in drawn])
    by_cost, by_divergence = (values.argsort().argsort() for values in (sums, real))
    assert np.corrcoef(by_cost, by_divergence)[0, 1] > 0.95
    np.testing.assert_allclose(sums, real, rtol=0.15)


@pytest.mark.parametrize("bits", [4.2, 5.0, 6.3])
def test_choice_is_the_best_within_the_budget(tiny: Checkpoint, costs: Costs, bits: float) -> None:
    budget = allowance(Bits(bits), tiny.config, tiny.tokenizer, 256)
    chosen = choose(costs, sizes(tiny.config), budget)
    assert chosen.bits_per_weight(tiny.config) <= bits
    size = sizes(tiny.config)
    each = [[(costs[k][form], size[k][form]) for form in costs[k]] for k in KINDS]
    combined = (np.sum(some, axis=0) for some in product(*each))
    within = [cost for cost, total in combined if total <= budget]
    assert predicted(costs, chosen) == pytest.approx(min(within))


def test_of_equal_costs_the_smaller_is_chosen(tiny: Checkpoint) -> None:
    alike = {kind: dict.fromkeys(forms, 1.0) for kind, forms in candidates(tiny.config).items()}
    wide, narrow = MatrixFormat(4, 128, True), MatrixFormat(4, 64, True)
    assert choose(alike, sizes(tiny.config), 10**9) == Formats(wide, wide, wide, narrow, wide)


def test_a_budget_out_of_reach_says_what_is_in_reach(tiny: Checkpoint, costs: Costs) -> None:
    with pytest.raises(
        CompileError, match=r"leaves 0\.\d\d MB .* take at least 0\.15 MB: give more"
    ):
        choose(costs, sizes(tiny.config), allowance(Bits(4), tiny.config, tiny.tokenizer, 256))
    left = allowance(ArtifactSize(800_000), tiny.config, tiny.tokenizer, 256)
    with pytest.raises(CompileError, match=r"leaves 0\.\d\d MB for the matrices"):
        choose(costs, sizes(tiny.config), left)


@pytest.mark.parametrize("more", [{}, {"vocab": 327, "tied": False}])
def test_what_fits_a_board_takes_no_more_than_it_has(tmp_path: Path, more: dict[str, int]) -> None:
    """The certificate of any formats, and what else a process takes, against the board's memory."""
    write_tiny_gguf(tmp_path / "m.gguf", **SIZES, **more)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    config, files, target = checkpoint.config, checkpoint.tokenizer, TARGETS["rpi-zero2w"]
    assert target.memory is not None
    left = allowance(Fits(target, 100), config, files, context=256)
    free = target.memory.free - 72_000_000
    for forms in ([INT8] * 5, [INT4] * 5, [MatrixFormat(4, 64, False)] * 5):
        formats = Formats(*forms)
        plan = Plan(config, FAMILIES[config.family](config), 100, formats, "quads")
        memory = Memory(plan.weights.size, plan.workspace.size, plan.page_bytes, PAGE_POSITIONS)
        matrices = sum(sizes(config)[kind][formats[kind]] for kind in KINDS)
        spare = (free - memory.certificate(100, 1)) - (left - matrices)
        assert 0 <= spare < 10_000
    with pytest.raises(CompileError, match="x86-64-v3: its memory is not known"):
        allowance(Fits(TARGETS["x86-64-v3"], 100), config, files, 256)
    with pytest.raises(UnsupportedError, match="context 257: Tiny was trained for 1 to 256"):
        allowance(Fits(target, 257), config, files, 256)


@pytest.mark.slow
def test_an_artifact_is_no_larger_than_its_budget(model: Path, costs: Costs) -> None:
    size = 1_000_000
    checkpoint = open_checkpoint(model)
    left = allowance(ArtifactSize(size), checkpoint.config, checkpoint.tokenizer, 256)
    formats = choose(costs, sizes(checkpoint.config), left)
    output = model.with_name("out.edge")
    chosen = Choices(kinds={kind: formats[kind] for kind in KINDS})
    compile_model(Options(str(model), TARGETS["x86-avx512-vnni"], output, formats=chosen))
    assert output.stat().st_size <= size
