"""What ``edge-llm info`` prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_llm.artifact import Artifact
from edge_llm.cpu import Host
from edge_llm.errors import ArtifactError
from edge_llm.info import describe, record, summary
from targets import TARGETS
from tests.sample_artifact import ENTRIES, sample_manifest, write_sample

PI5 = Host("aarch64", frozenset(TARGETS["rpi5"].features), "Raspberry Pi 5 Model B", "2.36")
PI4 = Host("aarch64", frozenset({"asimd"}), "Raspberry Pi 4 Model B", "2.36")


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    return write_sample(tmp_path / "sample.edge")


def test_text_says_what_it_is_and_whether_it_runs(sample: Path) -> None:
    with Artifact.open(sample) as artifact:
        text = summary(artifact, PI5)
        assert text.startswith("SmolLM2-135M-Instruct for rpi5: ")
        assert "runs on this machine: Raspberry Pi 5 Model B" in text
        assert all(name in text for name in ENTRIES)
        assert artifact.sha256 in text
        assert "context 2048, 4 sequences" in text
        assert "weights     int4-g32-asym (qkv, o, gate_up, down), int8 (head), 0.00 bits" in text
        assert all(len(line) < 160 for line in text.splitlines()[1:])
        assert "this CPU has no asimddp" in summary(artifact, PI4)


def test_json_has_the_manifest_and_the_certificate(sample: Path) -> None:
    document = json.loads(describe(sample, as_json=True))
    with Artifact.open(sample) as artifact:
        assert document == json.loads(json.dumps(record(artifact, PI4))) | {
            "runs_here": document["runs_here"]
        }
        assert record(artifact, PI5)["runs_here"] is True
        assert record(artifact, PI4)["runs_here"] is False
    assert document["size"] == sample.stat().st_size
    assert document["target"]["name"] == "rpi5"
    assert document["certificate"][-1] == {
        "context": 2048,
        "sequences": 4,
        "bytes": sample_manifest().memory.certificate(2048, 4),
    }


def test_a_damaged_file_is_not_described(sample: Path) -> None:
    sample.write_bytes(sample.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="is cut short in the directory at the end"):
        describe(sample)
