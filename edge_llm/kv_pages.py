"""Which pages of the KV cache are free.

A page holds the keys and values of ``page_positions`` positions in every layer. A sequence owns
its pages from admission to its end; no page has two owners.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable


class PagePool:
    """The pages of one executor.

    Args:
        pages: how many there are; they are numbered from 0.
    """

    def __init__(self, pages: int) -> None:
        self.total = pages
        # Lowest first: a sequence's pages then follow one another upwards, as memory is fetched
        # ahead, and the memory of high ones is never touched as long as they are not needed.
        self._free = list(range(pages))  # a heap
        self._taken: set[int] = set()

    @property
    def free(self) -> int:
        """Pages nobody owns."""
        return len(self._free)

    def take(self, count: int) -> tuple[int, ...]:
        """``count`` pages for a new owner; ValueError where there are fewer."""
        if not 0 <= count <= len(self._free):
            raise ValueError(f"{count} pages asked for, {len(self._free)} are free")
        pages = tuple(heapq.heappop(self._free) for _ in range(count))
        self._taken.update(pages)
        return pages

    def give(self, pages: Iterable[int]) -> None:
        """Takes pages back; ValueError where one of them has no owner."""
        for page in pages:
            if page not in self._taken:
                raise ValueError(f"page {page} is given back and was not taken")
            self._taken.remove(page)
            heapq.heappush(self._free, page)


def pages_for(positions: int, page_positions: int) -> int:
    """Pages that so many positions take."""
    return -(-positions // page_positions)
