"""What the board says of itself, where it says it: temperature and throttling."""

from __future__ import annotations

from pathlib import Path

TEMPERATURE = Path("/sys/class/thermal/thermal_zone0/temp")  # thousandths of a degree
THROTTLED = Path("/sys/devices/platform/soc/soc:firmware/get_throttled")  # Raspberry Pi, hex bits
NOW_BITS = 0xF  # under-voltage, frequency capped, throttled, temperature limit: at this moment


def temperature_celsius() -> float | None:
    """Of the CPU; None where the system does not tell."""
    text = _read(TEMPERATURE)
    try:
        return None if text is None else int(text) / 1000
    except ValueError:
        return None


def throttled() -> bool | None:
    """Whether the board is slowed down right now; None where the system does not tell."""
    text = _read(THROTTLED)
    try:
        return None if text is None else bool(int(text, 16) & NOW_BITS)
    except ValueError:
        return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
