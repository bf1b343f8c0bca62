"""The work folder: nothing is made twice, nothing half-made is taken, one run at a time."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from compile.errors import CompileError
from compile.work import Work, content_key, opened

SLEEPER = """
import sys, time
from pathlib import Path
from compile.work import opened

def make(folder):
    (folder / "half").write_text("left behind")
    print("working", flush=True)
    time.sleep(600)
    return {}

with opened(Path(sys.argv[1])) as work:
    work.step("first", {"a": 1}, lambda folder: {"made": "by the process that was killed"})
    work.step("second", {"a": 1}, make)
"""


class Counter:
    """A step's work that counts how often it was done."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> Mapping[str, Any]:
        self.calls += 1
        (folder / "result").write_text("made")
        return {"calls": self.calls}


def test_a_step_is_done_once(tmp_path: Path) -> None:
    make = Counter()
    for reused in (False, True):
        with opened(tmp_path / "work") as work:
            step = work.step("train", {"seed": 1, "of": {"a": 2.5}}, make)
        assert (step.reused, step.facts) == (reused, {"calls": 1})
        assert (step.folder / "result").read_text() == "made"
        assert step.seconds >= 0
        assert step.peak_bytes > 0


def test_what_a_step_depends_on_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Counter()
    with opened(tmp_path) as work:
        one = work.step("train", {"seed": 1}, make)
        other = work.step("train", {"seed": 2}, make)
        assert make.calls == 2
        assert one.folder != other.folder
        assert work.step("train", {"seed": 1}, make).reused  # back to what it was
        monkeypatch.setattr("compile.work.version", lambda _name: "another")
        assert not work.step("train", {"seed": 1}, make).reused
    assert [step.name for step in work.steps] == ["train"] * 4


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"name": "train"}', None])
def test_a_damaged_note_is_no_note(tmp_path: Path, damage: bytes | None) -> None:
    make = Counter()
    with opened(tmp_path) as work:
        done = work.step("train", {"seed": 1}, make).folder / "done.json"
        if damage is None:  # as if it were of another step
            damage = json.dumps({**json.loads(done.read_bytes()), "key": "0"}).encode()
        done.write_bytes(damage)
        assert not work.step("train", {"seed": 1}, make).reused
        assert work.step("train", {"seed": 1}, make).reused


def test_a_killed_process_leaves_no_result_and_no_lock(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        with (
            pytest.raises(CompileError, match="another run works in this folder"),
            opened(tmp_path),
        ):
            pass
        process.send_signal(signal.SIGKILL)

    def go_on(folder: Path) -> Mapping[str, Any]:
        return {"seen": (folder / "half").read_text()}

    with opened(tmp_path) as work:
        first = work.step("first", {"a": 1}, Counter())
        second = work.step("second", {"a": 1}, go_on)
    assert first.facts == {"made": "by the process that was killed"}
    assert not second.reused
    assert second.facts == {"seen": "left behind"}


def test_time_of_failed_attempts_counts(tmp_path: Path) -> None:
    def fail(folder: Path) -> Mapping[str, Any]:
        raise CompileError("the loss is not a number")

    with opened(tmp_path) as work:
        with pytest.raises(CompileError, match="the loss"):
            work.step("train", {}, fail)
        (kept,) = tmp_path.glob("train-*/seconds")
        kept.write_text("3600")
        assert 3600 <= work.step("train", {}, Counter()).seconds < 3660


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    def make(folder: Path) -> Mapping[str, Any]:
        (folder / "result").write_bytes(bytes(1 << 20))
        return {}

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(tmp_path) as work:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
            with pytest.raises(
                CompileError, match=r"no space is left .* goes on from here"
            ) as caught:
                work.step("train", {}, make)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "\n" not in str(caught.value)
        assert not work.step("train", {}, make).reused


@pytest.mark.parametrize(
    "words",
    [
        os.strerror(28),
        "PytorchStreamWriter failed writing file data/0: file write failed",
        "16384 requested and 512 written",  # numpy.save
        "Not enough free space to write 20000000 bytes",
    ],
)
def test_libraries_tell_of_a_full_disk_in_words(tmp_path: Path, words: str) -> None:
    def make(folder: Path) -> Mapping[str, Any]:
        try:
            raise RuntimeError(f"[enforce fail at inline_container.cc:664] . {words}")
        except RuntimeError as error:
            raise CompileError("cannot write weights.safetensors") from error

    with opened(tmp_path) as work, pytest.raises(CompileError, match="no space is left"):
        work.step("train", {}, make)


def test_other_errors_are_what_they_are(tmp_path: Path) -> None:
    def make(folder: Path) -> Mapping[str, Any]:
        raise CompileError("not this one")

    with opened(tmp_path) as work, pytest.raises(CompileError, match=r"^not this one$"):
        work.step("train", {}, make)


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CompileError, match=r"cannot work in .*file"), opened(tmp_path / "file"):
        pass


def test_content_decides_the_key_of_a_source(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("12")
    b.write_text("3")
    before = content_key([a, b])
    os.utime(a, (0, 0))
    assert content_key([a, b]) == before
    a.write_text("1")
    b.write_text("23")
    assert content_key([a, b]) != before
    assert content_key([a]) != content_key([b])
    with pytest.raises(CompileError, match=r"cannot read .*none: No such file"):
        content_key([tmp_path / "none"])


def test_what_a_killed_attempt_was_writing_goes(tmp_path: Path) -> None:
    part = ".state.safetensors.0a1b2c3d.part"

    def killed(folder: Path) -> Mapping[str, Any]:
        (folder / part).touch()
        (folder / "state.safetensors").touch()
        raise CompileError("as if killed")

    def done(folder: Path) -> Mapping[str, Any]:
        return {"found": [path.name for path in folder.glob("*state*")]}

    with opened(tmp_path) as work:
        with pytest.raises(CompileError, match="as if killed"):
            work.step("train", {}, killed)
        assert work.step("train", {}, done).facts == {"found": ["state.safetensors"]}


def test_work_needs_no_folder_of_its_own_to_be_made(tmp_path: Path) -> None:
    with opened(tmp_path / "a" / "b") as work:
        assert isinstance(work, Work)
        assert work.path.is_dir()
