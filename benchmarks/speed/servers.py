"""From a server's start to its first token, and the memory it takes after an answer.

Ours and llama.cpp's listen on a Unix socket and speak OpenAI's API, so one client asks both.
"""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.speed.workbench import LIMIT_SECONDS, PROJECT, environment, name, ours

PROMPT = (  # 20 tokens of SmolLM2's
    "The keeper of the lighthouse wrote down the weather every morning: "
    "the wind, the waves and ships."
)
ANSWER_TOKENS = 64
CONTEXT = 2048
POLL_SECONDS = 0.002
CHUNK = 1 << 24


@dataclass(frozen=True)
class Served:
    """One life of a server."""

    first_token_seconds: float  # from the start of its process
    resident_bytes: int  # after an answer, mapped files included


def edge_llm_served(artifact: Path, threads: int) -> Served:
    """Ours, as a service."""
    options = ["--context", str(CONTEXT), "--threads", str(threads)]
    return served(lambda path: ours("serve", str(artifact), "--socket", path, *options), artifact)


def llama_server_served(program: str, gguf: Path, threads: int, *more: str) -> Served:
    """llama-server with one slot, and with ``more`` options."""
    options = ["-c", str(CONTEXT), "-np", "1", "-t", str(threads), *more]
    return served(lambda path: [program, "-m", str(gguf), "--host", path, *options], gguf)


def edge_llm_run(artifact: Path, threads: int) -> float:
    """Seconds from the start of ``edge-llm run`` to the first byte of its answer."""
    warm_page_cache(artifact)
    options = ["--raw", "--max-tokens", "1", "--threads", str(threads)]
    command = ours("run", str(artifact), "--prompt", PROMPT, *options)
    started = time.perf_counter()
    with subprocess.Popen(
        command, cwd=PROJECT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        seconds = time.perf_counter() - started
        _, error = process.communicate(timeout=LIMIT_SECONDS)
    if process.returncode or not first:
        said = error.decode(errors="replace").strip().splitlines() or ["nothing said"]
        raise click.ClickException(f"{name(command)}: gave no answer: {said[-1]}")
    return seconds


def served(command: Callable[[str], list[str]], model: Path) -> Served:
    """Start a server on a socket, ask it for one token as soon as it takes questions, then more."""
    warm_page_cache(model)
    with tempfile.TemporaryDirectory(prefix="edge-llm-bench-") as folder:
        path = str(Path(folder) / "server.sock")
        started = time.perf_counter()
        with running(command(path)) as process:
            while not ask(path, 1):
                if process.poll() is not None:
                    raise click.ClickException(f"{name(command(path))}: ended before it answered")
                if time.perf_counter() - started > LIMIT_SECONDS:
                    raise click.ClickException(f"{name(command(path))}: does not answer")
                time.sleep(POLL_SECONDS)
            seconds = time.perf_counter() - started
            if not ask(path, ANSWER_TOKENS):
                raise click.ClickException(f"{name(command(path))}: gives no second answer")
            return Served(seconds, resident_bytes(process.pid))


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that says nothing and is ended with the block."""
    process = subprocess.Popen(
        command,
        cwd=PROJECT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class UnixConnection(http.client.HTTPConnection):
    """HTTP to a server on a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=LIMIT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(LIMIT_SECONDS)
        self.sock.connect(self._path)


def ask(path: str, tokens: int) -> bool:
    """Continue PROMPT by so many tokens; False while the server is not up or still loads (503)."""
    connection = UnixConnection(path)
    body = {"prompt": PROMPT, "max_tokens": tokens, "temperature": 0}
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        said = answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    if answer.status not in (200, 503):
        raise click.ClickException(f"a server answers {answer.status}: {said[:200]}")
    return answer.status == 200


def resident_bytes(pid: int) -> int:
    """Memory of a process in RAM, mapped files included (proc(5), VmRSS)."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def warm_page_cache(file: Path) -> None:
    """Read a file, so that no disk is measured."""
    with file.open("rb") as stream:
        while stream.read(CHUNK):
            pass
