"""A model ready to answer: what :func:`edge_llm.load` gives, and what the transports serve.

with edge_llm.load("smollm2-rpi5.edge", threads=4) as model:
    print("".join(model.generate("What is the capital of France?", max_tokens=32)))
    logits = model.logits(model.tokenizer.encode("The capital of France is").ids)
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from types import TracebackType
from typing import TYPE_CHECKING

from tokenizers import Tokenizer as HFTokenizer

from edge_llm.answer import Answer
from edge_llm.artifact import Artifact
from edge_llm.batch import StepExecutor
from edge_llm.cpu import check_target, host
from edge_llm.engine import Engine
from edge_llm.errors import RequestError
from edge_llm.executor import Executor
from edge_llm.manifest import Manifest
from edge_llm.memory import trim
from edge_llm.request import Message, Request, Sampling
from edge_llm.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Model:
    """A compiled model with its engine; made by :func:`edge_llm.load`.

    Args:
        artifact: the opened file.
        executor: runs its steps.
        tokenizer: of the same file.

    Attributes:
        manifest: what the artifact says about itself.
        sha256: of the manifest, which names the artifact among all others.
        engine: answers requests; transports submit to it.
        executor: runs the engine's steps.
        tokenizer: the Hugging Face ``tokenizers.Tokenizer``.
    """

    def __init__(self, artifact: Artifact, executor: StepExecutor, tokenizer: Tokenizer) -> None:
        self.manifest: Manifest = artifact.manifest
        self.sha256 = artifact.sha256
        self.tokenizer: HFTokenizer = tokenizer.hf
        self.executor = executor
        self.engine = Engine(executor, tokenizer)
        self._artifact = artifact
        self._tokenizer = tokenizer

    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        raw: bool = False,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
    ) -> Answer:
        """Answers a prompt, or the last message of a conversation.

        Args:
            prompt: what a user says; with ``raw`` a text to be continued as it is.
            messages: ``{"role": ..., "content": ...}``, oldest first, instead of a prompt.
            raw: leave the chat template out.
            max_tokens: tokens to generate at most; None goes on to the end of the context.
            temperature: see :class:`edge_llm.request.Sampling`, as those that follow.
            top_k: likewise.
            top_p: likewise.
            min_p: likewise.
            repetition_penalty: likewise.
            seed: likewise.
            stop: a text, or several, that end the answer and are not part of it.

        Returns:
            An iterator over the answer's text.

        Raises:
            RequestError: a value out of range, a prompt that does not fit, an engine that is full.
        """
        request = Request(
            prompt=prompt,
            messages=None if messages is None else tuple(messages),
            raw=raw,
            max_tokens=max_tokens,
            sampling=Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
        )
        return Answer(self.engine, request)

    def encode(self, text: str) -> list[int]:
        """Token ids of a raw text, with the token that begins a text where the model wants one."""
        return self._tokenizer.encode(text)

    def logits(self, token_ids: Sequence[int] | NDArray[np.integer]) -> NDArray[np.float32]:
        """The logits at every position of a sequence, float32 [n, vocab], as a new array.

        Raises:
            RequestError: no tokens, unknown ones, or more than the context holds.
            ModuleNotFoundError: numpy is not installed, which is in the extra ``eval``.
        """
        try:
            ids = [index(token) for token in token_ids]
        except TypeError:
            message = f"token_ids must be a list of integers, not {str(token_ids)[:100]}"
            raise RequestError(400, "invalid_request", message, "token_ids") from None
        return self.engine.logits(ids)

    def close(self) -> None:
        """Stops the engine and lets go of the artifact. Idempotent."""
        self.engine.close()
        self._artifact.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def start(
    artifact: Artifact,
    threads: int | None,
    context: int | None,
    sequences: int,
    decode_threads: int | None,
) -> Model:
    """See :func:`edge_llm.load`; the artifact is the model's from here on."""
    check_target(artifact.manifest.target, host(), str(artifact.path))
    tokenizer = Tokenizer.of(artifact)
    executor = Executor(
        artifact,
        threads=threads,
        decode_threads=decode_threads,
        context=context,
        sequences=sequences,
    )
    trim()
    artifact.forget_pages()
    return Model(artifact, executor, tokenizer)
