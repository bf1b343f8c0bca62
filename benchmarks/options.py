"""Options that the benchmarks share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click


def only(parts: Iterable[str]) -> Callable[[Any], Any]:
    """``--only PART,…``: the parts that are measured, in the order of ``parts``; all without it."""
    known = list(parts)

    def chosen(_context: click.Context, _option: click.Parameter, value: str) -> list[str]:
        names = [name.strip() for name in value.split(",")] if value else known
        for name in names:
            if name not in known:
                there_are = ", ".join(known)
                raise click.BadParameter(f"no part is called {name!r}; there are {there_are}")
        return [name for name in known if name in names]

    return click.option(
        "--only", metavar="PART,…", default="", callback=chosen,
        help=f"Measure these only: {', '.join(known)}.",
    )  # fmt: skip
