"""The HTTP API on its sockets, with an engine that does exactly what a test wants.

api = Api(tmp_path / "s")
with Aside(lambda: api.http.post(...)) as aside:
    api.engine.next_job().finish()
aside.result
api.close()
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import httpx2
import openai

from edge_llm.config import Http
from edge_llm.desk import Card, Desk
from edge_llm.http_api.server import Server
from tests.broker import free_port
from tests.fake_engine import WAIT, FakeEngine, Loop

REQUEST_BYTES = 4096  # of a body, at most


class Api:
    """The API while it is served.

    Attributes:
        path: of its socket.
        port: of its TCP socket.
        http: a client of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.loop = Loop()
        self.engine = FakeEngine()
        card = Card("smollm2", "f" * 64, 512)
        self.desk = self.loop.call(lambda: Desk(self.engine, card, request_seconds=3600))
        self.port = free_port()
        http = Http(str(path), ("127.0.0.1", self.port))
        self.server = self.loop.run(Server.start(self.desk, http, REQUEST_BYTES))
        transport = httpx2.HTTPTransport(uds=str(path))
        self.http = httpx2.Client(transport=transport, base_url="http://device", timeout=WAIT)
        self.openai = openai.OpenAI(
            base_url="http://device/v1", api_key="-", http_client=self.http, max_retries=0
        )

    def test_itself(self) -> None:
        """The self-test, which the service makes before anything else."""
        with Aside(lambda: self.loop.run(self.desk.self_test())):
            job = self.engine.next_job()
            assert (job.request.prompt, job.request.max_tokens) == ("Hello", 1)
            job.finish("length")

    def close(self) -> None:
        self.http.close()
        self.engine.close()
        self.loop.run(self.server.close())
        self.loop.close()


class Aside:
    """Runs something on a thread while the block tells the engine what to say to it.

    Attributes:
        result: what it returned, after the block.
    """

    def __init__(self, function: Callable[[], object]) -> None:
        self.result: object = None
        self._function = function
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.result = self._function()
        except Exception as error:
            self.result = error

    def __enter__(self) -> Aside:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(WAIT)
