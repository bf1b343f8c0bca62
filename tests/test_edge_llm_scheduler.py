"""The scheduler's decisions: who starts, which rows a step computes, and what its batch says."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from edge_llm import buffers
from edge_llm.errors import RequestError
from edge_llm.events import Finished, Reason
from edge_llm.kv_pages import PagePool, pages_for
from edge_llm.scheduler import Limits, Plan, advance, expired, make_batch, make_plan, order, steady
from edge_llm.sequence import Sequence

LIMITS = Limits(max_rows=8, page_positions=4, table_pages=10)


@dataclass
class Nobody:
    """A consumer that takes what comes."""

    every_row: bool = False

    def accepted(self, position: int) -> None:
        pass

    def started(self) -> None:
        pass

    def take(self, sequence: Sequence, logits: list[buffers.Floats]) -> Reason | None:
        return None

    def end(self, sequence: Sequence, reason: Reason) -> Finished | None:
        return None

    def fail(self, error: RequestError) -> None:
        pass


def sequence(
    ticket: int,
    prompt: int = 3,
    limit: int = 8,
    computed: int = 0,
    priority: int = 0,
    deadline: float | None = None,
    every_row: bool = False,
) -> Sequence:
    """A sequence whose tokens are 100 times its ticket and on."""
    tokens = list(range(100 * ticket, 100 * ticket + prompt))
    made = Sequence(ticket, tokens, limit, Nobody(every_row), priority, deadline)
    made.computed = computed
    return made


def rows_of(plan: Plan) -> list[tuple[int, int]]:
    return [(chunk.sequence.ticket, chunk.rows) for chunk in plan.chunks]


def test_nothing_to_do_is_an_empty_plan() -> None:
    assert make_plan([], [], 10, LIMITS) == Plan((), ())


def test_waiting_sequences_start_by_priority_then_by_arrival() -> None:
    waiting = [sequence(3), sequence(1), sequence(4, priority=5), sequence(2, priority=-1)]
    assert [s.ticket for s in order(waiting)] == [4, 1, 3, 2]
    assert [s.ticket for s in make_plan(waiting, [], 10, LIMITS).admitted] == [4, 1, 3, 2]


def test_a_sequence_starts_when_there_are_pages_for_all_it_may_need() -> None:
    waiting = [sequence(1, prompt=1, limit=17)]  # 17 positions take 5 pages of 4
    assert make_plan(waiting, [], 4, LIMITS).admitted == ()
    assert make_plan(waiting, [], 5, LIMITS).admitted == (waiting[0],)


def test_a_long_sequence_is_not_overtaken_by_short_ones() -> None:
    waiting = [sequence(1, limit=4), sequence(2, limit=40), sequence(3, limit=4)]
    assert [s.ticket for s in make_plan(waiting, [], 5, LIMITS).admitted] == [1]


def test_no_more_sequences_run_than_a_step_has_rows() -> None:
    running = [sequence(ticket, computed=2) for ticket in range(6)]
    waiting = [sequence(ticket, limit=4) for ticket in range(6, 12)]
    plan = make_plan(waiting, running, 100, LIMITS)
    assert [s.ticket for s in plan.admitted] == [6, 7]
    assert rows_of(plan) == [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 2)]


def test_every_decoding_sequence_has_a_row_and_prompts_share_the_rest_in_order() -> None:
    running = [
        sequence(1, prompt=7, computed=2),  # 5 tokens of its prompt are left
        sequence(2, computed=2),
        sequence(3, prompt=8),
        sequence(4, computed=2),
    ]
    assert rows_of(make_plan([], running, 0, LIMITS)) == [(2, 1), (4, 1), (1, 5), (3, 1)]


def test_a_prompt_is_cut_into_chunks_of_a_step() -> None:
    long = sequence(1, prompt=20, limit=30)
    sizes = []
    while long.pending:
        (chunk,) = make_plan([], [long], 0, LIMITS).chunks
        sizes.append((chunk.rows, chunk.wanted))
        long.computed += chunk.rows
    assert sizes == [(8, 0), (8, 0), (4, 1)]


def test_a_scored_sequence_wants_every_row() -> None:
    plan = make_plan([], [sequence(1, prompt=20, limit=20, every_row=True)], 0, LIMITS)
    assert [chunk.wanted for chunk in plan.chunks] == [8]


def test_expired_are_those_whose_deadline_has_come() -> None:
    some = [sequence(1, deadline=5.0), sequence(2), sequence(3, deadline=5.1)]
    assert [s.ticket for s in expired(some, 5.0)] == [1]


def test_the_batch_lists_tokens_positions_tables_and_wanted_rows() -> None:
    decoding, filling = sequence(1, computed=2), sequence(2, prompt=6)
    scored = sequence(3, prompt=2, limit=2, every_row=True)
    limits = Limits(max_rows=6, page_positions=4, table_pages=3)
    for owner, pages in ((decoding, (7, 5)), (filling, (1, 0)), (scored, (9,))):
        owner.settle(pages, limits.table_pages)
    plan = make_plan([], [decoding, filling, scored], 0, limits)
    batch = make_batch(plan.chunks)
    assert batch.tokens.tolist() == [102, 200, 201, 202, 203, 204]
    assert batch.positions.tolist() == [2, 0, 1, 2, 3, 4]
    assert batch.sequences.tolist() == [0, 1, 1, 1, 1, 1]
    assert batch.tables.tolist() == [7, 5, 0, 1, 0, 0]
    assert batch.wanted.tolist() == [0]
    filling.computed, filling.length = 5, 6
    batch = make_batch(make_plan([], [filling, scored], 0, limits).chunks)
    assert batch.tokens.tolist() == [205, 300, 301]
    assert batch.wanted.tolist() == [0, 1, 2]
    arrays = (batch.tokens, batch.positions, batch.sequences, batch.tables, batch.wanted)
    assert {array.typecode for array in arrays} == {"i"}


@given(
    sizes=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12)), min_size=1, max_size=20),
    pages=st.integers(8, 30),
)
def test_everything_that_waits_is_computed_once_and_in_order(
    sizes: list[tuple[int, int]], pages: int
) -> None:
    """Runs a whole day's work with tokens of no meaning: all ends, nothing is computed twice.

    Where chunks are steady and nobody has ended, the next is the same and its batch the old one's.
    """
    waiting = [sequence(i, prompt, prompt + new) for i, (prompt, new) in enumerate(sizes)]
    pool, computed = PagePool(pages), dict.fromkeys(range(len(sizes)), 0)
    running: list[Sequence] = []
    while waiting or running:
        plan = make_plan(waiting, running, pool.free, LIMITS)
        for started in plan.admitted:
            waiting.remove(started)
            taken = pool.take(pages_for(started.limit, LIMITS.page_positions))
            started.settle(taken, LIMITS.table_pages)
            running.append(started)
        assert 0 < sum(chunk.rows for chunk in plan.chunks) <= LIMITS.max_rows
        batch, count = make_batch(plan.chunks), len(running)
        for chunk in plan.chunks:
            chunk.sequence.computed += chunk.rows
            computed[chunk.sequence.ticket] += chunk.rows
            if chunk.sequence.pending == 0:
                chunk.sequence.append(chunk.sequence.length)
            if chunk.sequence.length == chunk.sequence.limit:
                pool.give(chunk.sequence.pages)
                running.remove(chunk.sequence)
        if steady(plan.chunks) and len(running) == count:
            following = make_plan(waiting, running, pool.free, LIMITS)
            assert following == Plan((), plan.chunks)
            advance(batch, plan.chunks)
            assert batch == make_batch(following.chunks)
    assert computed == {i: prompt + new - 1 for i, (prompt, new) in enumerate(sizes)}
    assert pool.free == pages
