"""The OpenAI-compatible HTTP API on a Unix socket, or on loopback TCP where that is asked for."""
