"""One client's connection: h11 reads and checks its HTTP/1.1; sockets, sizes and times are ours.

    connection = Connection(reader, writer, handle, request_bytes=1 << 20)
    await connection.serve()                        # until the client goes

    async def handle(exchange):                     # for every request that has come whole
        await exchange.answer(b"{}", "application/json")

A client that goes while its request is worked on cancels that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from urllib.parse import unquote

import h11

from edge_llm import wire
from edge_llm.errors import RequestError
from edge_llm.http_api.openai import openai_error

HEAD_BYTES = 16 << 10  # of a request's target and headers
READ_BYTES = 64 << 10  # at once, and ahead of the request that is worked on
IDLE_SECONDS = 75.0  # until the next request begins
ARRIVAL_SECONDS = 60.0  # until a request that has begun is whole
STALL_SECONDS = 60.0  # until a client takes what it was sent
LINGER_SECONDS = 5.0  # for the rest of what was refused: whoever still sends does not listen
TURN = 256  # pieces of a request, after which others have their turn

# Stands for a request of which nothing has been understood yet.
NOTHING = h11.Request(method="GET", target="/", headers=[("Host", "-")])

log = logging.getLogger(__name__)


class ClientGoneError(Exception):
    """There is nobody to tell."""


class Exchange:
    """A request, and what is sent back for it: an answer, or a body piece by piece.

    Attributes:
        method: in capitals; GET where the client wants a GET's headers alone.
        path: without the query, decoded.
        headers: by their names in small letters; of several with one name the last.
        body: whole.
        begun: whether anything has been sent back.
    """

    def __init__(self, connection: Connection, request: h11.Request, body: bytes) -> None:
        self.method = request.method.decode("ascii")
        self.path = _path(request.target.decode("latin-1"))
        self.headers = {n.decode("latin-1"): v.decode("latin-1") for n, v in request.headers}
        self.body = body
        self.begun = False
        self._connection = connection
        self._headers_only = self.method == "HEAD"
        if self._headers_only:
            self.method = "GET"

    async def answer(
        self, body: bytes, content_type: str, status: int = 200, *headers: tuple[str, str]
    ) -> None:
        """A whole answer."""
        length = ("Content-Length", str(len(body)))
        content = [] if self._headers_only else [h11.Data(data=body)]
        head = _head(status, content_type, length, *headers)
        self.begun = True
        await self._connection.send(head, *content, h11.EndOfMessage())

    async def begin(self, content_type: str, *headers: tuple[str, str]) -> None:
        """The head of a body that :meth:`write` sends."""
        self.begun = True
        await self._connection.send(_head(200, content_type, *headers))

    async def write(self, piece: bytes) -> None:
        """A piece of the body, on its way at once."""
        if not self._headers_only:
            await self._connection.send(h11.Data(data=piece))

    async def end(self) -> None:
        """After the last piece."""
        await self._connection.send(h11.EndOfMessage())

    async def refuse(self, error: RequestError, *headers: tuple[str, str]) -> None:
        """An error in OpenAI's shape."""
        if error.status in (429, 503):
            headers = (*headers, ("Retry-After", str(wire.RETRY_AFTER)))
        elif error.status in (408, 500):  # after which OpenAI's clients ask twice more
            headers = (*headers, ("X-Should-Retry", "false"))
        body = wire.encode(openai_error(error))
        await self.answer(body, "application/json", error.status, *headers)


Handler = Callable[[Exchange], Awaitable[None]]


