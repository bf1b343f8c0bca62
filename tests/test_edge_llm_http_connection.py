"""HTTP/1.1 as clients may speak it, well or badly, byte by byte on a socket."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_llm.http_api import connection, server
from tests.fake_engine import WAIT
from tests.served_api import REQUEST_BYTES, Api

GET = b"GET /v1/models HTTP/1.1\r\nHost: device\r\n\r\n"
HELLO = json.dumps({"messages": [{"role": "user", "content": "Hello"}]}).encode()


def post(*headers: str, body: bytes = HELLO, version: str = "1.1") -> bytes:
    """A chat's request, its length given unless it comes in chunks."""
    lines = [f"POST /v1/chat/completions HTTP/{version}", "Host: device", *headers]
    if not any("chunked" in header for header in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(*pieces: bytes) -> bytes:
    """A body of these chunks, and the empty one that ends it."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))


ABSOLUTE = GET.replace(b"/v1", b"http://[::1]:80/v1")
CHUNKED = post("Transfer-Encoding: chunked", body=chunked(b"{", b"}"))
REQUESTS = [GET, post(body=b"{"), ABSOLUTE, CHUNKED, CHUNKED.replace(b"POST", b"HEAD")]


class Client:
    """One connection."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(WAIT)
        self.socket.connect(str(path))
        self._file = self.socket.makefile("rb")

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def head(self) -> tuple[int, dict[str, str]]:
        """The status and the headers of the next response."""
        status = int(self._file.readline().split()[1])
        headers = {}
        while line := self._file.readline().decode().strip():
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        return status, headers

    def response(self) -> tuple[int, bytes]:
        """The status and the body of the next response, which gives its length."""
        status, headers = self.head()
        return status, self._file.read(int(headers["content-length"]))

    def error(self, status: int) -> str:
        """The code of an error in OpenAI's shape."""
        found, body = self.response()
        assert found == status
        return str(json.loads(body)["error"]["code"])

    def rest(self) -> bytes:
        """All until the other side closes."""
        return self._file.read()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    api = Api(tmp_path / "s")
    yield api
    api.close()


@pytest.fixture
def client(api: Api) -> Iterator[Client]:
    client = Client(api.path)
    yield client
    client.close()


def say_hi(api: Api) -> None:
    job = api.engine.next_job()
    job.say("Hi")
    job.finish()


def test_a_connection_takes_one_request_after_the_other(api: Api, client: Client) -> None:
    for _ in range(3):
        client.send(GET)
        assert client.response()[0] == 200
        client.send(post())
        say_hi(api)
        assert b"Hi" in client.response()[1]


def test_requests_sent_at_once_are_answered_in_turn(api: Api, client: Client) -> None:
    client.send(GET + post() + GET * 100)
    assert client.response()[0] == 200
    say_hi(api)
    assert b"Hi" in client.response()[1]
    for _ in range(100):
        assert client.response()[0] == 200


def test_who_sends_too_much_ahead_is_cut(api: Api, client: Client) -> None:
    client.send(post() + b" " * (2 * connection.READ_BYTES))
    assert api.engine.next_job().cancelled.wait(WAIT)


def test_bytes_may_come_one_by_one(client: Client) -> None:
    for byte in GET:
        client.send(bytes((byte,)))
    assert client.response()[0] == 200


def test_a_body_may_come_in_chunks(api: Api, client: Client) -> None:
    body = chunked(*(HELLO[at : at + 5] for at in range(0, len(HELLO), 5)))
    client.send(post("Transfer-Encoding: chunked", body=body))
    say_hi(api)
    assert b"Hi" in client.response()[1]


def test_a_client_may_ask_whether_to_send(api: Api, client: Client) -> None:
    request = post("Expect: 100-continue")
    client.send(request[: -len(HELLO)])
    assert client.head()[0] == 100
    client.send(HELLO)
    say_hi(api)
    assert b"Hi" in client.response()[1]


def test_head_is_get_without_the_body(client: Client) -> None:
    client.send(GET.replace(b"GET", b"HEAD") + GET)
    status, headers = client.head()
    assert (status, headers["content-type"]) == (200, "application/json")
    status, body = client.response()  # follows at once
    assert (status, len(body)) == (200, int(headers["content-length"]))


def test_the_target_may_be_a_whole_url_or_have_a_query(client: Client) -> None:
    for target in (b"http://device/v1/models", b"/v1/models?of=1", b"/v1/models/smoll%6d2"):
        client.send(GET.replace(b"/v1/models", target))
        assert client.response()[0] == 200


def test_http_1_0_closes_after_the_answer(api: Api, client: Client) -> None:
    client.send(post(version="1.0"))
    say_hi(api)
    assert b"Hi" in client.rest()


def test_an_empty_line_between_requests_is_passed_over(client: Client) -> None:
    for _ in range(2):
        client.send(b"\r\n" + GET)
        assert client.response()[0] == 200


def test_an_empty_line_may_come_along_with_a_body(api: Api, client: Client) -> None:
    for following in (b"\r\n", b"\r\n" + GET):
        client.send(post() + following)
        say_hi(api)
        assert b"Hi" in client.response()[1]
    assert client.response()[0] == 200


def test_head_with_a_broken_body_is_refused_without_one(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    client.send(CHUNKED.replace(b"POST", b"HEAD").replace(b"1\r\n{", b"ZZ\r\n{"))
    assert client.head()[0] == 400
    assert client.rest() == b""
    assert "failed" not in caplog.text


def test_an_answers_head_says_what_follows(client: Client) -> None:
    client.send(GET.replace(b"GET", b"DELETE"))
    status, headers = client.head()
    assert (status, headers["allow"]) == (405, "GET")
    assert headers["date"].endswith(" GMT")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),  # TLS
        (GET.replace(b"Host: device\r\n", b""), 400),
        (GET.replace(b"Host", b"Content-Length: 1\r\nContent-Length: 2\r\nHost"), 400),
        (GET.replace(b"device", b"x" * connection.READ_BYTES * 2), 431),
    ],
    ids=["no HTTP", "TLS", "no host", "two lengths", "long head"],
)
def test_what_is_no_request_is_refused_and_closed(client: Client, data: bytes, status: int) -> None:
    client.send(data)
    assert client.error(status) == "invalid_request"
    assert client.rest() == b""


