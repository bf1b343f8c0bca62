"""Decides, from what waits and what runs, what the next step computes. Pure: nothing is changed.

Continuous batching (Yu et al. 2022, Orca): every step holds one row for each sequence that is
decoding, so that all of them advance by a token for one pass over the weights, and fills what is
left of its rows with prompts, in the order they were started. A sequence starts when there are
pages for all it may ever need, so nothing is ever taken from it again; and in strict order, so
that a long one is not overtaken for ever by short ones.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import repeat

from edge_llm.batch import Batch
from edge_llm.kv_pages import pages_for
from edge_llm.sequence import Sequence


@dataclass(frozen=True)
class Limits:
    """What a step and the cache can hold.

    Attributes:
        max_rows: rows of a step, and so sequences that run at once.
        page_positions: positions of a page.
        table_pages: columns of a page table: pages of the longest sequence.
    """

    max_rows: int
    page_positions: int
    table_pages: int


@dataclass(frozen=True)
class Chunk:
    """The next tokens of a sequence.

    Attributes:
        sequence: whose.
        rows: how many of its pending tokens; 1 where it is decoding.
        wanted: how many of the last of these rows' logits are asked for.
    """

    sequence: Sequence
    rows: int
    wanted: int


@dataclass(frozen=True)
class Plan:
    """One step.

    Attributes:
        admitted: waiting sequences that start with this step, in this order.
        chunks: what is computed, decoding sequences first.
    """

    admitted: tuple[Sequence, ...]
    chunks: tuple[Chunk, ...]


def order(waiting: Iterable[Sequence]) -> list[Sequence]:
    """The order in which sequences are started: by priority, then as they came."""
    return sorted(waiting, key=lambda sequence: (-sequence.priority, sequence.ticket))


def expired(sequences: Iterable[Sequence], now: float) -> list[Sequence]:
    """Those whose deadline has passed."""
    return [s for s in sequences if s.deadline is not None and s.deadline <= now]


def make_plan(
    waiting: Iterable[Sequence], running: list[Sequence], free_pages: int, limits: Limits
) -> Plan:
    """The next step.

    Args:
        waiting: sequences not started; each fits into an empty cache.
        running: sequences started and not over, in the order they were started.
        free_pages: pages of the cache that nobody owns.
        limits: of the executor.

    Returns:
        A plan with at least one chunk, unless nothing waits and nothing runs.
    """
    admitted: list[Sequence] = []
    for sequence in order(waiting):
        needed = pages_for(sequence.limit, limits.page_positions)
        if needed > free_pages or len(running) + len(admitted) == limits.max_rows:
            break
        free_pages -= needed
        admitted.append(sequence)
    return Plan(tuple(admitted), tuple(_chunks([*running, *admitted], limits.max_rows)))


def _chunks(running: list[Sequence], max_rows: int) -> Iterable[Chunk]:
    decoding = [sequence for sequence in running if sequence.pending == 1]
    for sequence in decoding:
        yield _chunk(sequence, 1)
    left = max_rows - len(decoding)
    for sequence in running:
        rows = min(left, sequence.pending)
        if sequence.pending > 1 and rows > 0:
            yield _chunk(sequence, rows)
            left -= rows


def _chunk(sequence: Sequence, rows: int) -> Chunk:
    if sequence.consumer.every_row:
        return Chunk(sequence, rows, rows)
    return Chunk(sequence, rows, int(rows == sequence.pending))  # the next token, when it is due


def make_batch(chunks: tuple[Chunk, ...]) -> Batch:
    """The rows of the chunks, one after the other; their sequences own their pages by now."""
    tokens, positions, sequences = array("i"), array("i"), array("i")
    tables, wanted = array("i"), array("i")
    for index, chunk in enumerate(chunks):
        start = chunk.sequence.computed
        stop = start + chunk.rows
        tokens.extend(chunk.sequence.tokens[start:stop])
        positions.extend(range(start, stop))
        sequences.extend(repeat(index, chunk.rows))
        tables.extend(chunk.sequence.table)
        wanted.extend(range(len(tokens) - chunk.wanted, len(tokens)))
    return Batch(tokens, positions, sequences, tables, wanted)


def steady(chunks: tuple[Chunk, ...]) -> bool:
    """All decode: as long as nobody comes or goes, the next step has the same chunks."""
    return all(chunk.rows == chunk.wanted == 1 for chunk in chunks)


def advance(batch: Batch, chunks: tuple[Chunk, ...]) -> None:
    """Makes the batch of steady chunks that of the next step, in place: it is quicker so."""
    for index, chunk in enumerate(chunks):
        at = chunk.sequence.computed
        batch.tokens[index] = chunk.sequence.tokens[at]
        batch.positions[index] = at
