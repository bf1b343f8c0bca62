"""Draws mean KL against bits a weight: us and the peers."""

from __future__ import annotations

from pathlib import Path

from benchmarks.quality.candidate import OURS
from benchmarks.quality.report import Rows

COLOURS = {OURS: "#1f6fb4"}
PEER_COLOUR = "#e08a3c"


def draw(rows: Rows, path: Path) -> None:
    """A point a candidate; both axes as they are, KL logarithmic."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 5.5), layout="constrained")
    for name, row in rows.items():
        at = (row["bits_per_weight"], row["exact"]["kl_mean"])
        axis.plot(*at, "o", color=COLOURS.get(row["maker"], PEER_COLOUR))
        axis.annotate(name, at, xytext=(6, 3), textcoords="offset points", fontsize=7)
    axis.set_yscale("log")
    axis.margins(x=0.2, y=0.1)
    axis.set_xlabel("bits a weight, over all matrices")
    axis.set_ylabel("mean KL to the teacher, nats a token")
    axis.grid(which="both", color="#eeeeee")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
