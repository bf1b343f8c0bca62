"""A recipe: what is made of a model, in one TOML file.

All of it may be left out; what is not given has the value shown in the dataclass of its table::

    [data]                      # what the student learns from and quantization is calibrated on
    text = "notes.txt"          # one file or a list; without it the teacher writes the text

    [teacher]                   # without it the model itself teaches
    model = "hf:ORG/NAME"       # of the same vocabulary; see docs/recipes.md

    [student]                   # without it the student has the model's shape
    parameters = 0.6            # share of the model's; or layers = 20 and ffn = 1024

    [distill]                   # train the pruned student
    steps = 2000

    [quantize]
    method = "calibrated"       # or "nearest"

    [finetune]                  # train on, with weights that are rounded in every step
    steps = 500

    [budget]                    # one of
    bits_per_weight = 4.25
    megabytes = 80              # of the artifact
    fits = "rpi-zero2w"         # a target: the memory of its board, at work
    context = 1024              # with fits: positions of a conversation

    [evaluate]
    text = "held-out.txt"       # without it, a part of the data is held out

    recipe = read_recipe(Path("recipe.toml"))
    recipe.data.length          # 512
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NewType, TypeVar, get_type_hints

from compile.errors import CompileError
from compile.json_file import read_text
from compile.sources import located
from targets import TARGETS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
Source = NewType("Source", str)  # of a model, see compile.sources


def number(low: float, high: float, default: Any = MISSING) -> Any:
    """A field that holds a number between two bounds, both included."""
    return field(default=default, metadata={"low": low, "high": high})


def choice(*values: str | int, default: Any = MISSING) -> Any:
    """A field that holds one of some words or numbers."""
    return field(default=default, metadata={"choices": values})


class RecipeError(Exception):
    """What is wrong with the value of a key; whoever knows the file and the table adds them."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True)
class Data:
    """What training and calibration read."""

    text: tuple[Path, ...] = ()  # files of UTF-8; none: the teacher writes the text
    tokens: int = number(64, 10**10, 200_000)  # how many of the text, or how many are written
    length: int = number(8, 65536, 512)  # tokens of a sequence
    seed: int = number(0, 2**31 - 1, 0)  # of the text that the teacher writes, and of every order


@dataclass(frozen=True)
class Teacher:
    """Whom the student learns from, if not from the model that it is made of."""

    model: Source  # a path, hf:ORG/NAME or pypi:PACKAGE


@dataclass(frozen=True)
class Student:
    """The shape of a smaller student: a share of the parameters, or sizes."""

    parameters: float | None = number(0.05, 0.95, None)  # share of the model's
    layers: int | None = number(1, 1000, None)
    ffn: int | None = number(32, 10**6, None)  # width between gate and down

    def __post_init__(self) -> None:
        sized = self.layers is not None or self.ffn is not None
        if sized and self.parameters is not None:
            raise RecipeError("parameters", "or layers and ffn, not both")
        if not sized and self.parameters is None:
            raise RecipeError("", "give parameters, or layers and ffn")
        if self.ffn is not None and self.ffn % 32:
            raise RecipeError("ffn", "must be a multiple of 32, the device's smallest group")


@dataclass(frozen=True)
class Training:
    """One training of the student on the teacher's logits."""

    steps: int = number(1, 10**8)
    batch: int = number(1, 4096, 2)  # sequences of a step
    learning_rate: float = number(1e-8, 1.0, 3e-4)  # the highest, after a short warm-up
    states: float = number(0.0, 100.0, 0.0)  # weight of the layers' states beside the logits
    save_every: int = number(1, 10**6, 50)  # steps, which are lost at most when power fails


@dataclass(frozen=True)
class Quantization:
    """How weights become integers; formats that are not given here follow from the budget."""

    method: str = choice("calibrated", "nearest", default="calibrated")
    tokens: int = number(64, 10**8, 32_768)  # of the data, that calibration looks at
    group: int | None = choice(32, 64, 128, default=None)  # columns that share a scale
    symmetric: bool | None = None
    head_bits: int | None = choice(4, 8, default=None)  # of embedding and output head


