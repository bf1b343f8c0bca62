"""What a recipe's run works on and leaves: models on their way, data, and what came of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compile.checkpoint import Checkpoint
from compile.corpus import Tokens
from compile.stored import open_stored
from compile.work import Step, digest
from edge_llm import manifest as m

WEIGHTS = "weights.safetensors"  # of a step that leaves a model
CURVE = "curve.jsonl"  # of one that trains
CURVE_TOKENS = 2048  # held out, for the curve of a training


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

    @property
    def shown(self) -> Tokens:
        """A part of what is held out, on which a training shows how far it is."""
        return self.held_out[: max(1, CURVE_TOKENS // self.held_out.shape[1])]


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
    trials: tuple[Trial, ...]  # that of the model as it came first, that of what was packed last
    steps: tuple[Step, ...]


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
