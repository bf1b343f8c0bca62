"""``python -m benchmarks.quality.student``: a pruned student, before and after it has learned.

Runs compile/recipes/student.toml, or with ``--recipe student-gpu`` the one for a GPU, and tells of
it in Markdown: the stages on text of the teacher's that nothing learned from, the curve, and what
teacher and student say to student.toml's prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import click

from benchmarks.quality.picture import draw_curve
from benchmarks.speed.models import SOURCE
from benchmarks.speed.workbench import PROJECT
from compile.commands.progress import progress
from compile.commands.recipe import planned
from compile.errors import CompileError
from compile.pipeline import Options
from compile.quantize.formats import Choices
from compile.recipe import read_recipe
from compile.report.content import Cost, Model, Report
from compile.report.page import human_count, human_time
from compile.report.tell import tell
from compile.run import run_recipe
from compile.work import opened
from edge_llm.files import replacing
from targets import TARGETS

FOLDER = click.Path(file_okay=False, path_type=Path)
RECIPES = PROJECT / "compile" / "recipes"
NAMES = ("student", "student-gpu")
WORK = PROJECT / ".cache" / "quality"
COMMAND = "python -m benchmarks.quality.student"


@click.command()
@click.option(
    "--recipe", type=click.Choice(NAMES), default=NAMES[0], show_default=True,
    help="Of compile/recipes; the second takes a GPU.",
)  # fmt: skip
@click.option(
    "-o", "--output", type=FOLDER, default=PROJECT / "docs" / "quality", metavar="FOLDER",
    help="Gets RECIPE.md and RECIPE.png.  [default: docs/quality]",
)  # fmt: skip
def main(recipe: str, output: Path) -> None:
    """Prune, distill and quantize a student by a recipe, and tell of it.

    Takes hours. Its steps are kept in .cache/quality: an interrupted run goes on, also with steps
    that another machine has made.
    """
    try:
        report = made(recipe)
    except CompileError as error:
        raise click.ClickException(str(error)) from None
    output.mkdir(parents=True, exist_ok=True)
    picture = output / f"{recipe}.png"
    draw_curve(next(curve for curve in report.curves if curve.title == "distill"), picture)
    with replacing(output / f"{recipe}.md") as file:
        file.write("\n".join([*markdown(report, picture.name), ""]).encode())
    click.echo("\n".join(table(report.models)))


def made(name: str) -> Report:
    """What the recipe's run tells."""
    plan = planned(RECIPES / f"{name}.toml", None, None, Choices())
    assert plan.target is not None  # the recipe names the board that it fits
    asked = read_recipe(RECIPES / f"{NAMES[0]}.toml").evaluate
    artifact = WORK / f"{name}.edge"
    options = Options(SOURCE, TARGETS[plan.target], artifact, plan.context, plan.formats)
    WORK.mkdir(parents=True, exist_ok=True)
    with opened(WORK / f"{name}.work") as work, progress() as report:
        outcome = run_recipe(replace(plan.recipe, evaluate=asked), options, work, report)
    assert outcome is not None
    command = COMMAND if name == NAMES[0] else f"{COMMAND} --recipe {name}"
    return tell(outcome, options, command, plan.text, asked.prompts)


def markdown(report: Report, picture: str) -> Iterator[str]:
    """The page's lines."""
    teacher, last = report.models[0], report.models[-1]
    yield from ("# A smaller student", "", f"Written by `{report.command}`.", "")
    yield f"- Teacher: {report.source}, {human_count(teacher.parameters)} parameters"
    yield f"- Student: {last.parameters / teacher.parameters:.1%} of them"
    yield f"- Learned from: {report.data}"
    yield f"- Held out: {report.held_out}"
    yield f"- Artifact: {report.artifact_bytes / 1e6:.1f} MB, for {report.target}"
    yield from ("", "## Stages", "", *table(report.models))
    yield from ("", f"![loss and KL while it learns]({picture})")
    yield from ("", "## Prompts", "", *answers(report))
    yield from ("", "## Time", "", *times(report.costs))


def table(models: Sequence[Model]) -> Iterator[str]:
    """A row a stage."""
    pruned = next(model for model in models if model.title == "pruned").figures["perplexity"]
    yield "| | bits/weight | perplexity | of the pruned | KL mean | top-1 |"
    yield "|---|---|---|---|---|---|"
    for model in models:
        figures = model.figures
        perplexity = figures["perplexity"]
        kl, top1 = figures.get("kl_mean", 0.0), figures.get("top1_agreement", 1.0)
        yield (
            f"| {model.title}: {model.note} | {model.bits_per_weight:.2f} | {perplexity:.2f} "
            f"| {perplexity / pruned:.2f} × | {kl:.3f} | {top1:.1%} |"
        )


def answers(report: Report) -> Iterator[str]:
    """What the teacher and the student in the artifact say."""
    yield f"| | {report.models[0].title} | {report.models[-1].title} |"
    yield "|---|---|---|"
    for row in zip(
        report.prompts, report.models[0].answers, report.models[-1].answers, strict=True
    ):
        yield f"| {' | '.join(cell(text) for text in row)} |"


def cell(text: str) -> str:
    """A text as one cell of a table."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def times(costs: Sequence[Cost]) -> Iterator[str]:
    """What each step took, when it was made."""
    yield "| | time | most memory |"
    yield "|---|---|---|"
    for cost in costs:
        yield f"| {cost.stage} | {human_time(cost.seconds)} | {cost.peak_bytes / 1e9:.2f} GB |"


if __name__ == "__main__":
    main(prog_name=COMMAND)
