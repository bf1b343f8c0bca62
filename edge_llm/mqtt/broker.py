"""Where an MQTT broker is, and how to be let in: for the device's service and for its clients.

>>> Broker.of("mqtts://broker.lan")
Broker(host='broker.lan', port=8883, tls=True, user=None, ca_file=None, certificate_file=None, \
key_file=None)
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from edge_llm.errors import ConfigError

PORTS = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True)
class Broker:
    """Where an MQTT broker is and who we are to it.

    Attributes:
        host: name or address.
        port: TCP port.
        tls: whether the connection is encrypted and the broker's certificate checked.
        user: user name; None logs in as nobody.
        password: never shown.
        ca_file: PEM of the authorities that are trusted; None trusts the system's.
        certificate_file: PEM of our own certificate; None shows none.
        key_file: PEM of its key.
    """

    host: str
    port: int
    tls: bool = False
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None

    @classmethod
    def of(cls, url: str, label: str = "broker") -> Broker:
        """The broker at ``mqtt://HOST[:PORT]`` or, encrypted, ``mqtts://HOST[:PORT]``."""
        try:
            parts = urlsplit(url)
            scheme, host, port = parts.scheme, parts.hostname, parts.port
        except ValueError:
            raise ConfigError(f"{label}: must be a URL like mqtt://127.0.0.1:1883") from None
        if parts.username is not None or parts.password is not None:
            raise ConfigError(
                f"{label}: leave user and password out of the URL, which others can see; serve's "
                "configuration file and ask's options have places for them"
            )
        if scheme not in PORTS or not host or parts.path.strip("/") or parts.query:
            raise ConfigError(f"{label}: must be a URL like mqtt://127.0.0.1:1883")
        return cls(host, port or PORTS[scheme], scheme == "mqtts")

    @property
    def url(self) -> str:
        """How messages and logs name it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"

    def tls_context(self) -> ssl.SSLContext | None:
        """What to encrypt with; None where the connection is not encrypted.

        Raises:
            ConfigError: a certificate or key that cannot be read or does not fit.
        """
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.certificate_file is not None:
                # Without a function that says there is none, OpenSSL asks for a passphrase.
                context.load_cert_chain(self.certificate_file, self.key_file, password=lambda: "")
        except (OSError, ValueError) as error:  # SSLError is an OSError
            files = (self.ca_file, self.certificate_file, self.key_file)
            named = ", ".join(file for file in files if file is not None)
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ConfigError(f"cannot use {named or 'the system authorities'}: {reason}") from None
        return context
