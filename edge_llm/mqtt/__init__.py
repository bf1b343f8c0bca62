"""Answers requests that come over MQTT 5 or 3.1.1; ``service`` is the file to read first."""
