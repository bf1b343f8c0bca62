"""How many bytes a budget leaves for a model's matrices.

budget = Fits(TARGETS["rpi-zero2w"], 1024)      # or Bits(4.25), ArtifactSize(90_000_000)
choose(costs, sizes(config), allowance(budget, config, tokenizer, context))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from compile.checkpoint import ModelConfig, TokenizerFiles
from compile.errors import CompileError
from compile.families import FAMILIES
from compile.lower.cpu.cache import PAGE_POSITIONS
from compile.lower.cpu.plan import ALIGNMENT, Plan
from compile.quantize.budget import sizes
from compile.quantize.formats import INT8, Formats, weights_of
from compile.tokenizer_json import compact
from edge_llm.manifest import Memory
from targets import Target

ARTIFACT_BYTES = 768 * 2**10  # code (some 120 kB), manifest, and what aligns the entries
PROCESS_BYTES = 72_000_000  # interpreter, libraries, tokenizer: tests/test_round_trips.py measures


@dataclass(frozen=True)
class Bits:
    """Average bits of a weight over all matrices, a tied embedding counted once."""

    per_weight: float


@dataclass(frozen=True)
class ArtifactSize:
    """Bytes of the artifact."""

    size: int


@dataclass(frozen=True)
class Fits:
    """The memory that a board has left, with one sequence of ``context`` positions."""

    target: Target
    context: int


Budget: TypeAlias = Bits | ArtifactSize | Fits


def allowance(budget: Budget, config: ModelConfig, tokenizer: TokenizerFiles, context: int) -> int:
    """Bytes for the matrices, which :func:`compile.quantize.budget.choose` shares out.

    Args:
        budget: what all shall take.
        config, tokenizer: the model's.
        context: positions the artifact will be compiled for; ``Fits`` has its own.

    Raises:
        CompileError: a target whose memory is not known, or a context that the model lacks.
    """
    match budget:
        case Bits(per_weight):
            return int(per_weight * sum(weights_of(config).values()) / 8)
        case ArtifactSize(size):
            template = (tokenizer.chat_template or "").encode()
            files = ARTIFACT_BYTES + len(compact(tokenizer.tokenizer_json)) + len(template)
            return size - files - beside_matrices(widest(config, context))
        case Fits(target, positions):
            if target.memory is None:
                raise CompileError(f"{target.name}: its memory is not known, give a budget in MB")
            plan = widest(config, positions)
            memory = Memory(0, plan.workspace.size, plan.page_bytes, PAGE_POSITIONS)
            certificate = memory.certificate(positions, sequences=1)
            return target.memory.free - PROCESS_BYTES - certificate - beside_matrices(plan)


def widest(config: ModelConfig, context: int) -> Plan:
    """The plan with every matrix in 8 bits; UnsupportedError for sizes that there are none of."""
    formats = Formats(INT8, INT8, INT8, INT8, INT8)
    plan = Plan(config, FAMILIES[config.family](config), context, formats, layout="")
    plan.check()
    return plan


def beside_matrices(plan: Plan) -> int:
    """Bytes of the weights that are no matrices: norms, rotary tables, rows that fill up tiles."""
    matrices = sum(forms[INT8] for forms in sizes(plan.config).values())
    # Scales of other groups than the plan's may end elsewhere: a line a region at most.
    return plan.weights.size - matrices + 2 * len(plan.weights.regions) * ALIGNMENT
