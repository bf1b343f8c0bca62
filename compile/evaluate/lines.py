"""Files of one JSON object a line, checked before any model is asked.

for line in read_lines(Path("pairs.jsonl")):
    line.text("prompt")     # CompileError: pairs.jsonl line 3: 'prompt' is missing
"""

from __future__ import annotations

import json
from pathlib import Path

from compile.errors import CompileError
from compile.json_file import Settings, read_text


def read_lines(path: Path) -> list[Settings]:
    """The file's objects, empty lines left out; each names its line in its errors."""
    lines = [
        parse(f"{path} line {number}", line)
        for number, line in enumerate(read_text(path).split("\n"), start=1)
        if line.strip()
    ]
    if not lines:
        raise CompileError(f"{path}: is empty; it must hold one JSON object a line")
    return lines


def parse(where: str, line: str) -> Settings:
    """One line's object."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CompileError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CompileError(f"{where}: not a JSON object")
    return Settings(Path(where), value)
