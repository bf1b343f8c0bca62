"""The safetensors files of a Hugging Face folder, one or sharded, opened for reading by name.

Names in the index are taken as plain file names in the folder, so an index cannot point outside.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compile.errors import CompileError, UnsupportedError
from compile.foreign_errors import translated
from compile.json_file import read_settings

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER = 100_000_000  # bytes, the format's own limit
DTYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file; ``file`` is the library's handle, which maps it."""

    path: Path
    file: Any
    dtype: str
    shape: tuple[int, ...]


class SafetensorsFolder:
    """Every tensor of a folder by name; data is read when asked for."""

    def __init__(self, folder: Path) -> None:
        self.tensors: dict[str, StoredTensor] = {}
        for path in _files(folder):
            for name, tensor in _open(path).items():
                if name in self.tensors:
                    raise CompileError(f"{path}: tensor {name!r} is in another file as well")
                self.tensors[name] = tensor

    def check_types(self, names: Iterable[str]) -> None:
        """UnsupportedError where one of these is stored in a type that is not read."""
        for name in names:
            tensor = self.tensors[name]
            if tensor.dtype not in DTYPES:
                raise UnsupportedError(
                    f"{tensor.path}: tensor {name!r} is stored as {tensor.dtype}; "
                    f"supported are {', '.join(DTYPES)}"
                )

    def read(self, name: str) -> NDArray[np.float32] | NDArray[np.float16]:
        """A tensor as it is stored; bfloat16 becomes float32."""
        tensor = self.tensors[name]
        import ml_dtypes  # noqa: F401 - from here on numpy knows bfloat16

        with translated(f"{tensor.path}: tensor {name!r} cannot be read"):
            values: NDArray[Any] = tensor.file.get_tensor(name)
        return values.astype(np.float32) if tensor.dtype == "BF16" else values


def _files(folder: Path) -> list[Path]:
    """The files that hold the weights, as the index names them where there is one."""
    index = folder / INDEX
    if not index.exists():
        single = folder / SINGLE
        if single.exists():
            return [single]
        if any(folder.glob("pytorch_model*.bin")):
            raise UnsupportedError(
                f"{folder}: weights as pickle (.bin); convert them to safetensors"
            )
        raise CompileError(f"{folder}: {SINGLE} is missing")
    names: set[str] = set()
    for name in read_settings(index).section("weight_map").values.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise CompileError(f"{index}: {name!r} is not the name of a file in this folder")
        names.add(name)
    if not names:
        raise CompileError(f"{index}: 'weight_map' is missing or empty")
    for name in names:
        if not (folder / name).is_file():
            raise CompileError(f"{folder}: {name} is missing, the index lists it")
    return [folder / name for name in sorted(names)]


def _open(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file; its header's length is checked before the library reads it."""
    import safetensors

    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
    except OSError as error:
        raise CompileError(f"{path}: {error.strerror}") from error
    if len(prefix) < 8:
        raise CompileError(f"{path}: cut short: {size} bytes are no safetensors file")
    length = int(struct.unpack("<Q", prefix)[0])
    if length > min(size - 8, MAX_HEADER):
        raise CompileError(
            f"{path}: cut short or damaged: it announces a header of {length} bytes, "
            f"the file has {size}"
        )
    safe_open: Any = safetensors.safe_open  # has no types
    with translated(f"{path}: cut short or damaged"):
        handle = safe_open(path, framework="numpy")
        slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
        return {
            name: StoredTensor(path, handle, str(part.get_dtype()), tuple(part.get_shape()))
            for name, part in slices.items()
        }
