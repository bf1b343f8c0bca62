"""One step of the model as the engine asks for it, and who can run such a step.

A step is one pass over the weights for up to ``max_rows`` tokens of any number of sequences:
decode rows and prefill chunks alike. Row results do not depend on what else is in the step.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_llm.profile import Profile


@dataclass(frozen=True)
class Batch:
    """The rows of one step; rows of one sequence are consecutive, their positions ascending.

    Its arrays are int32.

    Attributes:
        tokens: int32 [n], token ids.
        positions: int32 [n], each token's position in its sequence.
        sequences: int32 [n], the row of ``tables`` each token belongs to.
        tables: int32 [s, pages_per_sequence], the physical page of each logical page.
        wanted: int32 [m], rows whose logits are returned, ascending.
    """

    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    sequences: NDArray[np.int32]
    tables: NDArray[np.int32]
    wanted: NDArray[np.int32]


class StepExecutor(Protocol):
    """Runs steps: the compiled model (``edge_llm.executor``), or a fake in the tests.

    Attributes:
        vocab_size: columns of the logits.
        context: positions a sequence may have at most.
        page_positions: positions a page of the KV cache holds.
        pages: pages there are.
        max_rows: rows a step may hold.
        compiled_seconds: spent within compiled code, all steps together.
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

    def step(self, batch: Batch) -> NDArray[np.float32]:
        """Logits float32 [m, vocab_size] of the wanted rows; a view, valid until the next step."""

    def profile(self) -> AbstractContextManager[Profile]:
        """The time of every stage of the steps within the context."""

    def close(self) -> None:
        """Gives the model's memory back; no step may follow."""
