"""The bytes that each token stands for, so that text can be streamed before it is whole.

The ``tokenizers`` library decodes whole texts only: a token may hold part of a character, and what
it decodes to depends on its neighbours. Bytes do not. Two kinds of vocabulary are in use: GPT-2's,
in which each character stands for a byte, and SentencePiece's, in which a space is written as a
block and rare bytes as ``<0x0A>``.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer

from edge_llm.errors import ArtifactError

RECENT = 4096  # tokens whose bytes are kept: a language's common ones
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # as SentencePiece writes it


class TokenBytes:
    """Turns a tokenizer's ids into bytes.

    Raises:
        ArtifactError: the tokenizer's decoder is of neither kind.
    """

    def __init__(self, hf: Tokenizer) -> None:
        self._hf = hf
        self._added = hf.get_added_tokens_decoder()  # id to AddedToken
        state = json.loads(hf.decoder.__getstate__()) if hf.decoder else {"type": "none"}
        steps: list[dict[str, Any]] = state.get("decoders", [state])
        kinds = [step["type"] for step in steps]
        if "ByteLevel" in kinds:
            self._read = _byte_level
        elif "ByteFallback" in kinds or "Metaspace" in kinds:
            self._read = _sentence_piece
        else:
            raise ArtifactError(f"tokenizer.json: the decoder {'+'.join(kinds)} is not supported")
        self._bytes = functools.lru_cache(RECENT)(self._spell)
        self._drops_space = any(  # SentencePiece puts one before a text, to be taken away again
            step["type"] == "Strip" or step.get("prepend_scheme", "never") != "never"
            for step in steps
        )

    def decoder(self) -> Callable[[int], bytes]:
        """A function that turns the ids of one text, one after the other, into UTF-8.

        A result may be part of a character. All of them together are what the library's
        ``decode(ids)`` gives: special tokens and ids that no token has are left out.
        """
        drops = self._drops_space

        def decode(token: int) -> bytes:
            nonlocal drops
            data = self._bytes(token)
            if drops and data:
                drops = False
                return data.removeprefix(b" ")
            return data

        return decode

    def _spell(self, token: int) -> bytes:
        added = self._added.get(token)
        if added is not None:
            return b"" if added.special else self._read(added.content)
        return self._read(self._hf.id_to_token(token) or "")


def _gpt2_alphabet() -> dict[str, int]:
    """Printable bytes stand for themselves, the others for U+0100 and on, in their order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + n): byte for n, byte in enumerate(others)
    }


BYTE_OF = _gpt2_alphabet()


def _byte_level(token: str) -> bytes:
    try:
        return bytes(BYTE_OF[character] for character in token)
    except KeyError:
        return token.encode()  # an added token, written as it is


def _sentence_piece(token: str) -> bytes:
    if re.fullmatch("<0x[0-9A-F]{2}>", token):
        return bytes([int(token[3:5], 16)])
    return token.replace(SPACE, " ").encode()