class Connection:
    """A client's requests, one after the other.

    Attributes:
        busy: whether a request is being worked on.
        last: whether none may follow that one; for whoever wants to close.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        handle: Handler,
        request_bytes: int,
    ) -> None:
        self.busy = self.last = False
        self._reader, self._writer = reader, writer
        self._handle = handle
        self._request_bytes = request_bytes
        self._http = h11.Connection(h11.SERVER, HEAD_BYTES)
        self._asked = NOTHING  # the request that is arriving
        self._read_bytes = 0  # of it
        self._pieces = 0

    async def serve(self) -> None:
        """Answer requests until the client goes, falls silent, or sends what is no HTTP."""
        try:
            while await self._next():
                pass
            self._writer.close()
            with suppress(OSError, asyncio.TimeoutError):
                await asyncio.wait_for(self._writer.wait_closed(), STALL_SECONDS)
        except ClientGoneError:
            pass
        except Exception:
            log.exception("a connection failed")
        finally:
            self._writer.transport.abort()

    async def send(self, *events: h11.Event) -> None:
        """Send, and wait while much is on its way; ClientGoneError where nobody takes it."""
        if self._writer.transport.is_closing():
            raise ClientGoneError
        self._writer.write(b"".join(self._http.send(event) or b"" for event in events))
        if self._writer.transport.get_write_buffer_size() > READ_BYTES:
            try:
                await asyncio.wait_for(self._writer.drain(), STALL_SECONDS)
            except (OSError, asyncio.TimeoutError):
                raise ClientGoneError from None

    async def _next(self) -> bool:
        """Answer one request; whether another may follow."""
        self.busy = False
        data, _ = self._http.trailing_data  # what came along with the request before
        while not (begun := data.lstrip(b"\r\n")):  # some send an empty line after a body
            data = await self._bytes(IDLE_SECONDS)
            if not data:
                return False
        self._http = h11.Connection(h11.SERVER, HEAD_BYTES)
        self._http.receive_data(begun)
        self.busy = True
        self._asked, self._read_bytes = NOTHING, 0
        try:
            exchange = await asyncio.wait_for(self._request(), ARRIVAL_SECONDS)
        except RequestError as error:
            return await self._refuse(error)
        except h11.RemoteProtocolError as error:
            status, reason = error.error_status_hint, f"this is no HTTP request: {error}"
            return await self._refuse(RequestError(status, "invalid_request", reason))
        except asyncio.TimeoutError:
            reason = f"the request was not whole within {ARRIVAL_SECONDS:.0f} seconds"
            return await self._refuse(RequestError(408, "timeout", reason))
        await self._work(exchange)
        whole = self._http.our_state is h11.DONE and self._http.their_state is h11.DONE
        return whole and not self.last

    async def _request(self) -> Exchange:
        """The next request, whole.

        Raises:
            RequestError: it is too long.
            h11.RemoteProtocolError: it is none.
        """
        request = await self._event()
        if not isinstance(request, h11.Request):
            raise ClientGoneError
        self._asked = request
        head = len(request.target) + sum(len(name) + len(value) for name, value in request.headers)
        if head > HEAD_BYTES:
            reason = f"the request's headers are longer than {HEAD_BYTES} bytes"
            raise RequestError(431, "invalid_request", reason)
        body = bytearray()
        length = next((int(v) for n, v in request.headers if n == b"content-length"), 0)
        # Chunks bring frames along: they may take as much again, and what is read at once.
        while max(length, len(body), self._read_bytes // 2 - READ_BYTES) <= self._request_bytes:
            if self._http.they_are_waiting_for_100_continue:
                await self.send(h11.InformationalResponse(status_code=100, headers=[]))
            event = await self._event()
            if isinstance(event, h11.EndOfMessage):
                return Exchange(self, request, bytes(body))
            if not isinstance(event, h11.Data):
                raise ClientGoneError
            body += event.data
        reason = f"the request is longer than {self._request_bytes} bytes"
        raise RequestError(413, "request_too_large", reason)

    async def _refuse(self, error: RequestError) -> bool:
        """Answer what has not come whole; nothing can follow it.

        Its rest is read away for a while: closed over what was not read, a connection is reset,
        and with it goes the answer.
        """
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return False
        await Exchange(self, self._asked, b"").refuse(error, ("Connection", "close"))
        if self._writer.can_write_eof():
            self._writer.write_eof()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._read_away(), LINGER_SECONDS)
        return False

    async def _read_away(self) -> None:
        while await self._bytes(None):
            await asyncio.sleep(0)

    async def _work(self, exchange: Exchange) -> None:
        """Let the handler work for as long as the client is there."""
        tasks = [asyncio.ensure_future(c) for c in (self._handle(exchange), self._until_gone())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if not tasks[0].cancelled():
            tasks[0].result()

    async def _until_gone(self) -> None:
        """Return when the client goes, or sends more of its next requests than is read ahead."""
        with suppress(ClientGoneError):
            while len(self._http.trailing_data[0]) < READ_BYTES:
                data = await self._bytes(None)
                if not data:
                    return
                self._http.receive_data(data)

    async def _event(self) -> object:
        """What comes next of a request."""
        self._pieces += 1
        if self._pieces % TURN == 0:
            await asyncio.sleep(0)
        while (event := self._http.next_event()) is h11.NEED_DATA:
            data = await self._bytes(None)
            self._read_bytes += len(data)
            self._http.receive_data(data)
        return event

    async def _bytes(self, seconds: float | None) -> bytes:
        """What the client sends; nothing where it will send no more."""
        try:
            return await asyncio.wait_for(self._reader.read(READ_BYTES), seconds)
        except (OSError, asyncio.TimeoutError):
            raise ClientGoneError from None


def _path(target: str) -> str:
    """The path in a request's target, which may be a whole URL."""
    if not target.startswith("/"):
        target = "/" + target.partition("://")[2].partition("/")[2]
    return unquote(target.partition("?")[0])


def _head(status: int, content_type: str, *headers: tuple[str, str]) -> h11.Response:
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
    named = [("Date", date), ("Content-Type", content_type), *headers]
    return h11.Response(status_code=status, headers=named)
