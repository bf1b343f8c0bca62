"""``python -m compile eval``: predictions, answers and choices of one model beside another's."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer as HFTokenizer

from compile.__main__ import run
from compile.checkpoint import Tensor
from compile.errors import CompileError
from compile.evaluate.pairs import overlap
from compile.evaluate.predictors import CheckpointPredictor, Remembered, open_predictor
from compile.evaluate.tasks import Question, accuracy, agreement, pick
from compile.evaluate.text import tokens
from compile.importer import open_checkpoint
from compile.quantize.formats import Formats
from compile.quantize.nearest import QuantizedCheckpoint
from compile.reference import Arithmetic, Cache, Device, Exact, Reference
from compile.stored import store
from edge_llm.cpu import host
from tests.conftest import TinyArtifact
from tests.sample_artifact import manifest_target, write_sample
from tests.tiny_model import tiny_tokenizer, write_tiny_gguf, write_tiny_huggingface

TEXT = "The capital of France is Paris – naïve, <b>said</b> the house; 2 of 3 engineers.\n" * 9
Cli = Callable[..., "tuple[int, str, str]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """teacher.gguf in float, and the same weights as a folder and rounded to 4 bits."""
    folder = tmp_path_factory.mktemp("evaluated")
    write_tiny_gguf(folder / "teacher.gguf", quantization="F32")
    write_tiny_huggingface(folder / "teacher", quantization="F32")
    teacher = open_checkpoint(folder / "teacher.gguf")
    store(folder / "student.safetensors", QuantizedCheckpoint(teacher, Formats()))
    write_tiny_gguf(folder / "other.gguf", vocab=300)
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    pairs = [{"prompt": "Hello", "reference": "hello"}, {"prompt": "Rome?", "reference": "It is"}]
    write_lines(folder / "pairs.jsonl", pairs)
    questions = [
        {"question": "The capital of", "choices": ["France", "Italy"], "answer": 0},
        {"question": "Water the", "choices": ["soil", "plants", "board"], "answer": 1},
    ]
    write_lines(folder / "tasks.jsonl", questions)
    return folder


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folder: Path) -> Cli:
    """Runs ``python -m compile eval`` in the folder: exit status, stdout, stderr."""

    def evaluate(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["compile", "eval", *arguments])
        with pytest.raises(SystemExit) as caught:
            run()
        out, err = capfd.readouterr()
        return int(caught.value.code or 0), out, err

    return evaluate


def write_lines(path: Path, values: Sequence[object]) -> None:
    path.write_text("\n".join(map(json.dumps, values)) + "\n", encoding="utf-8")


def figures(cli: Cli, *arguments: str) -> dict[str, Any]:
    status, out, err = cli(*arguments, "--json")
    assert status == 0, err
    result: dict[str, Any] = json.loads(out)
    return result


# The reference, a few tokens at a time


@pytest.mark.parametrize("arithmetic", [Exact(), Device()], ids=["exact", "device"])
def test_a_sequence_in_parts_is_the_sequence(folder: Path, arithmetic: Arithmetic) -> None:
    reference = Reference(open_checkpoint(folder / "student.safetensors"), arithmetic)
    ids = [5, 300, 7, 7, 12, 250, 3]
    cache = Cache()
    parts = [reference.logits(part, cache) for part in (ids[:3], ids[3:4], ids[4:])]
    assert cache.length == len(ids)
    whole = reference.logits(ids)
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-4)
    if isinstance(arithmetic, Device):
        np.testing.assert_array_equal(np.concatenate(parts), whole)


# Text


def test_the_same_weights_predict_the_same_and_rounded_ones_not_quite(cli: Cli) -> None:
    same = figures(cli, "teacher", "--against", "teacher.gguf", "--text", "text.txt")["text"]
    assert same["kl_p99"] == pytest.approx(0, abs=1e-8)
    assert (same["top1_agreement"], same["window"]) == (1, 256)
    assert same["perplexity_ratio"] == pytest.approx(1)

    student = figures(cli, "student.safetensors", "--against", "teacher", "--text", "text.txt")
    assert (student["model"], student["against"]) == ("student.safetensors", "teacher")
    got = student["text"]
    assert 1e-4 < got["kl_median"] < got["kl_mean"] < got["kl_p99"] < 1
    assert got["against_perplexity"] == pytest.approx(same["perplexity"])
    assert got["perplexity_ratio"] == pytest.approx(got["perplexity"] / same["perplexity"])
    alone = figures(cli, "student.safetensors", "--text", "text.txt", "--window", "16")["text"]
    assert set(alone) == {"file", "window", "perplexity", "tokens"}
    assert alone["window"] == 16


def test_an_artifact_stands_beside_its_checkpoint(
    cli: Cli, tiny_artifact: TinyArtifact, tmp_path: Path
) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    names = (str(tiny_artifact()), "--against", str(tmp_path / "tiny.gguf"))
    got = figures(
        cli, *names, "--text", "text.txt", "--pairs", "pairs.jsonl", "--tasks", "tasks.jsonl",
        "--max-tokens", "3",
    )  # fmt: skip
    assert 0 < got["text"]["kl_mean"] < 0.02
    assert got["tasks"]["same_choice"] == 1
    assert [set(one) for one in got["pairs"]["answers"]] == [
        {"prompt", "reference", "answer", "against_answer"}
    ] * 2


def test_figures_are_an_aligned_table(cli: Cli) -> None:
    names = ("student.safetensors", "--against", "teacher.gguf")
    status, out, err = cli(*names, "--text", "text.txt", "--tasks", "tasks.jsonl")
    assert (status, err) == (0, "text: done\ntasks: done\n")
    text, tasks = out.split("\n\n")
    predicted = (
        len(tiny_tokenizer().encode(TEXT).ids) - 3
    )  # the first of two windows, and one left over
    heading = f"text.txt, {predicted} tokens student.safetensors teacher.gguf"
    assert text.splitlines()[0].split() == heading.split()
    assert len({len(line) for line in text.splitlines()[2:]}) == 1
    assert "accuracy by length" in tasks


def test_each_token_has_a_line(cli: Cli, tmp_path: Path) -> None:
    lines = tmp_path / "tokens.jsonl"
    names = ("student.safetensors", "--against", "teacher")
    got = figures(cli, *names, "--text", "text.txt", "--per-token", str(lines))["text"]
    rows = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == got["tokens"]
    assert TEXT.startswith("The" + "".join(row["text"] for row in rows[:20]))
    assert np.mean([row["kl"] for row in rows]) == pytest.approx(got["kl_mean"])
    assert np.exp(np.mean([r["surprise"] for r in rows])) == pytest.approx(got["perplexity"])


def test_the_characters_of_all_tokens_are_the_text() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode(TEXT).ids
    parts = [ids[at : at + 10] for at in range(0, len(ids), 10)]
    listed = list(tokens(tokenizer, parts))
    assert "".join(token.text for token in listed) == TEXT
    assert [token.place for token in listed[:12]] == [None, *range(9), None, 9]


class PageText(HTMLParser):
    """What a page says and which files it would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.said = ""
        self.fetched: list[str] = []

    def handle_data(self, data: str) -> None:
        self.said += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.fetched.append(f"{tag} {name}={value}")


