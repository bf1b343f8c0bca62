"""The quality benchmark's own parts: its texts, its arithmetic of bits, its measure, its tables."""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.quality import __main__ as cli
from benchmarks.quality import ours, peers, student, texts, yardstick
from benchmarks.quality.candidate import LLAMA_CPP, OURS, Candidate, Workshop
from benchmarks.quality.picture import draw, draw_curve, frontier
from benchmarks.quality.report import (
    BASELINE,
    JSON_NAME,
    PICTURE_NAME,
    TABLE_NAME,
    best,
    earlier,
    markdown,
    peer_table,
    ratio_table,
    write_report,
)  # fmt: skip
from benchmarks.quality.storage import bits_per_weight, shares, storage_of, storage_of_gguf
from benchmarks.quality.texts import Texts, Work, content, interleaved, passages, prose
from benchmarks.quality.yardstick import Yardstick
from benchmarks.speed.workbench import PROJECT, Workbench
from compile.evaluate.predictors import CheckpointPredictor
from compile.graph import KINDS
from compile.importer import open_checkpoint
from compile.quantize.formats import Formats, MatrixFormat
from compile.quantize.nearest import QuantizedCheckpoint
from compile.reference import Exact, Reference
from tests.sample_report import sample_report
from tests.tiny_model import CORPUS, write_tiny_gguf

SENTENCE = (
    "When the river rises in spring, the people of the village carry their boats up to the mill "
    "and wait there until the fields are dry again."
)
FIGURES = {
    "kl_mean": 0.05, "kl_median": 0.02, "kl_p99": 0.4, "top1_agreement": 0.9, "perplexity": 20.0,
}  # fmt: skip


def silent(_name: str, _share: float) -> None:
    """Nobody watches."""


# What a model takes


def test_bits_of_a_gguf_count_every_matrix_once(tmp_path: Path) -> None:
    model = write_tiny_gguf(tmp_path / "m.gguf", quantization="Q4_0")  # tied, with a Q8_0 embedding
    storage = storage_of_gguf(tmp_path / "m.gguf")
    head = model.vocab * model.width
    layers = sum(w.size for w in model.weights.values() if w.ndim > 1) - head
    assert shares(storage) == {"Q4_0": layers / (layers + head), "Q8_0": head / (layers + head)}
    assert bits_per_weight(storage) == pytest.approx((4.5 * layers + 8.5 * head) / (layers + head))


@pytest.mark.parametrize(
    ("text", "bits"),
    [("int4-g128", 4.125), ("int4-g64", 4.25), ("int4-g64-asym", 4.5), ("int4-g32", 4.5)],
)
def test_bits_of_our_formats(tmp_path: Path, text: str, bits: float) -> None:
    write_tiny_gguf(tmp_path / "m.gguf", quantization="F32", width=128, head_dim=64, ffn=128)
    formats = Formats(**dict.fromkeys(KINDS, MatrixFormat.parse(text)))
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    storage = storage_of(QuantizedCheckpoint(checkpoint, formats))
    assert bits_per_weight(storage) == pytest.approx(bits)
    assert shares(storage) == {text: 1.0}
    assert bits_per_weight(storage_of(checkpoint)) == 32


# The texts


def test_no_work_is_used_twice() -> None:
    packages = [work.package for work in (*texts.CALIBRATION, *texts.HELDOUT)]
    assert len(set(packages)) == len(packages)


def test_prose_is_whole_sentences_once() -> None:
    spread = SENTENCE.replace(" ", "\n   ")
    table = "A1 | 17 | 34.5 | 99 " * 8 + "."
    found = prose([SENTENCE, spread, "Next", SENTENCE[:-1], SENTENCE[0].lower() + SENTENCE, table])
    assert list(found) == [SENTENCE]


def test_markup_leaves_blocks_and_no_code() -> None:
    html = (
        "<html><head><title>Boats</title></head><body><p>The <em>old</em> mill &amp; its "
        "<a href='x'>wheel</a></p><pre>make all</pre><div class='para'>stand<br/>still.</div>"
    )
    blocks = (" ".join(block.split()) for block in texts.marked_up(html))
    assert list(filter(None, blocks)) == ["The old mill & its wheel", "stand", "still."]


