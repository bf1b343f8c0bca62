"""Draws mean KL against bits a weight, us and the peers; and what a student learns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.quality.candidate import OURS
from benchmarks.quality.report import Rows
from compile.report.content import Curve

if TYPE_CHECKING:  # matplotlib takes a second
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {OURS: "#1f6fb4"}
PEER_COLOUR = "#e08a3c"


def draw(rows: Rows, path: Path) -> None:
    """A point a candidate; both axes as they are, KL logarithmic."""
    figure, axis = empty(5.5)
    for name, row in rows.items():
        at = (row["bits_per_weight"], row["exact"]["kl_mean"])
        axis.plot(*at, "o", color=COLOURS.get(row["maker"], PEER_COLOUR))
        axis.annotate(name, at, xytext=(6, 3), textcoords="offset points", fontsize=7)
    axis.set_yscale("log")
    axis.margins(x=0.2, y=0.1)
    axis.set_xlabel("bits a weight, over all matrices")
    axis.set_ylabel("mean KL to the teacher, nats a token")
    figure.savefig(path, dpi=110)


def draw_curve(curve: Curve, path: Path) -> None:
    """A student's loss, and its KL on held-out text, by steps."""
    figure, axis = empty(4)
    for name, colour in (("loss", PEER_COLOUR), ("kl", COLOURS[OURS])):
        steps, values = zip(*curve.values[name], strict=True)
        axis.plot(steps, values, "o-", markersize=3, label=name, color=colour)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("step")
    axis.set_ylabel("nats a token")
    axis.legend(frameon=False)
    figure.savefig(path, dpi=110)


def empty(height: float) -> tuple[Figure, Axes]:
    """A picture of 9 by ``height`` inches to draw into."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, height), layout="constrained")
    axis = figure.add_subplot()
    axis.grid(which="both", color="#eeeeee")
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis
