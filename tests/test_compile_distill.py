"""Learning from a teacher: the decoder, rounding, data, pruning, training and its interruptions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from compile.checkpoint import Q4, Checkpoint
from compile.distill.data import Openings, Writer, sample
from compile.distill.decoder import Cache, Decoder, key
from compile.distill.machine import Machine
from compile.distill.prune import PrunedCheckpoint, prune, student_config
from compile.distill.rounding import Rounding
from compile.distill.teacher import DecoderTeacher, TransformersTeacher
from compile.distill.train import Order, Settings, divergence, kl_divergence, train
from compile.errors import CompileError
from compile.importer import open_checkpoint
from compile.llama_tensors import parameters
from compile.quantize.formats import Formats, MatrixFormat
from compile.quantize.nearest import QuantizedCheckpoint
from compile.recipe import Student
from compile.reference import Exact, Reference, dequantized
from compile.stored import store
from tests.tiny_model import tiny_tokenizer, write_tiny_gguf, write_tiny_huggingface

MACHINE = Machine(torch.device("cpu"), torch.float32)
FOUR = MatrixFormat(4, 32, True)
FORMATS = Formats(FOUR, MatrixFormat(4, 32, False), FOUR, FOUR, MatrixFormat(8, 32, True))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """For a tiny model threads only wait for each other: a hundred times longer, on two cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("distill") / "tiny.gguf"
    write_tiny_gguf(path, quantization="F32", layers=3, ffn=192)
    return open_checkpoint(path)


@pytest.fixture(scope="module")
def teacher(tiny: Checkpoint) -> DecoderTeacher:
    return DecoderTeacher(tiny, MACHINE)


@pytest.fixture(scope="module")
def tokens(tiny: Checkpoint) -> np.ndarray:
    random = np.random.default_rng(5)
    return random.integers(0, tiny.config.vocab_size, (32, 24)).astype(np.int32)


def test_a_decoder_gives_the_references_logits(tiny: Checkpoint, tokens: np.ndarray) -> None:
    decoder = Decoder(tiny)
    with torch.no_grad():
        logits = decoder.logits(decoder(torch.from_numpy(tokens[:1]).long()))[0].numpy()
    expected = Reference(tiny, Exact()).logits(tokens[0].tolist())
    np.testing.assert_allclose(logits, expected, atol=2e-4)


