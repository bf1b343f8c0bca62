"""The routes: chat completions, completions, models, health and metrics."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from edge_llm import wire
from edge_llm.desk import Desk, Stream
from edge_llm.errors import RequestError
from edge_llm.events import Failed, Finished, Text
from edge_llm.http_api import openai
from edge_llm.http_api.prometheus import exposition
from edge_llm.wire import Body, Fields

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Read = Callable[[Fields], openai.Asked]


def make_app(desk: Desk, request_bytes: int) -> web.Application:
    """The application; a request's body may have ``request_bytes``."""
    app = web.Application(middlewares=[errors], client_max_size=request_bytes)
    routes = Routes(desk)
    app.add_routes(
        [
            web.post("/v1/chat/completions", routes.chat),
            web.post("/v1/completions", routes.completion),
            web.get("/v1/models", routes.models),
            web.get("/v1/models/{name}", routes.model),
            web.get("/health", routes.health),
            web.get("/metrics", routes.metrics),
        ]
    )
    return app


class Routes:
    """What each path does."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._since = int(time.time())

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions"""
        return await self._generate(request, openai.read_chat, chat=True)

    async def completion(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/completions"""
        return await self._generate(request, openai.read_completion, chat=False)

    async def models(self, request: web.Request) -> web.Response:
        """GET /v1/models: the one that is served."""
        return answer({"object": "list", "data": [self._model()]})

    async def model(self, request: web.Request) -> web.Response:
        """GET /v1/models/NAME"""
        wire.check_model(request.match_info["name"], self._desk.card.name)
        return answer(self._model())

    async def health(self, request: web.Request) -> web.Response:
        """GET /health: 200 once the self-test has passed, 503 before and while stopping."""
        if self._desk.ready:
            return answer({"status": "ok"})
        return answer({"status": "unavailable"}, status=503)

    async def metrics(self, request: web.Request) -> web.Response:
        """GET /metrics, for Prometheus."""
        text = exposition(self._desk.metrics())
        return web.Response(text=text, headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _generate(self, request: web.Request, read: Read, chat: bool) -> web.StreamResponse:
        if "Origin" in request.headers:  # a browser, for a page from anywhere
            raise RequestError(403, "forbidden", "web pages may not use this API")
        asked = read(wire.decode(await request.read()))
        wire.check_model(asked.model, self._desk.card.name)
        kind = "chatcmpl" if chat else "cmpl"
        shape = openai.Shape(
            chat, f"{kind}-{secrets.token_hex(12)}", int(time.time()), self._desk.card.name
        )
        async with self._desk.ask(asked.request) as stream:
            if asked.stream:
                return await stream_answer(request, stream, shape, asked.include_usage)
            return answer(shape.whole(await last_of(stream)))

    def _model(self) -> Body:
        card = self._desk.card
        return {
            "id": card.name,
            "object": "model",
            "created": self._since,
            "owned_by": "edge-llm",
            "sha256": card.sha256,
            "context": card.context,
        }


async def last_of(stream: Stream) -> Finished:
    """Wait for the end; RequestError where it is one."""
    async for event in stream:
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Finished):
            if event.reason == "expired":
                raise openai.expired()
            return event
    raise AssertionError("a stream ends with Finished or Failed")


async def stream_answer(
    request: web.Request, stream: Stream, shape: openai.Shape, include_usage: bool
) -> web.StreamResponse:
    """Server-sent events: a piece of text each, the reason, token counts if wanted, [DONE]."""
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
    )
    await response.prepare(request)
    await send(response, shape.chunk(None))
    async for event in stream:
        if isinstance(event, Text):
            await send(response, shape.chunk(event.text))
        elif isinstance(event, Failed):
            await send(response, openai.openai_error(event.error))
        elif isinstance(event, Finished) and event.reason == "expired":
            await send(response, openai.openai_error(openai.expired()))
        elif isinstance(event, Finished):
            await send(response, shape.chunk(None, event))
            if include_usage:
                await send(response, shape.usage_chunk(event))
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


async def send(response: web.StreamResponse, body: Body) -> None:
    """One server-sent event."""
    await response.write(b"data: " + wire.encode(body) + b"\n\n")


def answer(body: Body, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A body of JSON."""
    return web.Response(
        body=wire.encode(body), status=status, content_type="application/json", headers=headers
    )


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure in OpenAI's shape; what is not the client's is logged and says no more."""
    try:
        return await handler(request)
    except RequestError as error:
        refused = error
    except web.HTTPException as error:
        if error.status < 400:
            raise
        kind = "request_too_large" if error.status == 413 else "invalid_request"
        refused = RequestError(error.status, kind, error.text or error.reason)
    except ConnectionResetError:
        raise  # the client has gone: there is nobody to tell
    except Exception:
        log.exception("a request failed")
        refused = RequestError(500, "internal_error", "the request failed: see the device's log")
    retry = {"Retry-After": str(wire.RETRY_AFTER)} if refused.status in (429, 503) else None
    return answer(openai.openai_error(refused), refused.status, retry)
