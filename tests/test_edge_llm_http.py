"""The HTTP API as its users see it: an unchanged OpenAI client over the Unix socket."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from edge_llm.errors import ConfigError
from edge_llm.http_api.listener import unix_socket
from tests.conftest import Smollm2Artifact
from tests.serving import Serving

MESSAGES: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "What is the capital of France?"}
]
ANSWER = "The capital of France is Paris."


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("socket") / "edge-llm.sock"


@pytest.fixture(scope="module")
def device(smollm2_artifact: Smollm2Artifact, path: Path) -> Iterator[Serving]:
    with Serving(smollm2_artifact(), "--socket", str(path), "--context", "512") as serving:
        serving.wait_for("ready")
        yield serving


@pytest.fixture
def http(device: Serving, path: Path) -> Iterator[httpx2.Client]:
    transport = httpx2.HTTPTransport(uds=str(path))
    with httpx2.Client(transport=transport, base_url="http://device", timeout=60) as client:
        yield client


@pytest.fixture
def client(http: httpx2.Client) -> openai.OpenAI:
    return openai.OpenAI(base_url="http://device/v1", api_key="none", http_client=http)


@pytest.fixture
def name(client: openai.OpenAI) -> str:
    (model,) = client.models.list().data
    return model.id


pytestmark = pytest.mark.slow


def test_chat(client: openai.OpenAI, name: str) -> None:
    answer = client.chat.completions.create(model=name, messages=MESSAGES)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8


def test_chat_stream(client: openai.OpenAI, name: str) -> None:
    stream = client.chat.completions.create(
        model=name,
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == ANSWER
    assert len(chunks) > 5  # as it comes, not at the end
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8


def test_completion_is_raw(client: openai.OpenAI, name: str) -> None:
    answer = client.completions.create(model=name, prompt="One, two, three,", max_tokens=4)
    assert answer.choices[0].finish_reason == "length"
    assert "four" in answer.choices[0].text


def test_same_seed_same_text(client: openai.OpenAI, name: str) -> None:
    texts = {
        client.chat.completions.create(
            model=name,
            messages=MESSAGES,
            temperature=1.0,
            seed=seed,
            max_tokens=24,
        )
        .choices[0]
        .message.content
        for seed in (1, 1, 2, 3)
    }
    assert 2 <= len(texts) <= 3


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ("{", 400, None),
        ({"messages": MESSAGES, "n": 2}, 400, "n"),
        ({"messages": MESSAGES, "tools": [{}]}, 400, "tools"),
        ({"messages": MESSAGES, "colour": 1}, 400, "colour"),
        ({"messages": MESSAGES, "temperature": "hot"}, 400, "temperature"),
        ({"messages": "hello"}, 400, "messages"),
        ({"messages": [{"role": "oracle", "content": ""}]}, 400, "messages[0].role"),
        ({"messages": MESSAGES, "model": "another"}, 404, "model"),
        ({"messages": [{"role": "user", "content": "word " * 600}]}, 413, None),
        ({"messages": [{"role": "user", "content": "x" * (2 << 20)}]}, 413, None),
    ],
)
def test_refusals(http: httpx2.Client, body: object, status: int, param: str | None) -> None:
    text = body if isinstance(body, str) else json.dumps(body)
    answer = http.post("/v1/chat/completions", content=text)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert param is None or error["param"] == param


def test_too_long_says_limit_and_length(http: httpx2.Client) -> None:
    body = {"messages": [{"role": "user", "content": "word " * 600}]}
    message = http.post("/v1/chat/completions", json=body).json()["error"]["message"]
    assert "limit is 511" in message
    assert "63" in message  # 600 words and the template


def test_unknown_paths_and_methods(http: httpx2.Client) -> None:
    assert http.get("/v1/nothing").status_code == 404
    assert http.get("/v1/chat/completions").status_code == 405
    assert http.get("/v1/models/another").status_code == 404


def test_health_and_metrics(http: httpx2.Client, name: str) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    text = http.get("/metrics").text
    assert "# TYPE edge_llm_finished_total counter" in text
    assert float(text.split("\nedge_llm_resident_bytes ")[1].split()[0]) > 1e7


def test_a_closed_connection_cancels(http: httpx2.Client, path: Path) -> None:
    def metric(key: str) -> float:
        return float(http.get("/metrics").text.split(f"\nedge_llm_{key} ")[1].split()[0])

    before = metric("stopped_total")
    body = {"messages": [{"role": "user", "content": "Tell a story."}], "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        next(answer.iter_lines())
        assert metric("active") == 1
    while metric("active"):
        pass
    assert metric("stopped_total") == before + 1


def test_only_owner_and_group_may_connect(device: Serving, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_a_live_socket_is_left_alone(
    smollm2_artifact: Smollm2Artifact, device: Serving, http: httpx2.Client, path: Path
) -> None:
    with Serving(smollm2_artifact(), "--socket", str(path)) as second:
        assert second.process.wait(60) == 1
        second.wait_for("error: ")
    assert len(second.log) == 1
    assert str(path) in second.log[0]
    assert "another process" in second.log[0]
    assert http.get("/health").status_code == 200


def test_the_socket_goes_with_the_service(
    smollm2_artifact: Smollm2Artifact, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    with Serving(smollm2_artifact(), "--socket", str(path)) as serving:
        serving.wait_for("ready")
        assert serving.stop() == 0
    assert not path.exists()


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with unix_socket(str(path)), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="not a socket"):
        unix_socket(str(path))
    assert path.read_text() == "precious"
    with pytest.raises(ConfigError, match="cannot listen"):
        unix_socket(os.path.join(tmp_path, "absent", "s"))
