"""The benchmark's own parts: its turns and ratios, what it reads of the peers, its random models.

No test asserts a time.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.speed import __main__ as cli
from benchmarks.speed import engines, servers, workbench
from benchmarks.speed.busy import busy_cpus
from benchmarks.speed.parts import PARTS
from benchmarks.speed.random_model import SHAPES, Shape, matrices, write_random_gguf
from benchmarks.speed.report import JSON_NAME, TABLE_NAME, earlier, record, tables, write_report
from benchmarks.speed.roofs import Roofs, work
from benchmarks.speed.rounds import Figure, NotMeasured, Part, Ratio, Results, measure
from compile.checkpoint import Q4, Q8
from compile.import_gguf import open_gguf
from compile.reference import Exact, Reference
from edge_llm.cpu import host
from tests.artifacts import artifact
from tests.conftest import TinyArtifact
from tests.tiny_model import write_tiny_gguf

TINY = Shape(2, 64, 2, 1, 32, 96, 352, 1e4, "Q8_0")
SPEED = Figure("decode", "tokens/s")

# As the programs print them, shortened to the fields that tell them apart.
LLAMA_BENCH = """[
  {"build_number": 11434, "n_prompt": 128, "n_gen": 0, "avg_ts": 745.5, "samples_ts": [745.5]},
  {"build_number": 11434, "n_prompt": 0, "n_gen": 32, "avg_ts": 170.25, "samples_ts": [170.25]}
]
"""
BATCHED_BENCH = """\

