"""The format in which each kind of a model's matrices is held.

MatrixFormat.parse("int4-g64-asym")             # MatrixFormat(bits=4, group=64, symmetric=False)
formats = Formats.of(checkpoint, Choices(kinds={"down": INT8}))     # all else as the model has it
formats["down"].bits_per_weight, formats.bits_per_weight(checkpoint.config)     # 8.5, 5.3
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

from compile.checkpoint import Q4, Q8, Checkpoint, ModelConfig, Tensor
from compile.errors import CompileError
from compile.families import FAMILIES
from compile.graph import KINDS, Kind
from compile.llama_tensors import tensor_shapes

SCALE_BITS = 16


@dataclass(frozen=True)
class MatrixFormat:
    """How a matrix is quantized; ``str`` gives the text that :meth:`parse` reads.

    Attributes:
        bits: of a weight, 4 or 8.
        group: columns that share a scale: 32, 64 or 128; 32 with 8 bits.
        symmetric: 4 bits: ``d·(q-8)``, otherwise ``d·q + m``. 8 bits: always, ``d·q``.
    """

    bits: int
    group: int
    symmetric: bool

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise CompileError(f"weights in {self.bits} bits: 4 or 8 are supported")
        if self.group not in (32, 64, 128):
            raise CompileError(f"group size {self.group}: 32, 64 or 128 are supported")
        if self.bits == 8 and (self.group, self.symmetric) != (32, True):
            raise CompileError("weights in 8 bits: symmetric groups of 32 are supported")

    @property
    def bits_per_weight(self) -> float:
        """Bits with a weight's share of its group's float16 scale and, if asymmetric, minimum."""
        return self.bits + SCALE_BITS / self.group * (1 if self.symmetric else 2)

    def __str__(self) -> str:
        if self.bits == 8:
            return "int8"
        return f"int4-g{self.group}{'' if self.symmetric else '-asym'}"

    @classmethod
    def parse(cls, text: str) -> MatrixFormat:
        """A format from its text; CompileError says which there are."""
        if text == "int8":
            return INT8
        if match := re.fullmatch("int4-g(32|64|128)(-asym)?", text):
            return cls(4, int(match[1]), match[2] is None)
        raise CompileError(
            f"no format {text!r}: write int8, int4-gN or int4-gN-asym with N 32, 64 or 128"
        )

    @classmethod
    def of(cls, tensor: Tensor) -> MatrixFormat | None:
        """The format that a tensor is in; None for floats."""
        if isinstance(tensor, Q8):
            return INT8
        if isinstance(tensor, Q4):
            return cls(4, tensor.group, tensor.minimum is None)
        return None


INT4 = MatrixFormat(4, 32, True)
INT8 = MatrixFormat(8, 32, True)


@dataclass(frozen=True)
class Choices:
    """What a user decides about the formats; all else follows the model.

    Attributes:
        group: of every 4-bit matrix; makes layers 4-bit.
        symmetric: of every 4-bit matrix; makes layers 4-bit.
        head_bits: of the embedding and the output head, 4 or 8.
        kinds: formats of single kinds, whatever the rest says.
    """

    group: int | None = None
    symmetric: bool | None = None
    head_bits: int | None = None
    kinds: Mapping[Kind, MatrixFormat] = field(default_factory=dict)

    def layers(self, own: MatrixFormat) -> MatrixFormat:
        """The format of layer matrices that the model has in the format ``own``."""
        if self.group is None and self.symmetric is None:
            return own
        symmetric = own.symmetric if self.symmetric is None else self.symmetric
        return MatrixFormat(4, self.group or own.group, symmetric)

    def head(self, own: MatrixFormat, layers: MatrixFormat) -> MatrixFormat:
        """The same of embedding and head, which are like ``layers`` where 4 bits are asked for."""
        bits = self.head_bits or own.bits
        if bits != 4:
            return MatrixFormat(bits, 32, True)
        return self.layers(own if own.bits == 4 else replace(layers, bits=4))


@dataclass(frozen=True)
class Formats:
    """A format for each kind of matrices (:data:`compile.graph.Kind`)."""

    qkv: MatrixFormat = INT4
    o: MatrixFormat = INT4
    gate_up: MatrixFormat = INT4
    down: MatrixFormat = INT4
    head: MatrixFormat = INT8

    def __getitem__(self, kind: Kind) -> MatrixFormat:
        return cast(MatrixFormat, getattr(self, kind))

    def __str__(self) -> str:
        return ", ".join(f"{kind} {self[kind]}" for kind in KINDS)

    @classmethod
    def of(cls, checkpoint: Checkpoint, choices: Choices | None = None) -> Formats:
        """Those that keep a checkpoint's quantized matrices as they are, but for what is chosen."""
        choices = choices or Choices()
        names = FAMILIES[checkpoint.config.family](checkpoint.config).matrices(
            checkpoint.config.layers
        )
        default = cls()
        own = {kind: own_format(checkpoint, names[kind], default[kind]) for kind in KINDS}
        chosen = {kind: choices.layers(own[kind]) for kind in KINDS}
        chosen["head"] = choices.head(own["head"], own["qkv"])
        return cls(**(chosen | dict(choices.kinds)))

    def bits_per_weight(self, config: ModelConfig) -> float:
        """The average over all matrices, a tied embedding counted once."""
        weights = weights_of(config)
        bits = sum(count * self[kind].bits_per_weight for kind, count in weights.items())
        return bits / sum(weights.values())


def own_format(checkpoint: Checkpoint, names: Iterable[str], default: MatrixFormat) -> MatrixFormat:
    """The format in which a kind's matrices are, or which holds those of 4 bits as they are.

    ``default`` where the first is float, or where others than 4-bit ones shall have 8 bits.
    """
    found: list[MatrixFormat | None] = []
    for name in names:
        found.append(MatrixFormat.of(checkpoint.tensor(name)))
        if found[0] is None:
            return default  # a float model's other tensors need not be read
    if len(set(found)) == 1 and found[0] is not None:
        return found[0]
    fours = [form for form in found if form is not None and form.bits == 4]
    if not fours or (len(fours) < len(found) and default.bits == 8):
        return default
    # d·(q-8) is d·q + m with m = -8·d exactly, but not the other way round.
    symmetric = len(fours) == len(found) and all(form.symmetric for form in fours)
    return MatrixFormat(4, fours[0].group, symmetric)


def weights_of(config: ModelConfig) -> dict[Kind, int]:
    """How many weights the matrices of each kind have."""
    shapes = tensor_shapes(config)
    names = FAMILIES[config.family](config).matrices(config.layers)
    return {kind: sum(math.prod(shapes[name]) for name in names[kind]) for kind in KINDS}


def parse_kinds(texts: Iterable[tuple[str, str]]) -> dict[Kind, MatrixFormat]:
    """Formats of single kinds from pairs of a kind's name and a format's text."""
    kinds: dict[Kind, MatrixFormat] = {}
    for name, text in texts:
        if name not in KINDS:
            raise CompileError(f"no kind of matrices {name!r}: choose {', '.join(KINDS)}")
        kinds[name] = MatrixFormat.parse(text)
    return kinds
