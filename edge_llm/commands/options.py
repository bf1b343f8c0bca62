"""Options that several commands have in common."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

FILE = click.argument("file", metavar="FILE.edge")
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
THREADS = click.option(
    "--threads",
    type=int,
    metavar="N",
    help="CPU threads; by default what suits the board, or one a core.",
)
CONTEXT = click.option(
    "--context",
    type=int,
    metavar="N",
    help="Tokens of prompt and answer together; by default as many as the artifact was made for. "
    "Fewer take less memory.",
)

_GENERATION = (
    click.option(
        "--max-tokens", type=int, metavar="N", help="Tokens to generate; by default until the end."
    ),
    click.option(
        "--temperature",
        type=float,
        default=0.0,
        show_default=True,
        metavar="T",
        help="0 takes the likeliest token, 1 draws as the model weighs them.",
    ),
    click.option(
        "--top-k", type=int, default=0, metavar="K", help="Draw among the K likeliest tokens."
    ),
    click.option(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="Draw among the likeliest tokens that together have probability P.",
    ),
    click.option(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="Drop tokens less likely than P times the likeliest.",
    ),
    click.option(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="Over 1 makes tokens that occurred less likely.",
    ),
    click.option("--seed", type=int, metavar="N", help="The same seed draws the same text."),
    click.option(
        "--stop", multiple=True, metavar="TEXT", help="End before this text; may be repeated."
    ),
)


def generation(command: F) -> F:
    """Adds the options of :meth:`edge_llm.model.Model.generate`, named as its arguments."""
    return reduce(lambda function, option: option(function), reversed(_GENERATION), command)
