"""A text as the models saw it: one HTML page that needs nothing else.

Path("essay.html").write_text(page(["a.edge", "b.gguf"], "essay.txt", listed, predictions, hf))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray
from tokenizers import Tokenizer as HFTokenizer

from compile.drawing import drawn
from compile.evaluate.figures import rows
from compile.evaluate.text import Token
from edge_llm.evaluation import Predictions
from edge_llm.token_bytes import TokenBytes

SHOWN = 20_000  # tokens of a text; for more a browser takes seconds
PEAKS = 15  # tokens listed by themselves
BEFORE = 36  # characters shown before each of them
STRETCHES = 100  # of the text, each a point of the curve

# Colours that matplotlib draws in, and the page's own in their place.
INK, FAINT, ACCENT = "#010101", "#020202", "#030303"
STYLED = {INK: "currentColor", FAINT: "var(--line)", ACCENT: "var(--accent)"}
DRAWING = {
    "svg.fonttype": "none",  # text in the page's font
    "svg.hashsalt": "edge-llm",  # the same page from the same figures
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


def page(
    names: Sequence[str],
    subtitle: str,
    listed: Sequence[Token],
    predictions: Predictions,
    hf: HFTokenizer,
) -> str:
    """Figures, charts, the extremes, and the text coloured token by token.

    Args:
        names: of the model, and of the reference if there is one.
        subtitle: which text, in what windows.
        listed: the text's tokens.
        predictions: what was made of them.
        hf: the tokenizer, to spell what the models expected.
    """
    compared = bool(predictions.kl)
    heat = np.array(predictions.kl if compared else predictions.surprise)
    measure = "KL divergence, nats" if compared else "surprise, nats"
    top = float(np.percentile(heat, 99)) or 1.0
    cells = describe(predictions, names, hf)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_suffix(".html").read_text("utf-8"))
    return template.render(
        names=names,
        subtitle=subtitle,
        compared=compared,
        figures=rows(predictions.summary()),
        charts=charts(heat, measure),
        headings=list(cells[0]),
        peaks=peaks(listed, heat, cells),
        measure=measure,
        top=f"{top:.3g}",
        strength=strength,
        shown=[seen(token, heat / top, cells) for token in listed[:SHOWN]],
        cut=f" These are the first {SHOWN} of {len(listed)} tokens." * (len(listed) > SHOWN),
    )


def describe(
    predictions: Predictions, names: Sequence[str], hf: HFTokenizer
) -> list[dict[str, str]]:
    """What there is to say of each prediction, by what it is called."""
    spell = TokenBytes(hf).decoder()
    spell(predictions.ids[0])  # some tokenizers drop the space before a text's first token

    def expected(token: int) -> str:
        text = spell(token).decode(errors="replace") or hf.id_to_token(token) or f"token {token}"
        return text.strip(" ").replace("\n", "↵") or "␣"

    columns: dict[str, list[str]] = {}
    if predictions.kl:
        columns["KL"] = [f"{kl:.4f}" for kl in predictions.kl]
    surprises = (predictions.surprise, predictions.reference_surprise)
    for name, surprise in zip(names, surprises, strict=False):
        columns[f"surprise, {name}"] = [f"{nats:.3f}" for nats in surprise]
    likeliest = (predictions.likeliest, predictions.reference_likeliest)
    for name, ids in zip(names, likeliest, strict=False):
        columns[f"expected, {name}"] = [expected(token) for token in ids]
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def peaks(
    listed: Sequence[Token], heat: NDArray[np.float64], cells: Sequence[dict[str, str]]
) -> list[dict[str, Any]]:
    """The tokens of the greatest heat, each with what stands before it."""
    index = {token.place: at for at, token in enumerate(listed)}
    found = []
    for place in np.argsort(-heat, kind="stable")[:PEAKS]:
        at = index[place]
        before = "".join(token.text for token in listed[max(0, at - BEFORE) : at])[-BEFORE:]
        found.append(
            {"before": before, "text": listed[at].text, "cells": list(cells[place].values())}
        )
    return found


def seen(
    token: Token, shares: NDArray[np.float64], cells: Sequence[dict[str, str]]
) -> dict[str, str]:
    """A token of the text with its colour and its figures, neither where it was not predicted."""
    if token.place is None:
        return {"text": token.text}
    tip = "\n".join(f"{name}: {cell}" for name, cell in cells[token.place].items())
    return {"text": token.text, "alpha": strength(shares[token.place]), "tip": tip}


def strength(share: float) -> str:
    """A colour's opacity."""
    return f"{0.75 * min(1.0, max(0.0, share)):.2f}"


def charts(heat: NDArray[np.float64], measure: str) -> list[Markup]:
    """How many tokens have how much of it, over powers of ten; its mean along the text."""
    with matplotlib.rc_context(DRAWING):
        spread, course = (Figure(figsize=(4.6, 2.6), layout="constrained") for _ in range(2))
        axes = spread.subplots()
        low = max(float(np.percentile(heat, 1)), 1e-7)
        edges = np.geomspace(low, max(float(heat.max()), 2 * low), 40).tolist()
        axes.hist(np.clip(heat, low, None), bins=edges, color=ACCENT)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set(xlabel=measure, ylabel="tokens")
        axes = course.subplots()
        parts = np.array_split(heat, min(STRETCHES, len(heat)))
        ends = np.cumsum([len(part) for part in parts])
        axes.plot(ends, [part.mean() for part in parts], color=ACCENT, linewidth=1.2)
        axes.axhline(heat.mean(), color=FAINT, zorder=0)
        axes.set(xlabel="token of the text", ylabel=f"mean {measure}", ylim=(0, None))
        return [
            svg(spread, f"Histogram of {measure}"),
            svg(course, f"Mean {measure} along the text"),
        ]


def svg(figure: Figure, title: str) -> Markup:
    """The figure as an element of the page, in the page's colours."""
    text = drawn(figure, STYLED)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1))
