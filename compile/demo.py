"""A whole installation on one machine: broker, device runtime, and a client that asks it something.

    make demo
    python -m compile.demo smollm2.edge "Why is the sky blue?"

Each is a process of its own, as it would be on machines of their own. The broker listens on the
loopback interface only: Mosquitto if it is installed, else the one in the Python package iotcore.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

DEVICE = "demo"
QUESTION = "What is the capital of France?"
START_SECONDS = 30.0

MOSQUITTO = """\
listener {port} 127.0.0.1
allow_anonymous true
persistence false
log_dest none
"""
# https://github.com/bytebeamio/rumqtt, the broker inside iotcore.
RUMQTTD = """\
id = 0
[router]
id = 0
max_connections = 100
max_outgoing_packet_count = 200
max_segment_size = 1048576
max_segment_count = 10
[v5.1]
name = "demo"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = 1048576
max_inflight_count = 100
dynamic_filters = true
"""


def main() -> int:
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python -m compile.demo FILE.edge [QUESTION]")
    model = Path(sys.argv[1])
    question = sys.argv[2] if len(sys.argv) == 3 else QUESTION
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="edge-llm-demo-")))
        url = running.enter_context(broker(folder))
        pid = running.enter_context(device(model, url, folder))
        return ask(url, question, pid)


@contextmanager
def broker(folder: Path) -> Iterator[str]:
    """A running MQTT 5 broker on a free port of the loopback interface; its URL."""
    port = free_port()
    mosquitto = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    config = folder / "broker.toml"  # iotcore goes by the ending, Mosquitto does not
    if mosquitto:
        command = [mosquitto, "-c", str(config)]
        config.write_text(MOSQUITTO.format(port=port))
        config.chmod(0o644)
        folder.chmod(0o755)  # started by root, it reads this as another user
    else:
        start = "import sys, iotcore; iotcore.Broker(config_path=sys.argv[1]).run_forever()"
        command = [sys.executable, "-c", start, str(config)]
        config.write_text(RUMQTTD.format(port=port))
    with process(command, folder / "broker.log"):
        wait_for_listener(port)
        url = f"mqtt://127.0.0.1:{port}"
        print(f"broker   {'Mosquitto' if mosquitto else 'iotcore'}, {url}")
        yield url


@contextmanager
def device(model: Path, url: str, folder: Path) -> Iterator[int]:
    """The device runtime serving the model over MQTT; its process id."""
    command = [sys.executable, "-m", "edge_llm.cli", "serve", str(model)]
    log = folder / "device.log"
    with process([*command, "--mqtt", url, "--device", DEVICE], log) as running:
        print(f"device   edge-llm serve {model} --mqtt {url} --device {DEVICE}")
        wait_for_line(running, log, "msg=connected")
        yield running.pid


def ask(url: str, question: str, device_pid: int) -> int:
    """Ask as an IoT client would, in a process of its own; its exit status."""
    options = ["--mqtt", url, "--device", DEVICE, question]
    print(f"client   edge-llm ask --mqtt {url} --device {DEVICE} {question!r}\n", flush=True)
    command = [sys.executable, "-m", "edge_llm.cli", "ask", "--stats", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as client:
        assert client.stderr is not None
        said = client.stderr.read()
    if client.returncode:
        print(said, end="", file=sys.stderr)
        return client.returncode
    figures = json.loads(said)
    print(
        f"\nfirst token after {figures['time_to_first_token_seconds'] * 1000:.0f} ms, "
        f"then {figures['decode_tokens_per_second']:.0f} tokens/s; "
        f"the device takes {resident_megabytes(device_pid):.0f} MB of memory"
    )
    return 0


def resident_megabytes(pid: int) -> float:
    """Memory of a process in RAM, shared pages included (proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1000


@contextmanager
def process(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs while the block does; what it said is shown if it ended before."""
    with log.open("wb") as output:
        running = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield running
    finally:
        ended = running.poll()
        running.terminate()
        running.wait()
        if ended is not None:
            print(f"{command[0]} has ended with {ended}:\n{log.read_text()}", file=sys.stderr)


def wait_for_listener(port: int) -> None:
    """Return once something listens on that port, or after START_SECONDS: its clients will tell."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)


def wait_for_line(running: subprocess.Popen[bytes], log: Path, text: str) -> None:
    """Return once the process has said ``text``; SystemExit where it ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while text not in log.read_text():
        if running.poll() is not None or time.monotonic() > deadline:
            sys.exit("error: the device did not come up")
        time.sleep(0.02)


def free_port() -> int:
    """A TCP port that nothing on the loopback interface listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


if __name__ == "__main__":
    sys.exit(main())
