"""Opening a model of whatever format: the one door between files and the rest of the compiler.

checkpoint = open_checkpoint(Path("SmolLM2-135M-Instruct.Q4_1.gguf"))
checkpoint.config.layers        # 30
"""

from __future__ import annotations

from pathlib import Path

from compile.checkpoint import Checkpoint
from compile.errors import CompileError
from compile.gguf_file import MAGIC
from compile.import_gguf import open_gguf
from compile.import_huggingface import open_huggingface
from compile.import_onnx import open_onnx
from compile.onnx_file import read_onnx
from compile.stored import open_stored

DESCRIPTIONS = (".json", ".jinja")  # settings, tokenizer and chat template beside the weights


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a GGUF, an ONNX graph, a Hugging Face folder, or an artifact or a checkpoint of ours.

    CompileError where it is neither, damaged, or incomplete; UnsupportedError where it is sound
    but of a kind that cannot be compiled.
    """
    if path.is_dir():
        return open_huggingface(path)
    if not path.exists():
        raise CompileError(f"{path}: no such file or folder")
    if not path.is_file():
        raise CompileError(f"{path}: neither a file nor a folder")
    if path.suffix == ".onnx":  # protobuf has no magic to tell it by
        return open_onnx(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CompileError(f"{path}: {error.strerror}") from error
    if start.startswith(MAGIC):
        return open_gguf(path)
    if start[8:] == b"{":  # safetensors: eight bytes of length, then JSON
        return open_stored(path)
    if start.startswith(b"PK"):
        from compile.import_artifact import open_artifact  # which needs TVM: seconds

        return open_artifact(path)
    raise CompileError(
        f"{path}: neither a GGUF, a folder of Hugging Face, a .onnx file, an artifact, nor a "
        "recipe's weights"
    )


def source_files(path: Path) -> list[Path]:
    """Every file that decides what :func:`open_checkpoint` gives for ``path``, in a fixed order.

    Of a folder and around a graph only what belongs to a model: other files, such as an artifact
    that is being made there, come and go.
    """
    if path.is_dir():
        return _of_types(path, (*DESCRIPTIONS, ".safetensors"))
    if path.suffix == ".onnx":
        return [path, *read_onnx(path).external, *_of_types(path.parent, DESCRIPTIONS)]
    return [path]


def _of_types(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix in suffixes and p.is_file())
