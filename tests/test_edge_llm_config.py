"""A service's configuration: the file, the command line over it, and everything wrong with them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_llm.config import Http, Limits, Mqtt, from_options
from edge_llm.errors import ConfigError
from edge_llm.mqtt.broker import Broker
from edge_llm.settings import Settings

FULL = """
device = "kitchen"
threads = 4
decode_threads = 3
context = 2048
sequences = 2

[mqtt]
url = "mqtts://broker.lan"
user = "kitchen"
password_file = "{password}"
ca_file = "/ca.pem"
certificate_file = "/kitchen.pem"
key_file = "/kitchen.key"
response_prefixes = ["home/answers/"]
keepalive_seconds = 20
metrics_seconds = 5

[http]
socket = "/run/edge-llm.sock"
listen = "[::1]:8080"
allow_remote = false

[limits]
request_bytes = 65536
request_seconds = 60
keep_seconds = 30
drain_seconds = 5
"""


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "edge-llm.toml"


def refused(toml: Path, text: str) -> str:
    toml.write_text(text)
    with pytest.raises(ConfigError) as caught:
        from_options(file="a.edge", config=str(toml))
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{toml}: ")


def test_a_file_holds_everything(toml: Path, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("hush\n")
    toml.write_text(FULL.format(password=password))
    config = from_options(file="a.edge", config=str(toml))
    assert (config.artifact, config.device) == ("a.edge", "kitchen")
    assert (config.threads, config.decode_threads) == (4, 3)
    assert (config.context, config.sequences) == (2048, 2)
    assert config.mqtt == Mqtt(
        Broker(
            "broker.lan", 8883, True, "kitchen", "hush", "/ca.pem", "/kitchen.pem", "/kitchen.key"
        ),
        ("home/answers/",),
        20,
        5,
    )
    assert config.http == Http("/run/edge-llm.sock", ("::1", 8080))
    assert config.limits == Limits(65536, 60, 30, 5)


def test_a_secret_is_never_shown(toml: Path) -> None:
    toml.write_text('[mqtt]\nurl = "mqtt://a"\nuser = "u"\npassword = "hush"\n')
    config = from_options(file="a.edge", config=str(toml))
    assert config.mqtt is not None
    assert config.mqtt.broker.password == "hush"
    assert "hush" not in repr(config) + str(config) + config.mqtt.broker.url


def test_options_come_first(toml: Path) -> None:
    threads = "threads = 1\ndecode_threads = 1\n"
    toml.write_text(f'device = "a"\n{threads}[mqtt]\nurl = "mqtt://a"\nkeepalive_seconds = 9\n')
    config = from_options(
        file="a.edge", config=str(toml), device="b", threads=2, mqtt="mqtt://b:5", socket="/s"
    )
    assert (config.device, config.http.socket) == ("b", "/s")
    assert (config.threads, config.decode_threads) == (2, 2)
    assert config.mqtt is not None
    assert (config.mqtt.broker.host, config.mqtt.broker.port) == ("b", 5)
    assert config.mqtt.keepalive_seconds == 9
    assert config.mqtt.response_prefixes == ("edge-llm/b/response/",)


def test_without_options_nothing_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "pi.lan")
    config = from_options(file="a.edge")
    assert (config.device, config.mqtt, config.http) == ("pi", None, Http())
    monkeypatch.setattr(socket, "gethostname", lambda: "ein Pi")
    with pytest.raises(ConfigError, match="device: must be 1 to 64 letters"):
        from_options(file="a.edge")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour = 1", "colour: unknown key (known here: context, decode_threads, device, "),
        ("[mqtt]\nurl='mqtt://a'\nsugar = 1", "mqtt.sugar: unknown key (known here: ca_file, "),
        ("[http]\nport = 1", "http.port: unknown key (known here: allow_remote, listen, socket)"),
        ("[tea]\ncups = 1", "tea.cups: unknown key"),
        ("http = 5", "http: unknown key"),
        ("threads = 0", "threads: must be an integer from 1 to 1024"),
        ("threads = true", "threads: must be an integer from 1 to 1024"),
        ("threads = 1.0", "threads: must be an integer from 1 to 1024"),
        ("context = 1", "context: must be an integer from 2 to"),
        ("device = 5", "device: must be a string"),
        ("device = ''", "device: must be a string, and not an empty one"),
        ("device = 'a/b'", "device: must be 1 to 64 letters, digits"),
        ("device = '+'", "device: must be 1 to 64 letters, digits"),
        ("[limits]\ndrain_seconds = -1", "limits.drain_seconds: must be an integer from 0"),
        ("[limits]\nrequest_bytes = 0", "limits.request_bytes: must be an integer from 1024"),
        ("[http]\nallow_remote = 1", "http.allow_remote: must be true or false"),
        ("[http]\nlisten = '0.0.0.0:80'", "http.listen: 0.0.0.0 is not a loopback address"),
        ("[http]\nlisten = 'kitchen:80'", "http.listen: must be an IP address and a port"),
        ("[http]\nlisten = '127.0.0.1'", "http.listen: must be an IP address and a port"),
        ("[http]\nlisten = '127.0.0.1:65536'", "http.listen: must be an IP address and a port"),
        ("[mqtt]\nuser = 'a'", "mqtt.url: missing"),
        ("[mqtt]\nurl = 'http://a'", "mqtt.url: must be a URL like mqtt://127.0.0.1:1883"),
        ("[mqtt]\nurl = 'mqtt://'", "mqtt.url: must be a URL"),
        ("[mqtt]\nurl = 'mqtt://a:99999'", "mqtt.url: must be a URL"),
        ("[mqtt]\nurl = 'mqtt://a/b'", "mqtt.url: must be a URL"),
        ("[mqtt]\nurl = 'mqtt://a'\npassword = 'x'", "mqtt.user: missing"),
        (
            "[mqtt]\nurl='mqtt://a'\nuser='u'\npassword='x'\npassword_file='y'",
            "mqtt.password: or password_file, not both",
        ),
        ("[mqtt]\nurl = 'mqtt://a'\nca_file = 'x'", "mqtt.url: certificates need mqtts://"),
        (
            "[mqtt]\nurl = 'mqtts://a'\nkey_file = 'x'",
            "mqtt.certificate_file: goes with key_file",
        ),
        ("[mqtt]\nurl = 'mqtt://a'\nresponse_prefixes = []", "mqtt.response_prefixes: must be a l"),
        (
            "[mqtt]\nurl = 'mqtt://a'\nresponse_prefixes = ['#/']",
            "mqtt.response_prefixes: '#/' must be a topic that ends with / and has no wildcard",
        ),
        ("[mqtt]\nurl = 'mqtt://a'\nresponse_prefixes = ['a']", "mqtt.response_prefixes: 'a' must"),
        ("[mqtt", "is not TOML: "),
        ("a = 1\na = 2", "is not TOML: "),
    ],
    ids=str,
)
def test_a_mistake_is_named(toml: Path, text: str, message: str) -> None:
    assert message in refused(toml, text)


def test_a_mistake_of_an_option_is_named_after_it() -> None:
    with pytest.raises(ConfigError, match=r"^--http: 192\.168\.1\.5 is not a loopback address"):
        from_options(file="a.edge", http="192.168.1.5:80")
    with pytest.raises(ConfigError, match=r"^--threads: must be an integer"):
        from_options(file="a.edge", threads=-1)
    with pytest.raises(ConfigError, match=r"^--device: must be"):
        from_options(file="a.edge", device="#")


def test_a_password_does_not_belong_into_a_url() -> None:
    with pytest.raises(ConfigError) as caught:
        from_options(file="a.edge", mqtt="mqtt://me:hush@broker")
    assert str(caught.value).startswith("--mqtt: leave user and password out of the URL")
    assert "hush" not in str(caught.value)


def test_other_machines_are_let_in_only_by_the_file(toml: Path) -> None:
    toml.write_text("[http]\nlisten = '0.0.0.0:80'\nallow_remote = true\n")
    assert from_options(file="a.edge", config=str(toml)).http.listen == ("0.0.0.0", 80)


def test_localhost_is_the_loopback_address() -> None:
    assert from_options(file="a.edge", http="localhost:80").http.listen == ("127.0.0.1", 80)


def test_files_that_cannot_be_read_are_named(toml: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.toml: No such file"):
        from_options(file="a.edge", config=str(tmp_path / "absent.toml"))
    with pytest.raises(ConfigError, match="Is a directory"):
        from_options(file="a.edge", config=str(tmp_path))
    toml.write_bytes(b'device = "\xff"')
    with pytest.raises(ConfigError, match="is not TOML"):
        from_options(file="a.edge", config=str(toml))
    os.truncate(toml, 2 << 20)
    with pytest.raises(ConfigError, match="is larger than"):
        from_options(file="a.edge", config=str(toml))


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff", b"x" * 5000], ids=repr)
def test_a_password_file_holds_one_password(
    toml: Path, tmp_path: Path, content: bytes | None
) -> None:
    password = tmp_path / "password"
    if content is not None:
        password.write_bytes(content)
    text = f"[mqtt]\nurl = 'mqtt://a'\nuser = 'u'\npassword_file = '{password}'\n"
    assert refused(toml, text).startswith("mqtt.password_file: ")


def test_certificates_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    nonsense = tmp_path / "ca.pem"
    nonsense.write_text("nonsense")
    for path in (str(nonsense), str(tmp_path / "absent.pem")):
        with pytest.raises(ConfigError, match=rf"cannot use {path}: "):
            Broker("a", 8883, True, ca_file=path).tls_context()
    assert Broker("a", 1883).tls_context() is None
    assert Broker("a", 8883, True).tls_context() is not None


@given(st.text())
def test_any_url_is_a_broker_or_an_error(url: str) -> None:
    for text in (url, f"mqtt://{url}"):
        try:
            broker = Broker.of(text)
        except ConfigError:
            continue
        assert broker.host
        assert 0 < broker.port < 65536


TOML = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, min_size=1)
    ),
    max_leaves=4,
)


@given(st.dictionaries(st.text(max_size=4), TOML, min_size=1, max_size=3))
def test_nothing_is_silently_dropped(values: dict[str, object]) -> None:
    settings = Settings(values, "a.toml", {})
    with pytest.raises(ConfigError, match="unknown key"):
        settings.refuse_unknown()
