"""What a report tells, as data; :mod:`compile.report.page` makes the page of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Model:
    """The model as one stage left it.

    Attributes:
        title: of the stage, like "pruned".
        note: what was done, in a few words.
        parameters: of all tensors.
        bits_per_weight: over all matrices, scales counted.
        matrix_bytes: of all matrices.
        figures: on the held-out text, named as ``python -m compile eval`` names them.
        answers: to the report's prompts.
    """

    title: str
    note: str
    parameters: int
    bits_per_weight: float
    matrix_bytes: int
    figures: Mapping[str, float]
    answers: Sequence[str]


@dataclass(frozen=True)
class Kind:
    """Matrices of one kind, like those between gate and down, before and after."""

    name: str
    weights: int
    weights_before: int
    bytes: int
    bytes_before: int
    formats: str  # as they are now, for people


@dataclass(frozen=True)
class Curve:
    """One training: a value at each step, by the name of what was measured."""

    title: str
    values: Mapping[str, Sequence[tuple[int, float]]]  # "loss": [(step, nats), …]


@dataclass(frozen=True)
class Cost:
    """What a stage took."""

    stage: str
    seconds: float
    peak_bytes: int  # 0: not known
    reused: bool  # an earlier run had made it


@dataclass(frozen=True)
class Report:
    """All of it; the first model is the one that came, the last is in the artifact."""

    name: str
    artifact: str  # file name
    artifact_bytes: int
    memory_bytes: int  # of the artifact's certificate, at ``context``
    context: int
    target: str
    source: str
    source_bytes: int
    data: str  # what was learned from and calibrated on, in a line
    held_out: str  # what was evaluated on, in a line
    command: str
    recipe: str
    versions: str
    models: Sequence[Model]
    kinds: Sequence[Kind]
    curves: Sequence[Curve]
    prompts: Sequence[str]
    costs: Sequence[Cost] = field(default_factory=tuple)
