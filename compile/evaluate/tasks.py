"""Multiple choice by likelihood: which answer a model holds likeliest behind the question.

As the field's harnesses do it: the log-likelihood of the choice's tokens after the question's,
summed (accuracy), or divided by the choice's length in bytes (accuracy by length). Question and
choice go in as they are, with a space between them where neither has one.

questions = read_questions(Path("tasks.jsonl"))
chosen = [pick(model, question) for question in questions]
accuracy(questions, chosen)["acc"]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compile.errors import CompileError
from compile.evaluate.lines import read_lines
from compile.evaluate.predictors import Predictor
from compile.json_file import Settings
from edge_llm.evaluation import log_softmax


@dataclass(frozen=True)
class Question:
    """A question, its choices, and which of them is right; ``where`` names its line."""

    where: str
    text: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Pick:
    """The choices a model takes: by summed likelihood, and by likelihood a byte."""

    by_sum: int
    by_length: int


def read_questions(path: Path) -> list[Question]:
    """Lines of ``{"question": …, "choices": […], "answer": INDEX}``."""
    return [question(line) for line in read_lines(path)]


def question(line: Settings) -> Question:
    """One line, checked."""
    text, choices, answer = line.text("question"), line.texts("choices"), line.integer("answer")
    if not text.strip():
        raise CompileError(f"{line.path}: 'question' is empty")
    if len(choices) < 2 or not all(choice.strip() for choice in choices):
        raise CompileError(f"{line.path}: 'choices' must hold at least 2 texts, none of them empty")
    if not 0 <= answer < len(choices):
        raise CompileError(
            f"{line.path}: 'answer' is {answer}; with {len(choices)} choices it must be "
            f"0 to {len(choices) - 1}"
        )
    return Question(str(line.path), text, tuple(choices), answer)


def pick(model: Predictor, asked: Question) -> Pick:
    """What the model chooses."""
    sums = np.array([log_likelihood(model, asked, choice) for choice in asked.choices])
    lengths = np.array([len(choice.encode()) for choice in asked.choices])
    return Pick(int(sums.argmax()), int((sums / lengths).argmax()))


def log_likelihood(model: Predictor, asked: Question, choice: str) -> float:
    """Of the choice behind the question, in nats."""
    space = "" if asked.text[-1].isspace() or choice[0].isspace() else " "
    begin, ids = model.encode(asked.text), model.encode(asked.text + space + choice)
    if len(ids) > model.context:
        raise CompileError(
            f"{asked.where}: {len(ids)} tokens with a choice, {model.name} takes {model.context}"
        )
    # Where the choice changes how the question's end is split, its tokens begin there.
    same = (one == other for one, other in zip(begin, ids, strict=False))
    start = max(1, next((at for at, equal in enumerate(same) if not equal), len(begin)))
    log_p = log_softmax(model.logits(ids)[start - 1 : -1])
    return float(log_p[np.arange(len(log_p)), ids[start:]].sum())


def accuracy(questions: Sequence[Question], chosen: Sequence[Pick]) -> dict[str, float]:
    """Shares of right choices with their standard errors."""
    picked = {
        "acc": [pick.by_sum for pick in chosen],
        "acc_norm": [pick.by_length for pick in chosen],
    }
    figures = {}
    for name, indices in picked.items():
        share = float(np.mean(np.equal(indices, [asked.answer for asked in questions])))
        figures[name] = share
        figures[f"{name}_stderr"] = math.sqrt(share * (1 - share) / max(1, len(questions) - 1))
    return figures


def agreement(chosen: Sequence[Pick], others: Sequence[Pick]) -> float:
    """Share of questions in which both take the same choice, by summed likelihood."""
    return float(np.mean([a.by_sum == b.by_sum for a, b in zip(chosen, others, strict=True)]))
