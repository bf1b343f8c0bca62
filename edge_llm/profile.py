"""Where the time of a step goes: its stages, as the thread layer of the compiled code times them.

A stage is what lies between two barriers; the same stage of every layer is added up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_llm.buffers import address, zeros


class Stages:
    """The times of one kind of step; the compiled code writes them.

    Args:
        names: of its stages, one for each barrier.

    Attributes:
        nanoseconds: int64 [stages], of each of them.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self.nanoseconds = zeros(len(names), "q")

    @property
    def address(self) -> int:
        """Of the int64 array that the code adds to."""
        return address(self.nanoseconds)

    def seconds(self) -> dict[str, float]:
        """By the stage's name, all layers and steps together, in the order of a step."""
        total = dict.fromkeys(self._names, 0.0)
        for name, nanoseconds in zip(self._names, self.nanoseconds.tolist(), strict=True):
            total[name] += nanoseconds / 1e9
        return total


@dataclass(frozen=True)
class Profile:
    """Of steps of one row, and of those of several."""

    decode: Stages
    prefill: Stages
