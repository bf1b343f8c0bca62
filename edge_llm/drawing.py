"""The compiled function that draws a token (compile/lower/cpu/draw.c), as Python calls it.

draw = Drawing(library, vocab_size)
token = draw(logits, tokens, Sampling(temperature=0.8), 0.25)
"""

from __future__ import annotations

import ctypes

from edge_llm.buffers import Floats, Integers, address, zeros
from edge_llm.request import Sampling

ROOM = 6  # floats of working memory a token
LEAST_TEMPERATURE = 1e-30  # anything below draws the same, and is no float32


class Drawing:
    """A :data:`edge_llm.sampler.Draw`; not for two threads at once.

    Args:
        library: that has ``edge_draw``; AttributeError where it has not.
        vocab_size: the most logits a row has.
    """

    def __init__(self, library: ctypes.CDLL, vocab_size: int) -> None:
        self._function = library.edge_draw
        integer, single, double = ctypes.c_int32, ctypes.c_float, ctypes.c_double
        floats, integers = ctypes.POINTER(single), ctypes.POINTER(integer)
        self._function.argtypes = (
            *(floats, integer, integers, integer),
            *(single, single, integer, double, single),
            *(double, ctypes.c_void_p),
        )
        self._vocab_size = vocab_size
        self._memory = zeros(ROOM * vocab_size, "f")
        self._address = address(self._memory)

    def __call__(self, logits: Floats, tokens: Integers, sampling: Sampling, uniform: float) -> int:
        if len(logits) > self._vocab_size:
            raise ValueError(f"{len(logits)} logits for {self._vocab_size} tokens")
        temperature, penalty = sampling.temperature, sampling.repetition_penalty
        seen = None if penalty == 1 else ctypes.c_int32.from_buffer(tokens)
        token: int = self._function(
            ctypes.c_float.from_buffer(logits),
            len(logits),
            seen,
            len(tokens),
            penalty,
            temperature and max(temperature, LEAST_TEMPERATURE),
            min(sampling.top_k, len(logits)),
            sampling.top_p,
            sampling.min_p,
            uniform,
            self._address,
        )
        return token
