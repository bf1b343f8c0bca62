"""Whether one model can teach another: both must mean the same by their tokens.

check_match(student.tokenizer, 512, Path("SmolLM2-1.7B-Instruct"))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from compile.checkpoint import TokenizerFiles
from compile.errors import CompileError, UnsupportedError
from compile.foreign_errors import translated
from compile.importer import open_checkpoint


@dataclass(frozen=True)
class Description:
    """What is known of a teacher before its weights are read.

    Attributes:
        tokens: its vocabulary by number.
        context: positions it was trained for; None where it does not say.
    """

    tokens: Mapping[int, str]
    context: int | None


def check_match(files: TokenizerFiles, length: int, teacher: Path) -> None:
    """CompileError where a token of the student's is another of the teacher's, or none.

    Args:
        files: the student's tokenizer.
        length: tokens that the teacher must look at together.
        teacher: a model of any kind that our importers or transformers open.

    Special tokens may have other names, as they do where one of the two was trained to chat, but
    the teacher must have them all. What a matrix was filled up with may be missing.
    """
    described = describe(teacher)
    if described.context is not None and length > described.context:
        raise CompileError(
            f"[data] length {length}: {teacher} was trained for {described.context} positions"
        )
    tokenizer = Tokenizer.from_str(files.tokenizer_json.decode())
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    for token, number in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1]):
        other = described.tokens.get(number)
        if other == token or (other is not None and number in special):
            continue
        if other is None and token == f"[PAD{number}]":
            continue
        there = "is none" if other is None else f"is {other!r}"
        raise CompileError(
            f"{teacher}: has another vocabulary: token {number}, {token!r}, {there} there; a "
            "teacher must have the student's"
        )


def describe(path: Path) -> Description:
    """A teacher's vocabulary and context, as our importers or else transformers know them."""
    try:
        checkpoint = open_checkpoint(path)
    except UnsupportedError:
        return _by_transformers(path)
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer.tokenizer_json.decode())
    return Description(_by_number(tokenizer.get_vocab()), checkpoint.config.context)


def _by_transformers(path: Path) -> Description:
    place: dict[str, Any] = {} if path.is_dir() else {"gguf_file": path.name}
    where = path if path.is_dir() else path.parent
    with translated(f"{path}: transformers cannot open it either"):
        from transformers import AutoConfig, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=True, **place)
        config = AutoConfig.from_pretrained(where, local_files_only=True, **place)
        context = getattr(config.get_text_config(), "max_position_embeddings", None)
        return Description(_by_number(tokenizer.get_vocab()), context)


def _by_number(vocabulary: Mapping[str, int]) -> Mapping[int, str]:
    return {number: token for token, number in vocabulary.items()}
