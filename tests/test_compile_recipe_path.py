"""The whole way of a recipe as a user walks it: out of disk, killed twice, the same comes out."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import edge_llm
from tests.artifacts import PROJECT
from tests.tiny_model import write_tiny_gguf

RECIPE = """
[data]
tokens = 4096
length = 32

[student]
layers = 2
ffn = 64

[distill]
steps = 4
states = 0.1

[quantize]
tokens = 512

[finetune]
steps = 12
save_every = 2

[budget]
bits_per_weight = 5.0

[evaluate]
tokens = 128
prompts = ["Hello?"]
answer = 4
"""
SECONDS = 600.0  # in which a process must come to where it is killed


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def start(
    folder: Path, name: str, largest_file: int | None = None, by: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    """``python -m compile`` with the recipe, on one thread: tiny products take no more.

    ``largest_file`` bounds what it may write, in bytes, as a full disk does; ``by`` starts it.
    """

    def bounded() -> None:
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    command = ("tiny.gguf", "--recipe", "recipe.toml", "--target", "native", "-o", name)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return subprocess.Popen(
        [sys.executable, *by, "-m", "compile", *command],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": f"{PROJECT}:{os.environ.get('PYTHONPATH', '')}",
            **threads,
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=bounded,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """What it says on stderr, once it has succeeded."""
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said
    return said


def kill_when(process: subprocess.Popen[str], folder: Path, pattern: str) -> None:
    """Kill it as soon as a file is there."""
    deadline = time.monotonic() + SECONDS
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_stopped_and_killed_it_ends_the_same(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", quantization="F16", layers=3)
    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    said = finish(start(tmp_path, "whole.edge"))
    assert "finetune: done" in said

    full = start(tmp_path, "killed.edge", largest_file=1 << 16)
    *_, error = full.communicate(timeout=SECONDS)[1].splitlines()
    assert full.returncode == 1
    assert error.startswith("error: killed.edge.work: no space is left")
    assert not list(tmp_path.glob("killed.edge.work/quantize-*/weights.safetensors"))

    kill_when(start(tmp_path, "killed.edge"), tmp_path, "killed.edge.work/quantize-*/done.json")
    kill_when(
        start(tmp_path, "killed.edge"), tmp_path, "killed.edge.work/finetune-*/state.safetensors"
    )
    assert not (tmp_path / "killed.edge").exists()
    assert not list(tmp_path.glob("killed.edge.work/finetune-*/done.json"))
    finish(start(tmp_path, "killed.edge"))
    assert (tmp_path / "killed.edge").read_bytes() == (tmp_path / "whole.edge").read_bytes()

    page = (tmp_path / "killed.edge.html").read_text(encoding="utf-8")
    for part in ("<svg", "finetuned", "made by an earlier run", "Hello?", "bits_per_weight = 5.0"):
        assert part in page
    with edge_llm.load(tmp_path / "killed.edge") as model:
        assert list(model.generate("The capital of France", raw=True, max_tokens=4))


@pytest.mark.slow
def test_two_processes_train_together_and_one_makes_the_rest(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", quantization="F16", layers=3)
    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    said = finish(start(tmp_path, "tiny.edge", by=TORCHRUN))
    assert said.count("finetune: done") == 1
    assert said.count("tiny.edge: ") == 1
    with edge_llm.load(tmp_path / "tiny.edge") as model:
        assert list(model.generate("The capital of France", raw=True, max_tokens=4))


@pytest.mark.slow
def test_an_error_of_the_one_that_leads_ends_all(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", quantization="F16", layers=3)
    recipe = RECIPE.replace("layers = 2", "layers = 9")
    (tmp_path / "recipe.toml").write_text(recipe, encoding="utf-8")
    process = start(tmp_path, "tiny.edge", by=TORCHRUN)
    said = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 1
    assert said.count("error: a student of 9 layers") == 1
    assert not (tmp_path / "tiny.edge").exists()
