"""A recipe's way from a model to an artifact and a report, as one visible list of stages.

    with opened(Path("smollm2.edge.work")) as work:
        manifest = run_recipe(recipe, options, work)

Import, distill, quantize, lower, build, pack; what the first three make stays in the work folder,
so a run that was interrupted goes on where it stopped, and ends in the same artifact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from compile.allowance import ArtifactSize, Bits, Fits, allowance, widest
from compile.checkpoint import Checkpoint, ModelConfig, TokenizerFiles
from compile.corpus import Tokens, picked, read_tokens, split
from compile.distill.match import check_match
from compile.distill.prune import prune, student_config
from compile.errors import CompileError
from compile.evaluate.predictors import CheckpointPredictor
from compile.graph import KINDS
from compile.importer import open_checkpoint, source_files
from compile.outcome import WEIGHTS, Data, Model, Outcome, Trial, hash_tokens, opened_model
from compile.pipeline import Options, Report, make_artifact, make_plan, positions
from compile.quantize.budget import candidates, choose, sensitivity, sizes
from compile.quantize.calibrate import CALIBRATION, calibrate
from compile.quantize.formats import Formats, MatrixFormat
from compile.quantize.nearest import QuantizedCheckpoint
from compile.recipe import Budget, Recipe, Student, Training
from compile.sources import resolve
from compile.stored import store
from compile.work import Step, Work, content_key, digest
from edge_llm import manifest as m
from edge_llm.errors import EdgeLLMError
from edge_llm.evaluation import score
from edge_llm.files import replacing
from targets import TARGETS

if TYPE_CHECKING:  # PyTorch is imported where something is learned
    from compile.distill.machine import Machine
    from compile.distill.teacher import Teacher

TOKENS = "tokens.npy"  # of one that leaves a text
STATE = "state.safetensors"  # of one that is training

SAMPLES = 2  # counts the changes of what a teacher is let write: what it wrote before is stale
SENSITIVITY_TOKENS = 2048  # each takes a row of logits in memory
ALMOST = 0.99  # of a step whose result is not kept yet

Done = Callable[[float], None]
T = TypeVar("T")


def run_recipe(
    recipe: Recipe, options: Options, work: Work, report: Report = lambda _stage, _done: None
) -> Outcome | None:
    """All stages, one after the other; None for a process that only helps to train.

    Raises:
        CompileError: with one line for the user; ``options.output`` is then as it was before, and
            what was done by then need not be done again.
    """
    run = Run(recipe, options, work, report)
    try:
        model = run.imported()
        data = run.data(model)
        student = run.distilled(model, data)
        quantized = run.quantized(student, data)
        if not work.leads:
            return None
        trials = run.trials(data)
        manifest = run.packed(quantized)  # last: what is there is replaced when all else is known
        return Outcome(manifest, data, trials, tuple(work.steps))
    except EdgeLLMError as error:  # a chat template, say, that the device could not use either
        raise CompileError(str(error)) from None


class Run:
    """One recipe at work on one model."""

    def __init__(self, recipe: Recipe, options: Options, work: Work, report: Report) -> None:
        self.recipe = recipe
        self.options = options
        self.work = work
        self.models: list[Model] = []  # in the order in which they were made
        self._layers: Sequence[int] = ()  # of the model as it came, that a pruned student's were
        self._report = report

    def imported(self) -> Model:
        """The model as it came; it teaches, unless the recipe names another teacher."""
        done = self._stage("import")
        path, taught = resolve(self.options.source), self.recipe.teacher
        key = content_key(source_files(path))
        model = Model("original" if taught else "teacher", "as it came", key, open_checkpoint(path))
        if taught:
            path = resolve(taught.model)
            key = content_key(source_files(path))
        self._teacher_path, self._teacher_key = path, key
        done(1.0)
        if self.work.leads:  # one process says what is wrong; torchrun then ends the others
            self._check(model)
        return self._made(model)

    def _check(self, model: Model) -> None:
        """Refuse now what would be refused once everything has been trained."""
        config, files = model.checkpoint.config, model.checkpoint.tokenizer
        if self.recipe.teacher is not None:
            check_match(files, self.recipe.data.length, self._teacher_path)
        predictor = CheckpointPredictor(config.name, model.checkpoint)
        for prompt in self.recipe.evaluate.prompts:
            try:
                predictor.prompt(prompt, raw=False)
            except EdgeLLMError as error:
                raise CompileError(f"[evaluate] prompts: {prompt[:40]!r}: {error}") from None
        if self.recipe.student is None:
            self._check_sizes(model.checkpoint)
            return
        config = student_config(config, self.recipe.student)
        if self.recipe.budget is not None:
            self._allowed(config, files, self.recipe.budget)
        else:
            widest(config, positions(config, self.options))

    def _check_sizes(self, checkpoint: Checkpoint) -> None:
        """Refuse sizes, formats and budgets that do not go together."""
        config, budget = checkpoint.config, self.recipe.budget
        if budget is not None:
            self._allowed(config, checkpoint.tokenizer, budget)
        else:
            make_plan(config, Formats.of(checkpoint, self.options.formats), self.options)

    def data(self, model: Model) -> Data:
        """The user's text, or one that the teacher writes."""
        settings, evaluate = self.recipe.data, self.recipe.evaluate
        config, files = model.checkpoint.config, model.checkpoint.tokenizer
        if settings.length > config.context:
            raise CompileError(
                f"[data] length {settings.length}: {config.name} was trained for {config.context} "
                "positions"
            )
        held = None
        if evaluate.text:  # before the teacher writes for an hour
            held = read_tokens(evaluate.text, files, settings.length, evaluate.tokens)
            held_source = " and ".join(path.name for path in evaluate.text)
        if settings.text:
            tokens = read_tokens(settings.text, files, settings.length, settings.tokens)
            source = " and ".join(path.name for path in settings.text)
        else:
            tokens = self._sampled(files)
            source = "what the teacher wrote"
        if held is None:
            tokens, held = split(tokens, evaluate.tokens)
            held_source = f"{source}, which nothing learned from"
        notes = (f"{t.size:,} tokens of {s}" for t, s in ((tokens, source), (held, held_source)))
        return Data(tokens, held, *notes)

    def _sampled(self, files: TokenizerFiles) -> Tokens:
        settings = self.recipe.data
        wanted = {"tokens": settings.tokens, "length": settings.length, "seed": settings.seed}

        def make(folder: Path, done: Done) -> None:
            from compile.distill.data import sample

            tokens = sample(self._teacher()[0], files, **wanted, folder=folder, report=done)
            with replacing(folder / TOKENS) as file:
                np.save(file, tokens)

        inputs = {"teacher": self._teacher_key, "samples": SAMPLES, **wanted}
        if self.recipe.teacher is not None:  # whose turns begin and end as the model's do
            inputs["tokenizer"] = digest(asdict(files))
        step = self._step("sample", inputs, make)
        tokens: Tokens = np.load(step.folder / TOKENS)
        return tokens

    def distilled(self, model: Model, data: Data) -> Model:
        """What has learned from the teacher, cut out of the model first where it is smaller."""
        training = self.recipe.distill
        if training is None:
            return model
        if self.recipe.student is not None:
            model = self._pruned(model, self.recipe.student, data)
        step = self._trained("distill", model, training, data)
        return self._made(opened_model("distilled", step, f"{training.steps:,} steps"))

    def _pruned(self, model: Model, shape: Student, data: Data) -> Model:
        """The layers and columns of the model that matter most."""
        tokens = self._calibration(data)

        def make(folder: Path, done: Done) -> dict[str, Any]:
            config = student_config(model.checkpoint.config, shape)
            pruned = prune(model.checkpoint, config.layers, config.ffn, tokens, done)
            store(folder / WEIGHTS, pruned)
            return {"layers": list(pruned.layers)}

        inputs = {"teacher": model.key, "shape": asdict(shape), "data": hash_tokens(tokens)}
        step = self._step("prune", inputs, make)
        student = self._made(opened_model("pruned", step))
        self._check_sizes(student.checkpoint)
        self._layers = step.facts["layers"]
        return student

    def quantized(self, student: Model, data: Data) -> Model:
        """The student in integers, and trained on with them if the recipe wants that."""
        formats = self._formats(student, data)
        rounded = QuantizedCheckpoint(student.checkpoint, formats)
        key = digest({"student": student.key, "formats": str(formats)})
        model = self._made(Model("rounded", "to the nearest values", key, rounded))
        if self.recipe.quantize.method == "calibrated":
            model = self._calibrated(student, formats, data)
        training = self.recipe.finetune
        if training is None:
            return model
        step = self._trained("finetune", student, training, data, quantized=model)
        note = f"{training.steps:,} steps with rounded weights"
        return self._made(opened_model("finetuned", step, note))

    def _formats(self, student: Model, data: Data) -> Formats:
        """Of each kind of matrices: as the budget allows and the model minds least, or as asked."""
        checkpoint, budget = student.checkpoint, self.recipe.budget
        if budget is None:
            return Formats.of(checkpoint, self.options.formats)
        left = self._allowed(checkpoint.config, checkpoint.tokenizer, budget)
        tokens = picked(data.learned, SENSITIVITY_TOKENS, self.recipe.data.seed)

        tried = candidates(checkpoint.config)

        def make(folder: Path, done: Done) -> dict[str, Any]:
            costs = sensitivity(checkpoint, tokens, tried, lambda _stage, share: done(share))
            return {
                kind: {str(form): cost for form, cost in by_form.items()}
                for kind, by_form in costs.items()
            }

        inputs = {
            "student": student.key,
            "tokens": hash_tokens(tokens),
            "tried": {kind: list(map(str, forms)) for kind, forms in tried.items()},
        }
        facts = self._step("sensitivity", inputs, make).facts
        costs = {
            kind: {MatrixFormat.parse(form): cost for form, cost in facts[kind].items()}
            for kind in KINDS
        }
        return choose(costs, sizes(checkpoint.config), left)

    def _allowed(self, config: ModelConfig, files: TokenizerFiles, budget: Budget) -> int:
        """Bytes that the budget leaves for the matrices; CompileError where none is enough."""
        context = positions(config, self.options)
        widest(config, context)  # whatever the budget, sizes that there are kernels for
        left = allowance(limit(budget, context), config, files, context)
        taken = sizes(config)
        choose({kind: dict.fromkeys(forms, 0.0) for kind, forms in taken.items()}, taken, left)
        return left

    def _calibrated(self, student: Model, formats: Formats, data: Data) -> Model:
        """Every matrix rounded for the inputs that it gets."""
        tokens = self._calibration(data)

        def make(folder: Path, done: Done) -> None:
            quantized = calibrate(
                student.checkpoint, formats, tokens, lambda _stage, share: done(share)
            )
            store(folder / WEIGHTS, quantized)

        inputs = {
            "student": student.key,
            "formats": str(formats),
            "tokens": hash_tokens(tokens),
            "calibration": CALIBRATION,
        }
        step = self._step("quantize", inputs, make)
        return self._made(opened_model("calibrated", step, f"on {tokens.size:,} tokens"))

    def _trained(
        self,
        name: str,
        student: Model,
        training: Training,
        data: Data,
        *,
        quantized: Model | None = None,
    ) -> Step:
        """A step in which a student learns from the teacher; ``quantized`` rounds it meanwhile."""
        chosen = {**asdict(training), "seed": self.recipe.data.seed}
        layers = self._layers or range(student.checkpoint.config.layers)

        def make(folder: Path, done: Done) -> dict[str, Any]:
            from compile.distill.train import Settings, train

            teacher, machine = self._teacher()
            trained = train(
                student.checkpoint, teacher, data.learned, Settings(**chosen), folder, machine,
                quantized=quantized.checkpoint if quantized else None, layers=layers,
                held_out=data.shown, report=done,
            )  # fmt: skip
            if self.work.leads:
                store(folder / WEIGHTS, trained)
            return {"shown": hash_tokens(data.shown)}

        inputs = {
            "student": student.key,
            "quantized": quantized.key if quantized else None,
            "teacher": self._teacher_key,
            "tokens": hash_tokens(data.learned),
            "training": {key: value for key, value in chosen.items() if key != "save_every"},
        }
        step = self._step(name, inputs, make, together=True)
        (step.folder / STATE).unlink(missing_ok=True)  # thrice the weights, and of no more use
        return step

    def _teacher(self) -> tuple[Teacher, Machine]:
        """The teacher as PyTorch runs it, and where."""
        from compile.distill.machine import Machine
        from compile.distill.teacher import open_teacher

        machine = Machine.here()
        return open_teacher(self._teacher_path, machine), machine

    def packed(self, model: Model) -> m.Manifest:
        """Lower, build and pack: the artifact."""
        quantized = QuantizedCheckpoint(model.checkpoint, Formats.of(model.checkpoint))
        with self.work.timed("lower, build, pack"):
            return make_artifact(quantized, self.options, self._report)

    def trials(self, data: Data) -> tuple[Trial, ...]:
        """What each model makes of the held-out text; the first and the last answer prompts."""
        return tuple(self._trial(model, data) for model in self.models)

    def _trial(self, model: Model, data: Data) -> Trial:
        settings = self.recipe.evaluate
        first, *_, last = self.models
        prompts = settings.prompts if model in (first, last) else ()

        def make(folder: Path, done: Done) -> dict[str, Any]:
            student = CheckpointPredictor(model.title, model.checkpoint)
            other = CheckpointPredictor(first.title, first.checkpoint)
            parts = told(data.held_out.tolist(), done)
            predictions = score(parts, student, None if model is first else other)
            given = [student.generate(prompt, False, settings.answer) for prompt in prompts]
            return {"figures": predictions.summary(), "answers": given}

        inputs = {
            "model": model.key,
            "teacher": first.key,
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
        *,
        together: bool = False,
    ) -> Step:
        """A step of the work folder, shown while it is at work."""
        done = self._stage(name)
        step = self.work.step(
            name,
            inputs,
            lambda folder: make(folder, lambda share: done(min(share, ALMOST))) or {},
            together=together,
        )
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


def limit(budget: Budget, context: int) -> Bits | ArtifactSize | Fits:
    """What a recipe's budget bounds."""
    if budget.bits_per_weight is not None:
        return Bits(budget.bits_per_weight)
    if budget.megabytes is not None:
        return ArtifactSize(round(budget.megabytes * 1e6))
    assert budget.fits is not None
    return Fits(TARGETS[budget.fits], context)
