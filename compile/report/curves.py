"""A training's curves as an SVG that takes its colours from the page around it.

svg = draw(Curve("distill", {"loss": [(1, 4.2), (2, 3.9)], "kl": [(1, 2.0), (2, 1.7)]}))
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from compile.drawing import drawn
from compile.report.content import Curve

SIZE = (4.6, 2.9)  # inches of one picture
SMOOTH = 40  # points of the drawn line: each the mean of its share of the steps
# Colours that stand for the page's, which change between light and dark.
INK, LINE, FAINT, GRID = "#010101", "#020202", "#030303", "#040404"
VARIABLES = {INK: "var(--ink)", LINE: "var(--accent)", FAINT: "var(--faint)", GRID: "var(--rule)"}
NAMES = {"loss": "loss", "kl": "KL to who teaches, on held-out text, nats"}


def draw(curve: Curve) -> str:
    """One SVG element, a picture for each value, side by side."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",  # text stays text, in the page's font
        "svg.hashsalt": curve.title,  # the same curve gives the same bytes
        "font.size": 9,
        "text.color": INK,
        "axes.edgecolor": GRID,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "grid.color": GRID,
    }
    with mpl.rc_context(style):
        count = len(curve.values)
        figure = Figure(figsize=(SIZE[0] * count, SIZE[1]), layout="constrained")
        for place, (name, points) in enumerate(curve.values.items(), 1):
            axes = figure.add_subplot(1, count, place)
            steps, values = np.array(points, np.float64).reshape(-1, 2).T
            axes.plot(steps, values, color=FAINT, linewidth=0.8)
            line = smoothed(steps, values)
            axes.plot(*line, color=LINE, linewidth=1.8)
            low, high = line[1].min(), line[1].max()
            rim = (high - low) * 0.15 or 1.0
            axes.set_ylim(low - rim, high + rim)  # a first step far off would flatten the rest
            axes.set_title(NAMES.get(name, name), fontsize=10, loc="left")
            axes.set_xlabel("step")
            axes.grid(True, linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
        return inline(drawn(figure, VARIABLES), curve.title)


def smoothed(
    steps: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means of equal shares of the points."""
    shares = np.array_split(np.arange(len(steps)), min(SMOOTH, len(steps)))
    return (
        np.array([steps[share].mean() for share in shares]),
        np.array([values[share].mean() for share in shares]),
    )


def inline(svg: str, title: str) -> str:
    """The element without what a file of its own would need, its ids apart from other curves'."""
    # A picture as wide as the page, whose labels are in the page's font.
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r' height="[^"]*pt"', "", svg, count=1)
    )
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    mark = "".join(c for c in title if c.isalnum())
    svg = re.sub(r'\bid="', f'id="{mark}-', svg)
    return svg.replace('href="#', f'href="#{mark}-').replace("url(#", f"url(#{mark}-")
