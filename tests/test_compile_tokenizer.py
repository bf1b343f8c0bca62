"""Tokenizers rebuilt from GGUF metadata, against straightforward ones written here."""

from __future__ import annotations

import json
import re
import unicodedata
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from compile.checkpoint import TokenizerFiles
from compile.errors import CompileError, UnsupportedError
from compile.gguf_file import read_gguf
from compile.gguf_metadata import Metadata, Value
from compile.gguf_tokenizer import read_tokenizer
from compile.tokenizer_json import compact
from tests.tiny_model import CHAT_TEMPLATE, CORPUS, tiny_tokenizer, write_tiny_gguf

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
G = "tokenizer.ggml."
BLOCK = "\u2581"  # SentencePiece's space

# Assigned characters only: which new ones are letters depends on a library's Unicode version.
texts = st.text(
    st.one_of(
        st.characters(max_codepoint=0x2FFF, exclude_categories=("Cs", "Cn", "Co")),
        st.sampled_from(" \n\t'sS1239aAé€😀"),
    ),
    max_size=40,
).filter(lambda text: not re.search(r"<[|\w]+>", text))  # a control token


def load(files: TokenizerFiles) -> Tokenizer:
    return Tokenizer.from_str(files.tokenizer_json.decode())


def read(**values: Any) -> TokenizerFiles:
    """The tokenizer of metadata given without its prefix."""
    arrays = {
        G + key: np.array(value) if isinstance(value, list) else value
        for key, value in values.items()
    }
    return read_tokenizer(Metadata(Path("m.gguf"), arrays))


# --- byte-level BPE, as GPT-2's authors describe it ---------------------------------------------


@cache
def byte_characters() -> dict[int, str]:
    """A printable character for each byte: its own, or the next free one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    free = iter(range(0x100, 0x200))
    return {byte: chr(byte if byte in printable else next(free)) for byte in range(256)}


def is_space(character: str) -> bool:
    """Unicode's White_Space; str.isspace has four control characters more."""
    return character.isspace() and character not in "\x1c\x1d\x1e\x1f"


def kind(character: str) -> str:
    if is_space(character):
        return "space"
    return {"L": "letter", "N": "number"}.get(unicodedata.category(character)[0], "other")


def gpt2_words(text: str) -> list[str]:
    """Contractions, runs of one kind with a space before them, runs of space."""
    words, start = [], 0
    while start < len(text):
        if found := re.compile("'(s|t|re|ve|m|ll|d)").match(text, start):
            end = found.end()
        elif kind(text[start]) == "space" and not (
            text[start] == " " and start + 1 < len(text) and kind(text[start + 1]) != "space"
        ):
            end = run_end(text, start)
            if end < len(text) and end - start > 1:
                end -= 1  # the last space of several belongs to the word that follows
        else:
            end = run_end(text, start + (text[start] == " "))
        words.append(text[start:end])
        start = end
    return words


def run_end(text: str, start: int) -> int:
    end = start
    while end < len(text) and kind(text[end]) == kind(text[start]):
        end += 1
    return end


def smollm_words(text: str) -> list[str]:
    """Each digit alone; GPT-2's words in what lies between."""
    words: list[str] = []
    between = ""
    for character in text:
        if kind(character) == "number":
            words += [*gpt2_words(between), character]
            between = ""
        else:
            between += character
    return words + gpt2_words(between)


