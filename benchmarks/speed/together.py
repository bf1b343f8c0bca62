"""How fast several sequences are decoded together, in a process of its own; prints tokens/s.

python -m benchmarks.speed.together FILE.edge SEQUENCES NEW_TOKENS THREADS
"""

from __future__ import annotations

import sys
from queue import SimpleQueue

import edge_llm
from edge_llm.events import Event, Failed, Finished
from edge_llm.model import Model
from edge_llm.request import Request

PROMPT_TOKENS = 16
FIRST = 100  # a token that every model has


def main() -> None:
    file, *numbers = sys.argv[1:]
    sequences, new, threads = map(int, numbers)
    with edge_llm.load(file, threads, sequences=sequences) as model:
        answer_together(model, sequences, new)
        print(answer_together(model, sequences, new))


def answer_together(model: Model, sequences: int, new: int) -> float:
    """Tokens a second after the first of each, all sequences together.

    The prompts are so short that one step computes them all, so every sequence begins and ends
    with the others.
    """
    events: SimpleQueue[Event] = SimpleQueue()
    for start in range(sequences):
        prompt = range(FIRST + start, FIRST + start + PROMPT_TOKENS)
        model.engine.submit_ids(prompt, Request(prompt="", max_tokens=new), (), events.put)
    seconds: list[float] = []
    while len(seconds) < sequences:
        event = events.get()
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Finished):
            seconds.append(event.decode_seconds)
    return sequences * (new - 1) / max(seconds)


if __name__ == "__main__":
    main()
