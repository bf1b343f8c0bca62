"""Model families: each is described once, as a list of operations that every back end reads."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

from compile.checkpoint import ModelConfig
from compile.families import llama
from compile.graph import Graph

FAMILIES: MappingProxyType[str, Callable[[ModelConfig], Graph]] = MappingProxyType(
    {"llama": llama.graph}
)
