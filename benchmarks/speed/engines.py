"""One run of one engine: its command line, and its answer as tokens a second.

edge_llm(Path("smollm2.edge"), prompt=128, new=2, threads=2).prefill
llama_cpp(bench.llama("native", "llama-bench"), gguf, prompt=128, new=0, threads=2).prefill
openvino(bench.peers_python, gguf, prompt=128, new=8, threads=2).prefill
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.speed.rounds import NotMeasured
from benchmarks.speed.workbench import PROJECT, ours, run

OPENVINO_RUN = PROJECT / "benchmarks" / "speed" / "openvino_run.py"


@dataclass(frozen=True)
class Speed:
    """Tokens a second; 0 for what was not asked for."""

    prefill: float
    decode: float


def edge_llm(artifact: Path, *, prompt: int, new: int, threads: int) -> Speed:
    """Ours, through the engine that serves requests; tokens are drawn, text is made."""
    record = json.loads(run(bench_command(artifact, prompt, new, threads)))
    return Speed(record["prefill_tokens_per_second"], record["decode_tokens_per_second"])


def outside_share(artifact: Path, *, new: int, threads: int) -> float:
    """The share of a decode step that is spent outside compiled code, 0 to 1."""
    record = json.loads(run(bench_command(artifact, 16, new, threads)))
    if "outside_share" not in record:
        raise NotMeasured("`edge-llm bench --json` does not tell outside_share")
    return float(record["outside_share"])


def bench_command(artifact: Path, prompt: int, new: int, threads: int) -> list[str]:
    sizes = ["--prompt-tokens", str(prompt), "--new-tokens", str(new), "--threads", str(threads)]
    return ours("bench", str(artifact), *sizes, "--rounds", "1", "--json")


def llama_cpp(
    program: str, gguf: Path, *, prompt: int, new: int, threads: int, depth: int = 0
) -> Speed:
    """llama-bench: neither tokens are drawn nor text made.

    Args:
        program: llama-bench of the build to measure.
        gguf: the model.
        prompt: tokens of the prompt; 0 measures no prefill.
        new: tokens to decode; 0 measures no decoding.
        threads: for both.
        depth: tokens that are in the context before either.
    """
    sizes = ["-p", str(prompt), "-n", str(new), "-d", str(depth), "-t", str(threads)]
    return read_llama_bench(run([program, "-m", str(gguf), *sizes, "-r", "1", "-o", "json"]))


def read_llama_bench(output: str) -> Speed:
    """What llama-bench has said: one record a test, of a prompt or of decoding."""
    tests = json.loads(output)
    prefill = (test["avg_ts"] for test in tests if test["n_prompt"])
    decode = (test["avg_ts"] for test in tests if test["n_gen"])
    return Speed(next(prefill, 0.0), next(decode, 0.0))


def llama_cpp_together(
    program: str, gguf: Path, *, sequences: int, new: int, threads: int
) -> float:
    """llama-batched-bench: tokens a second of so many sequences decoded together."""
    sizes = ["-npp", "16", "-ntg", str(new), "-npl", str(sequences), "-c", "1024"]
    threads_options = ["-t", str(threads), "-tb", str(threads)]
    output = run([program, "-m", str(gguf), *sizes, *threads_options, "--output-format", "jsonl"])
    return read_batched_bench(output)


def read_batched_bench(output: str) -> float:
    """Tokens a second of decoding, all sequences together, of the one test."""
    (record,) = (json.loads(line) for line in output.splitlines() if line.startswith("{"))
    return float(record["speed_tg"])


def openvino(python: str, gguf: Path, *, prompt: int, new: int, threads: int) -> Speed:
    """OpenVINO GenAI on the same GGUF; tokens are drawn."""
    sizes = ["--prompt", str(prompt), "--new", str(new), "--threads", str(threads)]
    return read_openvino(run([python, str(OPENVINO_RUN), str(gguf), *sizes]))


def read_openvino(output: str) -> Speed:
    """The last line of openvino_run.py: milliseconds to the first token, and a token after it."""
    record = json.loads(output.splitlines()[-1])
    first, each = record["time_to_first_token_ms"], record["time_per_token_ms"]
    return Speed(1000 * record["prompt_tokens"] / first, 1000 / each)
