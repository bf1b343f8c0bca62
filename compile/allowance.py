"""What a recipe's budget leaves for a model's matrices.

allowance(budget, config, tokenizer, options)       # bytes
"""

from __future__ import annotations

from compile.checkpoint import ModelConfig, TokenizerFiles
from compile.errors import CompileError
from compile.lower.cpu.cache import PAGE_POSITIONS
from compile.lower.cpu.plan import Plan
from compile.pipeline import Options, make_plan
from compile.quantize.formats import Formats, weights_of
from compile.recipe import Budget
from compile.tokenizer_json import compact
from edge_llm.manifest import Memory
from targets import BOARDS

CODE_BYTES = 1_000_000  # code, manifest and what aligns the entries take at most
RUNTIME_BYTES = 80_000_000  # the interpreter, its libraries, tokenizer and one transport


def allowance(
    budget: Budget, config: ModelConfig, tokenizer: TokenizerFiles, options: Options
) -> int:
    """Bytes that all matrices may take, their scales counted.

    Raises:
        CompileError: what else the model needs takes all of it.
    """
    if budget.bits_per_weight is not None:
        return int(budget.bits_per_weight * sum(weights_of(config).values()) / 8)
    formats = Formats()
    plan = make_plan(config, formats, options)
    matrices = int(formats.bits_per_weight(config) * sum(weights_of(config).values()) / 8)
    if budget.megabytes is not None:
        limit, what = int(budget.megabytes * 1e6), f"{budget.megabytes:g} MB"
        total = plan.weights.size + len(compact(tokenizer.tokenizer_json)) + CODE_BYTES
    else:
        assert budget.fits is not None
        limit, what = BOARDS[budget.fits].usable, f"{budget.fits} at context {plan.context}"
        total = certificate(plan) + RUNTIME_BYTES
    left = limit - (total - matrices)
    if left <= 0:
        raise CompileError(
            f"[budget] {what}: what the model needs beside its matrices takes "
            f"{(total - matrices) / 1e6:.1f} of {limit / 1e6:.1f} MB: give a smaller context, a "
            "smaller [student] or a larger budget"
        )
    return left


def certificate(plan: Plan) -> int:
    """Bytes of weights, workspace and KV cache for one conversation of the plan's context."""
    memory = Memory(
        plan.weights.size, plan.workspace.size, plan.page_bytes, page_positions=PAGE_POSITIONS
    )
    return memory.certificate(plan.context, 1)
