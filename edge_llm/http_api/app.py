"""The routes: chat completions, completions, models, health and metrics."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable

from edge_llm import wire
from edge_llm.desk import Desk, Stream
from edge_llm.errors import RequestError
from edge_llm.events import Failed, Finished, Text
from edge_llm.http_api import openai
from edge_llm.http_api.connection import ClientGoneError, Exchange, Handler
from edge_llm.http_api.prometheus import exposition
from edge_llm.wire import Body, Fields

MODELS = "/v1/models"
JSON = "application/json"

log = logging.getLogger(__name__)

Read = Callable[[Fields], openai.Asked]


class App:
    """What each path does; :meth:`handle` answers a request."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._since = int(time.time())
        self._routes: dict[str, dict[str, Handler]] = {
            "/v1/chat/completions": {"POST": self._chat},
            "/v1/completions": {"POST": self._completion},
            MODELS: {"GET": self._models},
            "/health": {"GET": self._health},
            "/metrics": {"GET": self._metrics},
        }

    async def handle(self, exchange: Exchange) -> None:
        """Every failure in OpenAI's shape; what is not the client's is logged and says no more."""
        try:
            await self._route(exchange)
            return
        except RequestError as error:
            refused = error
        except ClientGoneError:
            raise
        except Exception:
            log.exception("a request failed")
            if exchange.begun:
                raise ClientGoneError from None  # an answer without its end tells it
            refused = RequestError(
                500, "internal_error", "the request failed: see the device's log"
            )
        await exchange.refuse(refused)

    async def _route(self, exchange: Exchange) -> None:
        path = exchange.path
        of_a_model = path.startswith(f"{MODELS}/")
        methods = {"GET": self._model} if of_a_model else self._routes.get(path)
        if methods is None:
            raise RequestError(404, "invalid_request", f"{path[:100]!r} is not a path of this API")
        if exchange.method in methods:
            await methods[exchange.method](exchange)
            return
        allowed = ", ".join(methods)
        error = RequestError(405, "invalid_request", f"{path[:100]!r} takes {allowed}")
        await exchange.refuse(error, ("Allow", allowed))

    async def _chat(self, exchange: Exchange) -> None:
        """POST /v1/chat/completions"""
        await self._generate(exchange, openai.read_chat, chat=True)

    async def _completion(self, exchange: Exchange) -> None:
        """POST /v1/completions"""
        await self._generate(exchange, openai.read_completion, chat=False)

    async def _models(self, exchange: Exchange) -> None:
        """GET /v1/models: the one that is served."""
        await answer(exchange, {"object": "list", "data": [self._served()]})

    async def _model(self, exchange: Exchange) -> None:
        """GET /v1/models/NAME"""
        wire.check_model(exchange.path.removeprefix(f"{MODELS}/"), self._desk.card.name)
        await answer(exchange, self._served())

    async def _health(self, exchange: Exchange) -> None:
        """GET /health: 200 once the self-test has passed, 503 before and while stopping."""
        if self._desk.ready:
            await answer(exchange, {"status": "ok"})
        else:
            await answer(exchange, {"status": "unavailable"}, status=503)

    async def _metrics(self, exchange: Exchange) -> None:
        """GET /metrics, for Prometheus."""
        text = exposition(self._desk.metrics())
        await exchange.answer(text.encode(), "text/plain; version=0.0.4")

    async def _generate(self, exchange: Exchange, read: Read, chat: bool) -> None:
        if "origin" in exchange.headers:  # a browser, for a page from anywhere
            raise RequestError(403, "forbidden", "web pages may not use this API")
        asked = read(wire.decode(exchange.body))
        wire.check_model(asked.model, self._desk.card.name)
        kind = "chatcmpl" if chat else "cmpl"
        shape = openai.Shape(
            chat, f"{kind}-{secrets.token_hex(12)}", int(time.time()), self._desk.card.name
        )
        async with self._desk.ask(asked.request) as stream:
            if asked.stream:
                await stream_answer(exchange, stream, shape, asked.include_usage)
            else:
                await answer(exchange, shape.whole(await last_of(stream)))

    def _served(self) -> Body:
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
    exchange: Exchange, stream: Stream, shape: openai.Shape, include_usage: bool
) -> None:
    """Server-sent events: a piece of text each, the reason, token counts if wanted, [DONE]."""
    await exchange.begin("text/event-stream; charset=utf-8", ("Cache-Control", "no-cache"))
    await send(exchange, shape.chunk(None))
    async for event in stream:
        if isinstance(event, Text):
            await send(exchange, shape.chunk(event.text))
        elif isinstance(event, Failed):
            await send(exchange, openai.openai_error(event.error))
        elif isinstance(event, Finished) and event.reason == "expired":
            await send(exchange, openai.openai_error(openai.expired()))
        elif isinstance(event, Finished):
            await send(exchange, shape.chunk(None, event))
            if include_usage:
                await send(exchange, shape.usage_chunk(event))
    await exchange.write(b"data: [DONE]\n\n")
    await exchange.end()


async def send(exchange: Exchange, body: Body) -> None:
    """One server-sent event."""
    await exchange.write(b"data: " + wire.encode(body) + b"\n\n")


async def answer(exchange: Exchange, body: Body, status: int = 200) -> None:
    """A body of JSON."""
    await exchange.answer(wire.encode(body), JSON, status)
