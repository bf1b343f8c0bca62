"""The commands, as a shell runs them: what they write, where, and with which exit status."""

from __future__ import annotations

import io
import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import edge_llm
from edge_llm import cli
from edge_llm.artifact import Artifact
from edge_llm.model import Model
from tests.conftest import TinyArtifact
from tests.fake_executor import TOKENIZER, FakeExecutor, Language, babble, spelling
from tests.sample_artifact import sample_manifest, write_sample

NEWLINE = TOKENIZER.encode("\n")[0]  # with which the chat template ends
RunCli = Callable[..., "tuple[int, str, str]"]


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> RunCli:
    """Runs ``edge-llm``; its model, whatever file is named, is a fake that speaks a language.

    Returns exit status, stdout and stderr.
    """

    def run(
        *arguments: str, language: Language = babble, stdin: bytes = b"", context: int = 128
    ) -> tuple[int, str, str]:
        def load(path: str, threads: int | None = None, wanted: int | None = None) -> Model:
            model = sample_manifest().model
            if path == "wider.edge":
                model = replace(model, vocab_size=model.vocab_size + 64)
            write_sample(tmp_path / "sample.edge", model=model)
            executor = FakeExecutor(language, context=wanted or context, pages=128)
            return Model(Artifact.open(tmp_path / "sample.edge"), executor, TOKENIZER)

        monkeypatch.setattr(edge_llm, "load", load)
        monkeypatch.setattr(sys, "argv", ["edge-llm", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capfdbinary.readouterr()
        return int(caught.value.code or 0), out.decode(), err.decode()

    return run


def real(*arguments: str) -> tuple[int, str, str]:
    """The same with the model that is named, in a process of its own."""
    command = [sys.executable, "-m", "edge_llm.cli", *arguments]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


# run


def test_without_a_command_it_says_what_there_is() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edge_llm.cli"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: edge-llm ")


def test_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "edge_llm.cli", "--help"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "error: [Errno 28] No space left on device\n")


def test_run_writes_the_answer_and_nothing_else(run: RunCli) -> None:
    language = spelling("Paris é😀.", NEWLINE)
    assert run("run", "m.edge", "--prompt", "France?", language=language) == (0, "Paris é😀.", "")


def test_run_takes_the_prompt_from_stdin(run: RunCli) -> None:
    wanted = run("run", "m.edge", "--prompt", "Où ?", "--max-tokens", "9")
    for arguments in ((), ("--prompt", "-")):
        got = run("run", "m.edge", *arguments, "--max-tokens", "9", stdin="Où ?".encode())
        assert got == wanted


def test_run_raw_leaves_the_template_out(run: RunCli) -> None:
    language = spelling("Rome.")  # after <|endoftext|>, which only a raw prompt can contain
    prompt = ("--prompt", "Italy?<|endoftext|>")
    assert run("run", "m.edge", *prompt, "--raw", language=language)[1] == "Rome."


def test_run_with_a_system_text_is_a_chat_of_two(run: RunCli) -> None:
    told = run("run", "m.edge", "--prompt", "Hi", "--system", "Be brief.", "--max-tokens", "9")
    assert told[1] != run("run", "m.edge", "--prompt", "Hi", "--max-tokens", "9")[1]
    status, _, err = run("run", "m.edge", "--prompt", "Hi", "--system", "Be brief.", "--raw")
    assert (status, err.count("\n")) == (2, 1)
    assert "--system needs the chat template" in err


def test_run_hands_its_options_on(run: RunCli) -> None:
    def text(*options: str) -> str:
        return run("run", "m.edge", "--prompt", "Hi", "--max-tokens", "20", *options)[1]

    hot = ("--temperature", "2", "--seed", "1")
    assert text(*hot) == text(*hot) != text()
    assert text(*hot, "--top-k", "1") == text(*hot, "--top-p", "0") == text(*hot, "--min-p", "1")
    assert text("--stop", text()[4:6], "--stop", "@@") == text()[:4]
    assert text("--repetition-penalty", "100") != text()


def test_run_prints_statistics_to_stderr(run: RunCli) -> None:
    status, out, err = run("run", "m.edge", "--prompt", "Hi", "--max-tokens", "5", "--stats")
    assert status == 0
    assert out
    assert "5 generated, ended by length" in err
    assert "MB resident" in err


# chat