@pytest.mark.parametrize("against", [(), ("--against", "teacher")])
def test_the_page_holds_the_text_and_needs_nothing_else(
    cli: Cli, tmp_path: Path, against: tuple[str, ...]
) -> None:
    path = tmp_path / "page.html"
    got = figures(cli, "student.safetensors", *against, "--text", "text.txt", "--html", str(path))
    content = path.read_text(encoding="utf-8")
    page = PageText()
    page.feed(content)
    assert TEXT in page.said
    assert f"{got['text']['perplexity']:.4f}" in page.said
    assert page.fetched == []
    assert content.count("<svg") == 2
    assert "<b>said" not in content
    assert content.count("data-t=") == got["text"]["tokens"]
    assert ("KL: " in content) == bool(against)


# Pairs


def test_overlap_is_that_of_its_definitions() -> None:
    got = overlap(["the cat lay on a mat"], ["the cat sat on the mat"])
    # Of 6, 5, 4 and 3 n-grams 4, 1, 0 and 0 are right; none counts as a half, then a quarter.
    bleu = math.prod((4 / 6, 1 / 5, 1 / 2 / 4, 1 / 4 / 3)) ** (1 / 4)
    assert got["bleu"] == pytest.approx(100 * bleu)
    assert got["rouge1"] == got["rougeL"] == pytest.approx(100 * 4 / 6)
    assert got["rouge2"] == pytest.approx(100 * 1 / 5)
    assert 0 < got["chrf"] < 100
    same = overlap(["A cat sat on it.", "Yes, it did so."], ["A cat sat on it.", "Yes, it did so."])
    assert list(same.values()) == pytest.approx([100] * 5)