@pytest.mark.parametrize("form", ["length", "chunks"])
def test_a_body_that_is_too_long_is_refused(client: Client, form: str) -> None:
    body = b" " * (REQUEST_BYTES + 1)
    if form == "length":
        client.send(post(body=body))
    else:
        client.send(post("Transfer-Encoding: chunked", body=chunked(body)))
    assert client.error(413) == "request_too_large"
    assert client.rest() == b""


def test_chunks_may_not_be_all_frame(client: Client) -> None:
    frames = b"1;" + b"x" * 1000 + b"\r\n \r\n"
    with suppress(OSError):  # it is not read to its end
        for _ in range(3 * connection.READ_BYTES // len(frames)):
            client.send(post("Transfer-Encoding: chunked", body=frames) if not _ else frames)
    assert client.error(413) == "request_too_large"


def test_a_body_that_would_be_too_long_is_not_asked_for(client: Client) -> None:
    request = post("Expect: 100-continue", body=b" " * (REQUEST_BYTES + 1))
    client.send(request.rstrip(b" "))
    assert client.error(413) == "request_too_large"
    assert client.rest() == b""


def test_who_goes_on_sending_what_was_refused_is_cut(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LINGER_SECONDS", 0.05)
    client.send(post(f"Content-Length: {1 << 40}", body=b"").replace(b"Content-Length: 0\r\n", b""))
    assert client.error(413) == "request_too_large"
    assert client.rest() == b""


def test_a_request_that_does_not_come_whole_is_given_up(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "ARRIVAL_SECONDS", 0.05)
    client.send(post()[:-1])
    assert client.error(408) == "timeout"
    assert client.rest() == b""


def test_a_silent_client_is_let_go(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "IDLE_SECONDS", 0.05)
    client = Client(api.path)
    assert client.rest() == b""
    client.close()


def test_a_client_that_takes_nothing_is_cancelled(
    api: Api, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "STALL_SECONDS", 0.05)
    client.send(post(body=HELLO.replace(b"}]}", b'}], "stream": true}')))
    job = api.engine.next_job()
    while not job.cancelled.is_set():
        job.say("x" * 10_000)
        job.cancelled.wait(0.001)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_comes_the_next_client_is_served(
    api: Api, caplog: pytest.LogCaptureFixture, data: st.DataObject
) -> None:
    request = bytearray(data.draw(st.sampled_from(REQUESTS)))
    for place in data.draw(st.lists(st.integers(0, len(request) - 1), max_size=4)):
        request[place] = data.draw(st.sampled_from(b"\r\n\0 :;/?%[]\xff0Z"))
    client = Client(api.path)
    client.send(bytes(request))
    client.socket.shutdown(socket.SHUT_WR)
    client.rest()
    client.close()
    assert "failed" not in caplog.text
    after = Client(api.path)
    after.send(GET)
    assert after.response()[0] == 200
    after.close()


def test_too_many_clients_are_turned_away(
    api: Api, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CONNECTIONS", 1)
    client.send(GET)
    assert client.response()[0] == 200
    second = Client(api.path)
    second.send(post())  # the first is idle, and has to go
    job = api.engine.next_job()
    assert client.rest() == b""
    third = Client(api.path)
    assert third.rest() == b""
    job.finish()
    assert second.response()[0] == 200
    for each in (second, third):
        each.close()


def test_a_client_that_has_to_go_as_it_comes_is_hung_up_on(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CONNECTIONS", 1)
    hold, held = threading.Event(), threading.Event()

    async def block() -> None:  # so that both come at once
        held.set()
        hold.wait(WAIT)

    api.loop.start(block())
    assert held.wait(WAIT)
    first, second = Client(api.path), Client(api.path)
    second.send(GET)
    hold.set()
    assert first.rest() == b""
    assert second.response()[0] == 200
    for each in (first, second):
        each.close()


def test_an_answer_is_finished_when_the_service_stops(api: Api, client: Client) -> None:
    client.send(post())
    job = api.engine.next_job()
    closing = api.loop.start(api.server.close())
    job.say("Hi")
    job.finish()
    assert b"Hi" in client.response()[1]
    assert client.rest() == b""
    closing.result(WAIT)