def test_chat_remembers_resets_and_quits(run: RunCli) -> None:
    lengths: list[int] = []

    def language(tokens: NDArray[np.int32]) -> int:
        if tokens[-1] == NEWLINE:
            lengths.append(len(tokens))
            return TOKENIZER.encode("A")[0]
        return 2

    stdin = b"Hi\n\nHi\n/reset\nHi\n/quit\nHi\n"
    status, out, _ = run("chat", "m.edge", stdin=stdin, language=language)
    assert status == 0
    assert out.count("A\n") == 3
    assert lengths[1] > lengths[0] == lengths[2]
    assert run("chat", "m.edge", stdin=b"Hi\n", language=language)[0] == 0  # ends with its input


def test_chat_starts_with_the_system_text(run: RunCli) -> None:
    arguments = ("chat", "m.edge", "--max-tokens", "9")
    plain = run(*arguments, stdin=b"Hi\n")[1]
    told = run(*arguments, "--system", "Be brief.", stdin=b"/reset\nHi\n")[1]
    assert plain.removeprefix("> ") != told.removeprefix("> > ")


def test_chat_goes_on_after_a_refusal(run: RunCli) -> None:
    stdin = b"a" * 200 + b"\nHi\n"
    status, out, err = run("chat", "m.edge", "--max-tokens", "5", stdin=stdin)
    assert status == 0
    assert "error: prompt is" in err
    assert "/reset starts again" in err
    assert len(out) > len("> > \n")


def test_chat_says_that_the_context_is_full(run: RunCli) -> None:
    _, _, err = run("chat", "m.edge", stdin=b"Hi\n", language=lambda _: TOKENIZER.encode("A")[0])
    assert err == "the context is full: /reset starts again\n"


def test_chat_says_what_is_no_text(run: RunCli) -> None:
    status, _, err = run("chat", "m.edge", stdin=b"caf\xe9\n")
    assert (status, err) == (0, "error: that is not UTF-8\n")


# bench and eval


def test_bench_prints_medians_with_their_range(run: RunCli) -> None:
    sizes = ("--prompt-tokens", "50", "--new-tokens", "7", "--rounds", "3")
    status, out, _ = run("bench", "m.edge", *sizes, "--json")
    record = json.loads(out)
    assert status == 0
    assert (record["prompt_tokens"], record["new_tokens"], record["rounds"]) == (50, 7, 3)
    for key in (
        "prefill_tokens_per_second",
        "decode_tokens_per_second",
        "time_to_first_token_seconds",
    ):
        least, most = record["range"][key]
        assert 0 < least <= record[key] <= most
    assert record["peak_resident_bytes"] > 2**20
    table = run("bench", "m.edge", *sizes)[1].splitlines()
    assert [line.split()[0] for line in table] == [
        "median",
        *record["range"],
        "peak_resident_bytes",
        "outside_share",
    ]


def test_bench_shows_where_the_time_of_a_token_goes(run: RunCli) -> None:
    sizes = ("--prompt-tokens", "50", "--new-tokens", "6", "--rounds", "2", "--profile")
    times = json.loads(run("bench", "m.edge", *sizes, "--json")[1])["microseconds_per_token"]
    # A microsecond each: two layers of one stage; 10 tokens were decoded, 100 prefilled.
    assert times["decode"] == pytest.approx({"embed": 0.1, "head": 0.1})
    assert times["prefill"] == pytest.approx({"embed": 0.01, "layer": 0.02, "head": 0.01})
    lines = run("bench", "m.edge", *sizes)[1].splitlines()
    assert [line.split()[0] for line in lines if "layer" in line or "a token" in line] == [
        "decode",
        "prefill",
        "layer",
    ]


def test_bench_counts_a_row_that_is_left_alone_as_it_is_timed(run: RunCli) -> None:
    sizes = ("--prompt-tokens", "1", "--new-tokens", "6", "--rounds", "2", "--profile", "--json")
    times = json.loads(run("bench", "m.edge", *sizes)[1])["microseconds_per_token"]
    assert times["decode"] == pytest.approx({"embed": 1 / 12, "head": 1 / 12})


def test_bench_generates_on_past_the_end_token(run: RunCli) -> None:
    status, out, _ = run(
        "bench", "m.edge", "--new-tokens", "9", "--rounds", "1", "--json",
        context=256, language=lambda tokens: 2,
    )  # fmt: skip
    assert status == 0
    assert json.loads(out)["decode_tokens_per_second"] > 0


def test_bench_refuses_what_the_context_cannot_hold(run: RunCli) -> None:
    status, _, err = run("bench", "m.edge", "--prompt-tokens", "100", "--new-tokens", "29")
    assert status == 1
    assert err == ("error: 100 prompt tokens and 29 new ones are more than the context of 128\n")