def test_a_cache_gives_what_a_whole_sequence_gives(tiny: Checkpoint, tokens: np.ndarray) -> None:
    decoder, whole = Decoder(tiny), torch.from_numpy(tokens[:2]).long()
    cache = Cache(whole.shape[1])
    with torch.no_grad():
        pieces = [decoder(whole[:, i : i + 1], cache) for i in range(whole.shape[1])]
        torch.testing.assert_close(torch.cat(pieces, 1), decoder(whole), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_teacher_of_transformers_says_the_same(tmp_path: Path, tokens: np.ndarray) -> None:
    write_tiny_huggingface(tmp_path / "tiny", quantization="F32")
    ours = DecoderTeacher(open_checkpoint(tmp_path / "tiny"), MACHINE)
    theirs = TransformersTeacher(tmp_path / "tiny", MACHINE)
    batch = torch.from_numpy(tokens[:2]).long()
    one, other = ours.lesson(batch), theirs.lesson(batch)
    torch.testing.assert_close(one.logits, other.logits, atol=2e-4, rtol=2e-4)
    assert len(one.states) == len(other.states)
    torch.testing.assert_close(one.states[1], other.states[1], atol=2e-4, rtol=2e-4)
    steps = [t.generation(8) for t in (ours, theirs)]
    for position in range(8):
        a, b = (step(batch[:, position : position + 1]) for step in steps)
        torch.testing.assert_close(a, b, atol=2e-4, rtol=2e-4)


def test_rounding_begins_where_the_quantized_model_is(tiny: Checkpoint) -> None:
    quantized = QuantizedCheckpoint(tiny, FORMATS)
    decoder = Decoder(tiny)
    rounding = Rounding(decoder, quantized, torch.float32)
    for name in tiny.names():
        expected = dequantized(quantized.tensor(name))
        weight = decoder.weights[key(name)]
        if name in rounding:
            given = rounding(name, weight)
            np.testing.assert_allclose(given.detach().numpy(), expected, rtol=1e-6, atol=1e-7)
            np.testing.assert_array_equal(dequantized(rounding.matrix(name, weight)), expected)
        else:
            np.testing.assert_array_equal(weight.detach().numpy(), expected)


def test_gradients_pass_rounding_inside_the_grid_and_reach_scales(tiny: Checkpoint) -> None:
    name = "model.layers.0.self_attn.o_proj.weight"  # asymmetric
    decoder = Decoder(tiny)
    rounding = Rounding(decoder, QuantizedCheckpoint(tiny, FORMATS), torch.float32)
    weight = decoder.weights[key(name)]
    with torch.no_grad():
        weight[0, 0] = 1e3  # far beyond its grid
    ones = torch.ones_like(weight)
    rounding(name, weight).backward(ones)
    assert weight.grad is not None
    assert weight.grad[0, 0] == 0
    assert weight.grad[1:].min() == 1
    minimum = rounding.minimums[key(name)].grad
    assert minimum is not None
    assert minimum[0, 0] == 1  # the clipped weight's share
    assert rounding.scales[key(name)].grad is not None


def test_divergence_is_that_of_the_definition() -> None:
    random = torch.Generator().manual_seed(0)
    p, q = torch.randn(3, 7, generator=random), torch.randn(3, 7, generator=random)
    expected = (p.softmax(-1) * (p.softmax(-1) / q.softmax(-1)).log()).sum(-1)
    torch.testing.assert_close(kl_divergence(p, q), expected)
    assert kl_divergence(p, p).abs().max() < 1e-6


def test_training_brings_a_rounded_student_nearer(
    tiny: Checkpoint, teacher: DecoderTeacher, tokens: np.ndarray, tmp_path: Path
) -> None:
    quantized = QuantizedCheckpoint(tiny, FORMATS)
    settings = Settings(steps=30, batch=4, learning_rate=3e-4, save_every=10)
    learned = train(
        tiny, teacher, tokens, settings, tmp_path, MACHINE, quantized=quantized, held_out=tokens[:4]
    )
    store(tmp_path / "student.safetensors", learned)
    student = open_checkpoint(tmp_path / "student.safetensors")
    assert isinstance(student.tensor("model.layers.0.mlp.up_proj.weight"), Q4)
    before, after = (divergence(Decoder(c), teacher, tokens) for c in (quantized, student))
    assert after < 0.8 * before
    points = (tmp_path / "curve.jsonl").read_text().splitlines()
    assert len(points) == 3


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_student(tiny: Checkpoint, tmp_path: Path) -> None:
    store(tmp_path / "tiny.safetensors", tiny)
    program = f"""
import sys
from pathlib import Path
import numpy as np, torch
from compile.distill.machine import Machine
from compile.distill.teacher import open_teacher
from compile.distill.train import Settings, train
from compile.importer import open_checkpoint
from compile.stored import store
folder, stop = Path(sys.argv[1]), float(sys.argv[2])
torch.set_num_threads(1)
machine = Machine(torch.device("cpu"), torch.float32)
path = Path({str(tmp_path / "tiny.safetensors")!r})
tokens = np.random.default_rng(0).integers(0, 320, (8, 16)).astype(np.int32)
def report(done):
    if done > stop:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
settings = Settings(steps=9, batch=2, save_every=2)
teacher = open_teacher(path, machine)
learned = train(open_checkpoint(path), teacher, tokens, settings, folder, machine, report=report)
store(folder / "student.safetensors", learned)
"""

    def run(folder: str, stop: float) -> int:
        command = [sys.executable, "-c", program, str(tmp_path / folder), str(stop)]
        return subprocess.run(command, cwd=Path(__file__).parent.parent, check=False).returncode

    assert run("whole", 2.0) == 0
    assert run("killed", 0.6) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "student.safetensors").exists()
    assert run("killed", 2.0) == 0
    one, other = (
        (tmp_path / folder / "student.safetensors").read_bytes() for folder in ("whole", "killed")
    )
    assert one == other


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tiny: Checkpoint, tmp_path: Path) -> None:
    store(tmp_path / "tiny.safetensors", tiny)
    program = tmp_path / "learn.py"
    program.write_text(
        f"""
import sys
from pathlib import Path
import numpy as np, torch
from compile.distill.machine import Machine
from compile.distill.teacher import open_teacher
from compile.distill.train import Settings, train
from compile.importer import open_checkpoint
from compile.stored import store
torch.set_num_threads(1)
here = Machine.here()
machine = Machine(here.device, torch.float32, here.rank, here.processes)
path = Path({str(tmp_path / "tiny.safetensors")!r})
tokens = np.random.default_rng(0).integers(0, 320, (8, 16)).astype(np.int32)
folder = Path(sys.argv[1])
settings = Settings(steps=4, batch=4, save_every=2)
teacher = open_teacher(path, machine)
learned = train(open_checkpoint(path), teacher, tokens, settings, folder, machine)
if machine.rank == 0:
    store(folder / "student.safetensors", learned)
"""
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for command, folder in (([sys.executable], "one"), (torchrun, "two")):
        subprocess.run([*command, program, tmp_path / folder], env=environment, check=True)
    one, two = (open_checkpoint(tmp_path / f / "student.safetensors") for f in ("one", "two"))
    for name in tiny.names():
        off = np.abs(dequantized(one.tensor(name)) - dequantized(two.tensor(name)))
        # AdamW divides by what may be nearly nothing: a few weights feel the order of a sum.
        assert off.mean() < 1e-6
        assert off.max() < 3e-4


def test_without_rounding_a_quantized_student_learns_in_float(
    tiny: Checkpoint, teacher: DecoderTeacher, tokens: np.ndarray, tmp_path: Path
) -> None:
    quantized = QuantizedCheckpoint(tiny, FORMATS)
    learned = train(quantized, teacher, tokens, Settings(steps=1), tmp_path, MACHINE)
    for name in tiny.names():
        assert isinstance(learned.tensor(name), np.ndarray)


def test_a_damaged_state_is_refused_in_one_line(
    tiny: Checkpoint, teacher: DecoderTeacher, tokens: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "state.safetensors").write_bytes(b"half a file")
    with pytest.raises(CompileError, match=r"state\.safetensors: damaged; remove it") as caught:
        train(tiny, teacher, tokens, Settings(steps=1), tmp_path, MACHINE)
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_no_number_says_what_to_do(
    tiny: Checkpoint, teacher: DecoderTeacher, tokens: np.ndarray, tmp_path: Path
) -> None:
    settings = Settings(steps=40, learning_rate=1e30)
    with pytest.raises(CompileError, match=r"the gradient is \S+ at step \d+: give a lower"):
        train(tiny, teacher, tokens, settings, tmp_path, MACHINE)
    assert not (tmp_path / "state.safetensors").exists()


def test_a_batch_that_processes_cannot_share_is_refused(
    tiny: Checkpoint, teacher: DecoderTeacher, tokens: np.ndarray, tmp_path: Path
) -> None:
    four = replace(MACHINE, processes=4)
    with pytest.raises(CompileError, match="batch 6: 4 processes share it: give a multiple of 4"):
        train(tiny, teacher, tokens, Settings(steps=1, batch=6), tmp_path, four)


def test_every_window_is_seen_once_an_epoch() -> None:
    order = Order(7, seed=3)
    seen = np.concatenate([order.batch(step, 2) for step in range(7)])
    assert sorted(seen[:7]) == sorted(seen[7:]) == list(range(7))
    assert list(seen[:7]) != list(seen[7:])


def test_a_writer_asks_and_answers_in_the_chat_templates_words(tiny: Checkpoint) -> None:
    openings = Openings(tiny.tokenizer)
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(openings.ask, skip_special_tokens=False) == "<|im_start|>user\n"
    writer = Writer(openings, chat=True, random=torch.Generator().manual_seed(0))
    question, answer = tokenizer.encode("What?").ids, tokenizer.encode("That.").ids
    end = tiny.tokenizer.eos_token_ids[0]
    drawn = [*[0] * len(openings.ask), *question, end, *[0] * (len(openings.answer) - 1), *answer]
    text = [writer.next(token) for token in [*drawn, end]]
    assert tokenizer.decode(text, skip_special_tokens=False) == (
        "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\nThat.<|im_end|>"
    )
    assert writer.next(0) == openings.ask[0]  # another conversation begins


def test_samples_are_the_teachers_and_kept(
    tiny: Checkpoint, teacher: DecoderTeacher, tmp_path: Path
) -> None:
    told: list[float] = []
    one = sample(teacher, tiny.tokenizer, 1000, 12, 1, tmp_path / "a", told.append)
    assert one.shape == (84, 12)
    assert told[-1] == 1.0
    again = sample(teacher, tiny.tokenizer, 1000, 12, 1, tmp_path / "b")
    np.testing.assert_array_equal(one, again)
    (tmp_path / "b" / "0001-64-windows.npy").unlink()  # as if interrupted
    np.testing.assert_array_equal(sample(teacher, tiny.tokenizer, 1000, 12, 1, tmp_path / "b"), one)
    assert not np.array_equal(sample(teacher, tiny.tokenizer, 1000, 12, 2, tmp_path / "c"), one)


def test_a_sample_goes_on_where_there_is_less_room_by_now(
    tiny: Checkpoint, teacher: DecoderTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = sample(teacher, tiny.tokenizer, 1000, 12, 1, tmp_path)
    (tmp_path / "0001-64-windows.npy").unlink()  # as if interrupted
    monkeypatch.setattr(teacher, "together", lambda _length: 32)
    np.testing.assert_array_equal(sample(teacher, tiny.tokenizer, 1000, 12, 1, tmp_path), one)
    monkeypatch.setattr(teacher, "together", lambda _length: 16)
    np.testing.assert_array_equal(sample(teacher, tiny.tokenizer, 1000, 12, 1, tmp_path), one)
    (tmp_path / "0001-64-windows.npy").unlink()
    message = "begun with 64 texts at once, for which there was memory; here it is for 16: go on"
    with pytest.raises(CompileError, match=message):
        sample(teacher, tiny.tokenizer, 1000, 12, 1, tmp_path)


def test_a_text_begins_as_the_model_wants_it(tiny: Checkpoint) -> None:
    random = torch.Generator().manual_seed(1)
    files = replace(tiny.tokenizer, bos_token_id=1, add_bos=True)
    assert Openings(files).free(random)[0] == 1
    assert len(Openings(replace(files, add_bos=False)).free(random)) == 1


def out_of_memory(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory\nTried to allocate")


def test_a_step_that_a_gpu_has_no_memory_for_says_what_to_do(
    tiny: Checkpoint,
    teacher: DecoderTeacher,
    tokens: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("compile.distill.train.Run.step", out_of_memory)
    message = r"no memory for 4 sequences of 24 tokens in a step on cpu: give a smaller batch"
    with pytest.raises(CompileError, match=message):
        train(tiny, teacher, tokens, Settings(steps=1, batch=4), tmp_path, MACHINE)


def test_a_state_that_memory_has_no_room_for_is_kept(
    tiny: Checkpoint,
    teacher: DecoderTeacher,
    tokens: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train(tiny, teacher, tokens, Settings(steps=1), tmp_path, MACHINE)
    monkeypatch.setattr("compile.distill.progress.safe_open", out_of_memory)
    message = r"there is no memory for .*state\.safetensors, which is kept: free some and go on"
    with pytest.raises(CompileError, match=message):
        train(tiny, teacher, tokens, Settings(steps=2), tmp_path, MACHINE)


def test_more_processes_than_gpus_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(CompileError, match=r"process 3 on a machine with 2 GPUs: .*node=2"):
        Machine.here()


def test_the_smallest_student_that_is_named_can_be_had(tiny: Checkpoint) -> None:
    with pytest.raises(CompileError, match="is the smallest there is") as caught:
        student_config(tiny.config, Student(parameters=0.001))
    share = float(str(caught.value).split()[-6].rstrip("%")) / 100
    assert parameters(student_config(tiny.config, Student(parameters=share))) < share * parameters(
        tiny.config
    )


def test_pruning_keeps_what_matters(tiny: Checkpoint, tokens: np.ndarray) -> None:
    whole = prune(tiny, 3, 192, tokens)
    ids = tokens[0].tolist()
    np.testing.assert_allclose(
        Reference(whole, Exact()).logits(ids), Reference(tiny, Exact()).logits(ids), atol=2e-4
    )
    pruned = prune(tiny, 2, 128, tokens)
    assert pruned.config == replace(tiny.config, layers=2, ffn=128)
    assert list(pruned.layers) == sorted(pruned.layers)
    teacher = DecoderTeacher(tiny, MACHINE)
    random = np.random.default_rng(0)

    def off(layers: tuple[int, ...], columns: np.ndarray) -> float:
        student = PrunedCheckpoint(tiny, layers, dict.fromkeys(layers, columns))
        return divergence(Decoder(student), teacher, tokens)

    chosen = divergence(Decoder(pruned), teacher, tokens)
    others = [
        off(layers, np.sort(random.permutation(192)[:128]))
        for layers in ((0, 1), (0, 2), (1, 2))
        for _ in range(2)
    ]
    assert chosen < min(others)


def test_a_students_shape_follows_its_share(tiny: Checkpoint) -> None:
    for share in (0.9, 0.7, 0.5):
        student = student_config(tiny.config, Student(parameters=share))
        assert parameters(student) <= share * parameters(tiny.config)
        assert student.ffn % 64 == 0
    assert student_config(tiny.config, Student(layers=2)) == replace(tiny.config, layers=2)
    with pytest.raises(CompileError, match="the embedding stays"):
        student_config(tiny.config, Student(parameters=0.05))
    with pytest.raises(CompileError, match="has 3 and 192"):
        student_config(tiny.config, Student(layers=4))
