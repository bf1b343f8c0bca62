"""Measuring in turns: every round runs each contender once, so that all see the same machine.

part = Part("decode", {"us": lambda: {Figure("decode", "tokens/s"): 430.0}}, ())
results = measure(part, rounds=5, report=lambda _done, _contender: None)
results.median("us", "decode")      # 430.0
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple, TypeAlias


class Figure(NamedTuple):
    """What a number says, and its unit."""

    what: str
    unit: str


class NotMeasured(Exception):  # noqa: N818 - a finding, not a failure
    """A contender cannot do what is asked of it; ``str()`` is why."""


Run: TypeAlias = Callable[[], Mapping[Figure, float]]
Report: TypeAlias = Callable[[int, str], None]  # runs done, contender that is next


@dataclass(frozen=True)
class Ratio:
    """A comparison of two medians, each of a contender's figure.

    Attributes:
        what: what the quotient says.
        above: contender and ``Figure.what`` of the dividend.
        below: likewise of the divisor.
        aim: what it is meant to reach, as text.
    """

    what: str
    above: tuple[str, str]
    below: tuple[str, str]
    aim: str = ""


@dataclass(frozen=True)
class Part:
    """Figures that are taken together."""

    title: str
    contenders: Mapping[str, Run]
    ratios: tuple[Ratio, ...] = ()


@dataclass
class Results:
    """What the rounds of one part gave.

    Attributes:
        part: what was measured.
        values: contender → figure → a value a round.
        missing: contender → why it was not measured.
    """

    part: Part
    values: dict[str, dict[Figure, list[float]]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def median(self, contender: str, what: str) -> float | None:
        """The median of a figure over the rounds, None where it was not measured."""
        for figure, values in self.values.get(contender, {}).items():
            if figure.what == what:
                return median(values)
        return None

    def ratio(self, ratio: Ratio) -> float | None:
        """The quotient of the two medians, None where one of them is missing."""
        above, below = self.median(*ratio.above), self.median(*ratio.below)
        return above / below if above is not None and below else None


def measure(part: Part, rounds: int, report: Report) -> Results:
    """Run the contenders in turn; one that cannot be measured is left out from then on."""
    results = Results(part)
    done = 0
    for _ in range(rounds):
        for contender, run in part.contenders.items():
            report(done, contender)
            done += 1
            if contender in results.missing:
                continue
            try:
                figures = run()
            except NotMeasured as reason:
                results.missing[contender] = str(reason)
                continue
            taken = results.values.setdefault(contender, {})
            for figure, value in figures.items():
                taken.setdefault(figure, []).append(value)
    return results
