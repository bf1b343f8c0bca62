"""Runs a compiled language model on a small board.

>>> model = edge_llm.load("smollm2-rpi5.edge")                                  # doctest: +SKIP
>>> for text in model.generate("What is the capital of France?"):               # doctest: +SKIP
...     print(text, end="", flush=True)
"""

from __future__ import annotations

import gc
from os import PathLike
from typing import TYPE_CHECKING

from edge_llm.errors import EdgeLLMError

if TYPE_CHECKING:
    from edge_llm.model import Model

__all__ = ["EdgeLLMError", "__version__", "load"]
__version__ = "0.1.0"


def load(
    path: str | PathLike[str],
    threads: int | None = None,
    context: int | None = None,
    sequences: int = 1,
    decode_threads: int | None = None,
) -> Model:
    """Checks and maps an artifact and starts its engine.

    Args:
        path: a file that ``python -m compile`` made for this machine.
        threads: CPU threads; None takes what suits the board, or one a core.
        context: tokens that prompt and answer may have together; None takes the model's own.
        sequences: answers of that full length that can be held at once. Shorter ones share the
            same memory, so that more of them run together.
        decode_threads: CPU threads for one token after the other; None takes ``threads``, or what
            suits the board.

    Raises:
        ArtifactError: the file is damaged or no artifact.
        TargetError: it was compiled for another CPU.
        ConfigError: a setting that this artifact or machine cannot do.
    """
    from edge_llm.artifact import Artifact

    artifact = Artifact.open(path, verify=False)
    collects = gc.isenabled()
    gc.disable()  # next to nothing of what a start makes is garbage
    try:
        artifact.hash_beside()  # while modules and the tokenizer take as long
        from edge_llm.model import start

        return start(artifact, threads, context, sequences, decode_threads)
    except BaseException:
        artifact.close()
        raise
    finally:
        if collects:
            gc.enable()
