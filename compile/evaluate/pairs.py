"""Answers to prompts, and how much of a reference's wording they have.

pairs = read_pairs(Path("pairs.jsonl"))
given = [answer(model, pair, raw=False, max_tokens=128) for pair in pairs]
overlap(given, [pair.reference for pair in pairs])["bleu"]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compile.errors import CompileError
from compile.evaluate.lines import read_lines
from compile.evaluate.predictors import Predictor
from edge_llm.errors import RequestError


@dataclass(frozen=True)
class Pair:
    """What is asked and what a good answer says; ``where`` names its line."""

    where: str
    prompt: str
    reference: str


def read_pairs(path: Path) -> list[Pair]:
    """Lines of ``{"prompt": …, "reference": …}``."""
    return [
        Pair(str(line.path), line.text("prompt"), line.text("reference"))
        for line in read_lines(path)
    ]


def answer(model: Predictor, pair: Pair, raw: bool, max_tokens: int) -> str:
    """The model's greedy answer."""
    try:
        return model.generate(pair.prompt, raw, max_tokens)
    except RequestError as error:
        raise CompileError(f"{pair.where}: {model.name}: {error}") from None


def overlap(given: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Scores from 0 to 100, each the larger the better.

    BLEU (Papineni et al. 2002) and chrF (Popović 2015) over all answers together, as sacrebleu
    defines them; ROUGE-1, -2 and -L (Lin 2004), the mean F1 of the answers. ROUGE's words are runs
    of a-z and 0-9: it says nothing of other scripts.
    """
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(kinds)
    rouge = [scorer.score(wanted, got) for wanted, got in zip(references, given, strict=True)]
    return {
        "bleu": sacrebleu.corpus_bleu(given, [references]).score,
        "chrf": sacrebleu.corpus_chrf(given, [references]).score,
        **{
            kind: 100 * sum(scores[kind].fmeasure for scores in rouge) / len(rouge)
            for kind in kinds
        },
    }
