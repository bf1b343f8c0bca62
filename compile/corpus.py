"""Texts as sequences of tokens: what models learn from, are calibrated on and compared on.

tokens = read_tokens([Path("notes.txt")], tokenizer, 512)       # int32 [sequences, 512]
learned, held_out = split(tokens, 16)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from compile.checkpoint import TokenizerFiles
from compile.errors import CompileError
from compile.json_file import read_text

Tokens = NDArray[np.int32]  # [sequences, length]
CHARACTERS = 8  # of a token, more than most have
CUT = 1024  # tokens, the last of a cut text, that may be others than those of the whole
HELD_SHARE = 10  # one sequence of so many, at most, is held out


def read_tokens(paths: Sequence[Path], files: TokenizerFiles, length: int, most: int) -> Tokens:
    """The first ``most`` tokens of the texts, one text after the other, in whole sequences.

    Each begins with the token that begins a text, where the model wants one.

    Raises:
        CompileError: a text cannot be read, is not UTF-8, or all together fill no sequence.
    """
    tokenizer = Tokenizer.from_buffer(files.tokenizer_json)
    start = [] if files.bos_token_id is None or not files.add_bos else [files.bos_token_id]
    ids: list[int] = []
    for path in paths:
        if len(ids) < most:
            ids += first_tokens(tokenizer, read_text(path), most - len(ids))
    own = length - len(start)
    count = len(ids) // own
    if not count:
        names = ", ".join(map(str, paths))
        more = "more tokens" if most < length else "more text"
        raise CompileError(
            f"{names}: {len(ids)} tokens, of which a sequence takes {length}: give {more}, or a "
            "smaller length in [data]"
        )
    sequences = np.array(ids[: count * own], np.int32).reshape(count, own)
    return np.concatenate([np.tile(np.array(start, np.int32), (count, 1)), sequences], axis=1)


def first_tokens(tokenizer: Tokenizer, text: str, most: int) -> list[int]:
    """The first tokens of a text, without encoding much more of it: that takes a lot of memory."""
    characters = most * CHARACTERS
    while True:
        ids = tokenizer.encode(text[:characters], add_special_tokens=False).ids
        # What the cut has changed lies at the end.
        if characters >= len(text) or len(ids) > most + CUT:
            return ids[:most]
        characters *= 2


def split(tokens: Tokens, held_out: int) -> tuple[Tokens, Tokens]:
    """Sequences to learn from, and the last few, at most ``held_out`` tokens, kept from that.

    Raises:
        CompileError: there is one sequence only.
    """
    count, length = tokens.shape
    if count < 2:
        raise CompileError(
            f"the data is one sequence of {length} tokens, and one must be held out to compare "
            "models on: give more text, a smaller length in [data], or a text in [evaluate]"
        )
    held = max(1, min(held_out // length, count // HELD_SHARE))
    return tokens[:-held], tokens[-held:]


def picked(tokens: Tokens, most: int, seed: int) -> Tokens:
    """Sequences from everywhere in the data, at least one and at most ``most`` tokens."""
    count = min(len(tokens), max(1, most // tokens.shape[1]))
    chosen = np.random.default_rng(seed).choice(len(tokens), count, replace=False)
    sequences: Tokens = tokens[np.sort(chosen)]
    return sequences
