"""tokenizer.json as a device reads it fastest: the same tokenizer in fewer words.

The ``tokenizers`` library writes each merge as a pair, ``["a", "b"]``, and reads ``"a b"`` as well,
as it has for years: in half the time, and a start waits for nothing longer.
"""

from __future__ import annotations

import json


def compact(tokenizer_json: bytes) -> bytes:
    """The same tokenizer, its merges as texts where no token has a space in it."""
    content = json.loads(tokenizer_json)
    merges = content["model"].get("merges", [])
    if all(isinstance(merge, list) and " " not in "".join(merge) for merge in merges):
        content["model"]["merges"] = [" ".join(merge) for merge in merges]
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
