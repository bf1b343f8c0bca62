"""A recipe's way from a model to an artifact and a report, as one visible list of stages.

    with opened(Path("smollm2.edge.work")) as work:
        manifest = run_recipe(recipe, options, work)

Import, distill, quantize, lower, build, pack; what the first three make stays in the work folder,
so a run that was interrupted goes on where it stopped, and ends in the same artifact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from compile.allowance import allowance
from compile.checkpoint import Checkpoint
from compile.corpus import Tokens, picked, read_tokens, split
from compile.errors import CompileError
from compile.evaluate.predictors import CheckpointPredictor
from compile.graph import KINDS
from compile.importer import open_checkpoint
from compile.pipeline import Options, Report, make_artifact
from compile.quantize.formats import Formats, parse_kinds
from compile.quantize.nearest import QuantizedCheckpoint
from compile.recipe import Recipe, Training
from compile.sources import resolve
from compile.stored import open_stored, store
from compile.work import Step, Work, content_key, digest
from edge_llm import manifest as m
from edge_llm.evaluation import score

WEIGHTS = "weights.safetensors"  # of a step that leaves a model
TOKENS = "tokens.npy"  # of one that leaves a text
CURVE = "curve.jsonl"  # of one that trains

Done = Callable[[float], None]
T = TypeVar("T")


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
    learned_note: str
    held_note: str


@dataclass(frozen=True)
class Trial:
    """What a model made of the held-out text, and its answers to the prompts it was given."""

    model: Model
    figures: Mapping[str, float]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What a run has made; the report tells of it."""

    manifest: m.Manifest
    data: Data
    trials: tuple[Trial, ...]  # the teacher's first, that of what was packed last
    steps: tuple[Step, ...]


