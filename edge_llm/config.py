"""How a device serves: one frozen dataclass, read once from a TOML file and the command line.

    from_options(file="smollm2.edge", mqtt="mqtt://127.0.0.1:1883", device="kitchen")
    from_options(file="smollm2.edge", config="/etc/edge-llm.toml")

What the command line gives comes first. A file may hold all of this, and nothing else::

    device = "kitchen"          # by default the name of the machine
    threads = 4                 # CPU threads; by default what suits the board, or one a core
    decode_threads = 3          # for one token after the other; by default as above
    context = 2048              # tokens of prompt and answer; by default the artifact's
    sequences = 1               # answers of that length that fit into memory at once

    [mqtt]
    url = "mqtts://broker.lan:8883"
    user = "kitchen"
    password_file = "/etc/edge-llm/password"      # or password = "…"
    ca_file = "/etc/edge-llm/ca.pem"              # by default the system's authorities
    certificate_file = "/etc/edge-llm/kitchen.pem"
    key_file = "/etc/edge-llm/kitchen.key"
    response_prefixes = ["edge-llm/kitchen/response/"]    # answers go nowhere else
    keepalive_seconds = 30
    metrics_seconds = 10

    [http]
    socket = "/run/edge-llm/edge-llm.sock"
    listen = "127.0.0.1:8080"
    allow_remote = false        # true lets listen be an address that others can reach

    [limits]
    request_bytes = 1048576
    request_seconds = 3600      # an answer that takes longer is given up
    keep_seconds = 600          # how long an answer is kept for a client that set no expiry
    drain_seconds = 10          # how long running answers may take when the service stops
"""

from __future__ import annotations

import ipaddress
import re
import socket as sockets
from dataclasses import dataclass, field, replace
from pathlib import Path

from edge_llm.errors import ConfigError
from edge_llm.mqtt.broker import Broker
from edge_llm.settings import Settings, read_toml

MAX_PASSWORD = 4096  # bytes
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
NAME_RULE = "must be 1 to 64 letters, digits, and . _ - between them"
PREFIX = re.compile(r"[^+#\x00-\x1f\x7f]{1,255}/")


@dataclass(frozen=True)
class Mqtt:
    """What is told to a broker, and how often.

    Attributes:
        broker: where it is.
        response_prefixes: what the topics of answers must begin with.
        keepalive_seconds: silence after which a connection counts as broken.
        metrics_seconds: between two publications of the metrics.
    """

    broker: Broker
    response_prefixes: tuple[str, ...]
    keepalive_seconds: int = 30
    metrics_seconds: int = 10


@dataclass(frozen=True)
class Http:
    """Where local programs find the HTTP API.

    Attributes:
        socket: path of the Unix socket; None makes none.
        listen: address and port for TCP; None listens on none.
    """

    socket: str | None = None
    listen: tuple[str, int] | None = None


@dataclass(frozen=True)
class Limits:
    """What one client may take of the device.

    Attributes:
        request_bytes: of one request.
        request_seconds: from a request to the end of its answer.
        keep_seconds: for which an answer is kept whose request set no expiry.
        drain_seconds: for which running answers may go on when the service stops.
    """

    request_bytes: int = 1 << 20
    request_seconds: int = 3600
    keep_seconds: int = 600
    drain_seconds: int = 10


@dataclass(frozen=True)
class ServeConfig:
    """All that ``edge-llm serve`` needs to know.

    Attributes:
        artifact: path of the model.
        device: the device's name in MQTT topics.
        threads: CPU threads; None takes what suits the board, or one a core.
        decode_threads: CPU threads while decoding; None takes ``threads``, or what suits the board.
        context: tokens of prompt and answer together; None takes the artifact's.
        sequences: answers of that length that fit into memory at once.
        mqtt: None serves no broker.
        http: sockets for local programs; may name none.
        limits: for every transport.
    """

    artifact: str
    device: str
    threads: int | None = None
    decode_threads: int | None = None
    context: int | None = None
    sequences: int = 1
    mqtt: Mqtt | None = None
    http: Http = field(default_factory=Http)
    limits: Limits = field(default_factory=Limits)


def from_options(
    *,
    file: str,
    mqtt: str | None = None,
    device: str | None = None,
    socket: str | None = None,
    http: str | None = None,
    config: str | None = None,
    threads: int | None = None,
    context: int | None = None,
) -> ServeConfig:
    """The configuration that command-line options and the file they name make together.

    Raises:
        ConfigError: a key that is unknown, of the wrong type or out of range, a file that cannot
            be read. The message says which, and never quotes a secret.
    """
    options = {
        "device": ("--device", device),
        "threads": ("--threads", threads),
        "decode_threads": ("--threads", threads),  # it speaks for both
        "context": ("--context", context),
        "mqtt.url": ("--mqtt", mqtt),
        "http.socket": ("--socket", socket),
        "http.listen": ("--http", http),
    }
    settings = Settings({} if config is None else read_toml(Path(config)), config, options)
    name = settings.text("device") or sockets.gethostname().split(".")[0]
    if not NAME.fullmatch(name):
        raise ConfigError(f"{settings.label('device')}: {NAME_RULE}")
    result = ServeConfig(
        artifact=file,
        device=name,
        threads=settings.integer("threads", None, 1, 1024),
        decode_threads=settings.integer("decode_threads", None, 1, 1024),
        context=settings.integer("context", None, 2, 2**31 - 1),
        sequences=settings.integer("sequences", ServeConfig.sequences, 1, 1024),
        mqtt=_mqtt(settings, name),
        http=_http(settings),
        limits=_limits(settings),
    )
    settings.refuse_unknown()
    return result


