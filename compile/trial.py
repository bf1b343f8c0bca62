"""What a model makes of text it has not seen, and what it answers: measured, and quoted.

predictions = compare(student, teacher, sequences)
predictions.summary()["kl_mean"]
answers(student, ["What is the capital of France?"], 48)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from compile.checkpoint import Checkpoint, Tensor
from compile.reference import Cache, Exact, Reference, dequantized
from edge_llm.chat_template import ChatTemplate
from edge_llm.evaluation import Predictions

Done = Callable[[float], None]  # is told the share that is done


class Held:
    """A checkpoint whose tensors are in memory, as float32."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config = checkpoint.config
        self.tokenizer = checkpoint.tokenizer
        self._tensors = {name: dequantized(checkpoint.tensor(name)) for name in checkpoint.names()}

    def names(self) -> Iterable[str]:
        """The checkpoint's names."""
        return self._tensors

    def tensor(self, name: str) -> Tensor:
        """One tensor."""
        return self._tensors[name]


def compare(
    model: Checkpoint, teacher: Checkpoint, sequences: NDArray[np.int32], done: Done
) -> Predictions:
    """What both predict in ``sequences``, int32 [n, length], in float32 arithmetic."""
    predictions = Predictions()
    pair = [Reference(checkpoint, Exact()) for checkpoint in (model, teacher)]
    for index, row in enumerate(sequences.tolist()):
        predictions.add(row, *(reference.logits(row) for reference in pair))
        done((index + 1) / len(sequences))
    return predictions


def answers(model: Checkpoint, prompts: Sequence[str], most: int, done: Done) -> list[str]:
    """The likeliest answer to each prompt, of at most so many tokens."""
    reference = Reference(model, Exact())
    tokenizer = Tokenizer.from_buffer(model.tokenizer.tokenizer_json)
    given = []
    for index, prompt in enumerate(prompts):
        ids = tokenizer.encode(conversation(model, prompt), add_special_tokens=False).ids
        cache, answer = Cache(), list[int]()
        while len(answer) < most and cache.length + len(ids) < model.config.context:
            token = int(reference.logits(ids, cache)[-1].argmax())
            if token in model.tokenizer.eos_token_ids:
                break
            answer.append(token)
            ids = [token]
        given.append(tokenizer.decode(answer).strip())
        done((index + 1) / len(prompts))
    return given


def conversation(model: Checkpoint, prompt: str) -> str:
    """A prompt as the model was trained to be asked; as it is where there is no such way."""
    files = model.tokenizer
    if files.chat_template is None:
        return files.bos_token * files.add_bos + prompt
    template = ChatTemplate(files.chat_template, files.bos_token, files.eos_token)
    return template.render([{"role": "user", "content": prompt}])
