"""What a student learns from where there is no text: the teacher writes it.

    tokens = sample(teacher, files, 200_000, 512, seed=0, folder=Path("samples"))

The teacher needs no prompts: half of the windows start with a random token of its vocabulary (Liu
et al., 2023, LLM-QAT, arXiv:2305.17888), half, where there is a chat template, inside an empty turn
of the user's, so that it asks the questions too (Xu et al., 2024, Magpie, arXiv:2406.08464).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from compile.checkpoint import TokenizerFiles
from compile.distill.machine import room_for
from compile.distill.teacher import Teacher
from compile.errors import CompileError
from edge_llm.chat_template import ChatTemplate
from edge_llm.files import replacing

Tokens = NDArray[np.int32]  # [n, length]
Report = Callable[[float], None]

LIKELIEST = 50  # tokens drawn from: the tail is noise that the teacher would not repeat
SPARE = 2  # times what is taken to fit still does: a quarter of the memory is counted on
CONTENT = "\x00"  # stands for a message; no tokenizer has it in a template


def sample(
    teacher: Teacher,
    files: TokenizerFiles,
    tokens: int,
    length: int,
    seed: int,
    folder: Path,
    report: Report = lambda _done: None,
) -> Tokens:
    """At least ``tokens`` tokens that the teacher writes, in windows of ``length``.

    Args:
        teacher: who writes.
        files: the student's tokenizer, whose turns it writes; of the same vocabulary.
        tokens, length: how much.
        seed: the same gives the same text.
        folder: where finished parts are kept; a second call with the same arguments goes on there.
        report: is told the share that is done.

    CompileError where the parts that are kept were written with more memory than there is here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    openings = Openings(files)
    windows = -(-tokens // length)
    room = min(teacher.together(length), windows)
    together = _together(folder) or room
    parts = -(-windows // together)
    written = []
    for part in range(parts):
        path = folder / f"{part:04}-{together}-windows.npy"
        if not path.exists():
            if together > SPARE * room:
                raise CompileError(
                    f"{folder}: begun with {together} texts at once, for which there was memory; "
                    f"here it is for {room}: go on there, or remove the folder"
                )
            random = torch.Generator().manual_seed(seed * 1_000_003 + part)
            count = min(together, windows - part * together)
            writers = [Writer(openings, chat=i % 2 == 1, random=random) for i in range(count)]
            told = partial(_report, report, part, parts)
            with room_for(f"{count} texts of {length} tokens at once: free some and go on"):
                text = write(teacher, openings.vocabulary, writers, length, random, told)
            with replacing(path) as file:
                np.save(file, text)
        written.append(np.load(path))
        report((part + 1) / parts)
    return np.concatenate(written)


def _together(folder: Path) -> int | None:
    """How many windows the first part has that an interrupted call has left, if it has left any.

    A machine may have room for more or fewer by now.
    """
    left = next(folder.glob("0000-*-windows.npy"), None)
    return None if left is None else int(left.name.split("-")[1])


def _report(report: Report, part: int, parts: int, done: float) -> None:
    report((part + done) / parts)


class Openings:
    """How a window begins and what a turn's end is followed by."""

    def __init__(self, files: TokenizerFiles) -> None:
        tokenizer = Tokenizer.from_str(files.tokenizer_json.decode())
        self.ends = frozenset(files.eos_token_ids)
        special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self.vocabulary = tokenizer.get_vocab_size()
        self.ordinary = [i for i in range(self.vocabulary) if i not in special]
        bos = files.bos_token_id if files.add_bos else None
        self.start = [] if bos is None else [bos]
        self.ask: list[int] = []
        self.answer: list[int] = []
        if files.chat_template is not None:
            template = ChatTemplate(files.chat_template, files.bos_token, files.eos_token)
            before, _, after = template.render([{"role": "user", "content": CONTENT}]).partition(
                CONTENT
            )
            self.ask, self.answer = (
                tokenizer.encode(text, add_special_tokens=False).ids for text in (before, after)
            )

    def free(self, random: torch.Generator) -> list[int]:
        """A random first token."""
        pick = int(torch.randint(len(self.ordinary), (1,), generator=random))
        return [*self.start, self.ordinary[pick]]


class Writer:
    """One window being written: tokens that must come next, and whose turn it is."""

    def __init__(self, openings: Openings, chat: bool, random: torch.Generator) -> None:
        self._openings, self._random = openings, random
        self._chat = chat and bool(openings.ask)
        self._asking = False
        self._queue: deque[int] = deque()
        self._begin()

    def next(self, drawn: int) -> int:
        """The token to go on with, if the model would go on with ``drawn``."""
        if not self._queue and drawn in self._openings.ends:
            if self._asking:  # the question is asked: the teacher answers it
                self._queue.extend(self._openings.answer)
                self._asking = False
            else:
                self._queue.append(drawn)
                self._begin()
        return self._queue.popleft() if self._queue else drawn

    def _begin(self) -> None:
        self._queue.extend(self._openings.ask if self._chat else self._openings.free(self._random))
        self._asking = self._chat


@torch.no_grad()
def write(
    teacher: Teacher,
    vocabulary: int,
    writers: Sequence[Writer],
    length: int,
    random: torch.Generator,
    report: Report,
) -> Tokens:
    """A window of ``length`` by each of the writers, int32 [writers, length]."""
    text = np.empty((len(writers), length), np.int32)
    text[:, 0] = [writer.next(0) for writer in writers]  # which begin with tokens of their own
    generation = teacher.generation(length)
    for position in range(1, length):
        logits = generation(torch.from_numpy(text[:, position - 1 : position]).long())
        known = logits[:, :vocabulary].float()  # a teacher's matrix may have some rows more
        likeliest, ids = (x.cpu() for x in known.topk(min(LIKELIEST, known.shape[-1])))
        picks = torch.multinomial(likeliest.softmax(-1), 1, generator=random)
        drawn = ids.gather(1, picks)[:, 0].tolist()
        text[:, position] = [w.next(token) for w, token in zip(writers, drawn, strict=True)]
        report(position / length)
    return text
