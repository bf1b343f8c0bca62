"""A model as the importers hand it on: sizes, tensors by name, tokenizer.

Tensor names and row order are those of Hugging Face's Llama; whatever a file format does
differently (names, permuted rotary rows, block layouts) ends in its importer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

ACTIVATION_GROUP = 32  # columns that share one activation scale


@dataclass(frozen=True)
class Q4:
    """A matrix of 4-bit weights: ``scale * (q - 8)``, or ``scale * q + minimum`` where it has one.

    Attributes:
        q: uint8 [rows, columns], values 0 to 15.
        scale: float16 [rows, columns / group].
        minimum: float16 [rows, columns / group], or None for the symmetric form.
    """

    q: NDArray[np.uint8]
    scale: NDArray[np.float16]
    minimum: NDArray[np.float16] | None = None

    @property
    def group(self) -> int:
        """Columns that share one scale: 32, 64 or 128."""
        return int(self.q.shape[1] // self.scale.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.q.shape[0]), int(self.q.shape[1])

    def rows(self, index: NDArray[np.intp]) -> Q4:
        """The same matrix with its rows taken in the order of ``index``."""
        return Q4(
            self.q[index],
            self.scale[index],
            None if self.minimum is None else self.minimum[index],
        )

    def dequantize(self) -> NDArray[np.float32]:
        """float32 [rows, columns], rounded once a weight."""
        scale = np.repeat(self.scale.astype(np.float32), self.group, axis=1)
        if self.minimum is None:
            return scale * (self.q.astype(np.float32) - 8)
        return scale * self.q.astype(np.float32) + np.repeat(
            self.minimum.astype(np.float32), self.group, axis=1
        )


@dataclass(frozen=True)
class Q8:
    """A matrix of 8-bit weights ``scale * q`` in groups of 32 columns.

    Attributes:
        q: int8 [rows, columns].
        scale: float16 [rows, columns / 32].
    """

    q: NDArray[np.int8]
    scale: NDArray[np.float16]

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.q.shape[0]), int(self.q.shape[1])

    def rows(self, index: NDArray[np.intp]) -> Q8:
        """The same matrix with its rows taken in the order of ``index``."""
        return Q8(self.q[index], self.scale[index])

    def dequantize(self) -> NDArray[np.float32]:
        """float32 [rows, columns]."""
        return np.repeat(self.scale.astype(np.float32), 32, axis=1) * self.q.astype(np.float32)


Matrix: TypeAlias = Q4 | Q8
Tensor: TypeAlias = NDArray[np.float32] | NDArray[np.float16] | Q4 | Q8


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of a decoder, as every stage after import needs them."""

    family: str  # a name in compile.families.FAMILIES
    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab_size: int
    context: int  # positions the model was trained for
    norm_eps: float
    rope_frequencies: tuple[float, ...]  # [head_dim / 2] radians a position, scaling applied
    tied: bool  # the output head is the embedding
    license: str | None = None


@dataclass(frozen=True)
class TokenizerFiles:
    """What the device needs to turn text into token ids and back."""

    tokenizer_json: bytes  # of the Hugging Face `tokenizers` library
    chat_template: str | None  # Jinja
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]  # each of them ends an answer
    add_bos: bool
    bos_token: str  # as the chat template names it; empty where there is none
    eos_token: str


class Checkpoint(Protocol):
    """A model opened for reading; tensors are read when asked for, so few are in memory."""

    config: ModelConfig
    tokenizer: TokenizerFiles

    def names(self) -> Iterable[str]:
        """Every tensor's name, e.g. ``model.layers.0.self_attn.q_proj.weight``."""

    def tensor(self, name: str) -> Tensor:
        """One tensor; KeyError where there is none of that name."""