def _limits(settings: Settings) -> Limits:
    def limit(name: str, low: int, high: int) -> int:
        default: int = getattr(Limits, name)
        return settings.integer(f"limits.{name}", default, low, high)

    return Limits(
        request_bytes=limit("request_bytes", 1024, 1 << 26),
        request_seconds=limit("request_seconds", 1, 10**7),
        keep_seconds=limit("keep_seconds", 1, 10**6),
        drain_seconds=limit("drain_seconds", 0, 3600),
    )


def _mqtt(settings: Settings, device: str) -> Mqtt | None:
    if not settings.given("mqtt"):
        return None
    prefixes = settings.texts("mqtt.response_prefixes", (f"edge-llm/{device}/response/",))
    for prefix in prefixes:
        if not PREFIX.fullmatch(prefix):
            raise ConfigError(
                f"{settings.label('mqtt.response_prefixes')}: {prefix!r} must be a topic that "
                "ends with / and has no wildcard"
            )
    return Mqtt(
        broker=broker_of(settings),
        response_prefixes=prefixes,
        keepalive_seconds=settings.integer(
            "mqtt.keepalive_seconds", Mqtt.keepalive_seconds, 2, 3600
        ),
        metrics_seconds=settings.integer("mqtt.metrics_seconds", Mqtt.metrics_seconds, 1, 86400),
    )


def broker_of(settings: Settings) -> Broker:
    """Where the broker is and how to be let in, by the keys of the table ``mqtt``."""
    url = settings.text("mqtt.url")
    if url is None:
        raise ConfigError(f"{settings.label('mqtt.url')}: missing, as in mqtt://127.0.0.1:1883")
    broker = Broker.of(url, settings.label("mqtt.url"))
    user, password = settings.text("mqtt.user"), settings.text("mqtt.password")
    password_file = settings.text("mqtt.password_file")
    if password_file is not None:
        if password is not None:
            raise ConfigError(f"{settings.label('mqtt.password')}: or password_file, not both")
        password = read_password(password_file, settings.label("mqtt.password_file"))
    if password is not None and user is None:
        raise ConfigError(f"{settings.label('mqtt.user')}: missing, there is a password")
    names = ("ca_file", "certificate_file", "key_file")
    ca, certificate, key = (settings.text(f"mqtt.{name}") for name in names)
    if (certificate is None) != (key is None):
        raise ConfigError(
            f"{settings.label('mqtt.certificate_file')}: goes with {settings.name('mqtt.key_file')}"
        )
    if not broker.tls and (ca or certificate):
        raise ConfigError(f"{settings.label('mqtt.url')}: certificates need mqtts://")
    return replace(
        broker,
        user=user,
        password=password,
        ca_file=ca,
        certificate_file=certificate,
        key_file=key,
    )


def read_password(path: str, label: str) -> str:
    """A password from a file, whose last line end is not part of it."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_PASSWORD + 1)
        password = data.decode("utf-8").rstrip("\r\n")
    except OSError as error:
        raise ConfigError(f"{label}: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{label}: {path} is not UTF-8") from None
    if not password or len(data) > MAX_PASSWORD:
        raise ConfigError(f"{label}: {path} must hold 1 to {MAX_PASSWORD} bytes")
    return password


def _http(settings: Settings) -> Http:
    allow_remote = settings.flag("http.allow_remote", False)
    listen = settings.text("http.listen")
    address = None if listen is None else _address(listen, settings.label("http.listen"))
    if address is not None and not allow_remote and not is_loopback(address[0]):
        raise ConfigError(
            f"{settings.label('http.listen')}: {address[0]} is not a loopback address; anyone who "
            "reaches it could use the model, so http.allow_remote must be true for that"
        )
    return Http(settings.text("http.socket"), address)


def _address(listen: str, label: str) -> tuple[str, int]:
    host, colon, port = listen.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]")
    try:
        ipaddress.ip_address(host)
        valid = bool(colon) and port.isascii() and port.isdigit() and int(port) < 65536
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"{label}: must be an IP address and a port, like 127.0.0.1:8080")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether an IP address can be reached from this machine only."""
    return ipaddress.ip_address(host).is_loopback
