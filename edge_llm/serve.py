"""``edge-llm serve`` from start to end: load, listen, test, answer until stopped, take leave."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import edge_llm
from edge_llm.config import Http, ServeConfig
from edge_llm.desk import Card, Desk
from edge_llm.errors import ConfigError, EdgeLLMError
from edge_llm.logs import fields, start_logging

if TYPE_CHECKING:
    from edge_llm.http_api.server import Server
    from edge_llm.model import Model
    from edge_llm.mqtt.service import Service

log = logging.getLogger(__name__)


def serve(config: ServeConfig) -> None:
    """Answer requests until SIGTERM or SIGINT; EdgeLLMError where serving cannot begin."""
    if config.mqtt is None and not _has_http(config):
        raise ConfigError("nothing to serve on: give --mqtt, --socket or --http")
    start_logging()
    if config.mqtt is not None:
        config.mqtt.broker.tls_context()  # a certificate that cannot be read is said now
    model = edge_llm.load(
        config.artifact,
        config.threads,
        config.context,
        config.sequences,
        config.decode_threads,
    )
    asyncio.run(_serve(config, model))


async def _serve(config: ServeConfig, model: Model) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    card = Card(Path(config.artifact).stem, model.sha256, model.engine.limit)
    desk = Desk(model.engine, card, config.limits.request_seconds)
    http: Server | None = None
    service: Service | None = None
    connecting: asyncio.Task[None] | None = None
    try:
        http = await listen(config, desk)
        tested = await desk.self_test()
        log.info("ready", extra=fields(model=card.name, self_test=tested.prefill_seconds))
        if config.mqtt is not None:
            from edge_llm.mqtt.service import Service

            service = Service(desk, config.mqtt, config.device, config.limits)
            connecting = asyncio.ensure_future(service.run())
        notify("READY=1")
        await wait_until(stopped, desk.ended, connecting)
        notify("STOPPING=1")
        log.info("stopping")
        if service is not None:
            service.leave()
        await desk.drain(config.limits.drain_seconds)
    finally:
        await desk.close()
        if service is not None:
            await service.close()
        if connecting is not None:
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)  # what failed is raised above
        if http is not None:
            await http.close()
        model.close()


async def listen(config: ServeConfig, desk: Desk) -> Server | None:
    """The HTTP API, where it has a socket."""
    if not _has_http(config):
        return None
    from edge_llm.http_api.server import Server

    return await Server.start(desk, config.http, config.limits.request_bytes)


def _has_http(config: ServeConfig) -> bool:
    return is_activated() or config.http != Http()


def is_activated() -> bool:
    """Whether systemd passes us sockets that it listens on (sd_listen_fds(3))."""
    return os.environ.get("LISTEN_PID") == str(os.getpid())


async def wait_until(
    stopped: asyncio.Event, ended: asyncio.Event, connecting: asyncio.Task[None] | None
) -> None:
    """Until we are told to stop; systemd hears that we live.

    EdgeLLMError where the engine ends or the broker's service fails before that.
    """
    events = [asyncio.ensure_future(event.wait()) for event in (stopped, ended)]
    waiting: set[asyncio.Future[object]] = {*events}  # type: ignore[arg-type]
    if connecting is not None:
        waiting.add(connecting)  # type: ignore[arg-type]
    beat = watchdog_seconds()
    try:
        while not any(future.done() for future in waiting):
            await asyncio.wait(waiting, timeout=beat, return_when=asyncio.FIRST_COMPLETED)
            notify("WATCHDOG=1")
    finally:
        for event in events:
            event.cancel()
    if ended.is_set():
        raise EdgeLLMError("the engine has ended: its error is in the log above")
    if connecting is not None and connecting.done():
        connecting.result()  # raises what it failed with


def watchdog_seconds() -> float | None:
    """Half of what systemd waits for a sign of life; None where it does not."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 2e6 if microseconds.isdigit() and int(microseconds) else None


def notify(state: str) -> None:
    """Tell systemd, if it started us (sd_notify(3))."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path[:1] not in ("/", "@"):
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out, suppress(OSError):
        out.sendto(state.encode(), address)
