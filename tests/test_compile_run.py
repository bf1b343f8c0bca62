"""A recipe's run: what it makes, what it makes again, and what it refuses before it begins.

The whole way, distillation and all, is walked in tests/test_compile_recipe_path.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import BPE

from compile.checkpoint import Q4, TokenizerFiles
from compile.corpus import first_tokens, picked, read_tokens, split
from compile.distill.match import check_match
from compile.errors import CompileError
from compile.importer import open_checkpoint
from compile.pipeline import Options
from compile.quantize.formats import Choices
from compile.recipe import (
    Budget,
    Data,
    Evaluation,
    Quantization,
    Recipe,
    Source,
    Student,
    Teacher,
    Training,
)
from compile.run import Run
from compile.work import opened
from targets import TARGETS
from tests.tiny_model import CORPUS, write_tiny_gguf, write_tiny_huggingface, write_tiny_teacher

LENGTH = 16
TEXT = "\n".join(CORPUS * 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    write_tiny_gguf(folder / "tiny.gguf", quantization="F16")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    return folder


def a_recipe(folder: Path, **tables: object) -> Recipe:
    """Small, calibrated on the text; ``tables`` are :class:`Recipe`'s."""
    given: dict[str, object] = {
        "data": Data((folder / "text.txt",), length=LENGTH),
        "quantize": Quantization(tokens=256),
        "evaluate": Evaluation(tokens=64, prompts=("Hello?",), answer=2),
        **tables,
    }
    return Recipe(**given)  # type: ignore[arg-type]


def quantized(folder: Path, work: Path, recipe: Recipe) -> list[tuple[str, bool]]:
    """Walk the way up to the quantized model; returns the steps and whether each was there."""
    options = Options(str(folder / "tiny.gguf"), TARGETS["x86-64-v3"], folder / "tiny.edge")
    with opened(work) as steps:
        run = Run(recipe, options, steps, lambda _stage, _done: None)
        teacher = run.imported()
        data = run.data(teacher)
        model = run.quantized(run.distilled(teacher, data), data)
        assert isinstance(model.checkpoint.tensor("model.layers.1.mlp.down_proj.weight"), Q4)
        run.trials(data)
        return [(step.name, step.reused) for step in steps.steps]


def test_what_a_change_touches_is_made_again(folder: Path, tmp_path: Path) -> None:
    names = ["quantize", "evaluate-teacher", "evaluate-rounded", "evaluate-calibrated"]

    def reused(recipe: Recipe) -> list[bool]:
        steps = quantized(folder, tmp_path / "work", recipe)
        assert [name for name, _ in steps] == names
        return [there for _, there in steps]

    assert reused(a_recipe(folder)) == [False, False, False, False]
    assert reused(a_recipe(folder)) == [True, True, True, True]
    more = a_recipe(folder, quantize=Quantization(tokens=512))
    assert reused(more) == [False, True, True, False]
    asked = a_recipe(folder, evaluate=Evaluation(tokens=64, prompts=("Hello?", "Why?"), answer=2))
    assert reused(asked) == [True, False, True, False]
    (folder / "other.txt").write_text(TEXT[: len(TEXT) // 2], encoding="utf-8")
    other = a_recipe(folder, data=Data((folder / "other.txt",), length=LENGTH))
    assert reused(other) == [False, False, False, False]
    assert reused(a_recipe(folder)) == [True, True, True, True]  # nothing was thrown away


def test_a_budget_is_measured_once_and_kept(folder: Path, tmp_path: Path) -> None:
    for bits, there in ((5.0, False), (4.7, True)):
        recipe = a_recipe(
            folder, quantize=Quantization("nearest"), budget=Budget(bits_per_weight=bits)
        )
        steps = dict(quantized(folder, tmp_path, recipe))
        assert steps["sensitivity"] == there


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(bits_per_weight=3.0), "which take at least "),
        (Budget(megabytes=0.5), "which take at least "),
        (Budget(fits="x86-64-v3", context=64), "memory is not known"),
    ],
)
def test_a_budget_out_of_reach_is_refused_before_anything_is_made(
    folder: Path, tmp_path: Path, budget: Budget, message: str
) -> None:
    with pytest.raises(CompileError, match=message):
        quantized(folder, tmp_path, a_recipe(folder, budget=budget))
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize(
    ("options", "tables", "message"),
    [
        ({"formats": Choices(group=128)}, {}, "rows of .* which is not a multiple of 128"),
        ({"context": 10**6}, {}, "Tiny was trained for 1 to 256"),
        (
            {"context": 10**6},
            {"budget": Budget(bits_per_weight=5.0)},
            "Tiny was trained for 1 to 256",
        ),
        (
            {},
            {"evaluate": Evaluation(tokens=64, prompts=("Why? " * 300,))},
            r"\[evaluate\] prompts: 'Why\? .*': prompt is \d+ tokens, the limit",
        ),
        (
            {},
            {"student": Student(layers=4), "distill": Training(steps=1)},
            "a student of 4 layers and .*: Tiny has 2 and",
        ),
        (
            {},
            {
                "student": Student(parameters=0.9),
                "distill": Training(steps=1),
                "budget": Budget(bits_per_weight=3.0),
            },
            "which take at least ",
        ),
    ],
)
def test_what_cannot_be_packed_is_refused_before_anything_is_made(
    folder: Path, tmp_path: Path, options: dict[str, Any], tables: dict[str, Any], message: str
) -> None:
    source, output = str(folder / "tiny.gguf"), folder / "tiny.edge"
    chosen = Options(source, TARGETS["x86-64-v3"], output, **options)
    with opened(tmp_path) as steps, pytest.raises(CompileError, match=message) as caught:
        Run(a_recipe(folder, **tables), chosen, steps, lambda _stage, _done: None).imported()
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_text_to_compare_on_is_read_before_the_teacher_writes(
    folder: Path, tmp_path: Path
) -> None:
    recipe = a_recipe(folder, data=Data(length=LENGTH), evaluate=Evaluation((tmp_path / "none",)))
    with pytest.raises(CompileError, match="none is missing"):
        quantized(folder, tmp_path / "work", recipe)
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["lock"]


