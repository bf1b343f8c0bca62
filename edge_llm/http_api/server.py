"""Serves the API on its sockets for as long as it is open.

server = await Server.start(desk, config.http, request_bytes=1 << 20)
...
await server.close()
"""

from __future__ import annotations

import logging
import os
import socket
from contextlib import suppress

from aiohttp import web

from edge_llm.config import Http
from edge_llm.desk import Desk
from edge_llm.http_api.app import make_app
from edge_llm.http_api.listener import inherited_sockets, tcp_socket, unix_socket
from edge_llm.logs import fields

CLOSE_SECONDS = 1.0  # for connections that are still open

log = logging.getLogger(__name__)


class Server:
    """The API while it is served; made by :meth:`start`."""

    def __init__(self, runner: web.AppRunner, file: tuple[str, int] | None) -> None:
        self._runner = runner
        self._file = file

    @classmethod
    async def start(cls, desk: Desk, http: Http, request_bytes: int) -> Server:
        """Listen where the configuration says; ConfigError where that cannot be."""
        sockets: list[socket.socket] = inherited_sockets()
        file = None
        if http.socket is not None:
            sockets.append(unix_socket(http.socket))
            file = (http.socket, os.lstat(http.socket).st_ino)
        if http.listen is not None:
            sockets.append(tcp_socket(http.listen))
        # A closed connection cancels its handler, and with it the generation.
        runner = web.AppRunner(
            make_app(desk, request_bytes),
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=CLOSE_SECONDS,
        )
        await runner.setup()
        for each in sockets:
            await web.SockSite(runner, each).start()
            log.info("listening", extra=fields(address=_name(each)))
        return cls(runner, file)

    async def close(self) -> None:
        """Stop listening, cut what is still connected, and remove our socket's file."""
        await self._runner.cleanup()
        if self._file is None:
            return
        path, inode = self._file
        with suppress(OSError):
            if os.lstat(path).st_ino == inode:  # not one that has taken its place
                os.unlink(path)


def _name(listening: socket.socket) -> str:
    address = listening.getsockname()
    return address if isinstance(address, str) else f"{address[0]}:{address[1]}"
