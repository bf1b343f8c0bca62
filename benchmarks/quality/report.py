"""The results as a record for programs and as tables for people.

rows = {"llama.cpp Q4_0": record("llama.cpp", candidate, exact, run)}
write_report(Path("docs/quality"), {"teacher": "…"}, rows)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.quality.candidate import LLAMA_CPP, OURS, Candidate
from benchmarks.quality.storage import bits_per_weight, shares
from edge_llm.files import replacing

Row: TypeAlias = Mapping[str, Any]  # of one candidate, as it is in the JSON file
Rows: TypeAlias = Mapping[str, Row]  # by their names

JSON_NAME, TABLE_NAME, PICTURE_NAME = "quality.json", "quality.md", "quality.png"

BASELINE = f"{OURS} nearest int4-g64"
SAME_BITS = 4.5  # what llama.cpp's types take at least where all matrices have them
AIMS = {f"{OURS} calibrated": (0.5, 0.8), f"{OURS} distilled": (0.35, 0.8)}  # ÷ nearest, ÷ peer


def record(candidate: Candidate, exact: Mapping[str, float], run: Mapping[str, float]) -> Row:
    """What is kept of one candidate: what it takes and how far it is from the teacher."""
    return {
        "maker": candidate.maker,
        "made": candidate.made,
        "taken": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "bits_per_weight": bits_per_weight(candidate.storage),
        "formats": shares(candidate.storage),
        "exact": dict(exact),
        "run": dict(run),
    }


def earlier(folder: Path, setting: Mapping[str, str]) -> dict[str, Row]:
    """The rows that were measured before on the same tokens with the same versions."""
    path = folder / JSON_NAME
    if not path.exists():
        return {}
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return dict(kept["rows"]) if kept["setting"] == setting else {}
    except (ValueError, KeyError, TypeError):
        return {}  # not ours: it is written anew


def write_report(folder: Path, setting: Mapping[str, str], rows: Rows) -> None:
    """Write the JSON file and the Markdown tables of all rows, those of few bits first."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = dict(sorted(rows.items(), key=lambda item: item[1]["bits_per_weight"]))
    text = json.dumps({"setting": setting, "rows": rows}, indent=2, ensure_ascii=False)
    for name, content in ((JSON_NAME, text), (TABLE_NAME, markdown(setting, rows))):
        with replacing(folder / name) as file:
            file.write(f"{content}\n".encode())


def markdown(setting: Mapping[str, str], rows: Rows) -> str:
    """Everything as Markdown."""
    lines = ["# Quality", "", "Written by `python -m benchmarks.quality`."]
    lines += ["", *(f"- {name}: {value}" for name, value in setting.items())]
    lines += ["", "## Distance from the teacher", "", *table(rows)]
    for title, ratios in (
        ("Ratios of mean KL", ratio_table(rows)),
        ("Ours at no more bits than each of llama.cpp's types", peer_table(rows)),
    ):
        if found := list(ratios):
            lines += ["", f"## {title}", "", *found]
    return "\n".join([*lines, "", "## Formats", "", *format_table(rows)])


def table(rows: Rows) -> Iterator[str]:
    """A row a candidate: exact arithmetic on its weights, then as its program runs it."""
    columns = ("KL mean", "median", "99 %", "top-1", "perplexity", "run: KL mean", "top-1")
    yield f"| | bits/weight | {' | '.join(columns)} |"
    yield f"|---|{'---|' * (len(columns) + 1)}"
    for name, row in rows.items():
        exact, run = row["exact"], row["run"]
        figures = (
            f"{row['bits_per_weight']:.3f}",
            *(number(exact[key]) for key in ("kl_mean", "kl_median", "kl_p99")),
            f"{exact['top1_agreement']:.1%}",
            f"{exact['perplexity']:.2f}",
            number(run["kl_mean"]),
            f"{run['top1_agreement']:.1%}",
        )
        yield f"| {name} | {' | '.join(figures)} |"


def ratio_table(rows: Rows) -> Iterator[str]:
    """Ours by what it must be below a share of."""
    lines = [
        f"| {ours} ÷ {other} | {ratio(rows, ours, other):.2f} | ≤ {aim} |"
        for ours, (to_nearest, to_peer) in AIMS.items()
        if ours in rows
        for other, aim in ((BASELINE, to_nearest), *((peer, to_peer) for peer in best(rows, ours)))
        if other in rows
    ]
    if lines:
        yield from ("| | | aim |", "|---|---|---|", *lines)


def peer_table(rows: Rows) -> Iterator[str]:
    """Each type of llama.cpp's beside the nearest to the teacher that is ours and no larger."""
    pairs = [
        (peer, min(no_larger, key=lambda name: float(rows[name]["exact"]["kl_mean"])))
        for peer, row in rows.items()
        if row["maker"] == LLAMA_CPP
        and (no_larger := list(made_by(rows, OURS, 0.0, row["bits_per_weight"])))
    ]
    if pairs:
        yield from ("| | bits/weight | ours | bits/weight | KL ratio |", "|---|---|---|---|---|")
    for peer, ours in pairs:
        bits = [f"{rows[name]['bits_per_weight']:.3f}" for name in (peer, ours)]
        yield f"| {peer} | {bits[0]} | {ours} | {bits[1]} | {ratio(rows, ours, peer):.2f} |"


def made_by(rows: Rows, maker: str, least: float, most: float) -> Iterator[str]:
    """Names of one maker's rows within these bits a weight."""
    for name, row in rows.items():
        if row["maker"] == maker and least <= row["bits_per_weight"] <= most:
            yield name


def ratio(rows: Rows, ours: str, other: str) -> float:
    """Of mean KL, both in exact arithmetic."""
    return float(rows[ours]["exact"]["kl_mean"] / rows[other]["exact"]["kl_mean"])


def best(rows: Rows, ours: str) -> list[str]:
    """llama.cpp's closest with no fewer bits than ours: at about the same bits, and at any."""
    least = rows[ours]["bits_per_weight"]
    found = []
    for most in (SAME_BITS, float("inf")):
        if peers := list(made_by(rows, LLAMA_CPP, least, most)):
            found.append(min(peers, key=lambda name: float(rows[name]["exact"]["kl_mean"])))
    return list(dict.fromkeys(found))


def format_table(rows: Rows) -> Iterator[str]:
    """How each was made, and which share of its weights is in which format."""
    yield "| | made by | formats |"
    yield "|---|---|---|"
    for name, row in rows.items():
        formats = ", ".join(f"{kind} {share:.1%}" for kind, share in row["formats"].items())
        yield f"| {name} | `{row['made']}` | {formats} |"


def number(value: float) -> str:
    """Three digits: 0.0412, 0.00123."""
    return f"{value:#.3g}"
