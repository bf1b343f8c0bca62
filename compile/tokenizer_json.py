"""The tokenizer's files as a device reads them.

tokenizer.json in fewer words, which it reads fastest: the ``tokenizers`` library writes each merge
as a pair, ``["a", "b"]``, and reads ``"a b"`` as well, as it has for years: in half the time, and
a start waits for nothing longer.
"""

from __future__ import annotations

import json

from compile.checkpoint import TokenizerFiles


def compact(tokenizer_json: bytes) -> bytes:
    """The same tokenizer, its merges as texts where no token has a space in it.

    Nor begins a merge as the first line of such a list of texts may, which is passed over.
    """
    content = json.loads(tokenizer_json)
    merges = content["model"].get("merges", [])
    plain = all(isinstance(merge, list) and " " not in "".join(merge) for merge in merges)
    if plain and not any(merge[0].startswith("#version") for merge in merges):
        content["model"]["merges"] = [" ".join(merge) for merge in merges]
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def generation_json(tokenizer: TokenizerFiles) -> bytes:
    """generation.json: the tokens that begin and end an answer."""
    content = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_ids": list(tokenizer.eos_token_ids),
        "add_bos": tokenizer.add_bos,
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
    }
    return json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"
