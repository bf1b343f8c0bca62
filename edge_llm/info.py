"""What ``edge-llm info FILE`` prints: what is in an artifact, and whether it runs here.

>>> print(describe("smollm2-rpi5.edge"))                                        # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import json
from os import PathLike
from typing import Any

from edge_llm.artifact import Artifact
from edge_llm.cpu import Host, check_target, host
from edge_llm.errors import TargetError
from edge_llm.manifest import Manifest, Weights

_SEQUENCES = (1, 4)  # the certificate is shown for these, at the whole context and a quarter of it


def describe(path: str | PathLike[str], as_json: bool = False) -> str:
    """Everything about the artifact at ``path``, after checking all of it.

    Args:
        path: the artifact.
        as_json: as one JSON object with the manifest's own keys, and ``sha256``, ``size``,
            ``bits_per_weight``, ``certificate`` and ``runs_here``, instead of text.

    Raises:
        ArtifactError: see :meth:`Artifact.open`. Another CPU's artifact is no error here.
    """
    with Artifact.open(path) as artifact:
        if as_json:
            return json.dumps(record(artifact, host()), indent=2)
        return summary(artifact, host())


def record(artifact: Artifact, host: Host) -> dict[str, Any]:
    """The artifact in plain values, for programs."""
    manifest = artifact.manifest
    return {
        "path": str(artifact.path),
        "size": artifact.size,
        "sha256": artifact.sha256,
        **dataclasses.asdict(manifest),
        "bits_per_weight": manifest.bits_per_weight,
        "certificate": [
            {"context": context, "sequences": sequences, "bytes": size}
            for context, sequences, size in _certificate(manifest)
        ],
        "runs_here": _obstacle(artifact, host) is None,
    }


def summary(artifact: Artifact, host: Host) -> str:
    """The artifact in lines for people."""
    manifest = artifact.manifest
    model, target = manifest.model, manifest.target
    versions = manifest.compiler
    lines = [
        f"{model.name} for {target.name}: {artifact.path}, {_bytes(artifact.size)}",
        "",
        f"  model       {model.family}, {model.parameters / 1e6:.0f} M parameters, "
        f"context {model.context}",
        f"              {model.layers} layers of width {model.width}, {model.heads} heads of "
        f"{model.head_dim} ({model.kv_heads} of keys and values), vocabulary {model.vocab_size}",
        f"  source      {model.source}, license {model.license or 'unknown'}",
        f"  weights     {_formats(manifest.numerics.weights)}, "
        f"{manifest.bits_per_weight:.2f} bits a weight",
        f"  target      {target.triple}, {target.isa} kernels, glibc {target.glibc} or newer",
        f"              needs {', '.join(target.features) or 'no CPU features'}",
        f"  compiled by edge-llm {versions.edge_llm}, TVM {versions.tvm}, LLVM {versions.llvm}",
        f"  sha256      {artifact.sha256}",
        "",
        *(f"  {entry.name:<20}{_bytes(entry.size):>12}" for entry in manifest.entries),
        "",
        "  memory while running, interpreter and tokenizer apart",
        *(
            f"  {f'context {context}, {_plural(sequences)}':<28}{_bytes(size):>12}"
            for context, sequences, size in _certificate(manifest)
        ),
        "",
        f"  {_obstacle(artifact, host) or f'runs on this machine: {host.model_name}'}",
    ]
    return "\n".join(lines)


def _formats(weights: Weights) -> str:
    """``int4-g32 (qkv, o, gate_up, down), int8 (head)``."""
    kinds: dict[str, list[str]] = {}
    for kind, form in dataclasses.asdict(weights).items():
        kinds.setdefault(form, []).append(kind)
    return ", ".join(f"{form} ({', '.join(names)})" for form, names in kinds.items())


def _certificate(manifest: Manifest) -> list[tuple[int, int, int]]:
    """Context, sequences and peak bytes, smallest first."""
    whole = manifest.model.context
    contexts = sorted({max(1, whole // 4), whole})
    certificate = manifest.memory.certificate
    return [(c, s, certificate(c, s)) for s in _SEQUENCES for c in contexts]


def _obstacle(artifact: Artifact, host: Host) -> str | None:
    try:
        check_target(artifact.manifest.target, host, artifact.path.name)
    except TargetError as error:
        return str(error)
    return None


def _plural(sequences: int) -> str:
    return "1 sequence" if sequences == 1 else f"{sequences} sequences"


def _bytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size} B"
