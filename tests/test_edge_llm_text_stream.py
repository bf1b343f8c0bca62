"""Streamed text: whatever the pieces, the same text, whole characters, no part of a stop string."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from edge_llm.text_stream import TextStream

# Few letters, so that stop strings occur and overlap; é, the umbrella and an emoji so that
# characters of two, three and four bytes are cut.
LETTERS = st.text(alphabet="abcé☂😀", max_size=30)
STOPS = st.lists(st.text(alphabet="abcé☂😀", min_size=1, max_size=4), max_size=4)


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    """``data`` cut at the given places."""
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(places)]


def streamed(data: bytes, cuts: list[int], stop: list[str]) -> list[str]:
    stream = TextStream(stop)
    texts = [stream.feed(piece) for piece in pieces_of(data, cuts)]
    texts.append(stream.finish())
    assert stream.text == "".join(texts)
    return texts


def cut_at_stop(text: str, stop: list[str]) -> str:
    """The oracle: reads character by character and ends where a stop string is complete."""
    for end in range(len(text) + 1):
        complete = [s for s in stop if text[:end].endswith(s)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


@given(data=st.binary(max_size=40), cuts=st.lists(st.integers(0, 40)))
def test_any_bytes_in_any_pieces_give_their_decoding(data: bytes, cuts: list[int]) -> None:
    assert "".join(streamed(data, cuts, [])) == data.decode("utf-8", errors="replace")


@given(text=LETTERS, cuts=st.lists(st.integers(0, 80)))
def test_no_piece_ends_within_a_character(text: str, cuts: list[int]) -> None:
    texts = streamed(text.encode(), cuts, [])
    assert "\ufffd" not in "".join(texts)
    assert "".join(texts) == text


@given(text=LETTERS, cuts=st.lists(st.integers(0, 80)), stop=STOPS)
def test_text_ends_before_the_first_complete_stop_string(
    text: str, cuts: list[int], stop: list[str]
) -> None:
    assert "".join(streamed(text.encode(), cuts, stop)) == cut_at_stop(text, stop)


@given(text=LETTERS, stop=STOPS)
def test_nothing_given_out_is_part_of_a_later_stop_string(text: str, stop: list[str]) -> None:
    wanted = cut_at_stop(text, stop)
    stream = TextStream(stop)
    for byte in text.encode():
        stream.feed(bytes([byte]))
        assert wanted.startswith(stream.text)


@given(text=LETTERS)
def test_without_stop_strings_nothing_is_held_back(text: str) -> None:
    stream = TextStream()
    for end, letter in enumerate(text, start=1):
        stream.feed(letter.encode())
        assert stream.text == text[:end]


def test_a_false_beginning_is_given_out_as_soon_as_it_is_one() -> None:
    stream = TextStream(["\n\nUser"])
    assert stream.feed(b"Hello.\n\nUs") == "Hello."
    assert stream.feed(b"e it.") == "\n\nUse it."
    assert not stream.stopped


def test_after_a_stop_string_everything_is_dropped() -> None:
    stream = TextStream(["##"])
    assert stream.feed(b"one##two") == "one"
    assert stream.stopped
    assert stream.feed(b"three") == ""
    assert stream.finish() == ""
    assert stream.text == "one"


def test_an_unfinished_character_at_the_end_is_replaced() -> None:
    stream = TextStream()
    assert stream.feed("é".encode()[:1]) == ""
    assert stream.finish() == "\ufffd"
