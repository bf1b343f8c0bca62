"""Our own candidates: rounded to nearest, calibrated, calibrated and distilled.

The first are what ``compile`` makes of a float model without a recipe. The others are made by the
recipes beside this file, whose steps are kept in a work folder: an interrupted run goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import edge_llm
from benchmarks.quality.candidate import OURS, Candidate, Workshop, words
from benchmarks.quality.storage import storage_of
from benchmarks.quality.yardstick import Logits
from benchmarks.speed.models import compiled, compiler_changed
from benchmarks.speed.workbench import PROJECT, run
from compile.evaluate.predictors import Remembered
from compile.graph import KINDS
from compile.importer import open_checkpoint
from compile.quantize.formats import Formats, MatrixFormat
from compile.quantize.nearest import QuantizedCheckpoint
from compile.stored import store

RECIPES = PROJECT / "benchmarks" / "quality"
LARGER = ("calibrated-4.5", "calibrated-5")
RECIPE_SECONDS = 4 * 3600
NEAREST = ("int4-g64", "int4-g64-asym", "int4-g32")  # of all matrices, head included


def nearest(shop: Workshop) -> Iterator[Candidate]:
    """The teacher's float weights rounded to nearest in each format."""
    for text in NEAREST:
        formats = Formats(**dict.fromkeys(KINDS, MatrixFormat.parse(text)))

        def make(aside: Path, formats: Formats = formats) -> None:
            store(aside, QuantizedCheckpoint(Remembered(open_checkpoint(shop.teacher)), formats))

        path = shop.made(f"nearest-{text}.safetensors", (shop.teacher,), make, compiler_changed())
        artifact = partial(compiled, shop.bench, path, "native")
        yield stored(path, f"{OURS} nearest {text}", "rounded to nearest", artifact)


def calibrated(shop: Workshop) -> Iterator[Candidate]:
    """By calibrated.toml."""
    yield from by_recipe(shop, "calibrated")


def larger(shop: Workshop) -> Iterator[Candidate]:
    """The same with more bits to spend."""
    for name in LARGER:
        yield from by_recipe(shop, name)


def distilled(shop: Workshop) -> Iterator[Candidate]:
    """By distilled.toml."""
    yield from by_recipe(shop, "distilled")


def by_recipe(shop: Workshop, name: str) -> Iterator[Candidate]:
    """What a recipe makes of the teacher, its weights read from the artifact itself."""
    recipe, artifact = RECIPES / f"{name}.toml", shop.folder / f"{name}.edge"
    work = shop.folder / "recipes.work"  # of all: what two have in common is made once
    command = (sys.executable, "-m", "compile", shop.teacher, "--recipe", recipe, "--work", work)
    run(words(*command, "--target", "native", "-o", artifact), RECIPE_SECONDS)
    yield stored(artifact, f"{OURS} {name}", recipe.name, lambda: artifact)


def stored(path: Path, name: str, made: str, artifact: Callable[[], Path]) -> Candidate:
    """A checkpoint or artifact of ours as a candidate, with what compiles it."""
    return Candidate(
        name=name,
        maker=OURS,
        made=made,
        storage=storage_of(open_checkpoint(path)),
        weights=partial(open_checkpoint, path),
        program=partial(loaded, artifact),
    )


@contextmanager
def loaded(artifact: Callable[[], Path]) -> Iterator[Logits]:
    """An artifact on the device's engine."""
    with edge_llm.load(artifact()) as model:
        yield model.logits
