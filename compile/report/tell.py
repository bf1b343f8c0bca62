"""What a run has made, told as a report."""

from __future__ import annotations

import json
import math
from pathlib import Path

from compile.checkpoint import Checkpoint
from compile.families import FAMILIES
from compile.graph import KINDS
from compile.importer import source_files
from compile.llama_tensors import parameters
from compile.outcome import CURVE, Outcome, Trial, hash_tokens
from compile.pipeline import Options
from compile.quantize.formats import MatrixFormat, weights_of
from compile.report.content import Cost, Curve, Kind, Model, Report
from compile.sources import resolve
from compile.work import Step

FLOAT_BITS = 16  # in which weights that are not quantized are counted
NAMES = {
    "qkv": "query, key, value",
    "o": "attention's output",
    "gate_up": "gate and up",
    "down": "down",
    "head": "embedding and head",
}


def tell(
    outcome: Outcome, options: Options, command: str, recipe: str, prompts: tuple[str, ...]
) -> Report:
    """The report of a run.

    Args:
        outcome: what :func:`compile.run.run_recipe` returned.
        options: it was given.
        command: that a user would type.
        recipe: its text.
        prompts: that the first and the last model answered.
    """
    manifest, source = outcome.manifest, resolve(options.source)
    before, after = (outcome.trials[i].model.checkpoint for i in (0, -1))
    made_with, shown = manifest.compiler, hash_tokens(outcome.data.shown)
    return Report(
        name=manifest.model.name,
        artifact=options.output.name,
        artifact_bytes=options.output.stat().st_size,
        memory_bytes=manifest.memory.certificate(manifest.model.context, 1),
        context=manifest.model.context,
        target=options.target.name,
        source=options.source,
        source_bytes=sum(path.stat().st_size for path in source_files(source)),
        data=outcome.data.learned_note,
        held_out=outcome.data.held_note,
        command=command,
        recipe=recipe,
        versions=f"edge-llm {made_with.edge_llm}, TVM {made_with.tvm}, LLVM {made_with.llvm}",
        models=[model(trial) for trial in outcome.trials],
        kinds=kinds(before, after),
        curves=[c for step in outcome.steps if (c := curve(step, shown)) is not None],
        prompts=prompts,
        costs=[
            Cost(step.name.replace("-", " "), step.seconds, step.peak_bytes, step.reused)
            for step in outcome.steps
        ],
    )


def model(trial: Trial) -> Model:
    """One of the models that were compared."""
    checkpoint = trial.model.checkpoint
    weights = sum(weights_of(checkpoint.config).values())
    matrix_bytes = sum(size for size, _ in sizes(checkpoint).values())
    return Model(
        title=trial.model.title,
        note=trial.model.note,
        parameters=parameters(checkpoint.config),
        bits_per_weight=8 * matrix_bytes / weights,
        matrix_bytes=matrix_bytes,
        figures=trial.figures,
        answers=trial.answers,
    )


def kinds(before: Checkpoint, after: Checkpoint) -> list[Kind]:
    """What each kind of matrices takes in two models."""
    weights = [weights_of(checkpoint.config) for checkpoint in (before, after)]
    taken = [sizes(checkpoint) for checkpoint in (before, after)]
    return [
        Kind(
            name=NAMES[kind],
            weights=weights[1][kind],
            weights_before=weights[0][kind],
            bytes=taken[1][kind][0],
            bytes_before=taken[0][kind][0],
            formats=taken[1][kind][1],
        )
        for kind in KINDS
    ]


def sizes(checkpoint: Checkpoint) -> dict[str, tuple[int, str]]:
    """Of each kind of matrices the bytes, and the formats they are in."""
    names = FAMILIES[checkpoint.config.family](checkpoint.config).matrices(checkpoint.config.layers)
    taken: dict[str, tuple[int, str]] = {}
    for kind in KINDS:
        bits, formats = 0.0, dict[str, None]()
        for name in names[kind]:
            tensor = checkpoint.tensor(name)
            form = MatrixFormat.of(tensor)
            bits += math.prod(tensor.shape) * (form.bits_per_weight if form else FLOAT_BITS)
            formats["float" if form is None else str(form)] = None
        taken[kind] = int(bits / 8), ", ".join(formats)
    return taken


def curve(step: Step, shown: str) -> Curve | None:
    """A training's curve; None for a step that trained nothing.

    An earlier run's may have been measured on other held-out text than that of the hash ``shown``.
    """
    path: Path = step.folder / CURVE
    if not path.exists():
        return None
    values: dict[str, list[tuple[int, float]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        point = json.loads(line)
        for name in ("loss", "kl") if step.facts.get("shown") == shown else ("loss",):
            if point.get(name) is not None:
                values.setdefault(name, []).append((point["step"], point[name]))
    return Curve(step.name, values)
