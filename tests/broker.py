"""A Mosquitto of the test's own, on a free port of the loopback interface.

with Broker(tmp_path) as broker:
    client.connect("127.0.0.1", broker.port)
    broker.stop()       # the broker is gone in the middle
    broker.start()      # and is back on the same port
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

START_SECONDS = 10.0
PROGRAM_FOLDERS = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])


class Broker:
    """A broker process that can be stopped and started again.

    Args:
        folder: an empty folder for its configuration and log.
        settings: further lines of mosquitto.conf.
    """

    def __init__(self, folder: Path, *settings: str) -> None:
        self.port = free_port()
        self.log = folder / "mosquitto.log"
        self._config = folder / "mosquitto.conf"
        lines = [
            f"listener {self.port} 127.0.0.1",
            "allow_anonymous true",
            "persistence false",
            f"user {getpass.getuser()}",  # started by root, it would become another user
            "log_dest stdout",
            *settings,
        ]
        self._config.write_text("\n".join(lines) + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and return once it answers."""
        program = shutil.which("mosquitto", path=PROGRAM_FOLDERS)
        if program is None:
            raise RuntimeError("mosquitto is missing: run make test or install it")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [program, "-c", str(self._config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_SECONDS
        while not answers(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"mosquitto did not start: {self.log.read_text()}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Kill it, as a power cut would: its clients see the connection break."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def signal(self, number: int) -> None:
        """Send it a signal; SIGSTOP makes it a broker that is there and does nothing."""
        assert self._process is not None
        self._process.send_signal(number)

    def __enter__(self) -> Broker:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def free_port() -> int:
    """A TCP port that nothing on the loopback interface listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def answers(port: int) -> bool:
    """Whether something listens on that port of the loopback interface."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def certificate(path: Path) -> None:
    """PATH.pem and PATH.key: a certificate for 127.0.0.1, signed by itself."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    files = ["-nodes", "-keyout", f"{path}.key", "-out", f"{path}.pem", "-days", "2"]
    names = ["-subj", "/CN=unit", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, *files, *names], check=True, capture_output=True, timeout=60)


def passwords(path: Path, **users: str) -> None:
    """A file of users and their passwords for a broker's setting ``password_file``."""
    path.touch()
    for user, password in users.items():
        command = ["mosquitto_passwd", "-b", str(path), user, password]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
