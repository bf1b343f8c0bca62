"""One line a record on stderr, in logfmt, so that people and programs can read it.

    log = logging.getLogger(__name__)
    log.info("connected", extra=fields(broker="mqtt://127.0.0.1:1883"))

    time=2026-11-24T15:04:05.678Z level=info from=edge_llm.mqtt.service msg=connected broker=mqtt:…

Nothing that a client wrote and no secret belongs into a record.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback

MAX_VALUE = 500  # characters


def fields(**values: object) -> dict[str, dict[str, object]]:
    """What ``extra`` of a logging call takes: figures and names that go with the message."""
    return {"fields": values}


def start_logging() -> None:
    """Sends this package's records from INFO on, and others' from WARNING on, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Line())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("edge_llm").setLevel(logging.INFO)


class Line(logging.Formatter):
    """A record as one line of ``key=value``."""

    def format(self, record: logging.LogRecord) -> str:
        now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        pairs: dict[str, object] = {
            "time": f"{now}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "from": record.name,
            "msg": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            pairs["error"] = f"{type(error).__name__}: {error}"
            frames = traceback.extract_tb(error.__traceback__)
            pairs["where"] = " < ".join(f"{f.name}:{f.lineno}" for f in reversed(frames[-4:]))
        return " ".join(f"{key}={_quoted(value)}" for key, value in pairs.items())


def _quoted(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    text = text if len(text) <= MAX_VALUE else text[:MAX_VALUE] + "…"
    if text and text.isprintable() and not set(text) & set(' "=\\'):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())
