"""The HTTP API on a Unix socket, with an engine that does exactly what a test wants."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import openai
import pytest

from edge_llm.config import Http
from edge_llm.errors import ConfigError, RequestError
from edge_llm.http_api.listener import tcp_socket, unix_socket
from edge_llm.http_api.server import Server
from tests.fake_engine import WAIT, Job
from tests.served_api import REQUEST_BYTES, Api, Aside

HELLO = {"messages": [{"role": "user", "content": "Hello"}]}
CHAT = "/v1/chat/completions"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    api = Api(tmp_path / "s")
    yield api
    api.close()


def answered(api: Api, act: Callable[[Job], None], path: str = CHAT, **body: object) -> object:
    """What OpenAI's client or, for a stream, its lines say to a request that ``act`` answers."""

    def ask() -> httpx2.Response:
        return api.http.post(path, json={**HELLO, **body} if path == CHAT else body)

    with Aside(ask) as aside:
        act(api.engine.next_job())
    return aside.result


def test_it_is_healthy_after_the_self_test_and_until_it_stops(api: Api) -> None:
    assert api.http.get("/health").status_code == 503
    api.test_itself()
    assert api.http.get("/health").json() == {"status": "ok"}
    api.loop.run(api.desk.drain(0))
    assert api.http.get("/health").status_code == 503
    answer = api.http.post(CHAT, json=HELLO)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert answer.json()["error"]["code"] == "unavailable"


def test_it_is_not_healthy_without_its_engine(api: Api) -> None:
    api.test_itself()
    api.engine.close()
    assert api.http.get("/health").status_code == 503


def test_a_self_test_that_fails_is_an_error(api: Api) -> None:
    with Aside(lambda: api.loop.run(api.desk.self_test())) as aside:
        api.engine.next_job().fail(RequestError(500, "model_error", "a step failed"))
    assert isinstance(aside.result, RequestError)
    assert api.http.get("/health").status_code == 503


def test_a_chat(api: Api) -> None:
    def act(job: Job) -> None:
        assert job.request.messages == tuple(HELLO["messages"])
        job.accept()
        job.say("Hi")
        job.say(".")
        job.finish("length")

    answer = answered(api, act, model="smollm2")
    assert isinstance(answer, httpx2.Response)
    body = answer.json()
    assert body["choices"][0]["message"]["content"] == "Hi."
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["model"] == "smollm2"


def test_a_stream_is_sent_as_it_comes(api: Api) -> None:
    with Aside(
        lambda: [
            (c.choices[0].delta.content if c.choices else c.usage)
            for c in api.openai.chat.completions.create(
                model="smollm2",
                messages=[{"role": "user", "content": "Hello"}],
                stream=True,
                stream_options={"include_usage": True},
            )
        ]
    ) as aside:
        job = api.engine.next_job()
        job.accept()
        job.say("Grüße")
        job.say("!")
        job.finish()
    assert isinstance(aside.result, list)
    assert aside.result[:4] == ["", "Grüße", "!", None]
    assert aside.result[4].total_tokens == 7


def test_an_error_amid_a_stream_is_an_event(api: Api) -> None:
    with Aside(
        lambda: list(api.openai.completions.create(model="smollm2", prompt="Once", stream=True))
    ) as aside:
        job = api.engine.next_job()
        assert job.request.raw
        job.say("upon")
        job.fail(RequestError(500, "model_error", "a step failed"))
    assert isinstance(aside.result, openai.APIError)
    assert "a step failed" in str(aside.result)


@pytest.mark.parametrize("stream", [True, False])
def test_what_takes_too_long_is_an_error(api: Api, stream: bool) -> None:
    answer = answered(api, lambda job: job.finish("expired"), stream=stream)
    assert isinstance(answer, httpx2.Response)
    assert answer.status_code == (200 if stream else 408)
    assert '"code":"timeout"' in answer.text


def test_a_failure_has_its_status(api: Api) -> None:
    error = RequestError(500, "model_error", "a step failed")
    answer = answered(api, lambda job: job.fail(error))
    assert isinstance(answer, httpx2.Response)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "model_error")