def merged(pieces: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Join the pair of the lowest rank until there is none."""
    while True:
        found = [pair for pair in pairwise(pieces) if pair in ranks]
        if not found:
            return pieces
        best = min(found, key=ranks.__getitem__)
        joined, index = [], 0
        while index < len(pieces):
            if tuple(pieces[index : index + 2]) == best:
                joined.append(best[0] + best[1])
                index += 2
            else:
                joined.append(pieces[index])
                index += 1
        pieces = joined


class Oracle:
    """SmolLM2's encoding of text without control tokens, from the file's own lists."""

    def __init__(self, metadata: Metadata) -> None:
        self.ids = {token: index for index, token in enumerate(metadata.texts(G + "tokens"))}
        merges = (tuple(merge.split(" ")) for merge in metadata.texts(G + "merges"))
        self.ranks = {(left, right): rank for rank, (left, right) in enumerate(merges)}

    def encode(self, text: str) -> list[int]:
        ids = []
        for word in smollm_words(text):
            pieces = [byte_characters()[byte] for byte in word.encode()]
            # SmolLM2 has no token for a few bytes, those of control characters: they are left out
            known = [piece for piece in pieces if piece in self.ids]
            ids += [self.ids[piece] for piece in merged(known, self.ranks)]
        return ids


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Oracle]:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_tiny_gguf(path)
    metadata = read_gguf(path).metadata
    return load(read_tokenizer(metadata)), Oracle(metadata)


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path) -> tuple[Tokenizer, Oracle]:
    metadata = read_gguf(smollm2_gguf).metadata
    return load(read_tokenizer(metadata)), Oracle(metadata)


@given(text=texts)
@example(text=" ".join(CORPUS))
@example(text="it's  12  o'clock\n\n\t x ")
def test_byte_level_against_the_oracle(tiny: tuple[Tokenizer, Oracle], text: str) -> None:
    tokenizer, oracle = tiny
    assert tokenizer.encode(text).ids == oracle.encode(text)


@given(text=texts)
@example(text=" ".join(CORPUS))
@settings(deadline=None)
def test_smollm2_against_the_oracle(smollm2: tuple[Tokenizer, Oracle], text: str) -> None:
    tokenizer, oracle = smollm2
    assert tokenizer.encode(text).ids == oracle.encode(text)


KNOWN_IDS = {
    "The capital of France is": [504, 3575, 282, 4649, 314],
    "Hello, how are you": [19556, 28, 638, 359, 346],
    "Hello 12345": [19556, 216, 33, 34, 35, 36, 37],
    "<|im_start|>user\nhi<|im_end|>": [1, 4093, 198, 6004, 2],
}


@pytest.mark.parametrize("text", KNOWN_IDS)
def test_smollm2_known_ids(smollm2: tuple[Tokenizer, Oracle], text: str) -> None:
    assert smollm2[0].encode(text).ids == KNOWN_IDS[text]


@given(
    text=st.lists(st.one_of(st.text(), st.sampled_from(["<|im_start|>", "<|im_end|>"]))).map(
        "".join
    )
)
def test_byte_level_round_trip(tiny: tuple[Tokenizer, Oracle], text: str) -> None:
    ids = tiny[0].encode(text).ids
    assert tiny[0].decode(ids, skip_special_tokens=False) == text


def test_control_tokens_are_found_in_text(tiny: tuple[Tokenizer, Oracle]) -> None:
    tokenizer = tiny[0]
    ids = tokenizer.encode("<|im_start|>a<|im_end|>").ids
    assert (ids[0], ids[-1]) == (1, 2)
    assert tokenizer.decode(ids) == "a"


# --- how the pre-tokenizers tell words apart ----------------------------------------------------

SENTENCE = "It's 12345 naïve APPLES!!\n\n  x I'LL"
WORDS = {
    "gpt-2": ["It", "'s", " 12345", " naïve", " APPLES", "!!", "\n\n ", " x", " I", "'", "LL"],
    "default": ["It", "'s", " 12345", " naïve", " APPLES", "!!", "\n\n ", " x", " I", "'", "LL"],
    "smollm": [
        *("It", "'s", " ", "1", "2", "3", "4", "5", " naïve", " APPLES", "!!", "\n\n ", " x"),
        *(" I", "'", "LL"),
    ],
    "llama-bpe": [
        *("It", "'s", " ", "123", "45", " naïve", " APPLES", "!!\n\n", " ", " x", " I", "'LL"),
    ],
    "qwen2": [
        *("It", "'s", " ", "1", "2", "3", "4", "5", " naïve", " APPLES", "!!\n\n", " ", " x"),
        *(" I", "'LL"),
    ],
}


def letters(*merges: str, **more: Value) -> TokenizerFiles:
    """A byte-level tokenizer of the 256 bytes, these merges and what else is given."""
    made = [merge.replace(" ", "") for merge in merges]
    tokens = ("<|end|>", "<s>", *byte_characters().values(), *made)
    types = [CONTROL] * 2 + [NORMAL] * (len(tokens) - 2)
    values: dict[str, Any] = {"model": "gpt2", "tokens": tokens, "token_type": types}
    return read(**{**values, "merges": merges, **more})


@pytest.mark.parametrize("name", WORDS)
def test_words_of_a_pre_tokenizer(name: str) -> None:
    tokenizer = load(letters(pre=name))
    spelled = ["".join(byte_characters()[byte] for byte in word.encode()) for word in WORDS[name]]
    assert [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(SENTENCE)] == spelled


def test_without_a_name_words_are_gpt2s() -> None:
    assert letters() == letters(pre="gpt-2")


def test_llama3_takes_a_word_that_is_a_token() -> None:
    tokens = ("<s>", *byte_characters().values(), "hello")
    for pre, expected in (("llama-bpe", ["hello"]), ("gpt-2", [*"hello"])):
        tokenizer = load(read(model="gpt2", pre=pre, tokens=tokens, merges=()))
        assert tokenizer.encode("hello").tokens == expected


def test_qwen2_composes_characters() -> None:
    tokenizer = load(letters(pre="qwen2"))
    assert tokenizer.encode("e\u0301").ids == tokenizer.encode("é").ids


# --- SentencePiece ------------------------------------------------------------------------------

SPM_PIECES = [
    *("e", "t", "h", "a", "o", "n", "s", "i", "r", BLOCK, "c", "p", "l", "w", "é"),
    *(BLOCK + "t", "he", "in", BLOCK + "a", "er", "an", BLOCK + "the", "re", "on", "at", "en"),
    *(BLOCK + "o", BLOCK * 2, BLOCK * 4, "th", BLOCK + "th", "the", "ap", "cap", "it", "al"),
    *(BLOCK + "c", BLOCK + "cap", "ital", "the" + BLOCK, BLOCK + "cap" + "ital", "ee", "eee"),
]
SPM_TOKENS = ("<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *SPM_PIECES)
SPM_TYPES = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(SPM_PIECES)]
# Like Llama's: single characters last, then the earlier learnt the higher.
SPM_SCORES = [0.0] * 259 + [
    -1000.0 - index if len(piece) == 1 else -float(index) for index, piece in enumerate(SPM_PIECES)
]


def sentencepiece(**more: Value) -> TokenizerFiles:
    values: dict[str, Any] = {
        "model": "llama",
        "tokens": SPM_TOKENS,
        "token_type": SPM_TYPES,
        "scores": SPM_SCORES,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return read(**{**values, **more})


def sentencepiece_ids(text: str) -> list[int]:
    """Join the neighbours whose union scores highest, the leftmost of several; then bytes."""
    pieces = [*(BLOCK + text.replace(" ", BLOCK))] if text else []
    scores = dict(zip(SPM_TOKENS, SPM_SCORES, strict=True))
    while True:
        unions = [left + right for left, right in pairwise(pieces)]
        known = [(-scores[union], index) for index, union in enumerate(unions) if union in scores]
        if not known:
            break
        index = min(known)[1]
        pieces[index : index + 2] = [unions[index]]
    ids: list[int] = []
    for piece in pieces:
        if piece in scores:
            ids.append(SPM_TOKENS.index(piece))
        else:
            ids += [3 + byte for byte in piece.encode()]
    return ids


@pytest.fixture(scope="module")
def spm() -> Tokenizer:
    return load(sentencepiece())


@given(text=st.one_of(st.text("the capitlnorwé   \n", max_size=40), st.text(max_size=10)))
@example(text="the capital in the  other   one")
@example(text="")
def test_sentencepiece_against_the_oracle(spm: Tokenizer, text: str) -> None:
    text = text.replace(BLOCK, "")  # which is a space to SentencePiece
    assert spm.encode(text).ids == sentencepiece_ids(text)


@given(text=st.text())
def test_sentencepiece_round_trip(spm: Tokenizer, text: str) -> None:
    text = text.replace(BLOCK, "")
    assert spm.decode(spm.encode(text).ids, skip_special_tokens=False) == text


def test_sentencepiece_without_a_space_before_the_text() -> None:
    tokenizer = load(sentencepiece(add_space_prefix=False))
    assert tokenizer.encode("the cap").tokens == ["the", f"{BLOCK}cap"]
    assert tokenizer.decode(tokenizer.encode(" the").ids) == " the"


# --- beginnings, ends, templates ----------------------------------------------------------------


def test_ends_of_an_answer() -> None:
    tokens = ("<|endoftext|>", "<|eot_id|>", "x", "<|im_end|>", "</s>", "<|end|>")
    types = [CONTROL, CONTROL, NORMAL, USER_DEFINED, CONTROL, NORMAL]
    files = read(
        model="gpt2", tokens=tokens, token_type=types, merges=(), eos_token_id=4, eot_token_id=1
    )
    # the declared ones first, then the well-known names, but none that is ordinary text
    assert files.eos_token_ids == (4, 1, 3, 0)
    assert (files.eos_token, files.bos_token, files.bos_token_id) == ("</s>", "", None)


def test_no_end_at_all() -> None:
    files = read(model="gpt2", tokens=("x",), merges=())
    assert files.eos_token_ids == ()
    assert files.eos_token == ""


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"pre": "smollm", "bos_token_id": 1}, False),
        ({"pre": "llama-bpe", "bos_token_id": 1}, True),
        ({"pre": "llama-bpe", "bos_token_id": 1, "add_bos_token": False}, False),
        ({"pre": "smollm", "bos_token_id": 1, "add_bos_token": True}, True),
        ({"pre": "llama-bpe"}, False),
    ],
)
def test_which_texts_begin_with_bos(more: dict[str, Value], expected: bool) -> None:
    files = letters(**more)
    assert files.add_bos is expected
    assert load(files).encode("a").tokens == ["a"]  # never by the tokenizer itself


def test_sentencepiece_begins_with_bos() -> None:
    assert sentencepiece().add_bos


def test_template_of_a_chat(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "m.gguf")
    files = read_tokenizer(read_gguf(tmp_path / "m.gguf").metadata)
    assert files.chat_template == CHAT_TEMPLATE
    assert letters().chat_template is None
    assert (files.bos_token, files.eos_token) == ("<|im_start|>", "<|im_end|>")


def test_added_tokens_are_special_only_where_they_control() -> None:
    tokens = ("<s>", "<tool>", *byte_characters().values())
    types = [CONTROL, USER_DEFINED, *[NORMAL] * 256]
    files = read(model="gpt2", tokens=tokens, token_type=types, merges=())
    added = json.loads(files.tokenizer_json)["added_tokens"]
    assert [(token["content"], token["special"]) for token in added] == [
        ("<s>", True),
        ("<tool>", False),
    ]
    assert load(files).encode("a<tool>").tokens == ["a", "<tool>"]


BROKEN: dict[str, tuple[dict[str, Any], type[CompileError], str]] = {
    "twice": ({"tokens": ("a", "a")}, CompileError, "1 tokens are there twice"),
    "merge": ({"merges": ("a bc",)}, CompileError, "merge 0 'a bc' is not one of two tokens"),
    "half a merge": ({"merges": ("ab",)}, CompileError, "merge 0 'ab'"),
    "no merges": ({"merges": None}, CompileError, "merges is missing"),
    "types": ({"token_type": [1]}, CompileError, "1 token types for 3 tokens"),
    "Llama 3 without a splitting": (
        {"tokens": ("a", "b", "ab", "<|begin_of_text|>")},
        UnsupportedError,
        "tokenizer.ggml.pre is missing, as early converters left it",
    ),
    "long": ({"tokens": ("a" * 70_000,)}, CompileError, "a token of more than 65536 characters"),
    "kind": ({"model": "t5"}, UnsupportedError, "tokenizer 't5'"),
    "words": ({"pre": "viking"}, UnsupportedError, "pre-tokenizer 'viking'"),
    "scores": ({"model": "llama", "scores": [0.5]}, CompileError, "1 token scores for 3 tokens"),
    "score": (
        {"model": "llama", "scores": [0.0, 0.0, float("nan")]},
        CompileError,
        "not finite",
    ),
    "bytes": ({"model": "llama", "scores": [0.0] * 3}, UnsupportedError, "<0x00> is missing"),
    "bos": ({"bos_token_id": 3}, CompileError, "bos_token_id is 3; there are 3 tokens"),
    "bos type": ({"bos_token_id": "1"}, CompileError, "must be a whole number"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_tokenizers(case: str) -> None:
    changes, error, message = BROKEN[case]
    values: dict[str, Any] = {"model": "gpt2", "tokens": ("a", "b", "ab"), "merges": ("a b",)}
    given_values = {key: value for key, value in (values | changes).items() if value is not None}
    with pytest.raises(error) as caught:
        read(**given_values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_merges_are_packed_as_texts_and_the_tokenizer_stays_the_same() -> None:
    whole = tiny_tokenizer().to_str()
    packed = compact(whole.encode())
    assert len(packed) < len(whole)
    assert Tokenizer.from_buffer(packed).to_str() == Tokenizer.from_str(whole).to_str()


def test_merges_with_a_space_in_them_stay_pairs() -> None:
    content = {"model": {"merges": [["a b", "c"]]}}
    assert json.loads(compact(json.dumps(content).encode())) == content