def test_eval_compares_vocabularies_of_one_size(run: RunCli, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("The capital of France is Paris.")
    status, _, err = run("eval", "m.edge", str(tmp_path / "text"), "--against", "wider.edge")
    assert status == 1
    assert err == "error: m.edge and wider.edge have vocabularies of different sizes\n"


def test_eval_says_that_it_takes_numpy(tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules["numpy"] = None  # as if it were not installed
sys.argv = ["edge-llm", "eval", "model.edge", {str(tmp_path / "text.txt")!r}]
from edge_llm.cli import main
main()
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: this takes numpy: pip install numpy\n"


def test_eval_prints_the_perplexity_of_a_text(run: RunCli, tmp_path: Path) -> None:
    text = "The capital of France is Paris. " * 9
    (tmp_path / "text.txt").write_text(text)
    arguments = ("eval", "m.edge", str(tmp_path / "text.txt"), "--context", "32", "--json")
    status, out, _ = run(*arguments)
    ids = TOKENIZER.encode(text)
    windows = [ids[at : at + 32] for at in range(0, len(ids), 32)]
    nats = 0.0
    for window in windows:  # the fake's logits, by its own definition
        for at in range(1, len(window)):
            logits = np.linspace(1, 0, 320, dtype=np.float32).astype(np.float64)
            logits[babble(np.array(window[:at], np.int32))] = 5
            nats -= logits[window[at]] - np.log(np.exp(logits).sum())
    tokens = len(ids) - len(windows)
    assert status == 0
    assert json.loads(out)["tokens"] == tokens
    assert json.loads(out)["perplexity"] == pytest.approx(math.exp(nats / tokens))

    other = json.loads(run(*arguments, "--against", "n.edge")[1])
    assert (other["kl_mean"], other["kl_p99"], other["top1_agreement"]) == (0, 0, 1)
    assert other["perplexity_ratio"] == 1
    assert run(*arguments[:-1])[1].split() == [
        "perplexity", f"{json.loads(out)['perplexity']:.6g}", "tokens", f"{tokens:.6g}",
    ]  # fmt: skip


# What goes wrong


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("run", "m.edge", "--prompt", "Hi", "--temperature", "-1"), 1, "temperature must be"),
        (("run", "m.edge", "--prompt", "a" * 200, "--raw"), 1, "prompt is 200 tokens, the limit"),
        (("run", "m.edge", "--prompt", ""), 0, ""),
        (("run", "m.edge", "--prompt", "", "--raw"), 1, "the prompt has no tokens"),
        (("run", "m.edge", "--frob"), 2, "No such option"),
        (("run",), 2, "Missing argument 'FILE.edge'"),
        (("frob",), 2, "No such command 'frob'"),
        (("eval", "m.edge", "/absent"), 1, "cannot read /absent: No such file"),
        (("info", "/absent"), 1, "cannot open /absent: No such file"),
        (("bench", "m.edge", "--rounds", "0"), 2, "not in the range"),
    ],
)
def test_an_error_is_one_line_and_a_status(
    run: RunCli, arguments: Sequence[str], status: int, message: str
) -> None:
    got, out, err = run(*arguments)
    assert got == status
    assert message in err
    if status:
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1


def test_stdin_that_is_no_text_is_said(run: RunCli) -> None:
    status, _, err = run("run", "m.edge", stdin=b"h\xff")
    assert (status, "stdin is not UTF-8 at byte 1" in err) == (2, True)


def test_help_is_there_for_every_command() -> None:
    status, overview, _ = real("--help")
    assert status == 0
    for name in ("run", "chat", "serve", "bench", "info", "eval"):
        assert f"\n  {name} " in overview
        assert f"  edge-llm {name} smollm2" in real(name, "--help")[1]  # an example
    assert real("--version")[1] == f"edge-llm, version {edge_llm.__version__}\n"


# In processes of their own, with a tiny compiled model


def test_run_says_what_python_says(tiny_artifact: TinyArtifact) -> None:
    with edge_llm.load(tiny_artifact()) as model:
        wanted = "".join(model.generate("Hello é", max_tokens=30))
    done = real("run", str(tiny_artifact()), "--prompt", "Hello é", "--max-tokens", "30")
    assert done == (0, wanted, "")


def test_control_c_ends_a_run_with_130(tiny_artifact: TinyArtifact) -> None:
    command = [sys.executable, "-m", "edge_llm.cli", "chat", str(tiny_artifact())]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell's background job, as these tests may be, ignores it and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(2) == b"> "  # it waits for a line
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err


def test_a_reader_that_leaves_ends_a_run_without_complaint(tiny_artifact: TinyArtifact) -> None:
    command = [sys.executable, "-m", "edge_llm.cli", "run", str(tiny_artifact()), "--prompt", "Hi"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, err = process.communicate(timeout=60)
    assert b"Traceback" not in err
    assert b"Exception" not in err
