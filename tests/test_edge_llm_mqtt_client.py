"""The client that people and programs ask a device with."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from paho.mqtt import publish
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from edge_llm.commands.ask import ask as command
from edge_llm.errors import ConfigError, EdgeLLMError, RequestError
from edge_llm.mqtt import broker as brokers
from edge_llm.mqtt import client as clients
from edge_llm.mqtt import service as services
from edge_llm.mqtt.client import Piece, ask
from edge_llm.mqtt.coalescer import Coalescer
from edge_llm.mqtt.outbox import Outbox
from tests.broker import Broker, certificate, free_port, passwords
from tests.fake_device import Unit, wait_until
from tests.fake_engine import WAIT
from tests.serving import DEVICE


@pytest.fixture
def broker(mosquitto: Broker) -> brokers.Broker:
    return brokers.Broker("127.0.0.1", mosquitto.port)


@pytest.fixture
def unit(broker: brokers.Broker) -> Iterator[Unit]:
    with Unit(broker) as unit:
        yield unit


class Question:
    """A question asked on a thread of its own.

    Attributes:
        pieces: what has come of the answer.
    """

    def __init__(self, broker: brokers.Broker, prompt: str | list[dict[str, str]]) -> None:
        self.pieces: list[Piece] = []
        self._thread = threading.Thread(target=self._ask, args=(broker, prompt))
        self._thread.start()

    def _ask(self, broker: brokers.Broker, prompt: str | list[dict[str, str]]) -> None:
        for piece in ask(broker, DEVICE, prompt, seconds=WAIT, max_tokens=5):
            self.pieces.append(piece)

    def answer(self) -> str:
        self._thread.join(WAIT)
        assert self.pieces[-1].final is not None
        text = "".join(piece.text for piece in self.pieces)
        assert text == self.pieces[-1].final["text"]
        return text


def test_an_answer_comes_in_pieces(unit: Unit, broker: brokers.Broker) -> None:
    question = Question(broker, "Hello")
    job = unit.engine.next_job()
    assert (job.request.prompt, job.request.max_tokens) == ("Hello", 5)
    assert job.request.deadline is not None
    job.accept()
    job.say("Par")
    wait_until(lambda: bool(question.pieces))
    job.say("is.")
    job.finish()
    assert question.answer() == "Paris."
    assert question.pieces[0] == Piece("Par")
    assert question.pieces[-1].final is not None
    assert question.pieces[-1].final["usage"]["completion_tokens"] == 2


def test_a_conversation_can_be_asked(unit: Unit, broker: brokers.Broker) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    question = Question(broker, messages)
    job = unit.engine.next_job()
    assert job.request.messages == tuple(messages)
    job.finish(text="Hi.")
    assert question.answer() == "Hi."


def test_lost_chunks_come_with_the_final(
    unit: Unit, broker: brokers.Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = Coalescer(seconds=0)
    monkeypatch.setattr(services, "Coalescer", lambda: chunks)
    question = Question(broker, "Hello")
    job = unit.engine.next_job()
    job.say("The ")
    wait_until(lambda: bool(question.pieces))
    with monkeypatch.context() as nothing_fits:
        nothing_fits.setattr(services, "MAX_BUFFERED", 0)
        job.say("answer ")
        wait_until(lambda: chunks.count == 2)
        unit.loop.call(lambda: None)  # the turn in which that was is over
    job.say("is ")
    job.say("42.")
    job.finish()
    assert question.answer() == "The answer is 42."
    assert [piece.text for piece in question.pieces] == ["The ", "answer is 42."]


def test_an_answer_survives_the_broker(
    unit: Unit, broker: brokers.Broker, mosquitto: Broker
) -> None:
    question = Question(broker, "Hello")
    job = unit.engine.next_job()
    job.say("Par")
    wait_until(lambda: bool(question.pieces))
    mosquitto.stop()
    job.say("is.")
    job.finish()
    mosquitto.start()
    assert question.answer() == "Paris."


def test_a_lost_final_is_asked_for_again(
    unit: Unit, broker: brokers.Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a subscriber so slow that its broker drops what it should keep."""
    monkeypatch.setattr(clients, "QUIET_SECONDS", 0.1)
    question = Question(broker, "Hello")
    job = unit.engine.next_job()
    lost = threading.Event()
    with monkeypatch.context() as lossy:
        lossy.setattr(Outbox, "put", lambda *_: lost.set())
        job.finish(text="Paris.")
        assert lost.wait(WAIT)
    assert question.answer() == "Paris."
    assert unit.engine.asked() == 1


def test_a_refusal_is_raised(unit: Unit, broker: brokers.Broker) -> None:
    with pytest.raises(RequestError, match="temperature must be") as caught:
        list(ask(broker, DEVICE, "Hello", temperature=-1))
    assert (caught.value.status, caught.value.field) == (400, "temperature")


def test_a_device_that_is_not_there_is_said(broker: brokers.Broker) -> None:
    with pytest.raises(EdgeLLMError, match=r"no device absent on mqtt://127\.0\.0\.1:"):
        list(ask(broker, "absent", "Hello", seconds=0.2))


def test_a_device_that_has_left_is_said(broker: brokers.Broker) -> None:
    with Unit(broker) as unit:
        question = Question(broker, "Hello")
        unit.engine.next_job().finish()
        question.answer()
    with pytest.raises(EdgeLLMError, match=f"the device {DEVICE} is offline"):
        list(ask(broker, DEVICE, "Hello", seconds=0.5))


