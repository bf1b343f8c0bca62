"""Turns the bytes of tokens, as they come, into text that can be sent at once.

Whatever the sizes of the pieces that go in, what comes out is the same text: the UTF-8 of all
bytes up to the first stop string. A character cut between two tokens waits for its other bytes;
text that may turn out to be the beginning of a stop string waits until that is decided::

    stream = TextStream(stop=("\\n\\n",))
    stream.feed(b"caf\\xc3")      # "caf"
    stream.feed(b"\\xa9\\n")      # "é"; the line end may be half a stop string
    stream.feed(b"\\nmore")      # "", and stream.stopped is True
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """The text of one answer.

    Args:
        stop: texts that end it; the one that is complete first counts, and of several complete at
            the same character the longest.

    Attributes:
        text: all that has been given out.
        stopped: a stop string was found; whatever is fed later is dropped.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._stop = tuple(stop)
        self._longest = max((len(text) - 1 for text in stop), default=0)  # that may be undecided
        # Bytes that are no UTF-8 become U+FFFD, as the tokenizers library decodes them.
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # decoded, but perhaps the beginning of a stop string

    def feed(self, data: bytes) -> str:
        """Takes the bytes of the next tokens; returns the text that is certain now."""
        return self._advance(self._decoder.decode(data), last=False)

    def finish(self) -> str:
        """The rest: what was held back, and U+FFFD for a character that was never completed."""
        return self._advance(self._decoder.decode(b"", final=True), last=True)

    def _advance(self, decoded: str, last: bool) -> str:
        if self.stopped:
            return ""
        if not self._stop:
            self.text += decoded
            return decoded
        held = self._held + decoded
        cut = self._first_stop(held)
        if cut is not None:
            self.stopped = True
        else:
            cut = len(held) if last else len(held) - self._undecided(held)
        piece, self._held = held[:cut], held[cut:]
        self.text += piece
        return piece

    def _first_stop(self, text: str) -> int | None:
        """Where the stop string begins that is complete first."""
        found = [
            (start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0
        ]
        return min(found)[1] if found else None

    def _undecided(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        for length in range(min(len(text), self._longest), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
