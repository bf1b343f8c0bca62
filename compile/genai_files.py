"""What onnxruntime-genai, and our own importer, read beside a graph: settings and tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from compile.checkpoint import ModelConfig, TokenizerFiles
from compile.errors import CompileError
from edge_llm.files import replacing


def genai_files(config: ModelConfig, tokenizer: TokenizerFiles, graph: str) -> dict[str, bytes]:
    """The files by name, for the graph's file ``graph``."""
    files = {
        "genai_config.json": _json(genai_config(config, tokenizer, graph)),
        "tokenizer.json": tokenizer.tokenizer_json,
        "tokenizer_config.json": _json(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "add_bos_token": tokenizer.add_bos,
                "bos_token": tokenizer.bos_token or None,
                "eos_token": tokenizer.eos_token or None,
            }
        ),
    }
    if tokenizer.chat_template is not None:
        files["chat_template.jinja"] = tokenizer.chat_template.encode()
    return files


def genai_config(config: ModelConfig, tokenizer: TokenizerFiles, graph: str) -> dict[str, object]:
    """genai_config.json: sizes, names of inputs and outputs, how generation ends."""
    ends = list(tokenizer.eos_token_ids)
    return {
        "model": {
            "type": config.family,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": ends,
            "pad_token_id": ends[0] if ends else tokenizer.bos_token_id,
            "context_length": config.context,
            "vocab_size": config.vocab_size,
            "decoder": {
                "filename": graph,
                "session_options": {"provider_options": []},
                "hidden_size": config.width,
                "head_size": config.head_dim,
                "num_attention_heads": config.heads,
                "num_key_value_heads": config.kv_heads,
                "num_hidden_layers": config.layers,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {"max_length": config.context, "past_present_share_buffer": True},
    }


def write_beside(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files, or none: another model's that stand in the folder are left alone."""
    paths = {folder / name: content for name, content in files.items()}
    for path, content in paths.items():
        if path.exists() and path.read_bytes() != content:
            raise CompileError(
                f"{path}: is there and belongs to another model: export into a folder of its own"
            )
    for path, content in paths.items():
        with replacing(path) as file:
            file.write(content)


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"
