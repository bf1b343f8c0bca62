"""A report as one HTML file that needs nothing else: pictures, styles and all.

write_report(Path("smollm2.edge.html"), report)
"""

from __future__ import annotations

from pathlib import Path

import jinja2

from compile.report.content import Report
from compile.report.curves import draw
from edge_llm.files import replacing

TEMPLATE = Path(__file__).parent / "page.html.jinja"


def write_report(path: Path, report: Report) -> None:
    """Write the page; ``path`` is whole or what it was before."""
    with replacing(path) as file:
        file.write(render(report).encode())


def render(report: Report) -> str:
    """The page's HTML."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "bytes": human_bytes,
        "count": human_count,
        "time": human_time,
        "figure": figure,
    }
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    pictures = [(curve.title, draw(curve)) for curve in report.curves]
    return template.render(
        report=report,
        first=report.models[0],
        final=report.models[-1],
        pictures=pictures,
        longest=max((cost.seconds for cost in report.costs), default=0) or 1.0,
        heaviest=max((kind.bytes_before for kind in report.kinds), default=0) or 1,
    )


def human_bytes(count: float) -> str:
    """In units of a thousand, as the sizes of files are given."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g}\N{NO-BREAK SPACE}{unit}"
        count /= 1000
    return f"{count:.3g}\N{NO-BREAK SPACE}GB"


def human_count(count: float) -> str:
    """Like 134.5 M."""
    for unit in ("", "\N{NO-BREAK SPACE}k", "\N{NO-BREAK SPACE}M"):
        if count < 1000:
            return f"{count:.4g}{unit}"
        count /= 1000
    return f"{count:.4g}\N{NO-BREAK SPACE}G"


def human_time(seconds: float) -> str:
    """Like 2 h 14 min, 3 min 5 s or 4.2 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def figure(value: float) -> str:
    """Three digits that count."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