def run_recipe(
    recipe: Recipe, options: Options, work: Work, report: Report = lambda _stage, _done: None
) -> Outcome:
    """All stages, one after the other.

    Raises:
        CompileError: with one line for the user; ``options.output`` is then as it was before, and
            what was done by then need not be done again.
    """
    run = Run(recipe, options, work, report)
    teacher = run.imported()
    data = run.data(teacher)
    student = run.distilled(teacher, data)
    quantized = run.quantized(student, teacher, data)
    manifest = run.packed(quantized)
    return Outcome(manifest, data, run.trials(data), tuple(work.steps))


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
            source = " and ".join(path.name for path in settings.text)
        else:
            tokens = self._sampled(teacher)
            source = "what the teacher wrote"
        if evaluate.text:
            held = read_tokens(evaluate.text, files, settings.length, evaluate.tokens)
            held_source = " and ".join(path.name for path in evaluate.text)
        else:
            tokens, held = split(tokens, evaluate.tokens)
            held_source = f"{source}, which nothing learned from"
        notes = (f"{t.size:,} tokens of {s}" for t, s in ((tokens, source), (held, held_source)))
        return Data(tokens, held, *notes)

    def _sampled(self, teacher: Model) -> Tokens:
        settings = self.recipe.data

        def make(folder: Path, done: Done) -> None:
            from compile.distill.data import sample

            sample(teacher.checkpoint, settings, folder / TOKENS, done)

        step = self._step("sample", {"teacher": teacher.key, "data": asdict(settings)}, make)
        tokens: Tokens = np.load(step.folder / TOKENS)
        return tokens

    def distilled(self, teacher: Model, data: Data) -> Model:
        """A smaller student that has learned from the teacher, if the recipe wants one."""
        shape, training = self.recipe.student, self.recipe.distill
        if shape is None or training is None:
            return teacher
        tokens = self._calibration(data)

        def make(folder: Path, done: Done) -> None:
            from compile.distill.prune import prune

            store(folder / WEIGHTS, prune(teacher.checkpoint, shape, tokens, done))

        inputs = {"teacher": teacher.key, "shape": asdict(shape), "data": hash_tokens(tokens)}
        pruned = self._made(opened_model("pruned", self._step("prune", inputs, make)))
        return self._trained("distill", "distilled", pruned, teacher, training, data)

    def quantized(self, student: Model, teacher: Model, data: Data) -> Model:
        """The student in integers, and trained on with them if the recipe wants that."""
        formats = self._formats(student, data)
        rounded = QuantizedCheckpoint(student.checkpoint, formats)
        key = digest({"student": student.key, "formats": str(formats)})
        model = self._made(Model("rounded", "to the nearest values", key, rounded))
        if self.recipe.quantize.method == "calibrated":
            model = self._calibrated(student, formats, data)
        if self.recipe.finetune is not None:
            model = self._trained(
                "finetune", "finetuned", model, teacher, self.recipe.finetune, data
            )
        return model

    def _formats(self, student: Model, data: Data) -> Formats:
        """Of each kind of matrices: chosen by the budget, or as the options say."""
        if self.recipe.budget is None:
            return Formats.of(student.checkpoint, self.options.formats)
        config, files = student.checkpoint.config, student.checkpoint.tokenizer
        left = allowance(self.recipe.budget, config, files, self.options)
        tokens = self._calibration(data)

        def make(folder: Path, done: Done) -> dict[str, Any]:
            from compile.quantize.budget import choose

            chosen = choose(student.checkpoint, left, tokens, done)
            return {kind: str(chosen[kind]) for kind in KINDS}

        inputs = {"student": student.key, "bytes": left, "tokens": hash_tokens(tokens)}
        return Formats(**parse_kinds(self._step("formats", inputs, make).facts.items()))

    def _calibrated(self, student: Model, formats: Formats, data: Data) -> Model:
        """Every matrix rounded for the inputs that it gets."""
        tokens = self._calibration(data)

        def make(folder: Path, done: Done) -> None:
            from compile.quantize.calibrate import calibrate

            store(folder / WEIGHTS, calibrate(student.checkpoint, formats, tokens, done))

        inputs = {"student": student.key, "formats": str(formats), "tokens": hash_tokens(tokens)}
        step = self._step("quantize", inputs, make)
        return self._made(opened_model("calibrated", step, f"on {tokens.size:,} tokens"))

    def _trained(
        self, name: str, title: str, student: Model, teacher: Model, training: Training, data: Data
    ) -> Model:
        """A student, in floats or integers, that has learned from the teacher."""

        def make(folder: Path, done: Done) -> None:
            from compile.distill.train import train

            trained = train(
                student.checkpoint, teacher.checkpoint, data.learned, training, folder, done
            )
            store(folder / WEIGHTS, trained)

        inputs = {
            "student": student.key,
            "teacher": teacher.key,
            "tokens": hash_tokens(data.learned),
            "training": asdict(training),
            "seed": self.recipe.data.seed,
        }
        step = self._step(name, inputs, make)
        return self._made(opened_model(title, step, f"{training.steps:,} steps"))

    def packed(self, model: Model) -> m.Manifest:
        """Lower, build and pack: the artifact."""
        quantized = QuantizedCheckpoint(model.checkpoint, Formats.of(model.checkpoint))
        return make_artifact(quantized, self.options, self._report)

    def trials(self, data: Data) -> tuple[Trial, ...]:
        """What each model makes of the held-out text; the first and the last answer prompts."""
        return tuple(self._trial(model, data) for model in self.models)

    def _trial(self, model: Model, data: Data) -> Trial:
        settings = self.recipe.evaluate
        teacher, *_, last = self.models
        prompts = settings.prompts if model in (teacher, last) else ()

        def make(folder: Path, done: Done) -> dict[str, Any]:
            student = CheckpointPredictor(model.title, model.checkpoint)
            other = CheckpointPredictor(teacher.title, teacher.checkpoint)
            parts = told(data.held_out.tolist(), done)
            predictions = score(parts, student, None if model is teacher else other)
            given = [student.generate(prompt, False, settings.answer) for prompt in prompts]
            return {"figures": predictions.summary(), "answers": given}

        inputs = {
            "model": model.key,
            "teacher": teacher.key,
            "held_out": hash_tokens(data.held_out),
            "prompts": prompts,
            "answer": settings.answer,
        }
        facts = self._step(f"evaluate-{model.title}", inputs, make).facts
        return Trial(model, facts["figures"], tuple(facts["answers"]))

    def _calibration(self, data: Data) -> Tokens:
        """A part of the data, from everywhere in it."""
        return picked(data.learned, self.recipe.quantize.tokens, self.recipe.data.seed)

    def _step(
        self,
        name: str,
        inputs: Mapping[str, Any],
        make: Callable[[Path, Done], Mapping[str, Any] | None],
    ) -> Step:
        """A step of the work folder, shown while it is at work."""
        done = self._stage(name)
        step = self.work.step(name, inputs, lambda folder: make(folder, done) or {})
        done(1.0)
        return step

    def _stage(self, name: str) -> Done:
        self._report(name, 0.0)
        return lambda share: self._report(name, share)

    def _made(self, model: Model) -> Model:
        self.models.append(model)
        return model


def told(parts: Sequence[T], done: Done) -> Iterator[T]:
    """The parts one by one, telling how many are done."""
    for index, part in enumerate(parts):
        done(index / len(parts))
        yield part


def opened_model(title: str, step: Step, note: str = "") -> Model:
    """The model that a step left."""
    checkpoint = open_stored(step.folder / WEIGHTS)
    sizes = (
        f"{checkpoint.config.layers} layers, {checkpoint.config.ffn:,} wide between gate and down"
    )
    return Model(title, note or sizes, step.key, checkpoint)


def hash_tokens(tokens: Tokens) -> str:
    """Of their values and shape."""
    return digest({"shape": tokens.shape, "ids": tokens.tobytes().hex()})
