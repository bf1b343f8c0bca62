"""A figure of matplotlib as an element of a page, in the page's own colours.

Figures are drawn in colours that nothing else has, each standing for one of the page's, which
change between light and dark.

element = drawn(figure, {"#010101": "currentColor"})
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def drawn(figure: Figure, colours: Mapping[str, str]) -> str:
    """The SVG element alone, the same for the same figure, with each colour replaced by CSS."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for colour, styled in colours.items():
        text = text.replace(colour, styled)
    return text
