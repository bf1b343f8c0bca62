"""A recipe beside the options of the command line, and its run with a report at the end."""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from compile.errors import CompileError
from compile.json_file import read_text
from compile.quantize.formats import Choices
from compile.recipe import Recipe, read_recipe

if TYPE_CHECKING:  # it imports TVM, which takes seconds
    from compile.pipeline import Options
    from edge_llm.manifest import Manifest

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """A recipe, and what it and the options say together."""

    path: Path
    text: str  # of the recipe
    recipe: Recipe
    target: str | None
    context: int | None
    formats: Choices


def planned(path: Path, target: str | None, context: int | None, formats: Choices) -> Plan:
    """Read the recipe; CompileError where it and an option speak of the same."""
    text, recipe = read_text(path), read_recipe(path)
    quantize, budget = recipe.quantize, recipe.budget

    def one(key: str, ours: T | None, option: str, theirs: T | None) -> T | None:
        if ours is not None and theirs is not None:
            raise CompileError(f"{option}: {path} has {key} already; give one of them")
        return theirs if ours is None else ours

    chosen = replace(
        formats,
        group=one("[quantize] group", quantize.group, "--group", formats.group),
        symmetric=one("[quantize] symmetric", quantize.symmetric, "--symmetric", formats.symmetric),
        head_bits=one("[quantize] head_bits", quantize.head_bits, "--head-bits", formats.head_bits),
    )
    if budget is not None:
        if formats != Choices():
            raise CompileError(f"{path}: [budget] chooses the formats: leave those options out")
        context = one("[budget] context", budget.context, "--context", context)
        if budget.fits is not None:
            target = one("[budget] fits", budget.fits, "--target", target)
    if recipe.trains and importlib.util.find_spec("torch") is None:
        raise CompileError(f"{path}: {why(recipe)} takes PyTorch: run make distill")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    for training in (recipe.distill, recipe.finetune):
        if training is not None and training.batch % processes:
            raise CompileError(
                f"{path}: batch = {training.batch} for {processes} processes, which share it: "
                f"give a multiple of {processes}"
            )
    return Plan(path, text, recipe, target, context, chosen)


def why(recipe: Recipe) -> str:
    """What in a recipe needs PyTorch."""
    if recipe.distill or recipe.finetune:
        return "[distill]" if recipe.distill else "[finetune]"
    return "[data] without a text, which the teacher then writes,"


def make(
    plan: Plan,
    options: Options,
    work: Path | None,
    report: Callable[[str, float], None],
    leading: bool,
) -> Manifest | None:
    """Run the recipe and write its report beside the artifact.

    None for a process that does not lead, which only helps to train.
    """
    from compile.report.page import write_report
    from compile.report.tell import tell
    from compile.run import run_recipe
    from compile.work import opened

    output = options.output
    place = work or output.with_name(f"{output.name}.work")
    with opened(place, leading) as folder:
        outcome = run_recipe(plan.recipe, options, folder, report)
        if outcome is None:
            return None
        told = tell(
            outcome,
            options,
            f"python -m compile {shlex.join(sys.argv[1:])}",
            plan.text.strip(),
            plan.recipe.evaluate.prompts,
        )
        try:
            write_report(report_path(output), told)
        except OSError as error:
            raise CompileError(f"cannot write {report_path(output)}: {error.strerror}") from None
    return outcome.manifest


def leads() -> bool:
    """Whether this process makes what takes one: the only one, or the first of torchrun's."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return True
    from compile.distill.machine import Machine

    return Machine.here().rank == 0


def report_path(output: Path) -> Path:
    """Where the report of an artifact lies."""
    return output.with_name(f"{output.name}.html")
