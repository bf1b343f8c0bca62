"""``edge-llm ask``: a question to a device on a broker, from any machine."""

from __future__ import annotations

import json

import click

LONGEST = 10**6  # seconds to wait


@click.command()
@click.argument("question")
@click.option("--mqtt", metavar="URL", required=True, help="Broker: mqtt://HOST:PORT or mqtts://.")
@click.option("--device", metavar="NAME", required=True, help="Whom to ask.")
@click.option("--user", metavar="NAME", help="Who the broker is told that we are.")
@click.option("--password-file", metavar="FILE", help="Holds the user's password.")
@click.option("--ca-file", metavar="FILE", help="PEM of the authorities trusted with mqtts://.")
@click.option("--certificate-file", metavar="FILE", help="PEM of our own certificate.")
@click.option("--key-file", metavar="FILE", help="PEM of its key.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Tokens of the answer at most.")
@click.option("--temperature", type=float, help="0 always takes the likeliest token.")
@click.option(
    "--timeout", type=float, default=60.0, show_default=True, help="Seconds for the whole answer."
)
@click.option("--stats", is_flag=True, help="Figures of the answer to stderr, as JSON.")
def ask(
    question: str,
    mqtt: str,
    device: str,
    user: str | None,
    password_file: str | None,
    ca_file: str | None,
    certificate_file: str | None,
    key_file: str | None,
    max_tokens: int | None,
    temperature: float | None,
    timeout: float,
    stats: bool,
) -> None:
    """Ask a device over MQTT and print its answer as it comes.

    \b
      edge-llm ask --mqtt mqtt://127.0.0.1:1883 --device kitchen "Is it safe to eat snow?"
      edge-llm ask --mqtt mqtts://broker.lan --ca-file ca.pem --user me --password-file password \\
        --device kitchen "Is it safe to eat snow?"
    """
    from edge_llm.config import broker_of
    from edge_llm.errors import ConfigError
    from edge_llm.mqtt.client import Piece
    from edge_llm.mqtt.client import ask as ask_device
    from edge_llm.settings import Settings

    if not 0 < timeout <= LONGEST:  # which NaN is not
        raise ConfigError(f"--timeout {timeout:g}: must be more than 0 and at most {LONGEST}")
    broker = {
        "mqtt.url": ("--mqtt", mqtt),
        "mqtt.user": ("--user", user),
        "mqtt.password_file": ("--password-file", password_file),
        "mqtt.ca_file": ("--ca-file", ca_file),
        "mqtt.certificate_file": ("--certificate-file", certificate_file),
        "mqtt.key_file": ("--key-file", key_file),
    }
    given = {"max_tokens": max_tokens, "temperature": temperature}
    fields = {name: value for name, value in given.items() if value is not None}
    piece = Piece("")
    where = broker_of(Settings({}, None, broker))
    for piece in ask_device(where, device, question, seconds=timeout, **fields):
        click.echo(piece.text.encode(), nl=False)
    click.echo()
    if stats and piece.final is not None:
        click.echo(json.dumps({**piece.final["usage"], **piece.final["timings"]}), err=True)
