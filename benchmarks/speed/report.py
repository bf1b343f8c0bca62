"""The results as a record for programs and as tables for people.

records = {"decode": record(results, rounds=5)}
write_report(Path("docs/benchmarks"), {"CPU": "…"}, records)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from benchmarks.speed.rounds import Results
from edge_llm.files import replacing

Record: TypeAlias = Mapping[str, Any]  # of one part, as it is in the JSON file

JSON_NAME, TABLE_NAME, PICTURE_NAME = "speed.json", "speed.md", "speed.png"


def record(results: Results, rounds: int) -> Record:
    """What is kept of one part: every value, their medians, and the ratios of these."""
    return {
        "title": results.part.title,
        "taken": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "rounds": rounds,
        "figures": [
            {
                "what": figure.what,
                "unit": figure.unit,
                "contender": contender,
                "median": median(values),
                "min": min(values),
                "max": max(values),
                "values": values,
            }
            for contender, figures in results.values.items()
            for figure, values in figures.items()
        ],
        "ratios": [
            {"what": ratio.what, "value": results.ratio(ratio), "aim": ratio.aim}
            for ratio in results.part.ratios
        ],
        "not measured": dict(results.missing),
    }


def earlier(folder: Path, machine: Mapping[str, str]) -> dict[str, Record]:
    """The parts that were taken before on the same machine with the same versions."""
    path = folder / JSON_NAME
    if not path.exists():
        return {}
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return dict(kept["parts"]) if kept["machine"] == machine else {}
    except (ValueError, KeyError, TypeError):
        return {}  # not ours: it is written anew


def write_report(folder: Path, machine: Mapping[str, str], parts: Mapping[str, Record]) -> None:
    """Write the JSON file and the Markdown tables of all parts."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine, "parts": parts}, indent=2, ensure_ascii=False)
    for name, content in ((JSON_NAME, text), (TABLE_NAME, markdown(machine, parts.values()))):
        with replacing(folder / name) as file:
            file.write(f"{content}\n".encode())


def markdown(machine: Mapping[str, str], parts: Iterable[Record]) -> str:
    """Everything as Markdown."""
    lines = ["# Speed", "", "Written by `make bench`: medians over rounds in which all took turns."]
    lines += ["", *(f"- {name}: {value}" for name, value in machine.items())]
    for part in parts:
        lines += ["", f"## {part['title']}", "", *tables(part)]
    return "\n".join(lines)


def tables(part: Record) -> Iterator[str]:
    """A part's figures, grouped by what they say, then its ratios."""
    yield f"| {part['rounds']} rounds, {part['taken']} | | median | min | max |"
    yield "|---|---|---|---|---|"
    for figure in sorted(part["figures"], key=order_of(part)):
        numbers = " | ".join(number(figure[column]) for column in ("median", "min", "max"))
        yield f"| {figure['what']}, {figure['unit']} | {figure['contender']} | {numbers} |"
    for contender, reason in part["not measured"].items():
        yield f"| not measured: {reason} | {contender} | | | |"
    if part["ratios"]:
        yield ""
        yield "| ratio of medians | | aim |"
        yield "|---|---|---|"
    for ratio in part["ratios"]:
        value = "not measured" if ratio["value"] is None else f"{ratio['value']:.2f}"
        yield f"| {ratio['what']} | {value} | {ratio['aim']} |"


def order_of(part: Record) -> Any:
    """Figures of the same name stand together, in the order of their first mention."""
    names = list(dict.fromkeys(figure["what"] for figure in part["figures"]))
    return lambda figure: names.index(figure["what"])


def number(value: float) -> str:
    """Three digits or all before the point: 0.412, 12.3, 1830."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
