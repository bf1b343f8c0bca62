"""Whether two models mean the same by their tokens: one can teach the other only then.

check_same(student.tokenizer, Path("SmolLM2-1.7B-Instruct"))
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from compile.checkpoint import TokenizerFiles
from compile.errors import CompileError, UnsupportedError
from compile.foreign_errors import translated
from compile.importer import open_checkpoint


def check_same(files: TokenizerFiles, teacher: Path) -> None:
    """CompileError where a token of the student's is another of the teacher's, or none.

    Special tokens may have other names, as they do where one of them was trained to chat.
    """
    own, others = _tokens(files), teachers_tokens(teacher)
    for number, token in sorted(own.items()):
        if others.get(number) != token:
            there = f"is {others[number]!r}" if number in others else "is none"
            raise CompileError(
                f"{teacher}: has another vocabulary: token {number}, {token!r}, {there} there; a "
                "teacher must have the student's"
            )


def teachers_tokens(path: Path) -> dict[int, str]:
    """All of a model's tokens, as our importers or else transformers know them."""
    try:
        content = open_checkpoint(path).tokenizer.tokenizer_json.decode()
        vocabulary = Tokenizer.from_str(content).get_vocab()
    except UnsupportedError:
        from transformers import AutoTokenizer

        place: dict[str, Any] = {} if path.is_dir() else {"gguf_file": path.name}
        with translated(f"{path}: transformers cannot open its tokenizer either"):
            vocabulary = AutoTokenizer.from_pretrained(
                path if path.is_dir() else path.parent, local_files_only=True, **place
            ).get_vocab()
    return {number: token for token, number in vocabulary.items()}


def _tokens(files: TokenizerFiles) -> dict[int, str]:
    """Those that are not special."""
    tokenizer = Tokenizer.from_str(files.tokenizer_json.decode())
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    return {i: token for token, i in tokenizer.get_vocab().items() if i not in special}