@dataclass(frozen=True)
class Budget:
    """What the model may take; one of these."""

    bits_per_weight: float | None = number(1.0, 16.0, None)  # over all matrices, scales counted
    megabytes: float | None = number(0.1, 4095.0, None)  # 10^6 bytes, of the artifact
    fits: str | None = choice(
        *TARGETS, default=None
    )  # a target whose board's memory holds it at work

    context: int | None = number(1, 10**6, None)  # with ``fits``: positions of a conversation

    def __post_init__(self) -> None:
        limits = ("bits_per_weight", "megabytes", "fits")
        given = [name for name in limits if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise RecipeError("", f"give one of {', '.join(limits)}; found {found}")
        if self.context is not None and self.fits is None:
            raise RecipeError("context", "goes with fits; elsewhere it is the option --context")


@dataclass(frozen=True)
class Evaluation:
    """What the stages are compared on."""

    text: tuple[Path, ...] = ()  # that no training saw; none: a part of the data is held out
    tokens: int = number(16, 10**7, 4096)
    prompts: tuple[str, ...] = (
        "What is the capital of France?",
        "Explain in two sentences why the sky is blue.",
        "Write a short greeting for the display of a coffee machine.",
        "The soil is dry and it will not rain today. Should the garden be watered?",
    )
    answer: int = number(1, 4096, 48)  # tokens of an answer, at most


@dataclass(frozen=True)
class Recipe:
    """What the file says; a table that is None was not in it."""

    data: Data = field(default_factory=Data)
    teacher: Teacher | None = None
    student: Student | None = None
    distill: Training | None = None
    quantize: Quantization = field(default_factory=Quantization)
    finetune: Training | None = None
    budget: Budget | None = None
    evaluate: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        if self.student is not None and self.distill is None:
            raise RecipeError("student", "a pruned student must learn: add [distill] with steps")
        if self.distill is not None and self.student is None and self.teacher is None:
            raise RecipeError(
                "distill",
                "the student is the teacher, there is nothing to learn: add [student] or "
                "[teacher], or name the table [finetune] to train the quantized weights",
            )
        if self.teacher is not None:
            if not self.trains:
                raise RecipeError("teacher", "nothing learns from it: add [finetune] with steps")
            for training in (self.distill, self.finetune):
                if training is not None and training.states:
                    raise RecipeError("teacher", "its layers are others: leave out states")
        if self.budget is not None:
            for name in ("group", "symmetric", "head_bits"):
                if getattr(self.quantize, name) is not None:
                    raise RecipeError("budget", f"chooses the formats: leave out {name}")

    @property
    def trains(self) -> bool:
        """Whether it needs PyTorch."""
        return bool(self.distill or self.finetune or not self.data.text)


TABLES: dict[str, type] = {
    "data": Data,
    "teacher": Teacher,
    "student": Student,
    "distill": Training,
    "quantize": Quantization,
    "finetune": Training,
    "budget": Budget,
    "evaluate": Evaluation,
}


def read_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file; paths in it are relative to its folder.

    Raises:
        CompileError: the file cannot be read or is not TOML; a table or key is unknown, of the
            wrong type or out of range. The message names it and its line.
    """
    text = read_text(path)
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise CompileError(f"{path}: is not TOML: {str(error).splitlines()[0]}") from None
    tables: dict[str, Any] = {}
    for name, table in content.items():
        kind = TABLES.get(name)
        if kind is None:
            raise CompileError(f"{place(path, text, name)}: unknown table{nearest(name, TABLES)}")
        if not isinstance(table, dict):
            raise CompileError(f"{place(path, text, name)}: must be a table, as in [{name}]")
        try:
            tables[name] = build(kind, table, path.parent)
        except RecipeError as error:
            raise CompileError(f"{place(path, text, name, error.key)}: {error}") from None
    try:
        return Recipe(**tables)
    except RecipeError as error:
        raise CompileError(f"{place(path, text, error.key)}: {error}") from None


def build(kind: type[T], table: Mapping[str, Any], folder: Path) -> T:
    """A table's dataclass; RecipeError names the key that is wrong."""
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            raise RecipeError(key, f"unknown key{nearest(key, known)}")
    for key, spec in known.items():
        if spec.default is MISSING and key not in table:
            raise RecipeError(key, "missing")
    hints = get_type_hints(kind)
    values = {key: checked(known[key], hints[key], value) for key, value in table.items()}
    for key, value in values.items():
        if hints[key] == tuple[Path, ...]:
            values[key] = tuple(folder / name for name in value)
        if hints[key] is Source:
            values[key] = located(value, folder)
    return kind(**values)


def checked(spec: Field[Any], hint: Any, value: Any) -> Any:
    """A value of the field's type and range."""
    low, high, choices = (spec.metadata.get(name) for name in ("low", "high", "choices"))
    if choices is not None:
        if type(value) is not type(choices[0]) or value not in choices:
            raise RecipeError(spec.name, f"must be one of {', '.join(map(str, choices))}")
        return value
    if low is not None:
        whole = hint in (int, int | None)
        fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not fits or not low <= value <= high:
            kind = "an integer" if whole else "a number"
            raise RecipeError(spec.name, f"must be {kind} from {low:g} to {high:g}")
        return value
    if hint in (bool, bool | None):
        if not isinstance(value, bool):
            raise RecipeError(spec.name, "must be true or false")
        return value
    if hint is Source:
        if not isinstance(value, str) or not value.strip():
            raise RecipeError(spec.name, "must be a path, hf:ORG/NAME or pypi:PACKAGE")
        return value
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(t, str) and t.strip() for t in texts):
        raise RecipeError(spec.name, "must be a text or a list of texts")
    return tuple(texts)


def nearest(word: str, known: Mapping[str, object]) -> str:
    """Advice for a word that is not known."""
    close = get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


def place(path: Path, text: str, table: str, key: str = "") -> str:
    """``FILE:LINE: [table] key``; without the line where it is written in an unusual way."""
    header = re.compile(rf"\s*(\[\s*)?{re.escape(table)}\s*[].=]")
    entry = re.compile(rf"\s*({re.escape(table)}\s*\.\s*)?{re.escape(key)}\s*=")
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if header.match(line)), None)
    name = f"[{table}] {key}".rstrip()
    if start is None:
        return f"{path}: {name}"
    inside = itertools.takewhile(
        lambda i: not lines[i].lstrip().startswith("["), range(start + 1, len(lines))
    )
    found = next((i for i in (start, *inside) if key and entry.match(lines[i])), start)
    return f"{path}:{found + 1}: {name}"
