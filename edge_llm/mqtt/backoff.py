"""How long to wait before the next attempt to connect.

Twice as long each time, up to half a minute, and never exactly as long as others wait: a hundred
devices that lose their broker at once do not come back at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable

LEAST = 0.5  # seconds
MOST = 30.0


class Backoff:
    """The waits of one device.

    Args:
        chance: draws a number from 0 to 1.
    """

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self._chance = chance
        self._attempts = 0

    def next(self, connected_seconds: float) -> float:
        """Seconds to wait after a connection that lasted so long, 0 if there was none.

        Only one that lasted counts as a success: a broker that lets us in and throws us out again
        is not asked more often than one that is not there.
        """
        if connected_seconds >= MOST:
            self._attempts = 0
        longest = min(MOST, LEAST * 2.0**self._attempts)
        self._attempts = min(self._attempts + 1, 16)
        return longest * (0.5 + 0.5 * self._chance())
