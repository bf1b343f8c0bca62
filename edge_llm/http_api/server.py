"""Serves the API on its sockets for as long as it is open.

server = await Server.start(desk, config.http, request_bytes=1 << 20)
...
await server.close()
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from contextlib import suppress
from functools import partial

from edge_llm.config import Http
from edge_llm.desk import Desk
from edge_llm.http_api.app import App
from edge_llm.http_api.connection import Connection
from edge_llm.http_api.listener import inherited_sockets, tcp_socket, unix_socket
from edge_llm.logs import fields

CONNECTIONS = 64  # at once; each may hold a request's bytes
CLOSE_SECONDS = 1.0  # for answers that are on their way

log = logging.getLogger(__name__)


class Server:
    """The API while it is served; made by :meth:`start`."""

    def __init__(self, desk: Desk, request_bytes: int, file: tuple[str, int] | None) -> None:
        self._app = App(desk)
        self._request_bytes = request_bytes
        self._file = file
        self._listening: list[asyncio.Server] = []
        self._connections: dict[asyncio.Task[None], Connection] = {}

    @classmethod
    async def start(cls, desk: Desk, http: Http, request_bytes: int) -> Server:
        """Listen where the configuration says; ConfigError where that cannot be."""
        sockets: list[socket.socket] = inherited_sockets()
        file = None
        if http.listen is not None:
            sockets.append(tcp_socket(http.listen))
        if http.socket is not None:  # last: where another fails, it leaves no file behind
            sockets.append(unix_socket(http.socket))
            file = (http.socket, os.lstat(http.socket).st_ino)
        server = cls(desk, request_bytes, file)
        for each in sockets:
            server._listening.append(await asyncio.start_server(server._accept, sock=each))
            log.info("listening", extra=fields(address=_name(each)))
        return server

    async def close(self) -> None:
        """Stop listening, cut what is still connected, and remove our socket's file."""
        for listening in self._listening:
            listening.close()
        for task, connection in self._connections.items():
            connection.last = True
            if not connection.busy:
                task.cancel()
        if tasks := list(self._connections):
            _, late = await asyncio.wait(tasks, timeout=CLOSE_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._file is None:
            return
        path, inode = self._file
        with suppress(OSError):
            if os.lstat(path).st_ino == inode:  # not one that has taken its place
                os.unlink(path)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= CONNECTIONS and not self._let_one_go():
            log.warning("%d clients are at work: one more is turned away", CONNECTIONS)
            writer.transport.abort()
            return
        connection = Connection(reader, writer, self._app.handle, self._request_bytes)
        task = asyncio.ensure_future(connection.serve())
        self._connections[task] = connection
        task.add_done_callback(partial(self._ended, writer))

    def _ended(self, writer: asyncio.StreamWriter, task: asyncio.Task[None]) -> None:
        self._connections.pop(task, None)
        writer.transport.abort()  # also where it was cancelled before it began

    def _let_one_go(self) -> bool:
        """Close the oldest connection that has no request at hand, if there is one."""
        for task, connection in self._connections.items():
            if not connection.busy:
                task.cancel()
                del self._connections[task]
                return True
        return False


def _name(listening: socket.socket) -> str:
    address = listening.getsockname()
    return address if isinstance(address, str) else f"{address[0]}:{address[1]}"
