"""The sockets that the API listens on: a Unix socket of ours or systemd's, and loopback TCP."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from edge_llm.errors import ConfigError

SOCKET_MODE = 0o660  # owner and group may connect
BACKLOG = 64
FIRST_FD = 3  # of what systemd passes, see sd_listen_fds(3)


def unix_socket(path: str) -> socket.socket:
    """A listening Unix socket at ``path``, mode 0660.

    A stale socket file is replaced; anything else that stands there is left alone.

    Raises:
        ConfigError: a live process listens there, the path is no socket, or cannot be bound.
    """
    _make_room(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777 & ~SOCKET_MODE)  # the file never exists with a wider mode
    try:
        listening.bind(path)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise ConfigError(f"cannot listen on {path}: {error.strerror or error}") from None
    finally:
        os.umask(before)
    return listening


def _make_room(path: str) -> None:
    """Remove a socket file that nobody listens on."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"cannot listen on {path}: {error.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"cannot listen on {path}: it exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        code = probe.connect_ex(path)
    if code in (errno.ECONNREFUSED, errno.ENOENT):
        Path(path).unlink(missing_ok=True)
        return
    if code in (0, errno.EAGAIN):
        raise ConfigError(f"cannot listen on {path}: another process serves there: stop it first")
    raise ConfigError(f"cannot listen on {path}: {os.strerror(code)}")


def tcp_socket(address: tuple[str, int]) -> socket.socket:
    """A listening TCP socket; ConfigError where it cannot be bound."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        where = f"{address[0]}:{address[1]}"
        raise ConfigError(f"cannot listen on {where}: {error.strerror or error}") from None
    return listening


def inherited_sockets() -> list[socket.socket]:
    """What systemd listens on for us (socket activation); none where it does not."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return []
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)  # they are not meant for our children
    return [_inherited(fd) for fd in range(FIRST_FD, FIRST_FD + int(count))]


def _inherited(fd: int) -> socket.socket:
    try:
        inherited = socket.socket(fileno=fd)
    except OSError as error:
        raise ConfigError(
            f"file descriptor {fd}: {error.strerror}; systemd says it is a socket"
        ) from None
    if not inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        inherited.close()
        raise ConfigError(f"file descriptor {fd}: does not listen; the unit needs ListenStream=")
    inherited.set_inheritable(False)
    return inherited
