"""Boards as they are sold: how much memory they have, and the target that they take.

>>> BOARDS["rpi-zero2w"].target, BOARDS["rpi-zero2w"].usable >> 20
('rpi3', 320)
"""

from __future__ import annotations

from dataclasses import dataclass

SYSTEM_BYTES = 192 << 20  # an estimate: kernel, services and the GPU's share, without a desktop
GIB = 1 << 30


@dataclass(frozen=True)
class Board:
    """A board, or its variant with so much memory.

    Attributes:
        name: as recipes have it.
        target: a name in ``TARGETS``.
        memory: bytes it is sold with.
    """

    name: str
    target: str
    memory: int

    @property
    def usable(self) -> int:
        """Bytes that a program may take beside the system."""
        return self.memory - SYSTEM_BYTES


BOARDS: dict[str, Board] = {
    board.name: board
    for board in (
        Board("rpi-zero2w", "rpi3", GIB // 2),
        Board("rpi3", "rpi3", GIB),
        *(Board(f"rpi4-{size}gb", "rpi4", size * GIB) for size in (1, 2, 4, 8)),
        *(Board(f"rpi5-{size}gb", "rpi5", size * GIB) for size in (2, 4, 8, 16)),
    )
}