@pytest.mark.parametrize("payload", [b"", b"nonsense", b"[]", b'{"status": 1}'])
def test_what_is_no_status_is_none(mosquitto: Broker, payload: bytes) -> None:
    broker = brokers.Broker("127.0.0.1", mosquitto.port)
    publish.single(
        "edge-llm/strange/status", payload, 1, retain=True, hostname=broker.host, port=broker.port
    )
    with pytest.raises(EdgeLLMError, match="no device strange on"):
        list(ask(broker, "strange", "Hello", seconds=0.2))


def test_a_host_that_cannot_be_one_is_said() -> None:
    with pytest.raises(EdgeLLMError, match=r"cannot reach the broker mqtt://broker\.\.lan"):
        list(ask(brokers.Broker("broker..lan", 1883), DEVICE, "Hello"))


def test_a_broker_that_is_not_there_is_said() -> None:
    nowhere = brokers.Broker("127.0.0.1", free_port())
    with pytest.raises(EdgeLLMError, match=r"cannot reach the broker .*: Connection refused"):
        list(ask(nowhere, DEVICE, "Hello"))


def test_a_broker_that_refuses_us_is_said(tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text("")
    with Broker(tmp_path, f"password_file {users}", "allow_anonymous false") as closed:
        broker = brokers.Broker("127.0.0.1", closed.port)
        with pytest.raises(EdgeLLMError, match="refuses us: Not authorized"):
            list(ask(broker, DEVICE, "Hello"))


@pytest.mark.parametrize("device", ["#", "a+b", "", "a/b", "\udcff"])
def test_what_cannot_be_a_device_is_said_at_once(broker: brokers.Broker, device: str) -> None:
    with pytest.raises(EdgeLLMError, match="must be 1 to 64 letters, digits") as caught:
        list(ask(broker, device, "Hello"))
    assert "\n" not in str(caught.value)


def test_a_user_that_cannot_be_one_is_said_at_once(broker: brokers.Broker) -> None:
    with pytest.raises(EdgeLLMError, match=r"user '\\udcff': "):
        list(ask(replace(broker, user="\udcff"), DEVICE, "Hello"))


@pytest.mark.parametrize("timeout", ["nan", "inf", "0", "-1", "5e9"])
def test_a_time_that_nobody_can_wait_is_said(timeout: str) -> None:
    words = ["--mqtt", "mqtt://127.0.0.1:1", "--device", "a", "--timeout", timeout, "Hello"]
    with pytest.raises(EdgeLLMError, match=r"--timeout \S+: must be more than 0 and at most"):
        command.main(words, standalone_mode=False)


def test_a_topic_that_may_not_be_read_is_said(broker: brokers.Broker) -> None:
    """Mosquitto lets everybody subscribe, and passes nothing on; other brokers say so."""
    refused = ReasonCode(PacketTypes.SUBACK, "Not authorized")
    with clients.Conversation(broker, DEVICE, time.monotonic() + WAIT) as conversation:
        conversation._subscribed(conversation._client, None, 1, [refused], None)
        with pytest.raises(EdgeLLMError, match=f"not let us read edge-llm/{DEVICE}/response/.*: N"):
            conversation.wait_for_device()


# What docs/serve.md gives a device and whoever asks it.
RULES = f"""
user unit
topic readwrite edge-llm/{DEVICE}/#
user me
topic write edge-llm/{DEVICE}/generate
topic write edge-llm/{DEVICE}/cancel
topic read edge-llm/{DEVICE}/status
topic read edge-llm/{DEVICE}/metrics
pattern read edge-llm/+/response/%u/#
"""


def test_the_command_is_let_in_by_a_protected_broker(tmp_path: Path) -> None:
    certificate(tmp_path / "broker")
    passwords(tmp_path / "users", me="hush", unit="quiet")
    (tmp_path / "rules").write_text(RULES)
    (tmp_path / "password").write_text("hush\n")
    settings = (
        f"certfile {tmp_path}/broker.pem",
        f"keyfile {tmp_path}/broker.key",
        f"password_file {tmp_path}/users",
        f"acl_file {tmp_path}/rules",
        "allow_anonymous false",
    )
    with Broker(tmp_path, *settings) as closed:
        ca = str(tmp_path / "broker.pem")
        where = brokers.Broker("127.0.0.1", closed.port, True, "unit", "quiet", ca_file=ca)
        with Unit(where) as unit:
            url = f"mqtts://127.0.0.1:{closed.port}"
            words = [*(sys.executable, "-m", "edge_llm.cli", "ask", "Hello"), "--mqtt", url]
            words += ["--device", DEVICE, "--timeout", str(WAIT), "--user", "me"]
            words += ["--password-file", str(tmp_path / "password"), "--ca-file", ca]
            with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as asking:
                unit.engine.next_job().finish(text="Paris.")
                assert asking.communicate(timeout=WAIT)[0] == "Paris.\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--password-file", "{here}"), "--user: missing, there is a password"),
        (("--user", "me", "--password-file", "absent"), "--password-file: cannot read absent: No"),
        (("--ca-file", "ca.pem"), "--mqtt: certificates need mqtts://"),
        (("--key-file", "me.key"), "--certificate-file: goes with --key-file"),
    ],
    ids=str,
)
def test_what_does_not_fit_together_is_named_as_an_option(
    tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    here = tmp_path / "password"
    here.write_text("hush")
    given = [option.format(here=here) for option in options]
    done = CliRunner().invoke(command, ["Hi", "--mqtt", "mqtt://a", "--device", "b", *given])
    assert isinstance(done.exception, ConfigError)
    assert str(done.exception).startswith(message)
