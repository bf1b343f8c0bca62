"""The tokenizer of a Hugging Face folder: tokenizer.json, template, beginning and ends of text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compile.checkpoint import ModelConfig, TokenizerFiles
from compile.end_tokens import end_token_ids
from compile.errors import CompileError
from compile.foreign_errors import translated
from compile.json_file import Settings, read_settings, read_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def read_tokenizer(folder: Path, config: Settings, model: ModelConfig) -> TokenizerFiles:
    """Read the folder's tokenizer; CompileError where there is none or it does not fit the model.

    Args:
        folder: the model's folder.
        config: its config.json.
        model: its sizes; no token may lie outside the vocabulary.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        raise CompileError(
            f"{folder}: tokenizer.json is missing; a model without a tokenizer cannot be compiled"
        )
    tokenizer = _load(path)
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= model.vocab_size:
        raise CompileError(
            f"{path}: token {largest} is outside the model's vocabulary of {model.vocab_size}"
        )
    settings = _optional(folder / "tokenizer_config.json")
    generation = _optional(folder / "generation_config.json")
    bos_token = _token_text(settings, "bos_token")
    eos_token = _token_text(settings, "eos_token")
    bos = tokenizer.token_to_id(bos_token) if bos_token else None
    if bos is None and "bos_token_id" in config:
        bos = _checked_id(config, config.integer("bos_token_id"), model)
        bos_token = tokenizer.id_to_token(bos) or ""
    ends = [*_ids(generation, model), *_ids(config, model)]
    named_end = tokenizer.token_to_id(eos_token) if eos_token else None
    if named_end is not None:
        ends.insert(0, named_end)
    special = {
        token.content: index
        for index, token in tokenizer.get_added_tokens_decoder().items()
        if token.special
    }
    return TokenizerFiles(
        tokenizer_json=_without_side_effects(tokenizer),
        chat_template=_chat_template(folder, settings),
        bos_token_id=bos,
        eos_token_ids=end_token_ids(ends, special),
        add_bos=bos is not None and settings.flag("add_bos_token", _adds_bos(path, tokenizer, bos)),
        bos_token=bos_token,
        eos_token=eos_token or _first_text(tokenizer, ends),
    )


def _load(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    with translated(f"{path}: not a tokenizer"):
        return Tokenizer.from_str(read_text(path))


def _without_side_effects(tokenizer: Tokenizer) -> bytes:
    """tokenizer.json that neither adds tokens to a text nor cuts or pads it.

    What comes before a prompt is ``TokenizerFiles.add_bos`` alone; some files in use would cut
    every text at a length that was right for training.
    """
    state: dict[str, Any] = json.loads(tokenizer.to_str())
    state |= {"post_processor": None, "truncation": None, "padding": None}
    return json.dumps(state, ensure_ascii=False, separators=(",", ":")).encode()


def _adds_bos(path: Path, tokenizer: Tokenizer, bos: int) -> bool:
    """Whether the tokenizer as it came begins a text with ``bos``."""
    with translated(f"{path}: the tokenizer cannot encode a text"):
        ids: list[int] = tokenizer.encode("a").ids
    return ids[:1] == [bos]


def _optional(path: Path) -> Settings:
    return read_settings(path) if path.exists() else Settings(path, {})


def _token_text(settings: Settings, key: str) -> str:
    """A special token's text, given as it is or as an object; empty where there is none."""
    if isinstance(settings.values.get(key), dict):
        return settings.section(key).text("content")
    return settings.text(key, "")


def _ids(settings: Settings, model: ModelConfig) -> Iterator[int]:
    """The ids of ``eos_token_id``: one, several or none."""
    value = settings.values.get("eos_token_id", [])
    for index in value if isinstance(value, list) else [value]:
        if isinstance(index, bool) or not isinstance(index, int):
            raise CompileError(f"{settings.path}: 'eos_token_id' must be token ids")
        yield _checked_id(settings, index, model)


def _checked_id(settings: Settings, index: int, model: ModelConfig) -> int:
    if not 0 <= index < model.vocab_size:
        raise CompileError(
            f"{settings.path}: token {index} is outside the vocabulary of {model.vocab_size}"
        )
    return index


def _first_text(tokenizer: Tokenizer, ids: list[int]) -> str:
    return (tokenizer.id_to_token(ids[0]) or "") if ids else ""


def _chat_template(folder: Path, settings: Settings) -> str | None:
    """The template's own file, else the one in the settings, of several the one named default."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return read_text(path)
    value = settings.values.get("chat_template")
    if isinstance(value, list):
        entries = [entry for entry in value if isinstance(entry, dict)]
        named = (entry.get("template") for entry in entries if entry.get("name") == "default")
        value = next(named, None)
    if value is not None and not isinstance(value, str):
        raise CompileError(f"{settings.path}: 'chat_template' must be a string")
    return value
