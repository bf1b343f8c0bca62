"""llama.cpp's quantizations of the teacher, each with an importance matrix of the calibration text.

for candidate in llama_cpp(shop):
    candidate.storage, candidate.weights(), candidate.program()
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.candidate import LLAMA_CPP, Candidate, Workshop, words
from benchmarks.quality.storage import storage_of_gguf
from benchmarks.quality.yardstick import WINDOW, Logits
from benchmarks.speed.workbench import PROJECT, run
from compile.importer import open_checkpoint

SOURCE = PROJECT / "benchmarks" / "quality" / "logits.c"
CHUNKS = 128  # of WINDOW tokens of the calibration text: more than our calibration looks at
SECONDS = 3600  # for the importance matrix where the machine has other work; idle it takes minutes

# What llama-quantize does by default: the embedding, which is the head too, gets Q8_0, and some
# layers more than the rest. With --pure all matrices get one type as far as their columns allow:
# K types and IQ4_XS take multiples of 256, and of SmolLM2's matrices only ffn_down has such rows;
# the others become Q5_0 and IQ4_NL. The last one has Q4_K where it can be, and no more bits.
VARIANTS = (
    "Q4_0",
    "Q4_K_S",
    "IQ4_XS",
    "IQ4_NL",
    "--pure Q4_0",
    "--pure Q4_K_S",
    "--pure IQ4_XS",
    "--pure IQ4_NL",
    "--pure --tensor-type ffn_down=q4_K IQ4_NL",
)


def llama_cpp(shop: Workshop) -> Iterator[Candidate]:
    """Every variant, made when it is its turn."""
    float32, imatrix, logits = float32_teacher(shop), importance(shop), logits_program(shop)
    for variant in VARIANTS:
        *options, kind = variant.split()
        path = quantized(shop, float32, imatrix, variant)
        yield Candidate(
            name=" ".join([LLAMA_CPP, kind, *options]),
            maker=LLAMA_CPP,
            made=f"llama-quantize --imatrix … {variant}",
            storage=storage_of_gguf(path),
            weights=partial(open_checkpoint, path),
            program=partial(running, logits, path),
        )


def quantized(shop: Workshop, float32: Path, imatrix: Path, variant: str) -> Path:
    """A variant of the teacher, made unless it is there."""
    *options, kind = variant.split()
    command = (program(shop, "llama-quantize"), "--imatrix", imatrix, *options, float32)
    name = f"{variant.replace('--', '').replace(' ', '-')}.gguf"
    return shop.made(name, (float32, imatrix), lambda aside: run(words(*command, aside, kind)))


def float32_teacher(shop: Workshop) -> Path:
    """The teacher in float32: what its integers mean, exactly."""
    command = (program(shop, "llama-quantize"), "--allow-requantize", shop.teacher)
    return shop.made(
        "teacher.gguf", (shop.teacher,), lambda aside: run(words(*command, aside, "F32"))
    )


def importance(shop: Workshop) -> Path:
    """The importance matrix, of the output head too."""
    teacher, text = float32_teacher(shop), shop.texts.calibration
    command = (
        *(program(shop, "llama-imatrix"), "--model", teacher, "--file", text),
        *("--ctx-size", WINDOW, "--chunks", CHUNKS, "--process-output", "--no-ppl"),
    )
    return shop.made(
        "imatrix.gguf",
        (teacher, text),
        lambda aside: run(words(*command, "--output-file", aside), SECONDS),
    )


def program(shop: Workshop, name: str) -> str:
    """One of llama.cpp's."""
    return shop.bench.llama("native", name)


def logits_program(shop: Workshop) -> Path:
    """The compiled logits.c, linked with llama.cpp's library as it was built for this machine."""
    source, libraries = shop.bench.llama_source, shop.bench.folder / "native"
    command = (
        *("cc", "-O2", SOURCE, f"-I{source}/include", f"-I{source}/ggml/include"),
        *(f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-lllama", "-lggml", "-lggml-base"),
    )
    sources = (SOURCE, libraries / "libllama.so")
    return shop.made("logits", sources, lambda aside: run(words(*command, "-o", aside)))


@contextmanager
def running(logits: Path, model: Path) -> Iterator[Logits]:
    """llama.cpp with a model loaded, to be asked for windows of WINDOW tokens."""
    with Popen(words(logits, model, os.cpu_count(), WINDOW), stdin=PIPE, stdout=PIPE) as process:
        asked, answers = process.stdin, process.stdout
        assert asked is not None
        assert answers is not None

        def read(kind: str, count: int) -> NDArray[Any]:
            size = count * np.dtype(kind).itemsize
            data = answers.read(size)
            if len(data) < size:  # it has said why, on stderr
                raise click.ClickException(f"{logits.name} {model.name}: ended early")
            return np.frombuffer(data, kind)

        (vocabulary,) = read("i4", 1)

        def ask(tokens: Sequence[int]) -> NDArray[np.float32]:
            asked.write(np.array(tokens, "i4").tobytes())
            asked.flush()
            return read("f4", WINDOW * vocabulary).reshape(WINDOW, vocabulary)

        yield ask