def test_a_checkpoint_answers_token_by_token(folder: Path) -> None:
    checkpoint = open_checkpoint(folder / "teacher.gguf")
    model = CheckpointPredictor("teacher", checkpoint)
    reference = Reference(checkpoint, Exact())
    ids = tiny_tokenizer().encode("Hello").ids
    wanted = list(ids)
    for _ in range(6):
        wanted.append(int(reference.logits(wanted)[-1].argmax()))
    answer = model.generate("Hello", raw=True, max_tokens=6)
    assert answer == tiny_tokenizer().decode(wanted[len(ids) :])
    two = tiny_tokenizer().decode(wanted[len(ids) : len(ids) + 2])
    assert model.generate("Hello", raw=True, max_tokens=2) == two
    assert model.generate("Hello", raw=False, max_tokens=6) != answer


def test_weights_that_do_not_fit_are_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(folder / "student.safetensors")
    wanted = Reference(checkpoint, Exact()).logits([1, 2, 3])
    for room in (0, 100_000, 1 << 30):
        monkeypatch.setattr("compile.evaluate.predictors.KEPT", room)
        reference = Reference(Remembered(checkpoint), Exact())
        for _ in range(2):
            np.testing.assert_array_equal(reference.logits([1, 2, 3]), wanted)


# Tasks


class Letters:
    """A predictor whose tokens are letters, the next from a table."""

    name, context, vocabulary = "letters", 12, 128
    hf: HFTokenizer = tiny_tokenizer()

    def __init__(self, seed: int = 0) -> None:
        table = np.random.default_rng(seed).normal(size=(128, 128)) * 3
        self.table = table.astype(np.float32)

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def logits(self, ids: Sequence[int], /) -> NDArray[np.float32]:
        return self.table[list(ids)]

    def generate(self, prompt: str, raw: bool, max_tokens: int) -> str:
        raise NotImplementedError


@pytest.mark.parametrize("seed", range(5))
def test_a_choice_is_picked_by_its_likelihood(seed: int) -> None:
    model = Letters(seed)
    asked = Question("q.jsonl line 1", "is it", ("ab", "abcde", "b"), 1)

    def likelihood(text: str) -> float:
        wide = model.table.astype(np.float64)
        log_p = wide - np.log(np.exp(wide).sum(1, keepdims=True))
        return float(sum(log_p[ord(a), ord(b)] for a, b in zip("t" + text, text, strict=False)))

    sums = [likelihood(f" {choice}") for choice in asked.choices]
    got = pick(model, asked)
    assert got.by_sum == np.argmax(sums)
    assert got.by_length == np.argmax([s / n for s, n in zip(sums, (2, 5, 1), strict=True)])


def test_accuracy_comes_with_its_error() -> None:
    model = Letters()
    kinds = [Question("", f"q{i}", ("ab", "cd"), i % 2) for i in range(10)]
    chosen = [pick(model, asked) for asked in kinds]
    got = accuracy(kinds, chosen)
    right = sum(pick.by_sum == asked.answer for pick, asked in zip(chosen, kinds, strict=True))
    assert got["acc"] == right / 10
    assert got["acc_stderr"] == pytest.approx(math.sqrt(right / 10 * (1 - right / 10) / 9))
    assert agreement(chosen, chosen) == 1


def test_a_question_longer_than_the_context_is_named() -> None:
    with pytest.raises(CompileError, match=r"^t\.jsonl line 7: 14 tokens with a choice, letters"):
        pick(Letters(), Question("t.jsonl line 7", "a" * 10, ("bcd", "b"), 0))


# What goes wrong

BAD_LINES = {
    "malformed": ("pairs", "{'prompt': 1}", "line 1: not valid JSON"),
    "list": ("pairs", "[]", "line 1: not a JSON object"),
    "missing": ("pairs", '\n{"prompt": "a"}', "line 2: 'reference' is missing"),
    "type": ("pairs", '{"prompt": 1, "reference": ""}', "line 1: 'prompt' must be a string"),
    "empty": ("pairs", "\n \n", "is empty; it must hold one JSON object a line"),
    "long": ("pairs", json.dumps({"prompt": "zq" * 300, "reference": ""}), "line 1: teacher.gguf"),
    "choices": ("tasks", '{"question": "a", "choices": "ab", "answer": 0}', "a list of strings"),
    "one": ("tasks", '{"question": "a", "choices": ["b"], "answer": 0}', "at least 2 texts"),
    "blank": ("tasks", '{"question": " ", "choices": ["b", "c"], "answer": 0}', "is empty"),
    "range": ("tasks", '{"question": "a", "choices": ["b", "c"], "answer": 2}', "must be 0 to 1"),
}


