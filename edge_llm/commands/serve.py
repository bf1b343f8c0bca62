"""``edge-llm serve``: a model that answers devices and local programs."""

from __future__ import annotations

import click

from edge_llm.commands import options


@click.command()
@options.FILE
@click.option("--mqtt", metavar="URL", help="Broker: mqtt://HOST:PORT, or mqtts:// for TLS.")
@click.option("--device", metavar="NAME", help="Its name on the broker: edge-llm/NAME/generate.")
@click.option("--socket", metavar="PATH", help="Unix socket for local programs, OpenAI's API.")
@click.option("--http", metavar="HOST:PORT", help="The same on TCP, on a loopback address.")
@click.option("--config", metavar="FILE.toml", help="Settings; options given here come first.")
@options.THREADS
@options.CONTEXT
def serve(
    file: str,
    mqtt: str | None,
    device: str | None,
    socket: str | None,
    http: str | None,
    config: str | None,
    threads: int | None,
    context: int | None,
) -> None:
    """Answer requests over MQTT, a Unix socket, or both, until stopped.

    \b
      edge-llm serve smollm2.edge --mqtt mqtt://127.0.0.1:1883 --device kitchen
      edge-llm serve smollm2.edge --socket edge-llm.sock
      edge-llm serve smollm2.edge --config serve.toml
    """
    from edge_llm.config import from_options
    from edge_llm.serve import serve as serve_until_stopped

    serve_until_stopped(
        from_options(
            file=file,
            mqtt=mqtt,
            device=device,
            socket=socket,
            http=http,
            config=config,
            threads=threads,
            context=context,
        )
    )
