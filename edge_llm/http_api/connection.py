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
from urllib.parse import unquote

import h11

from edge_llm import wire
from edge_llm.errors import RequestError
from edge_llm.http_api.openai import openai_error

HEAD_BYTES = 16 << 10  # of a request's line and headers
READ_BYTES = 64 << 10  # at once
IDLE_SECONDS = 75.0  # until the next request begins
ARRIVAL_SECONDS = 60.0  # until a request that has begun is whole
STALL_SECONDS = 60.0  # until a client takes what it was sent
LINGER_SECONDS = 5.0  # for the rest of a refused request: whoever still sends does not listen

log = logging.getLogger(__name__)


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

    async def serve(self) -> None:
        """Answer requests until the client goes, falls silent, or sends what is no HTTP."""
        try:
            while await self._next():
                self._http.start_next_cycle()
            self._writer.close()
            await asyncio.wait_for(self._writer.wait_closed(), STALL_SECONDS)
        except (OSError, asyncio.TimeoutError):
            pass  # there is nobody to tell
        except Exception:
            log.exception("a connection failed")
        finally:
            self._writer.transport.abort()

    async def send(self, *events: h11.Event) -> None:
        """Send, and wait while much is on its way already."""
        self._writer.write(b"".join(self._http.send(event) or b"" for event in events))
        if self._writer.transport.get_write_buffer_size() > READ_BYTES:
            await asyncio.wait_for(self._writer.drain(), STALL_SECONDS)

    async def _next(self) -> bool:
        """Answer one request; whether another may follow."""
        self.busy = False
        if not self._http.trailing_data[0]:  # nothing came along with the request before
            await self._read(IDLE_SECONDS)
        self.busy = True
        try:
            exchange = await asyncio.wait_for(self._request(), ARRIVAL_SECONDS)
        except h11.RemoteProtocolError as error:
            status, reason = error.error_status_hint, f"this is no HTTP request: {error}"
            await self._refuse(RequestError(status, "invalid_request", reason))
            return False
        except asyncio.TimeoutError:
            reason = f"the request was not whole within {ARRIVAL_SECONDS:.0f} seconds"
            await self._refuse(RequestError(408, "timeout", reason))
            return False
        if exchange is not None:
            await self._work(exchange)
        whole = self._http.our_state is h11.DONE and self._http.their_state is h11.DONE
        return whole and not self.last

    async def _request(self) -> Exchange | None:
        """The next request, whole; None where there is none, or it has been refused."""
        request = await self._event()
        if not isinstance(request, h11.Request):
            return None
        body = bytearray()
        length = next((int(v) for n, v in request.headers if n == b"content-length"), 0)
        while length <= self._request_bytes and len(body) <= self._request_bytes:
            if self._http.they_are_waiting_for_100_continue:
                await self.send(h11.InformationalResponse(status_code=100, headers=[]))
            event = await self._event()
            if isinstance(event, h11.EndOfMessage):
                return Exchange(self, request, bytes(body))
            if not isinstance(event, h11.Data):
                return None
            body += event.data
        await self._refuse_size(Exchange(self, request, b""))
        return None

    async def _refuse_size(self, exchange: Exchange) -> None:
        reason = f"the request is longer than {self._request_bytes} bytes"
        error = RequestError(413, "request_too_large", reason)
        if self._http.they_are_waiting_for_100_continue:  # and may now send the body or not
            await exchange.refuse(error, ("Connection", "close"))
            return
        await exchange.refuse(error)
        await asyncio.wait_for(self._skip(), LINGER_SECONDS)

    async def _skip(self) -> None:
        """Read the rest of a request away."""
        while isinstance(await self._event(), h11.Data):
            pass

    async def _refuse(self, error: RequestError) -> None:
        """Answer what is not even a request; nothing can follow it."""
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            request = h11.Request(method="GET", target="/", headers=[("Host", "-")])
            await Exchange(self, request, b"").refuse(error, ("Connection", "close"))

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
        """Return when the client goes; what it sends meanwhile is of its next request."""
        while len(self._http.trailing_data[0]) < READ_BYTES:
            try:
                await self._read(None)
            except OSError:
                return
            if self._http.trailing_data[1]:
                return
        await asyncio.get_running_loop().create_future()  # enough: that is read when it is its turn

    async def _event(self) -> object:
        """What comes next of a request."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            await self._read(None)
        return event

    async def _read(self, seconds: float | None) -> None:
        self._http.receive_data(await asyncio.wait_for(self._reader.read(READ_BYTES), seconds))


def _path(target: str) -> str:
    """The path in a request's target, which may be a whole URL."""
    if not target.startswith("/"):
        target = "/" + target.partition("://")[2].partition("/")[2]
    return unquote(target.partition("?")[0])


def _head(status: int, content_type: str, *headers: tuple[str, str]) -> h11.Response:
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
    named = [("Date", date), ("Content-Type", content_type), *headers]
    return h11.Response(status_code=status, headers=named)