def test_a_full_queue_says_when_to_come_again(api: Api) -> None:
    api.engine.refusal = RequestError(429, "queue_full", "try again later")
    with pytest.raises(openai.RateLimitError) as caught:
        api.openai.chat.completions.create(
            model="smollm2", messages=[{"role": "user", "content": "Hello"}]
        )
    assert caught.value.response.headers["Retry-After"] == "5"


@pytest.mark.parametrize("stream", [True, False])
def test_a_closed_connection_cancels(api: Api, stream: bool) -> None:
    with _sent(api, stream):
        job = api.engine.next_job()
        job.accept()
        job.say("Hi")
    assert job.cancelled.wait(WAIT)


def test_a_connection_that_closes_while_its_prompt_is_read_cancels(api: Api) -> None:
    api.engine.gate.clear()
    with _sent(api, False):
        _wait_for_active(api, 1)
    _wait_for_active(api, 0)
    api.engine.gate.set()
    assert api.engine.next_job().cancelled.wait(WAIT)


def _sent(api: Api, stream: bool) -> socket.socket:
    body = json.dumps({**HELLO, "stream": stream}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: device\r\nContent-Length: {len(body)}\r\n\r\n"
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(api.path))
    client.sendall(head.encode() + body)
    return client


def _wait_for_active(api: Api, number: int) -> None:
    async def wait() -> None:
        changed = asyncio.Event()
        api.desk.watch(changed.set)
        while api.desk.active != number:
            changed.clear()
            await changed.wait()

    api.loop.run(wait())


@pytest.mark.parametrize(
    ("data", "status", "param"),
    [
        (b"nonsense", 400, None),
        (b"", 400, None),
        (b"[" * 4000, 400, None),
        (b'{"messages": 5}', 400, "messages"),
        (b'{"messages": [], "sugar": 1}', 400, "sugar"),
        (b'{"messages": [{"role": "user", "content": "a"}], "model": "x"}', 404, "model"),
        (b" " * 5000, 413, None),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_bad_request_gets_openais_error(
    api: Api, data: bytes, status: int, param: str | None
) -> None:
    answer = api.http.post(CHAT, content=data)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["param"] == param
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    assert api.http.get("/v1/models").status_code == 200  # the connection goes on


def test_what_is_not_there_is_404_or_405(api: Api) -> None:
    for method, path, status in (
        ("GET", "/", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", CHAT, 405),
        ("GET", "/v1/models/llama", 404),
        ("GET", "/v1/models/smollm2", 200),
    ):
        answer = api.http.request(method, path)
        assert (answer.status_code, "error" in answer.json()) == (status, status != 200)


def test_web_pages_are_not_let_in(api: Api) -> None:
    answer = api.http.post(CHAT, json=HELLO, headers={"Origin": "http://evil.example"})
    assert answer.status_code == 403
    assert api.engine.asked() == 0


def test_a_surprise_is_logged_and_not_told(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    api.engine.refusal = ZeroDivisionError("secret")  # type: ignore[assignment]
    answer = api.http.post(CHAT, json=HELLO)
    assert answer.status_code == 500
    assert answer.headers["X-Should-Retry"] == "false"
    assert "secret" not in answer.text
    assert "secret" in caplog.text


def test_the_same_api_is_on_loopback_tcp(api: Api) -> None:
    answer = httpx2.get(f"http://127.0.0.1:{api.port}/v1/models", trust_env=False)
    assert answer.json() == api.http.get("/v1/models").json()
    with pytest.raises(ConfigError, match=f"127.0.0.1:{api.port}: Address already in use"):
        tcp_socket(("127.0.0.1", api.port))


def test_where_one_address_is_taken_no_socket_file_is_left(api: Api, tmp_path: Path) -> None:
    http = Http(str(tmp_path / "another"), ("127.0.0.1", api.port))
    with pytest.raises(ConfigError, match="Address already in use"):
        api.loop.run(Server.start(api.desk, http, REQUEST_BYTES))
    assert not (tmp_path / "another").exists()


def test_a_socket_that_took_our_place_is_left(api: Api) -> None:
    api.path.unlink()
    with unix_socket(str(api.path)):
        api.loop.run(api.server.close())
        assert api.path.is_socket()