@pytest.mark.slow
def test_a_larger_teacher_writes_and_teaches(folder: Path, tmp_path: Path) -> None:
    def taught(teacher: Path) -> list[tuple[str, bool]]:
        recipe = a_recipe(
            folder,
            data=Data(tokens=2048, length=LENGTH),
            teacher=Teacher(Source(str(teacher))),
            distill=Training(2),
            finetune=Training(2),
        )
        return quantized(folder, tmp_path / "work", recipe)

    write_tiny_teacher(tmp_path / "qwen")
    made = taught(tmp_path / "qwen")
    assert [name for name, _ in made[:4]] == ["sample", "distill", "quantize", "finetune"]
    assert made[4][0] == "evaluate-original"
    assert not any(there for _, there in made)
    assert all(there for _, there in taught(tmp_path / "qwen"))
    write_tiny_huggingface(tmp_path / "llama")
    assert not any(there for name, there in taught(tmp_path / "llama") if "original" not in name)


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_tiny_huggingface, write_tiny_teacher])
def test_a_teacher_of_other_tokens_is_refused_before_anything_is_made(
    folder: Path, tmp_path: Path, write: Callable[..., object]
) -> None:
    write(tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    one, two = (token for token, number in vocabulary.items() if number in (300, 301))
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    path.write_text(json.dumps(content))
    recipe = a_recipe(folder, teacher=Teacher(Source(str(path.parent))), finetune=Training(2))
    with pytest.raises(CompileError, match=r"has another vocabulary: token 300, .* there; a"):
        quantized(folder, tmp_path / "work", recipe)
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["lock"]


def test_a_teacher_must_have_all_tokens_and_see_as_far(folder: Path, tmp_path: Path) -> None:
    files = open_checkpoint(folder / "tiny.gguf").tokenizer
    write_tiny_huggingface(tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    check_match(files, LENGTH, path.parent)
    with pytest.raises(CompileError, match=r"length 512: .*other was trained for 256 positions"):
        check_match(files, 512, path.parent)

    def changed(change: Callable[[dict[str, Any]], object], to: TokenizerFiles) -> TokenizerFiles:
        content = json.loads(to.tokenizer_json)
        change(content)
        return replace(to, tokenizer_json=json.dumps(content).encode())

    def add(name: str, special: bool) -> TokenizerFiles:
        token = {"id": 320, "content": name, "special": special, "single_word": False}
        token |= {"lstrip": False, "rstrip": False, "normalized": False}
        return changed(lambda content: content["added_tokens"].append(token), files)

    for name, special in (("<|tool|>", True), ("tool", False)):
        with pytest.raises(
            CompileError, match=f"token 320, {re.escape(repr(name))}, is none there"
        ):
            check_match(add(name, special), LENGTH, path.parent)
    check_match(add("[PAD320]", False), LENGTH, path.parent)

    def rename(content: dict[str, Any]) -> None:
        content["added_tokens"][2]["content"] = "<|end|>"
        vocabulary = content["model"]["vocab"]
        vocabulary["<|end|>"] = vocabulary.pop("<|im_end|>")

    check_match(changed(rename, files), LENGTH, path.parent)  # special ones may be called otherwise


@pytest.mark.slow
def test_a_teacher_whose_weights_are_a_pickle_is_refused(folder: Path, tmp_path: Path) -> None:
    write_tiny_teacher(tmp_path / "qwen")
    weights = tmp_path / "qwen" / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    recipe = a_recipe(folder, teacher=Teacher(Source(str(weights.parent))), finetune=Training(2))
    with pytest.raises(CompileError, match=r"qwen: transformers cannot open it either: ") as caught:
        quantized(folder, tmp_path / "work", recipe)
    assert "\n" not in str(caught.value)


def test_texts_too_short(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "line.txt").write_text("One line.\n", encoding="utf-8")
    line = a_recipe(folder, data=Data((tmp_path / "line.txt",), length=64))
    with pytest.raises(CompileError, match=r"line\.txt: \d+ tokens, of which a sequence takes 64"):
        quantized(folder, tmp_path, line)
    few = a_recipe(folder, evaluate=Evaluation((folder / "text.txt",), tokens=16))
    few = replace(few, data=replace(few.data, length=64))
    with pytest.raises(CompileError, match="16 tokens, of which a sequence takes 64: give more to"):
        quantized(folder, tmp_path, few)
    with pytest.raises(CompileError, match="length 512: Tiny was trained for 256 positions"):
        quantized(folder, tmp_path, a_recipe(folder, data=Data((folder / "text.txt",))))


def test_sequences_of_a_text(folder: Path) -> None:
    files = open_checkpoint(folder / "tiny.gguf").tokenizer
    tokens = read_tokens([folder / "text.txt"], files, LENGTH, 10**9)
    assert tokens.dtype == np.int32
    assert tokens.shape[1] == LENGTH
    twice = read_tokens([folder / "text.txt"] * 2, files, LENGTH, 10**9)
    np.testing.assert_array_equal(twice[: len(tokens)], tokens)
    assert read_tokens([folder / "text.txt"], files, LENGTH, 5 * LENGTH + 3).shape == (5, LENGTH)
    begun = read_tokens(
        [folder / "text.txt"], replace(files, bos_token_id=7, add_bos=True), LENGTH, 10**9
    )
    assert (begun[:, 0] == 7).all()
    np.testing.assert_array_equal(
        begun[:, 1:].reshape(-1)[: tokens.size], tokens.reshape(-1)[: begun[:, 1:].size]
    )
    learned, held = split(tokens, 3 * LENGTH)
    np.testing.assert_array_equal(np.concatenate((learned, held)), tokens)
    assert len(held) == min(3, len(tokens) // 10)
    with pytest.raises(CompileError, match="one sequence of 16 tokens, and one must be held out"):
        split(tokens[:1], 64)


@given(
    st.text("ab .\n", max_size=300),
    st.integers(1, 200),
)
def test_the_first_tokens_are_those_of_the_whole(text: str, most: int) -> None:
    tokenizer = Tokenizer(BPE({c: i for i, c in enumerate("ab .\n")} | {"ab": 5}, [("a", "b")]))
    whole = tokenizer.encode(text).ids
    with patch.multiple("compile.corpus", CHARACTERS=1, CUT=2):
        assert first_tokens(tokenizer, text, most) == whole[:most]


def test_a_pick_is_from_everywhere_and_the_same_again() -> None:
    tokens = np.arange(4000, dtype=np.int32).reshape(1000, 4)
    some = picked(tokens, 400, seed=1)
    assert some.shape == (100, 4)
    np.testing.assert_array_equal(some, picked(tokens, 400, seed=1))
    assert some[0, 0] < 400
    assert some[-1, 0] > 3600
    assert picked(tokens, 1, seed=1).shape == (1, 4)
    np.testing.assert_array_equal(picked(tokens, 10**6, seed=1), tokens)
