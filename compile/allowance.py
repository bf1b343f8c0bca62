"""How many bytes a budget leaves for a model's matrices.

budget = parse("fits rpi-zero2w at context 1024")       # or "4.25 bits", "90 MB"
choose(costs, sizes(checkpoint.config), allowance(budget, checkpoint, context))
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

from compile.checkpoint import Checkpoint
from compile.errors import CompileError
from compile.families import FAMILIES
from compile.lower.cpu.cache import PAGE_POSITIONS
from compile.lower.cpu.plan import ALIGNMENT, Plan
from compile.quantize.budget import sizes
from compile.quantize.formats import INT8, Formats, weights_of
from compile.tokenizer_json import compact
from edge_llm.manifest import Memory
from targets import TARGETS, Target

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


def parse(text: str) -> Budget:
    """A budget from its text; CompileError says how one is written."""
    if match := re.fullmatch(r"(\d+(?:\.\d+)?) (bits|MB)", text):
        number = float(match[1])
        return Bits(number) if match[2] == "bits" else ArtifactSize(round(number * 1e6))
    if match := re.fullmatch(r"fits (\S+) at context (\d+)", text):
        if match[1] not in TARGETS:
            raise CompileError(f"budget {text!r}: no target {match[1]}: {', '.join(TARGETS)}")
        return Fits(TARGETS[match[1]], int(match[2]))
    raise CompileError(
        f"budget {text!r}: write '4.25 bits', '90 MB' or 'fits rpi-zero2w at context 1024'"
    )


def allowance(budget: Budget, checkpoint: Checkpoint, context: int) -> int:
    """Bytes for the matrices, which :func:`compile.quantize.budget.choose` shares out.

    Args:
        budget: what all shall take.
        checkpoint: the model.
        context: positions the artifact will be compiled for; ``Fits`` has its own.

    Raises:
        CompileError: a target whose memory is not known, or a context that the model lacks.
    """
    match budget:
        case Bits(per_weight):
            return int(per_weight * sum(weights_of(checkpoint.config).values()) / 8)
        case ArtifactSize(size):
            tokenizer = checkpoint.tokenizer
            template = (tokenizer.chat_template or "").encode()
            files = ARTIFACT_BYTES + len(compact(tokenizer.tokenizer_json)) + len(template)
            return size - files - beside_matrices(widest(checkpoint, context))
        case Fits(target, positions):
            if target.memory is None:
                raise CompileError(f"{target.name}: its memory is not known, give a budget in MB")
            plan = widest(checkpoint, positions)
            memory = Memory(0, plan.workspace.size, plan.page_bytes, PAGE_POSITIONS)
            certificate = memory.certificate(positions, sequences=1)
            return target.memory.free - PROCESS_BYTES - certificate - beside_matrices(plan)


def widest(checkpoint: Checkpoint, context: int) -> Plan:
    """The plan with every matrix in 8 bits."""
    config = checkpoint.config
    formats = Formats(INT8, INT8, INT8, INT8, INT8)
    plan = Plan(config, FAMILIES[config.family](config), context, formats, layout="")
    plan.check()
    return plan


def beside_matrices(plan: Plan) -> int:
    """Bytes of the weights that are no matrices: norms, rotary tables, rows that fill up tiles."""
    matrices = sum(forms[INT8] for forms in sizes(plan.config).values())
    # Scales of other groups than the plan's may end elsewhere: a line a region at most.
    return plan.weights.size - matrices + 2 * len(plan.weights.regions) * ALIGNMENT