{"n_kv_max": 1024, "n_threads": 2, "pp": 16, "tg": 32, "pl": 4, "speed_tg": 171.5}
llama_perf_context_print: load time = 12 ms
"""
OPENVINO = """\
[ a line that it says before ]
{"prompt_tokens": 512, "time_to_first_token_ms": 256.0, "time_per_token_ms": 8.0}
"""


@pytest.fixture
def random_gguf(tmp_path: Path) -> Path:
    return write_random(tmp_path, TINY)


def write_random(folder: Path, shape: Shape) -> Path:
    """A random model of tiny sizes with the tiny tokenizer."""
    write_tiny_gguf(folder / "tokenizer.gguf")
    write_random_gguf(folder / "random.gguf", shape, folder / "tokenizer.gguf")
    return folder / "random.gguf"


def results(values: Mapping[str, list[float]], *ratios: Ratio) -> Results:
    """What a part would have given whose contenders take these speeds, a round each."""
    rows = {who: iter(speeds) for who, speeds in values.items()}
    contenders = {who: lambda row=row: {SPEED: next(row)} for who, row in rows.items()}
    part = Part("Decoding", contenders, ratios)
    return measure(part, len(next(iter(values.values()))), lambda _done, _who: None)


def test_contenders_take_turns() -> None:
    turns: list[str] = []

    def contender(name: str) -> Mapping[Figure, float]:
        turns.append(name)
        return {SPEED: float(len(turns))}

    told: list[tuple[int, str]] = []
    part = Part("Turns", {"a": lambda: contender("a"), "b": lambda: contender("b")})
    taken = measure(part, 3, lambda done, who: told.append((done, who)))
    assert turns == ["a", "b"] * 3
    assert told == [(0, "a"), (1, "b"), (2, "a"), (3, "b"), (4, "a"), (5, "b")]
    assert taken.values == {"a": {SPEED: [1.0, 3.0, 5.0]}, "b": {SPEED: [2.0, 4.0, 6.0]}}


def test_a_ratio_is_one_of_medians() -> None:
    ratio = Ratio("us / them", ("us", "decode"), ("them", "decode"), "≥ 2")
    taken = results({"us": [300.0, 10.0, 310.0], "them": [100.0, 120.0, 90.0]}, ratio)
    assert taken.median("us", "decode") == 300.0
    assert taken.ratio(ratio) == 3.0
    assert taken.ratio(Ratio("", ("us", "decode"), ("nobody", "decode"))) is None
    assert taken.ratio(Ratio("", ("us", "prefill"), ("them", "decode"))) is None


def test_who_cannot_be_measured_is_asked_once_and_named() -> None:
    asked: list[str] = []

    def unable() -> Mapping[Figure, float]:
        asked.append("them")
        raise NotMeasured("it has no such option")

    ratio = Ratio("us / them", ("us", "decode"), ("them", "decode"))
    part = Part("Decoding", {"us": lambda: {SPEED: 1.0}, "them": unable}, (ratio,))
    taken = measure(part, 3, lambda _done, _who: None)
    assert asked == ["them"]
    lines = "\n".join(tables(record(taken, 3)))
    assert "| not measured: it has no such option | them |" in lines
    assert "| us / them | not measured |" in lines


def test_what_the_programs_say_is_read() -> None:
    assert engines.read_llama_bench(LLAMA_BENCH) == engines.Speed(745.5, 170.25)
    assert engines.read_batched_bench(BATCHED_BENCH) == 171.5
    assert engines.read_openvino(OPENVINO) == engines.Speed(2000.0, 125.0)


def test_ours_is_read(tiny_artifact: TinyArtifact) -> None:
    speed = engines.edge_llm(tiny_artifact(), prompt=8, new=4, threads=1)
    assert speed.prefill > 0
    assert speed.decode > 0


def test_a_share_that_is_not_told_is_not_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "run", lambda _command: '{"outside_share": 0.04}')
    assert engines.outside_share(Path("a.edge"), new=4, threads=1) == 0.04
    monkeypatch.setattr(engines, "run", lambda _command: '{"prompt_tokens": 16}')
    with pytest.raises(NotMeasured, match="does not tell outside_share"):
        engines.outside_share(Path("a.edge"), new=4, threads=1)


def test_sequences_are_decoded_together(tiny_artifact: TinyArtifact) -> None:
    words = [sys.executable, "-m", "benchmarks.speed.together", str(tiny_artifact())]
    assert float(workbench.run([*words, "2", "4", "1"])) > 0


def test_a_table_groups_what_is_compared() -> None:
    ratio = Ratio("us / them", ("us", "decode"), ("them", "decode"), "≥ 2")
    taken = results({"us": [0.4123, 0.5], "them": [1830.4, 1830.4]}, ratio)
    lines = list(tables(record(taken, 2)))
    assert "| decode, tokens/s | us | 0.456 | 0.412 | 0.5 |" in lines
    assert "| decode, tokens/s | them | 1830 | 1830 | 1830 |" in lines
    assert "| us / them | 0.00 | ≥ 2 |" in lines


def test_parts_taken_before_are_kept_on_the_same_machine_only(tmp_path: Path) -> None:
    parts = {"decode": record(results({"us": [1.0]}), 1)}
    write_report(tmp_path / "new", {"CPU": "this"}, parts)
    assert earlier(tmp_path / "new", {"CPU": "this"}) == parts
    assert earlier(tmp_path / "new", {"CPU": "other"}) == {}
    assert earlier(tmp_path, {"CPU": "this"}) == {}
    assert "- CPU: this" in (tmp_path / "new" / TABLE_NAME).read_text(encoding="utf-8")
    (tmp_path / "new" / JSON_NAME).write_text('["something else"]')
    assert earlier(tmp_path / "new", {"CPU": "this"}) == {}


@pytest.mark.parametrize(("head", "kind"), [("Q4_0", Q4), ("Q8_0", Q8), ("Q6_K", np.ndarray)])
def test_the_importer_reads_a_random_model(tmp_path: Path, head: str, kind: type) -> None:
    width = 256 if head == "Q6_K" else TINY.width
    checkpoint = open_gguf(write_random(tmp_path, replace(TINY, width=width, head=head)))
    assert checkpoint.config.vocab_size == TINY.vocab
    assert checkpoint.config.tied
    assert isinstance(checkpoint.tensor("model.embed_tokens.weight"), kind)
    layer = checkpoint.tensor("model.layers.1.mlp.down_proj.weight")
    assert isinstance(layer, Q4)
    assert layer.minimum is None
    logits = Reference(checkpoint, Exact()).logits([1, 2, 300])
    assert np.isfinite(logits).all()
    assert 0.1 < float(logits.std()) < 10  # neither dead nor exploding


def test_a_random_model_answers(random_gguf: Path) -> None:
    compiled = artifact("random", random_gguf, "native", ["--head-bits", "4"])
    assert servers.edge_llm_run(compiled, threads=1) > 0


def test_shapes_have_the_parameters_of_their_names() -> None:
    parameters = {
        name: sum(rows * columns for _, rows, columns, _ in matrices(shape))
        for name, shape in SHAPES.items()
    }
    assert parameters == {"llama-3.2-1b": 1_235_746_816, "qwen2.5-0.5b": 493_961_216}


def test_the_work_of_a_token_leaves_out_an_embedding_that_is_no_head(tmp_path: Path) -> None:
    layers = 2 * (64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 96 * 64)
    for tied in (True, False):
        path = tmp_path / f"{tied}.gguf"
        write_tiny_gguf(path, tied=tied)
        assert work(path).products == layers
        assert work(path, 4.25).bytes == round((layers + 320 * 64) * 4.25 / 8)
    assert work(tmp_path / "True.gguf").bytes == work(tmp_path / "False.gguf").bytes


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.skipif("avx2" not in host().features, reason="roofs.c is for x86 with AVX2")
def test_roofs_are_compiled_and_refuse_what_is_senseless(tmp_path: Path) -> None:
    roofs = Roofs.build(workbench.Workbench(tmp_path), "x86-64-v3")
    assert roofs.read(1 << 24, 1) > 0
    with pytest.raises(click.ClickException, match="usage: roofs"):
        workbench.run([roofs.program, "write", "1", "1"])
    with pytest.raises(click.ClickException, match="cannot be had"):
        roofs.read(1, 1)


def test_a_server_of_ours_is_started_asked_and_ended(tiny_artifact: TinyArtifact) -> None:
    served = servers.served(
        lambda path: workbench.ours("serve", str(tiny_artifact()), "--socket", path),
        tiny_artifact(),
    )
    assert served.first_token_seconds > 0
    assert served.resident_bytes > 10_000_000


def test_a_server_that_does_not_come_up_is_named(tmp_path: Path) -> None:
    (tmp_path / "no.edge").touch()
    with pytest.raises(click.ClickException, match=r"edge_llm\.cli: ended before it answered"):
        servers.served(
            lambda path: workbench.ours("serve", str(tmp_path / "no.edge"), "--socket", path),
            tmp_path / "no.edge",
        )
    with pytest.raises(click.ClickException, match=r"edge_llm\.cli: gave no answer: .*no\.edge"):
        servers.edge_llm_run(tmp_path / "no.edge", threads=1)


def test_programs_that_fail_are_one_line() -> None:
    with pytest.raises(click.ClickException, match=r"failed with 3: no luck$"):
        workbench.run([sys.executable, "-c", "import sys; print('no luck'); sys.exit(3)"])
    with pytest.raises(click.ClickException, match=r"^/no/such/program: No such file"):
        workbench.run(["/no/such/program"])


def test_busy_neighbours_end_with_the_block() -> None:
    with busy_cpus():
        inside = children()
    assert inside
    assert not children()


def children() -> list[str]:
    """Processes that this one has started and that have not ended."""
    listed = Path("/proc/self/task").glob("*/children")
    return [pid for path in listed for pid in path.read_text().split()]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "decode,coffee"], "no part is called 'coffee'; there are machine, decode"),
        (["--rounds", "0"], "0 is not in the range x>=1"),
        ([], "holds no peers to compare with: `make bench` installs them"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(
    words: list[str], said: str, tmp_path: Path
) -> None:
    done = CliRunner().invoke(cli.main, ["--peers", str(tmp_path), *words])
    assert done.exit_code == 2
    assert said in done.output


def test_chosen_parts_are_measured_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ready").touch()
    drawn: list[Path] = []
    monkeypatch.setattr(cli, "machine", lambda _bench: {"CPU": "this"})
    monkeypatch.setattr(cli, "draw", lambda _bench, output: drawn.append(output))
    part = Part("Fake", {"us": lambda: {SPEED: 7.0}})
    monkeypatch.setattr(cli, "PARTS", {**PARTS, "busy": lambda _bench: part})
    output = tmp_path / "out"
    words = ["--peers", str(tmp_path), "--only", "busy", "--rounds", "2", "-o", str(output)]
    done = CliRunner().invoke(cli.main, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert "| decode, tokens/s | us | 7 | 7 | 7 |" in done.output
    kept = json.loads((output / JSON_NAME).read_text(encoding="utf-8"))
    assert kept["parts"]["busy"]["figures"][0]["values"] == [7.0, 7.0]
    assert drawn == [output]


def test_peers_are_set_up_by_a_script_that_bash_can_read() -> None:
    script = workbench.PROJECT / ".ci" / "setup" / "peers.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
