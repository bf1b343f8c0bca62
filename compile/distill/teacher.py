"""Whom the student learns from: any causal language model that our importers or transformers open.

teacher = open_teacher(Path("SmolLM2-135M-Instruct.Q4_1.gguf"))
lesson = teacher.lesson(tokens)         # logits and states at every position
step = teacher.generation(512)
logits = step(tokens[:, :1])            # then token by token
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from compile.checkpoint import Checkpoint
from compile.distill.decoder import Cache, Decoder
from compile.distill.machine import Machine
from compile.errors import CompileError, UnsupportedError
from compile.foreign_errors import translated
from compile.importer import open_checkpoint

HEADS = "num_attention_heads", "num_key_value_heads"  # as transformers calls them

# int64 [batch, n] on any device → the last one's logits, [batch, vocab], on the teacher's
Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Lesson:
    """What a teacher says of some tokens.

    Attributes:
        logits: [batch, n, vocab].
        states: [batch, n, width] before the first and after every layer.
    """

    logits: Tensor
    states: list[Tensor]


class Teacher(Protocol):
    """A model whose weights stay as they are."""

    def lesson(self, tokens: Tensor) -> Lesson:
        """What follows each prefix of int64 [batch, n]."""

    def together(self, length: int) -> int:
        """How many texts of so many tokens it writes at once."""

    def generation(self, length: int) -> Step:
        """A function that takes the next tokens of up to ``length`` and gives their logits."""


def open_teacher(path: Path, machine: Machine) -> Teacher:
    """A teacher of any format that our importers open, or transformers; CompileError if neither."""
    with translated(f"{path}: cannot teach on {machine.device}"):  # where there is no room, say
        try:
            return DecoderTeacher(open_checkpoint(path), machine)
        except UnsupportedError:
            return TransformersTeacher(path, machine)


class DecoderTeacher:
    """A teacher of a family of ours."""

    def __init__(self, checkpoint: Checkpoint, machine: Machine) -> None:
        self._machine = machine
        self._decoder = Decoder(checkpoint).to(machine.device).requires_grad_(False)
        for weight in self._decoder.weights.values():
            if weight.ndim == 2:  # norms stay in float32
                weight.data = weight.data.to(machine.dtype)

    @torch.no_grad()
    def lesson(self, tokens: Tensor) -> Lesson:
        """What follows each prefix of int64 [batch, n]."""
        states = list(self._decoder.states(tokens))
        return Lesson(self._decoder.logits(self._decoder.normalized(states[-1])), states)

    def together(self, length: int) -> int:
        """How many texts of so many tokens it writes at once."""
        config = self._decoder.config
        return self._machine.texts(
            length * cache_bytes(config.layers, config.kv_heads, config.head_dim, self._machine)
        )

    def generation(self, length: int) -> Step:
        """A function that takes the next tokens of up to ``length`` and gives their logits."""
        cache = Cache(length)

        @torch.no_grad()
        def step(tokens: Tensor) -> Tensor:
            hidden = self._decoder(tokens.to(self._decoder.cos.device), cache)
            return self._decoder.logits(hidden[:, -1])

        return step


class TransformersTeacher:
    """A teacher of any other architecture, as transformers runs it."""

    def __init__(self, path: Path, machine: Machine) -> None:
        from transformers import AutoModelForCausalLM

        # Weights that are a pickle are refused: loading one can run code.
        place: dict[str, Any] = (
            {"use_safetensors": True} if path.is_dir() else {"gguf_file": path.name}
        )
        with translated(f"{path}: transformers cannot open it either"):
            model: Any = AutoModelForCausalLM.from_pretrained(
                path if path.is_dir() else path.parent,
                dtype=machine.dtype,
                local_files_only=True,
                **place,
            )
        self._machine = machine
        self._model: Any = model.requires_grad_(False).to(machine.device)  # in evaluation mode

    @torch.no_grad()
    def lesson(self, tokens: Tensor) -> Lesson:
        """What follows each prefix of int64 [batch, n]."""
        out = self._model(tokens, output_hidden_states=True, use_cache=False)
        return Lesson(out.logits, list(out.hidden_states))

    def together(self, length: int) -> int:
        """How many texts of so many tokens it writes at once."""
        config = self._model.config.get_text_config()
        sizes = (config.to_dict().get(name) for name in ("num_hidden_layers", *HEADS, "head_dim"))
        layers, heads, kv_heads, head_dim = sizes
        if not layers or not heads:
            raise CompileError(
                f"a teacher of the kind {config.model_type!r} cannot write: give [data] a text"
            )
        head_dim = head_dim or config.hidden_size // heads
        return self._machine.texts(
            length * cache_bytes(layers, kv_heads or heads, head_dim, self._machine)
        )

    def generation(self, length: int) -> Step:
        """A function that takes the next tokens of up to ``length`` and gives their logits."""
        from transformers import StaticCache

        takes = signature(self._model.forward).parameters
        name = "cache" if "cache" in takes else "past_key_values"  # before transformers 5.24
        cache = {name: StaticCache(config=self._model.config, max_cache_len=length)}

        @torch.no_grad()
        def step(tokens: Tensor) -> Tensor:
            logits: Tensor = self._model(
                tokens.to(self._model.device), use_cache=True, **cache
            ).logits
            return logits[:, -1]

        return step


def cache_bytes(layers: int, kv_heads: int, head_dim: int, machine: Machine) -> int:
    """Of one token's keys and values."""
    return 2 * layers * kv_heads * head_dim * machine.dtype.itemsize
