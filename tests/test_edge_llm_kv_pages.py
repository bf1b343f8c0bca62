"""The page pool: whatever is taken and given back, no page is lost and none has two owners."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edge_llm.kv_pages import PagePool, pages_for

PAGES = 12


class Owners(RuleBasedStateMachine):
    """Sequences that come and go in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(PAGES)
        self.owned: list[tuple[int, ...]] = []

    @rule(count=st.integers(0, PAGES))
    def take(self, count: int) -> None:
        if count <= self.pool.free:
            free = sorted(set(range(PAGES)) - {page for pages in self.owned for page in pages})
            self.owned.append(self.pool.take(count))
            assert list(self.owned[-1]) == free[:count]  # read upwards, as memory is fetched
        else:
            with pytest.raises(ValueError, match="pages asked for"):
                self.pool.take(count)

    @rule(which=st.integers(0, PAGES))
    def give(self, which: int) -> None:
        if which < len(self.owned):
            self.pool.give(self.owned.pop(which))

    @invariant()
    def every_page_is_free_or_has_one_owner(self) -> None:
        taken = [page for pages in self.owned for page in pages]
        assert len(taken) == len(set(taken))
        assert set(taken) <= set(range(PAGES))
        assert self.pool.free == PAGES - len(taken) == self.pool.total - len(taken)


TestOwners = Owners.TestCase


def test_a_page_cannot_be_given_back_twice() -> None:
    pool = PagePool(3)
    pages = pool.take(2)
    pool.give(pages)
    with pytest.raises(ValueError, match="was not taken"):
        pool.give(pages)
    with pytest.raises(ValueError, match="was not taken"):
        pool.give([3])
    assert pool.free == 3


def test_a_negative_number_of_pages_is_refused() -> None:
    with pytest.raises(ValueError, match="-1 pages"):
        PagePool(3).take(-1)


@given(positions=st.integers(0, 10_000), page_positions=st.integers(1, 64))
def test_pages_hold_their_positions_and_not_one_page_more(
    positions: int, page_positions: int
) -> None:
    pages = pages_for(positions, page_positions)
    assert (pages - 1) * page_positions < positions <= pages * page_positions or positions == 0