@pytest.mark.parametrize(
    ("read", "text", "paragraphs"),
    [
        (
            texts.dictionary,
            "mill\n\n   1. <food> A {machine} that\n   grinds.\n\n   {Wheat} is ground.",
            ["mill", "A machine that\n   grinds.", "Wheat is ground."],
        ),
        (
            texts.dialogue,
            'mission "x"\n\t\t`"Come in," he says.`\n\t\tchoice\n\t`Hello <last>.`\n',
            ['"Come in," he says.'],
        ),
        (
            texts.game_help,
            'text = _("\\\nBuild \\\nroads.\\n\\n Then cities.\\\n")\nname = _("Copying")\n_("No")',
            ["Build roads.", " Then cities."],
        ),
    ],
)
def test_readers(read: texts.Reader, text: str, paragraphs: list[str]) -> None:
    assert list(read(text)) == paragraphs


def test_packed_files_are_unpacked(tmp_path: Path) -> None:
    (tmp_path / "words.dict.dz").write_bytes(gzip.compress("café".encode()))
    (tmp_path / "words.txt").write_bytes("café".encode("latin-1"))
    assert content(tmp_path / "words.dict.dz") == "café"
    assert content(tmp_path / "words.txt") == "caf\N{REPLACEMENT CHARACTER}"


def test_passages_are_spread_over_the_work() -> None:
    work = [f"{number:03}" + "x" * 497 for number in range(100)]
    chosen = passages(work, 10_000)
    assert [passage[:3] for passage in chosen] == ["000", "025", "050", "075"]
    assert [len(passage.split("\n\n")) for passage in chosen] == [5, 5, 5, 5]
    assert "\n\n".join(passages(work, 10**6)).split("\n\n") == work


def test_any_beginning_has_something_of_each_work() -> None:
    mixed = interleaved([["a1", "a2", "a3", "a4"], ["b1", "b2"]])
    assert mixed == ["a1", "b1", "a2", "a3", "b2", "a4"]


def test_a_text_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "excerpts", lambda work: [f"{work.package}, a passage."])
    monkeypatch.setattr(texts, "HELDOUT", (Work("mills", "*", texts.dialogue, 100),))
    made = texts.fetch_texts(tmp_path / "new")
    held = made.heldout.read_text(encoding="utf-8")
    assert held.startswith("The water cycle")
    assert held.endswith("mills, a passage.\n")
    assert "mills" not in made.calibration.read_text(encoding="utf-8")
    made.heldout.write_text("kept", encoding="utf-8")
    assert texts.fetch_texts(tmp_path / "new").heldout.read_text(encoding="utf-8") == "kept"


# The measure


@pytest.fixture
def teacher(tmp_path: Path) -> CheckpointPredictor:
    write_tiny_gguf(tmp_path / "m.gguf", quantization="Q4_1")
    return CheckpointPredictor("tiny", open_checkpoint(tmp_path / "m.gguf"))


def test_every_model_is_asked_for_the_same_whole_windows(
    tmp_path: Path, teacher: CheckpointPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yardstick, "WINDOW", 16)
    told: list[float] = []
    text = " ".join(CORPUS)
    measure = Yardstick.of(teacher, "tiny", text, tmp_path, lambda _name, share: told.append(share))
    assert measure.tokens.shape == (len(teacher.encode(text)) // 16, 16)
    assert told[-1] == 1.0

    figures = measure.measure(teacher.logits, "itself", silent)
    assert figures["kl_mean"] == pytest.approx(0, abs=1e-9)
    assert figures["tokens"] == measure.tokens.shape[0] * 15  # a window's first is not predicted
    assert (
        measure.measure(lambda ids: teacher.logits(ids) * np.float32(0.5), "other", silent)[
            "kl_mean"
        ]
        > 0.01
    )

    monkeypatch.setattr(teacher, "logits", None)  # what was computed is kept
    again = Yardstick.of(teacher, "tiny", text, tmp_path, silent)
    assert np.array_equal(again.logits, measure.logits)


PROGRAM = """\
import struct, sys
window = int(sys.argv[3])
sys.stdout.buffer.write(struct.pack("i", 3))
sys.stdout.buffer.flush()
while len(data := sys.stdin.buffer.read(4 * window)) == 4 * window:
    tokens = struct.unpack(f"{window}i", data)
    if min(tokens) < 0:
        sys.exit("no such token")
    sys.stdout.buffer.write(b"".join(struct.pack("3f", t, t + 1, t + 2) for t in tokens))
    sys.stdout.buffer.flush()
"""


def test_llama_cpp_is_asked_window_by_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "WINDOW", 4)
    program = tmp_path / "logits"
    program.write_text(f"#!{sys.executable}\n{PROGRAM}")
    program.chmod(0o755)
    with peers.running(program, tmp_path / "m.gguf") as logits:
        for tokens in ([1, 2, 3, 4], [5, 6, 7, 8]):
            assert logits(tokens).tolist() == [[t, t + 1, t + 2] for t in tokens]
        with pytest.raises(click.ClickException, match=r"logits m\.gguf: ended early"):
            logits([-1, 0, 0, 0])


