"""Learning from a teacher on a CUDA GPU: `make test-cuda` runs these where there is one.

No module of `make test`: its machines have no GPU, and a test that is skipped promises nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from compile.checkpoint import Q4, Checkpoint
from compile.distill.data import sample
from compile.distill.decoder import Decoder
from compile.distill.machine import GPU_TEXTS, Machine
from compile.distill.teacher import DecoderTeacher, TransformersTeacher
from compile.distill.train import Settings, divergence, kl_divergence, train
from compile.importer import open_checkpoint
from compile.quantize.formats import Formats, MatrixFormat
from compile.quantize.nearest import QuantizedCheckpoint
from compile.reference import dequantized
from compile.stored import store
from tests.tiny_model import write_tiny_gguf, write_tiny_huggingface

CPU = Machine(torch.device("cpu"), torch.float32)
FOUR = MatrixFormat(4, 32, True)
FORMATS = Formats(FOUR, MatrixFormat(4, 32, False), FOUR, FOUR, MatrixFormat(8, 32, True))


@pytest.fixture(scope="module")
def machine() -> Machine:
    here = Machine.here()
    assert here.device.type == "cuda", "these tests are for a machine with a CUDA GPU"
    return here


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("distill") / "tiny.gguf"
    write_tiny_gguf(path, quantization="F32", layers=3, ffn=192)
    return open_checkpoint(path)


@pytest.fixture(scope="module")
def tokens(tiny: Checkpoint) -> np.ndarray:
    random = np.random.default_rng(5)
    return random.integers(0, tiny.config.vocab_size, (32, 24)).astype(np.int32)


def test_a_gpu_says_what_a_cpu_says(tiny: Checkpoint, tokens: np.ndarray, machine: Machine) -> None:
    batch = torch.from_numpy(tokens).long()
    on_cpu = DecoderTeacher(tiny, CPU).lesson(batch)
    on_gpu = DecoderTeacher(tiny, machine).lesson(batch.to(machine.device))
    assert kl_divergence(on_cpu.logits, on_gpu.logits.cpu()).max() < 1e-3


def test_teachers_of_both_kinds_write_and_stop_at_what_fits(
    tmp_path: Path, machine: Machine
) -> None:
    write_tiny_huggingface(tmp_path / "tiny", quantization="F32")
    checkpoint = open_checkpoint(tmp_path / "tiny")
    for teacher in (
        DecoderTeacher(checkpoint, machine),
        TransformersTeacher(tmp_path / "tiny", machine),
    ):
        assert teacher.together(12) == GPU_TEXTS
        assert 1 <= teacher.together(10**10) < GPU_TEXTS
        folders = (tmp_path / f"{type(teacher).__name__}-{i}" for i in range(2))
        one, two = (sample(teacher, checkpoint.tokenizer, 40_000, 12, 1, f) for f in folders)
        assert one.shape == (3334, 12)
        np.testing.assert_array_equal(one, two)


def test_a_rounded_student_comes_nearer(
    tiny: Checkpoint, tokens: np.ndarray, machine: Machine, tmp_path: Path
) -> None:
    quantized = QuantizedCheckpoint(tiny, FORMATS)
    teacher = DecoderTeacher(tiny, machine)
    settings = Settings(steps=30, batch=4, save_every=10)
    learned = train(
        tiny, teacher, tokens, settings, tmp_path, machine, quantized=quantized, held_out=tokens[:4]
    )
    store(tmp_path / "student.safetensors", learned)
    student = open_checkpoint(tmp_path / "student.safetensors")
    assert isinstance(student.tensor("model.layers.0.mlp.up_proj.weight"), Q4)
    decoders = (Decoder(c).to(machine.device) for c in (quantized, student))
    before, after = (divergence(decoder, teacher, tokens) for decoder in decoders)
    assert after < 0.8 * before


PROGRAM = """
import os, signal, sys
from pathlib import Path
import numpy as np
from compile.distill.machine import Machine
from compile.distill.teacher import open_teacher
from compile.distill.train import Settings, train
from compile.importer import open_checkpoint
from compile.stored import store
path, folder, stop = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
tokens = np.random.default_rng(0).integers(0, 320, (8, 16)).astype(np.int32)
machine = Machine.here()
def report(done):
    if done > stop:
        os.kill(os.getpid(), signal.SIGKILL)
settings = Settings(steps=9, batch=8, save_every=2)
teacher = open_teacher(path, machine)
learned = train(open_checkpoint(path), teacher, tokens, settings, folder, machine, report=report)
store(folder / "student.safetensors", learned)
"""


def test_a_killed_training_and_one_by_torchrun_come_to_the_same(
    tiny: Checkpoint, tmp_path: Path
) -> None:
    store(tmp_path / "tiny.safetensors", tiny)
    program = tmp_path / "learn.py"
    program.write_text(PROGRAM)

    def run(folder: str, stop: float, *before: str) -> int:
        paths = tmp_path / "tiny.safetensors", tmp_path / folder
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
        command = [*map(str, (sys.executable, *before, program, *paths, stop))]
        return subprocess.run(command, env=environment, check=False).returncode

    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=gpu")
    assert run("whole", 2.0) == 0
    assert run("killed", 0.6) < 0
    assert run("killed", 2.0) == 0
    assert run("joined", 2.0, *torchrun) == 0
    whole, *others = (
        open_checkpoint(tmp_path / folder / "student.safetensors")
        for folder in ("whole", "killed", "joined")
    )
    for name in tiny.names():
        for other in others:
            off = np.abs(dequantized(whole.tensor(name)) - dequantized(other.tensor(name)))
            # A GPU adds gradients in any order, and AdamW divides by what may be nearly nothing.
            assert off.mean() < 1e-6
            assert off.max() < 3e-4
