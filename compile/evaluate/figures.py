"""What is measured, as people read it: a name, a number, and beside it the reference's number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

AGAINST = "against_"  # begins the names of the reference's figures

# By their names in the JSON, in the order in which they are shown.
LABELS = {
    "perplexity": ("perplexity", "{:.4f}"),
    "perplexity_ratio": ("perplexity ratio", "{:.4f}"),
    "kl_mean": ("KL mean, nats", "{:.5f}"),
    "kl_median": ("KL median", "{:.5f}"),
    "kl_p99": ("KL 99th percentile", "{:.5f}"),
    "top1_agreement": ("same likeliest token", "{:.2%}"),
    "bleu": ("BLEU", "{:.2f}"),
    "chrf": ("chrF", "{:.2f}"),
    "rouge1": ("ROUGE-1", "{:.2f}"),
    "rouge2": ("ROUGE-2", "{:.2f}"),
    "rougeL": ("ROUGE-L", "{:.2f}"),
    "acc": ("accuracy", "{:.2%}"),
    "acc_stderr": ("± standard error", "{:.2%}"),
    "acc_norm": ("accuracy by length", "{:.2%}"),
    "acc_norm_stderr": ("± standard error", "{:.2%}"),
    "same_choice": ("same choice", "{:.2%}"),
}


def rows(figures: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Label, the model's figure, and the reference's or an empty text."""
    listed = []
    for name, (label, form) in LABELS.items():
        if name in figures:
            theirs = figures.get(AGAINST + name)
            beside = "" if theirs is None else form.format(theirs)
            listed.append((label, form.format(figures[name]), beside))
    return listed


def tables(result: Mapping[str, Any]) -> str:
    """All that was measured as aligned text."""
    names = [short(result[key]) for key in ("model", "against") if key in result]
    counts = {"text": "tokens", "pairs": "pairs", "tasks": "questions"}
    return "\n\n".join(
        table(f"{Path(part['file']).name}, {part[unit]} {unit}", names, part)
        for kind, unit in counts.items()
        if (part := result.get(kind))
    )


def table(title: str, names: Sequence[str], figures: Mapping[str, Any]) -> str:
    """Figures in columns, under a line of names."""
    lines = [(title, *names), *(row[: 1 + len(names)] for row in rows(figures))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def short(name: str) -> str:
    """A model's name without the folders it lies in."""
    return name.rstrip("/").rsplit("/", 1)[-1]
