"""A recipe's way from a model to an artifact and a report, as one visible list of stages.

    with opened(Path("smollm2.edge.work")) as work:
        manifest = run_recipe(recipe, options, work)

Import, distill, quantize, lower, build, pack; every stage before the last three leaves its result
in the work folder, so a run that was interrupted goes on where it stopped, and ends in the same
artifact.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compile.allowance import allowance
from compile.checkpoint import Checkpoint
from compile.corpus import Tokens, picked, read_tokens, split
from compile.errors import CompileError
from compile.importer import open_checkpoint
from compile.pipeline import Options, Report, make_artifact
from compile.quantize.formats import Formats, MatrixFormat
from compile.quantize.nearest import QuantizedCheckpoint
from compile.recipe import Recipe
from compile.sources import resolve
from compile.stored import open_stored, store
from compile.trial import Held, answers, compare
from compile.work import Step, Work, content_key, digest
from edge_llm import manifest as m

WEIGHTS = "weights.safetensors"  # of a step that leaves a model


@dataclass(frozen=True)
class Model:
    """A model on its way.

    Attributes:
        title: of the stage that left it.
        note: what was done, in a few words.
        key: hash of all that it depends on.
        checkpoint: its weights.
    """

    title: str
    note: str
    key: str
    checkpoint: Checkpoint


@dataclass(frozen=True)
class Data:
    """What is learned from and calibrated on, and what is held out from that."""

    learned: Tokens
    held_out: Tokens
    key: str  # of what is learned
    held_key: str
    note: str
    held_note: str


def run_recipe(
    recipe: Recipe, options: Options, work: Work, report: Report = lambda _stage, _done: None
) -> m.Manifest:
    """All stages; returns the manifest of the artifact written.

    Raises:
        CompileError: with one line for the user; ``options.output`` is then as it was before, and
            what was done by then need not be done again.
    """
    run = Run(recipe, options, work, report)
    teacher = run.imported()
    data = run.data(teacher)
    student = run.distilled(teacher, data)
    quantized = run.quantized(student, teacher, data)
    manifest = run.artifact(quantized)
    run.evaluated(data)
    return manifest


class Run:
    """One recipe at work on one model."""

    def __init__(self, recipe: Recipe, options: Options, work: Work, report: Report) -> None:
        self.recipe = recipe
        self.options = options
        self.work = work
        self.models: list[Model] = []  # in the order in which they were made
        self._report = report

    def imported(self) -> Model:
        """The teacher."""
        done = self._stage("import")
        path = resolve(self.options.source)
        teacher = Model("teacher", "as it came", content_key(path), open_checkpoint(path))
        done(1.0)
        return self._made(teacher)

    def data(self, teacher: Model) -> Data:
        """The user's text, or one that the teacher writes."""
        settings, evaluate = self.recipe.data, self.recipe.evaluate
        config, files = teacher.checkpoint.config, teacher.checkpoint.tokenizer
        if settings.length > config.context:
            raise CompileError(
                f"[data] length {settings.length}: {config.name} was trained for {config.context} "
                "positions"
            )
        if settings.text:
            tokens = read_tokens(settings.text, files, settings.length, settings.tokens)
            names = " and ".join(path.name for path in settings.text)
            note = f"{tokens.size:,} tokens of {names}, in sequences of {settings.length}"
        else:
            tokens = self._sampled(teacher)
            note = f"{tokens.size:,} tokens that the teacher wrote"
        if evaluate.text:
            held = read_tokens(evaluate.text, files, settings.length, evaluate.tokens)
            held_note = " and ".join(path.name for path in evaluate.text)
        else:
            tokens, held = split(tokens, evaluate.tokens)
            held_note = "the data, which nothing learned from"
        keys = (hash_tokens(tokens), hash_tokens(held))
        return Data(tokens, held, *keys, note, f"{held.size:,} tokens of {held_note}")

    def _sampled(self, teacher: Model) -> Tokens:
        settings = self.recipe.data

        def make(folder: Path) -> dict[str, Any]:
            from compile.distill.data import sample

            sample(teacher.checkpoint, settings, folder / "tokens.npy", self._stage("sample"))
            return {}

        inputs = {"teacher": teacher.key, "data": asdict(settings)}
        step = self._step("sample", inputs, make)
        tokens: Tokens = np.load(step.folder / "tokens.npy")
        return tokens

    def distilled(self, teacher: Model, data: Data) -> Model:
        """A smaller student that has learned from the teacher, if the recipe wants one."""
        shape, training = self.recipe.student, self.recipe.distill
        if shape is None or training is None:
            return teacher

        def prune_teacher(folder: Path) -> dict[str, Any]:
            from compile.distill.prune import prune

            tokens = picked(data.learned, self.recipe.quantize.tokens, self.recipe.data.seed)
            student = prune(teacher.checkpoint, shape, tokens, self._stage("prune"))
            store(folder / WEIGHTS, student)
            return {}

        inputs = {"teacher": teacher.key, "data": data.key, "shape": asdict(shape)}
        step = self._step("prune", inputs, prune_teacher)
        pruned = self._made(opened_model("pruned", "", step))

        def train_student(folder: Path) -> dict[str, Any]:
            from compile.distill.train import train

            student = train(
                pruned.checkpoint, teacher.checkpoint, data.learned, training, folder,
                self._stage("distill"),
            )  # fmt: skip
            store(folder / WEIGHTS, student)
            return {}

        inputs = {
            "student": pruned.key,
            "teacher": teacher.key,
            "data": data.key,
            "training": asdict(training),
            "seed": self.recipe.data.seed,
        }
        step = self._step("distill", inputs, train_student)
        return self._made(opened_model("distilled", f"{training.steps:,} steps", step))

    def quantized(self, student: Model, teacher: Model, data: Data) -> Model:
        """The student in integers, and trained on with them if the recipe wants that."""
        raise NotImplementedError

    def _step(self, name: str, inputs: dict[str, Any], make: Callable[[Path], Any]) -> Step:
        step = self.work.step(name, inputs, make)
        self._report(name, 1.0)
        return step

    def _stage(self, name: str) -> Callable[[float], None]:
        self._report(name, 0.0)
        return lambda done: self._report(name, done)

    def _made(self, model: Model) -> Model:
        self.models.append(model)
        return model


def opened_model(title: str, note: str, step: Step) -> Model:
    """The model that a step left."""
    return Model(title, note, step.key, open_stored(step.folder / WEIGHTS))


def hash_tokens(tokens: Tokens) -> str:
    """Of their values and shape."""
    return digest({"shape": tokens.shape, "ids": tokens.tobytes().hex()})
