"""One step of the model as the engine asks for it, and who can run such a step.

A step is one pass over the weights for up to ``max_rows`` tokens of any number of sequences:
decode rows and prefill chunks alike. Row results do not depend on what else is in the step.
"""

from __future__ import annotations

from array import array
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from edge_llm.buffers import Floats
from edge_llm.profile import Profile
from edge_llm.sampler import Draw


@dataclass(frozen=True)
class Batch:
    """The rows of one step; rows of one sequence are consecutive, their positions ascending.

    Its arrays are of C's int, which is 32 bits.

    Attributes:
        tokens: [n], token ids.
        positions: [n], each token's position in its sequence.
        sequences: [n], the row of ``tables`` each token belongs to.
        tables: [s · pages_per_sequence], the physical page of each logical page, row after row.
        wanted: [m], rows whose logits are returned, ascending.
    """

    tokens: array[int]
    positions: array[int]
    sequences: array[int]
    tables: array[int]
    wanted: array[int]


class StepExecutor(Protocol):
    """Runs steps: the compiled model (``edge_llm.executor``), or a fake in the tests.

    Attributes:
        vocab_size: columns of the logits.
        context: positions a sequence may have at most.
        page_positions: positions a page of the KV cache holds.
        pages: pages there are.
        max_rows: rows a step may hold.
        compiled_seconds: spent within the compiled steps.
        draw: finds the next token in a row of logits.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def context(self) -> int: ...
    @property
    def page_positions(self) -> int: ...
    @property
    def pages(self) -> int: ...
    @property
    def max_rows(self) -> int: ...
    @property
    def compiled_seconds(self) -> float: ...

    @property
    def draw(self) -> Draw: ...

    def step(self, batch: Batch) -> list[Floats]:
        """Logits, float32 [vocab_size], of each wanted row; views, valid until the next step."""

    def profile(self) -> AbstractContextManager[Profile]:
        """The time of every stage of the steps within the context."""

    def close(self) -> None:
        """Gives the model's memory back; no step may follow."""
