"""``edge-llm serve`` from start to end, as systemd and people start and stop it."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_llm.config import from_options
from edge_llm.errors import ConfigError
from edge_llm.http_api.listener import inherited_sockets
from edge_llm.logs import Line, fields
from edge_llm.serve import notify, serve, watchdog_seconds
from tests.conftest import TinyArtifact
from tests.fake_engine import WAIT

# An engine with a defect that shows when a request of priority 9 comes.
BREAK = """
import sys
from edge_llm import cli, engine
plan = engine.make_plan
def broken(waiting, *rest):
    assert all(sequence.priority < 9 for sequence in waiting), "a defect"
    return plan(waiting, *rest)
engine.make_plan = broken
sys.argv[0] = "edge-llm"
cli.main()
"""
# What systemd does: sockets from file descriptor 3 on, and the process told that they are its.
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_under_systemd_it_takes_its_socket_and_says_how_it_is(
    tiny_artifact: TinyArtifact, tmp_path: Path
) -> None:
    with (
        socket.socket(socket.AF_UNIX) as listening,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd,
    ):
        listening.bind(str(tmp_path / "api"))
        listening.listen()
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(WAIT)
        program = [sys.executable, "-m", "edge_llm.cli", "serve", str(tiny_artifact())]
        process = subprocess.Popen(
            [sys.executable, "-c", ACTIVATE, str(listening.fileno()), *program],
            env={
                **os.environ,
                "NOTIFY_SOCKET": str(tmp_path / "notify"),
                "WATCHDOG_USEC": "200000",
            },
            pass_fds=[listening.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            assert systemd.recv(100) == b"READY=1"
            assert systemd.recv(100) == b"WATCHDOG=1"
            assert _get(tmp_path / "api", "/health") == {"status": "ok"}
            process.send_signal(signal.SIGTERM)
            while (said := systemd.recv(100)) == b"WATCHDOG=1":
                pass
            assert said == b"STOPPING=1"
            log = process.communicate(timeout=WAIT)[1].decode()
        finally:
            process.kill()
            process.communicate()
    assert process.returncode == 0, log
    assert (tmp_path / "api").is_socket()  # it is systemd's
    for line in log.splitlines():
        assert line.startswith("time=")


def test_without_its_engine_it_ends_so_that_systemd_starts_it_again(
    tiny_artifact: TinyArtifact, tmp_path: Path
) -> None:
    path = tmp_path / "api"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(WAIT)
        process = subprocess.Popen(
            [sys.executable, "-c", BREAK, "serve", str(tiny_artifact()), "--socket", str(path)],
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            assert systemd.recv(100) == b"READY=1"
            body = json.dumps({"prompt": "a", "priority": 9})
            answer = _ask(
                path, f"POST /v1/completions HTTP/1.1\r\nContent-Length: {len(body)}", body
            )
            log = process.communicate(timeout=WAIT)[1].decode()
        finally:
            process.kill()
            process.communicate()
    assert answer["error"]["code"] == "unavailable"
    assert process.returncode == 1
    assert "a defect" in log
    assert log.splitlines()[-1].startswith("error: the engine has ended")


def _get(path: Path, target: str) -> Any:
    return _ask(path, f"GET {target} HTTP/1.1")


def _ask(path: Path, head: str, body: str = "") -> Any:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(f"{head}\r\nHost: x\r\nConnection: close\r\n\r\n{body}".encode())
        data = b"".join(iter(lambda: client.recv(4096), b""))
    return json.loads(data.partition(b"\r\n\r\n")[2])


def test_there_must_be_something_to_serve_on(tmp_path: Path) -> None:
    config = tmp_path / "edge-llm.toml"
    config.write_text("[http]\nallow_remote = true\n")  # but no address
    for path in (None, str(config)):
        with pytest.raises(ConfigError, match="nothing to serve on: give --mqtt, --socket or --ht"):
            serve(from_options(file="a.edge", config=path))


def test_what_cannot_begin_is_one_line(tiny_artifact: TinyArtifact, tmp_path: Path) -> None:
    config = tmp_path / "edge-llm.toml"
    config.write_text(f'[mqtt]\nurl = "mqtts://127.0.0.1"\nca_file = "{tmp_path}/absent"\n')
    occupied = tmp_path / "file"
    occupied.write_text("precious")
    for options in (["--config", str(config)], ["--socket", str(occupied)]):
        done = subprocess.run(
            [sys.executable, "-m", "edge_llm.cli", "serve", str(tiny_artifact()), *options],
            capture_output=True,
            text=True,
            timeout=WAIT,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr.startswith("error: cannot ")
        assert done.stderr.count("\n") == 1
    assert occupied.read_text() == "precious"


def test_sockets_are_taken_only_if_they_are_meant_for_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    assert inherited_sockets() == []
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "many")
    assert inherited_sockets() == []


def test_what_is_passed_must_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "1")
    with socket.socket(socket.AF_UNIX) as idle:
        monkeypatch.setattr("edge_llm.http_api.listener.FIRST_FD", os.dup(idle.fileno()))
        with pytest.raises(ConfigError, match="does not listen; the unit needs ListenStream="):
            inherited_sockets()
    read, write = os.pipe()
    os.close(write)
    monkeypatch.setattr("edge_llm.http_api.listener.FIRST_FD", read)
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "1")
    with pytest.raises(ConfigError, match="systemd says it is a socket"):
        inherited_sockets()
    os.close(read)


def test_without_systemd_nobody_is_notified(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("NOTIFY_SOCKET", "WATCHDOG_USEC"):
        monkeypatch.delenv(variable, raising=False)
    notify("READY=1")
    assert watchdog_seconds() is None
    monkeypatch.setenv("NOTIFY_SOCKET", "/absent/socket")
    notify("READY=1")


def test_a_record_is_one_line_whatever_it_holds() -> None:
    record = logging.LogRecord("edge_llm.x", logging.INFO, "", 0, "hello %s", ("you\nthere",), None)
    record.__dict__ |= fields(seconds=0.123456789, text='a "b"\nc', empty="")
    line = Line().format(record)
    assert line.startswith("time=")
    assert line.endswith(
        'level=info from=edge_llm.x msg="hello you\\nthere" '
        'seconds=0.123457 text="a \\"b\\"\\nc" empty=""'
    )


def test_an_exception_is_one_line_too() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        record = logging.LogRecord("edge_llm.x", logging.ERROR, "", 0, "oh", (), sys.exc_info())
    line = Line().format(record)
    assert "\n" not in line
    assert 'error="ValueError: first\\nsecond"' in line
    assert "where=test_an_exception_is_one_line_too:" in line
