"""What ``python -m benchmarks.tuning`` found for the instruction sets, kept in tuned.json.

>>> records()["avx512_vnni"].block
(8, 16)
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("tuned.json")


@dataclass(frozen=True)
class Record:
    """One search.

    Attributes:
        cpu: where it was made.
        products_per_second: of a prefill with one thread, by block, tokens "x" rows.
        bytes_per_second: read by a single token with one thread, by prefetch distance in bytes.
        block: the best, (tokens, rows of a tile).
        prefetch: the best distance.
    """

    cpu: str
    products_per_second: dict[str, int]
    bytes_per_second: dict[str, int]
    block: tuple[int, int]
    prefetch: int


def records() -> dict[str, Record]:
    """By instruction set."""
    content = json.loads(FILE.read_text(encoding="utf-8"))
    return {isa: Record(**{**r, "block": tuple(r["block"])}) for isa, r in content.items()}


def write_record(isa: str, record: Record) -> None:
    """Put one in the place of what the file has for this instruction set."""
    content = {**records(), isa: record} if FILE.exists() else {isa: record}
    plain = {name: dataclasses.asdict(content[name]) for name in sorted(content)}
    FILE.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
