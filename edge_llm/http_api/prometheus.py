"""Metrics in the text format of Prometheus, version 0.0.4."""

from __future__ import annotations

from dataclasses import fields

from edge_llm.metrics import Metrics

HELP = {
    "queued": "Requests waiting to start.",
    "active": "Requests being prefilled or decoded.",
    "pages_free": "Free pages of the KV cache.",
    "pages_total": "Pages of the KV cache.",
    "finished_total": "Requests ended by a stop or by their length.",
    "stopped_total": "Requests ended by cancellation or by their deadline.",
    "failed_total": "Requests ended by an error after they were accepted.",
    "refused_total": "Requests that were not accepted.",
    "prompt_tokens_total": "Prompt tokens of ended requests.",
    "completion_tokens_total": "Generated tokens of ended requests.",
    "decode_tokens_per_second": "Median of the last finished requests.",
    "time_to_first_token_seconds": "Median of the last finished requests, queueing included.",
    "resident_bytes": "Memory of the process that is in RAM.",
}
GAUGES = frozenset(("pages_total",))  # a total that does not count up


def exposition(metrics: Metrics) -> str:
    """One metric after the other, each with its help and type."""
    lines = []
    for field in fields(metrics):
        name = f"edge_llm_{field.name}"
        counts = field.name.endswith("_total") and field.name not in GAUGES
        lines.append(f"# HELP {name} {HELP[field.name]}")
        lines.append(f"# TYPE {name} {'counter' if counts else 'gauge'}")
        lines.append(f"{name} {getattr(metrics, field.name)}")
    return "\n".join(lines) + "\n"
