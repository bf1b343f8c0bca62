"""Hashes computed beside other work: nothing is used before it is known to be whole."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

import edge_llm
from edge_llm import hashing
from edge_llm.artifact import Artifact
from edge_llm.errors import ArtifactError
from edge_llm.hashing import Hashing
from tests.conftest import TinyArtifact
from tests.sample_artifact import ENTRIES, write_sample

WAIT = 10.0  # seconds


def test_what_is_whole_passes_and_what_is_not_is_named() -> None:
    good, bad = b"a" * 5000, b"b" * 100
    digest = hashlib.sha256(good).hexdigest()
    parts = [("good", memoryview(good), digest), ("bad", memoryview(bad), digest)]
    hashing = Hashing(parts)
    hashing.wait("good")
    for _ in range(2):
        with pytest.raises(ArtifactError, match=r"^bad is damaged: its SHA-256"):
            hashing.wait("bad")


def test_an_entry_waits_for_its_own_hash_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights' may take long: what is smaller can be read meanwhile."""
    path = tmp_path / "sample.edge"
    write_sample(path)
    largest = max(ENTRIES, key=lambda name: len(ENTRIES[name]))
    others = [name for name in ENTRIES if len(ENTRIES[name]) < len(ENTRIES[largest])]
    go_on = threading.Event()

    def sha256(data: memoryview) -> hashlib._Hash:
        if len(data) == len(ENTRIES[largest]):
            assert go_on.wait(WAIT)
        return hashlib.sha256(data)

    with Artifact.open(path, verify=False) as artifact:
        monkeypatch.setattr(hashing, "sha256", sha256)
        artifact.hash_beside()
        for name in others:
            assert bytes(artifact.entry(name)) == ENTRIES[name]
        taken: list[bytes] = []
        taking = threading.Thread(target=lambda: taken.append(bytes(artifact.entry(largest))))
        taking.start()
        assert not taken
        go_on.set()
        taking.join(WAIT)
        assert taken == [ENTRIES[largest]]


@pytest.mark.parametrize("name", ["weights.bin", "code.so", "tokenizer.json", "generation.json"])
def test_a_damaged_entry_is_refused_before_a_token_is_said(
    tiny_artifact: TinyArtifact, tmp_path: Path, name: str
) -> None:
    content = bytearray(tiny_artifact().read_bytes())
    with Artifact.open(tiny_artifact()) as artifact:
        (entry,) = (entry for entry in artifact.manifest.entries if entry.name == name)
    content[entry.offset + entry.size // 2] ^= 1
    path = tmp_path / "damaged.edge"
    path.write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        edge_llm.load(path)
    assert str(caught.value) == f"{path}: {name} is damaged: its SHA-256 is not the manifest's"
