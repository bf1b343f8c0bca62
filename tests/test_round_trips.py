"""One question, four ways in: the greedy answer is the same text, and memory stays in bounds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx2

import edge_llm
from tests.broker import Broker
from tests.conftest import Smollm2Artifact
from tests.serving import DEVICE, Serving

QUESTION = "Name three animals that live in the sea, and say why."
TOKENS = 60


def run(*args: str) -> str:
    command = [sys.executable, "-m", "edge_llm.cli", *args]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def test_the_same_text_every_way(
    smollm2_artifact: Smollm2Artifact, mosquitto: Broker, tmp_path: Path
) -> None:
    artifact, path = smollm2_artifact(), tmp_path / "s"
    limit = ("--max-tokens", str(TOKENS))
    from_cli = run("run", str(artifact), "--prompt", QUESTION, *limit)
    with edge_llm.load(artifact) as model:
        from_python = "".join(model.generate(QUESTION, max_tokens=TOKENS))
    options = ("--mqtt", mosquitto.url, "--device", DEVICE, "--socket", str(path))
    with Serving(artifact, *options) as serving:
        serving.wait_for("connected")
        over_mqtt = run("ask", "--mqtt", mosquitto.url, "--device", DEVICE, *limit, QUESTION)
        body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": TOKENS}
        with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(path)), timeout=60) as http:
            answer = http.post("http://device/v1/chat/completions", json=body).json()
    over_socket = answer["choices"][0]["message"]["content"]
    assert len(from_python) > 100
    assert from_cli == from_python == over_socket == over_mqtt.removesuffix("\n")


def test_resident_memory_while_serving(smollm2_artifact: Smollm2Artifact, tmp_path: Path) -> None:
    artifact, path = smollm2_artifact(), tmp_path / "s"
    with Serving(artifact, "--socket", str(path), "--context", "2048") as serving:
        serving.wait_for("ready")
        body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": TOKENS}
        with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(path)), timeout=60) as http:
            http.post("http://device/v1/chat/completions", content=json.dumps(body))
        status = Path(f"/proc/{serving.process.pid}/status").read_text()
        resident = int(status.split("VmRSS:")[1].split()[0]) * 1024
    over = resident - artifact.stat().st_size
    print(f"\nresident {resident / 1e6:.1f} MB, artifact and {over / 1e6:.1f} MB")
    assert over <= 80e6