@pytest.mark.parametrize(("kind", "content", "message"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_named(
    cli: Cli, tmp_path: Path, kind: str, content: str, message: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content, encoding="utf-8")
    status, out, err = cli("teacher.gguf", f"--{kind}", str(path))
    assert (status, out) == (1, "")
    assert err.startswith(f"error: {path}")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "fewer than 2 tokens"),
        (b"a", "fewer than 2 tokens"),
        (b"Caf\xe9 au lait", "not UTF-8 at byte 3"),
    ],
)
def test_a_text_that_is_none_is_named(
    cli: Cli, tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    html = tmp_path / "page.html"
    html.write_text("before")
    status, _, err = cli("teacher.gguf", "--text", str(tmp_path / "text.txt"), "--html", str(html))
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith(f"error: {tmp_path / 'text.txt'}: ")
    assert message in err
    assert html.read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt", "page.html"}


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("absent.gguf", "--text", "text.txt"), 1, "absent.gguf: no such file or folder"),
        (("teacher", "--text", "absent.txt"), 1, "absent.txt is missing"),
        (("teacher", "--text", "text.txt", "--window", "257"), 1, "teacher takes 256 tokens"),
        (
            ("teacher", "--against", "other.gguf", "--text", "text.txt"), 1,
            "different vocabularies (320 and 300 ids, 20 tokens differ)",
        ),
        (("teacher", "--text", "text.txt", "--html", "no/page.html"), 1, "no is not a folder"),
        (("teacher",), 2, "give --text, --pairs or --tasks"),
        (("teacher", "--tasks", "tasks.jsonl", "--html", "a.html"), 2, "--html goes with --text"),
        (("teacher", "--text", "text.txt", "--raw"), 2, "--raw goes with --pairs"),
        (("teacher", "--text", "text.txt", "--max-tokens", "3"), 2, "goes with --pairs"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_one_line(
    cli: Cli, arguments: tuple[str, ...], status: int, message: str
) -> None:
    got, out, err = cli(*arguments)
    assert (got, out) == (status, "")
    (line,) = (line for line in err.splitlines() if line.lower().startswith("error: "))
    assert message in line


def test_a_vocabulary_split_otherwise_is_refused(cli: Cli, folder: Path, tmp_path: Path) -> None:
    write_tiny_huggingface(tmp_path / "other", quantization="F32")
    path = tmp_path / "other" / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["merges"] = []
    path.write_text(json.dumps(content), encoding="utf-8")
    status, _, err = cli("teacher", "--against", str(tmp_path / "other"), "--text", "text.txt")
    assert (status, err.count("\n")) == (1, 1)
    assert "split it into different tokens" in err


def test_an_artifact_for_another_cpu_is_refused(cli: Cli, tmp_path: Path) -> None:
    board = "x86-64-v3" if host().machine == "aarch64" else "rpi5"
    path = write_sample(tmp_path / "board.edge", target=manifest_target(board))
    status, _, err = cli(str(path), "--text", "text.txt")
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith(f"error: {path} was compiled for {board}")


def test_a_cut_artifact_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "cut.edge").write_bytes(b"PK\x03\x04 and no more")
    status, _, err = cli(str(tmp_path / "cut.edge"), "--text", "text.txt")
    assert (status, err.count("\n")) == (1, 1)
    assert "cut.edge" in err


class Broken:
    """A checkpoint whose training has failed."""

    def __init__(self, folder: Path) -> None:
        self._checkpoint = open_checkpoint(folder / "teacher.gguf")
        self.config, self.tokenizer = self._checkpoint.config, self._checkpoint.tokenizer
        self.names = self._checkpoint.names

    def tensor(self, name: str) -> Tensor:
        tensor = self._checkpoint.tensor(name)
        assert isinstance(tensor, np.ndarray)
        return np.full_like(tensor, np.nan)


def test_predictions_that_are_no_numbers_are_refused(folder: Path) -> None:
    model = CheckpointPredictor("broken", Broken(folder))
    for ask in (lambda: model.logits([1, 2, 3]), lambda: model.generate("Hello", True, 3)):
        with pytest.raises(CompileError, match="broken: predicts infinities or NaN"):
            ask()


def test_what_cannot_be_written_leaves_nothing(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    path = tmp_path / "tokens.jsonl"
    status, out, err = cli("teacher", "--text", "text.txt", "--per-token", str(path))
    assert (status, out) == (1, "")
    assert err.splitlines()[-1] == f"error: cannot write {path}: No space left on device"
    assert list(tmp_path.iterdir()) == []


def test_a_predictor_closes_its_artifact(tiny_artifact: TinyArtifact) -> None:
    with open_predictor(str(tiny_artifact())) as model:
        logits = model.logits(model.encode("The capital"))
    assert logits.shape == (len(model.encode("The capital")), model.vocabulary)