# What is made once


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    files = Texts(*(tmp_path / f"{name}.txt" for name in ("calibration", "training", "heldout")))
    return Workshop(Workbench(tmp_path), tmp_path, tmp_path / "tiny.gguf", files)


def test_a_file_is_made_again_when_its_source_has_changed(shop: Workshop, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.touch()
    made: list[str] = []

    def make(aside: Path) -> None:
        made.append(aside.suffix)
        aside.touch()

    for _ in range(2):
        assert shop.made("x.gguf", (source,), make) == tmp_path / "x.gguf"
    assert made == [".gguf"]
    os.utime(source, (2**33, 2**33))
    shop.made("x.gguf", (source,), make)
    assert made == [".gguf"] * 2


def test_what_failed_leaves_no_file(shop: Workshop, tmp_path: Path) -> None:
    def fail(aside: Path) -> None:
        aside.touch()
        raise click.ClickException("no")

    with pytest.raises(click.ClickException):
        shop.made("x.gguf", (), fail)
    assert not (tmp_path / "x.gguf").exists()


def test_nearest_is_all_matrices_in_one_format(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours, "NEAREST", ("int4-g32",))
    (candidate,) = ours.nearest(shop)
    assert candidate.name == f"{OURS} nearest int4-g32"
    assert bits_per_weight(candidate.storage) == 4.5
    assert bits_per_weight(storage_of(candidate.weights())) == 4.5


@pytest.mark.slow
def test_a_recipe_is_run_and_its_artifact_is_read(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_gguf(tmp_path / "half.gguf", quantization="F16")  # what the recipes name is not here
    recipe = '[quantize]\nmethod = "nearest"\n[budget]\nbits_per_weight = 4.5\n'
    (tmp_path / "text.txt").write_text(" ".join(CORPUS), encoding="utf-8")
    recipe += f'[data]\ntext = "{tmp_path / "text.txt"}"\nlength = 32\n'
    (tmp_path / "small.toml").write_text(recipe, encoding="utf-8")
    monkeypatch.setattr(ours, "RECIPES", tmp_path)
    monkeypatch.setattr(ours, "LARGER", ("small",))
    (candidate,) = ours.larger(replace(shop, teacher=tmp_path / "half.gguf"))
    assert candidate.name == f"{OURS} small"
    assert bits_per_weight(candidate.storage) <= 4.5
    with candidate.program() as logits:
        run = logits([1, 2, 3, 4])
    exact = Reference(candidate.weights(), Exact()).logits([1, 2, 3, 4])
    assert np.abs(run - exact).max() < 0.2 * np.abs(exact).max()


# The report


def row(maker: str, bits: float, kl: float) -> dict[str, object]:
    figures = FIGURES | {"kl_mean": kl}
    return {
        "maker": maker, "made": "so", "bits_per_weight": bits, "formats": {"Q4_0": 1.0},
        "exact": figures, "run": figures,
    }  # fmt: skip


ROWS = {
    BASELINE: row(OURS, 4.25, 0.1),
    f"{OURS} calibrated": row(OURS, 4.25, 0.04),
    "llama.cpp few": row(LLAMA_CPP, 4.0, 0.01),
    "llama.cpp same": row(LLAMA_CPP, 4.5, 0.08),
    "llama.cpp worse": row(LLAMA_CPP, 4.4, 0.09),
    "llama.cpp more": row(LLAMA_CPP, 5.5, 0.05),
}


def test_we_are_compared_with_no_fewer_bits() -> None:
    assert best(ROWS, f"{OURS} calibrated") == ["llama.cpp same", "llama.cpp more"]
    assert list(ratio_table(ROWS))[2:] == [
        f"| {OURS} calibrated ÷ {BASELINE} | 0.40 | ≤ 0.5 |",
        f"| {OURS} calibrated ÷ llama.cpp same | 0.50 | ≤ 0.8 |",
        f"| {OURS} calibrated ÷ llama.cpp more | 0.80 | ≤ 0.8 |",
    ]
    assert not list(ratio_table({BASELINE: ROWS[BASELINE]}))


def test_each_peer_is_compared_with_the_best_of_ours_that_is_no_larger() -> None:
    rows = {**ROWS, f"{OURS} larger": row(OURS, 5.0, 0.01)}
    assert list(peer_table(rows))[2:] == [
        f"| llama.cpp same | 4.500 | {OURS} calibrated | 4.250 | 0.50 |",
        f"| llama.cpp worse | 4.400 | {OURS} calibrated | 4.250 | 0.44 |",
        f"| llama.cpp more | 5.500 | {OURS} larger | 5.000 | 0.20 |",
    ]
    assert not list(peer_table({BASELINE: ROWS[BASELINE]}))


def test_tables_say_what_was_measured() -> None:
    lines = markdown({"Teacher": "tiny"}, ROWS).splitlines()
    assert "- Teacher: tiny" in lines
    assert (
        f"| {BASELINE} | 4.250 | 0.100 | 0.0200 | 0.400 | 90.0% | 20.00 | 0.100 | 90.0% |" in lines
    )
    assert f"| {BASELINE} | `so` | Q4_0 100.0% |" in lines


def test_rows_of_other_tokens_or_versions_do_not_count(tmp_path: Path) -> None:
    write_report(tmp_path, {"Held out": "these"}, ROWS)
    assert earlier(tmp_path, {"Held out": "these"}) == ROWS
    assert not earlier(tmp_path, {"Held out": "others"})
    (tmp_path / JSON_NAME).write_text("[]", encoding="utf-8")
    assert not earlier(tmp_path, {"Held out": "these"})
    assert not earlier(tmp_path / "nowhere", {})


def test_a_line_joins_what_nothing_smaller_is_better_than() -> None:
    points = [(5.0, 0.05), (4.5, 0.2), (4.25, 0.1), (5.5, 0.05), (6.0, 0.03)]
    assert frontier(points) == [(4.25, 0.1), (5.0, 0.05), (6.0, 0.03)]


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    draw(ROWS, tmp_path / PICTURE_NAME)
    assert (tmp_path / PICTURE_NAME).read_bytes().startswith(b"\x89PNG")


# The command line


def test_an_unknown_part_is_one_line(tmp_path: Path) -> None:
    words = ["--peers", str(tmp_path), "--only", "nearest,coffee"]
    done = CliRunner().invoke(cli.main, words)
    assert done.exit_code == 2
    assert "no part is called 'coffee'; there are nearest, llama.cpp, calibrated" in done.output


def test_chosen_parts_are_measured_and_join_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ready").touch()
    gguf, other, held = (tmp_path / name for name in ("m.gguf", "other.gguf", "heldout.txt"))
    write_tiny_gguf(gguf)
    write_tiny_gguf(other, seed=1)
    held.write_text(" ".join(CORPUS), encoding="utf-8")
    monkeypatch.setattr(yardstick, "WINDOW", 16)
    monkeypatch.setattr(cli, "WORK", tmp_path)
    monkeypatch.setattr(cli, "fetch_texts", lambda _folder: Texts(held, held, held))
    monkeypatch.setattr(cli, "resolve", lambda _source, progress: gguf)
    machine = dict.fromkeys(("CPU", "edge-llm", "llama.cpp"), "this")
    monkeypatch.setattr(cli, "machine", lambda _bench: machine)

    @contextmanager
    def program() -> Iterator[yardstick.Logits]:
        yield model.logits

    def part(_shop: Workshop) -> Iterator[Candidate]:
        yield Candidate(
            "fake", OURS, "so", storage_of_gguf(other), lambda: open_checkpoint(other), program
        )

    model = CheckpointPredictor("tiny", open_checkpoint(gguf))
    monkeypatch.setattr(cli, "PARTS", {**cli.PARTS, "nearest": part})
    output = tmp_path / "out"
    words = ["--peers", str(tmp_path), "--only", "nearest", "-o", str(output)]
    done = CliRunner().invoke(cli.main, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    kept = json.loads((output / JSON_NAME).read_text(encoding="utf-8"))
    assert kept["rows"]["fake"]["exact"]["kl_mean"] > 0.01
    assert kept["rows"]["fake"]["run"]["kl_mean"] == pytest.approx(0, abs=1e-9)
    assert (output / TABLE_NAME).exists()
    assert (output / PICTURE_NAME).exists()


def test_every_program_of_llama_cpp_is_built() -> None:
    script = (PROJECT / ".ci" / "setup" / "peers.sh").read_text(encoding="utf-8")
    for name in ("llama-quantize", "llama-imatrix"):
        assert name in script


def test_a_students_page_compares_its_stages_and_answers(tmp_path: Path) -> None:
    report = sample_report()
    page = "\n".join(student.markdown(report, "student.png"))
    assert "| distilled: 2,000 steps of 8 sequences | 16.00 | 19.70 | 0.01 × | 0.420 |" in page
    assert "| Is &lt;b>this&lt;/b> safe & sound? | Yes &lt;i>& no&lt;/i>. |" in page
    draw_curve(report.curves[0], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
