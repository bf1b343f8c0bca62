"""A text's tokens and what two models make of each.

parts = split(Path("essay.txt"), content, [model, reference], window=None)
predictions = score(parts, model, reference)
listed = list(tokens(model.hf, parts))
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer as HFTokenizer

from compile.errors import CompileError
from compile.evaluate.predictors import Predictor
from edge_llm.evaluation import Predictions, windows
from edge_llm.token_bytes import TokenBytes

WINDOW = 512  # tokens, where the models take as many


@dataclass(frozen=True)
class Token:
    """One token of a text.

    Attributes:
        id: its number in the vocabulary.
        text: its characters; one that several tokens share is the last one's.
        place: its index in the predictions; None where a window begins and nothing predicted it.
    """

    id: int
    text: str
    place: int | None


def split(
    path: Path, content: str, models: Sequence[Predictor], window: int | None
) -> list[list[int]]:
    """The text's tokens in windows of at least 2; CompileError where a model does not fit it.

    Args:
        path: the text's file, for messages.
        content: the text.
        models: the one that is measured, then the reference if there is one.
        window: tokens that are seen at once; None for ``WINDOW``, or what the models take.
    """
    for model in models:
        if window is not None and window > model.context:
            raise CompileError(
                f"--window {window}: {model.name} takes {model.context} tokens at once; give that"
            )
    size = window or min(WINDOW, *(model.context for model in models))
    if len(models) == 2:
        check_vocabulary(*models)
    first, *others = (windows(model, content, size) for model in models)
    if not first:
        raise CompileError(f"{path}: has fewer than 2 tokens, so there is nothing to predict")
    if any(other != first for other in others):
        names = " and ".join(model.name for model in models)
        raise CompileError(f"{path}: {names} split it into different tokens: not comparable")
    return first


def check_vocabulary(model: Predictor, against: Predictor) -> None:
    """CompileError where a row of logits means something else to each."""
    ours, theirs = (asked.hf.get_vocab(with_added_tokens=True) for asked in (model, against))
    if ours == theirs and model.vocabulary == against.vocabulary:
        return
    different = len({token for token, _ in ours.items() ^ theirs.items()})
    raise CompileError(
        f"{model.name} and {against.name} have different vocabularies ({model.vocabulary} and "
        f"{against.vocabulary} ids, {different} tokens differ): compare models of one tokenizer"
    )


def tokens(hf: HFTokenizer, parts: Sequence[list[int]]) -> Iterator[Token]:
    """The text's tokens, whose characters together are the text."""
    spell = TokenBytes(hf).decoder()
    characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
    place = 0
    for part in parts:
        for index, token in enumerate(part):
            text = characters.decode(spell(token))
            yield Token(token, text, place if index else None)
            place += index > 0


def token_lines(listed: Iterable[Token], predictions: Predictions) -> Iterator[str]:
    """A JSON object for each token that was predicted."""
    for token in listed:
        if (at := token.place) is None:
            continue
        line = {"id": token.id, "text": token.text, "surprise": predictions.surprise[at]}
        if predictions.kl:
            line["against_surprise"] = predictions.reference_surprise[at]
            line["kl"] = predictions.kl[at]
        yield json.dumps(line, ensure_ascii=False) + "\n"
