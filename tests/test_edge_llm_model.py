"""The Python interface, on an executor without a model and on a tiny compiled one."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge_llm
from edge_llm.answer import Answer
from edge_llm.artifact import Artifact
from edge_llm.errors import ArtifactError, ConfigError, RequestError
from edge_llm.model import Model
from edge_llm.request import Request
from tests.conftest import TinyArtifact
from tests.fake_executor import TOKENIZER, FakeExecutor
from tests.sample_artifact import write_sample


@pytest.fixture
def executor() -> FakeExecutor:
    return FakeExecutor()


@pytest.fixture
def model(executor: FakeExecutor, tmp_path: Path) -> Iterator[Model]:
    write_sample(tmp_path / "sample.edge")
    with Model(Artifact.open(tmp_path / "sample.edge"), executor, TOKENIZER) as model:
        yield model
        executor.gate.set()
    assert executor.closed


def test_an_answer_is_iterated_over_and_says_how_it_ended(model: Model) -> None:
    answer = model.generate("Hello", max_tokens=10)
    pieces = list(answer)
    assert answer.finished is not None
    assert "".join(pieces) == answer.finished.text
    assert answer.finished.completion_tokens == 10
    assert list(answer) == []  # it stays over


def test_a_prompt_is_a_chat_of_one_message(model: Model) -> None:
    wanted = "".join(model.generate("Hello", max_tokens=10))
    messages = [{"role": "user", "content": "Hello"}]
    assert "".join(model.generate(messages=messages, max_tokens=10)) == wanted
    assert "".join(model.generate("Hello", raw=True, max_tokens=10)) != wanted


def test_sampling_settings_arrive(model: Model) -> None:
    def text(**settings: float) -> str:
        return "".join(model.generate("Hello", max_tokens=20, **settings))  # type: ignore[arg-type]

    assert text(temperature=2.0, seed=1) == text(temperature=2.0, seed=1)
    assert text(temperature=2.0, seed=1) != text(temperature=2.0, seed=2)
    assert text(temperature=2.0, seed=1, top_k=1) == text()
    assert text(temperature=2.0, seed=1, top_p=0.0) == text()
    assert text(temperature=2.0, seed=1, min_p=1.0) == text()


def test_a_stop_string_may_be_given_alone(model: Model) -> None:
    text = "".join(model.generate("Hello", max_tokens=30))
    assert "".join(model.generate("Hello", max_tokens=30, stop=text[3:6])) == text[:3]
    assert "".join(model.generate("Hello", max_tokens=30, stop=[text[3:6]])) == text[:3]


def test_a_wrong_value_names_its_field(model: Model) -> None:
    with pytest.raises(RequestError, match=r"top_p must be between 0 and 1, not 1\.5") as caught:
        model.generate("Hello", top_p=1.5)
    assert caught.value.field == "top_p"


def test_a_cancelled_answer_ends(model: Model, executor: FakeExecutor) -> None:
    executor.gate.clear()
    answer = model.generate("a", raw=True)
    answer.cancel()
    executor.gate.set()
    list(answer)
    assert answer.finished is not None
    assert answer.finished.reason == "cancelled"


def test_an_answer_nobody_refers_to_stops(model: Model, executor: FakeExecutor) -> None:
    executor.gate.clear()
    answer = model.generate("a", raw=True)
    assert executor.steps_begun.acquire(timeout=60)
    del answer
    gc.collect()
    executor.gate.set()
    over = threading.Event()
    model.engine.submit(
        Request(prompt="b", raw=True, max_tokens=1), lambda event: over.set()
    )  # taken after the cancellation
    assert over.wait(60)
    assert len(executor.rows) <= 2
    assert model.engine.metrics().stopped_total == 1


def test_a_failure_is_raised_where_the_answer_is_read(model: Model, executor: FakeExecutor) -> None:
    executor.failures = [ValueError("boom")]
    answer = model.generate("Hello")
    for _ in range(2):
        with pytest.raises(RequestError, match="a step failed: boom"):
            next(answer)


def test_logits_take_any_list_of_integers(model: Model) -> None:
    ids = model.tokenizer.encode("Hello there").ids
    logits = model.logits(ids)
    assert logits.shape == (len(ids), 320)
    sames: list[Any] = [np.array(ids, np.uint16), [np.int64(token) for token in ids], tuple(ids)]
    for same in sames:
        np.testing.assert_array_equal(model.logits(same), logits)
    for wrong in ([[1, 2]], np.array([[1, 2]]), [1.5], ["a"], "ab", None, 7):
        with pytest.raises(RequestError, match="token_ids must be a list of integers"):
            model.logits(wrong)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="no tokens"):
        model.logits([])


def test_a_closed_model_says_so(model: Model) -> None:
    model.close()
    model.close()
    with pytest.raises(RequestError, match="the engine is closed"):
        model.generate("Hello")


# The compiled tiny model


def test_a_compiled_model_answers_and_scores(tiny_artifact: TinyArtifact) -> None:
    with edge_llm.load(tiny_artifact(), threads=1) as model:
        greedy = "".join(model.generate("The capital", raw=True, max_tokens=12))
        assert greedy == "".join(model.generate("The capital", raw=True, max_tokens=12))
        # In one prompt, in chunks, or grown token by token: the same bits.
        ids = model.encode("The capital")
        for _ in range(12):
            ids.append(int(model.logits(ids)[-1].argmax()))
        assert greedy == model.tokenizer.decode(ids[-12:])
        ids = model.encode("The capital of France is Paris. " * 10)
        assert len(ids) > 130
        logits = model.logits(ids)
        assert np.isfinite(logits).all()
        np.testing.assert_array_equal(logits[:7], model.logits(ids[:7]))


def test_many_answers_at_once_are_those_of_one_at_a_time(tiny_artifact: TinyArtifact) -> None:
    prompts = ["a", "Hello", "The capital of France is", "Water the plants when the soil"] * 3
    with edge_llm.load(tiny_artifact(), context=64, sequences=4) as model:

        def start(prompt: str, seed: int) -> Answer:
            return model.generate(prompt, raw=True, max_tokens=20, temperature=0.7, seed=seed)

        alone = ["".join(start(prompt, seed)) for seed, prompt in enumerate(prompts)]
        answers = [start(prompt, seed) for seed, prompt in enumerate(prompts)]
        assert ["".join(answer) for answer in answers] == alone


def test_a_process_may_end_in_the_middle_of_an_answer(tiny_artifact: TinyArtifact) -> None:
    code = (
        "import edge_llm\n"
        f"model = edge_llm.load({str(tiny_artifact())!r})\n"
        "answer = model.generate('Hello')\n"
        "next(answer)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_cannot_be_loaded_is_said_in_one_line(
    tiny_artifact: TinyArtifact, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match="cannot open"):
        edge_llm.load(tmp_path / "absent.edge")
    with pytest.raises(ConfigError, match="threads 0"):
        edge_llm.load(tiny_artifact(), threads=0)
    with pytest.raises(ConfigError, match="context 257"):
        edge_llm.load(tiny_artifact(), context=257)
