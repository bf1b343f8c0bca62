"""Draws the report's speeds as bars, run by the interpreter that has matplotlib.

picture.py speed.json speed.png
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt

PARTS = ("decode", "prefill", "avx2", "llama-1b", "qwen-0.5b")
COLOURS = {"roof": "#d0d0d0", "edge-llm": "#1f6fb4", "edge-llm, llama.cpp's weights": "#7fb2dc"}
PEER_COLOUR = "#e08a3c"
COLUMNS = 3


def main() -> None:
    source, target = sys.argv[1:]
    with open(source, encoding="utf-8") as file:
        report = json.load(file)
    panels = [
        (part["title"], what, bars)
        for name, part in report["parts"].items()
        if name in PARTS
        for what, bars in speeds(part).items()
    ]
    if not panels:
        return
    rows = -(-len(panels) // COLUMNS)
    figure, axes = plt.subplots(
        rows, COLUMNS, figsize=(5 * COLUMNS, 2.2 * rows + 0.6), squeeze=False, layout="constrained"
    )
    figure.suptitle(f"Tokens a second, medians; {report['machine']['CPU']}", fontsize=10)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, what, bars) in zip(axes.flat, panels, strict=False):
        axis.set_title(f"{title}\n{what}", fontsize=8)
        draw(axis, bars)
    figure.savefig(target, dpi=110)


def speeds(part: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """What was measured in tokens a second → a record a contender."""
    panels: dict[str, list[Mapping[str, Any]]] = {}
    for figure in part["figures"]:
        if figure["unit"] == "tokens/s":
            panels.setdefault(figure["what"], []).append(figure)
    return panels


def draw(axis: Any, bars: list[Mapping[str, Any]]) -> None:
    """One panel: a bar a contender, with a line from its least to its most."""
    names = [bar["contender"] for bar in bars]
    medians = [bar["median"] for bar in bars]
    reach = [
        [bar["median"] - bar["min"] for bar in bars],
        [bar["max"] - bar["median"] for bar in bars],
    ]
    colours = [COLOURS.get(name, PEER_COLOUR) for name in names]
    drawn = axis.barh(names, medians, xerr=reach, color=colours, error_kw={"lw": 1})
    axis.bar_label(drawn, [f" {value:.0f}" for value in medians], fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.15)
    axis.tick_params(labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


if __name__ == "__main__":
    main()
