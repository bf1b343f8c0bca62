"""The artifact: written whole or not at all, mapped, and refused with any byte changed."""

from __future__ import annotations

import errno
import hashlib
import json
import lzma
import os
import random
import resource
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_llm import archive
from edge_llm.archive import ALIGNMENT
from edge_llm.artifact import MANIFEST, Artifact, write_artifact
from edge_llm.cpu import check_target, host
from edge_llm.errors import ArtifactError, TargetError
from edge_llm.executor import Executor
from edge_llm.manifest import Weights
from tests.device_logits import device_logits
from tests.sample_artifact import ENTRIES, sample_manifest, write_forged, write_sample

DATA = Path(__file__).parent / "data"
NAMES = [MANIFEST, *ENTRIES]

# A shared machine keeps no deadline, and an example that changes the sample also restores it.
IN_PLACE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of the sample artifact."""
    return write_sample(tmp_path_factory.mktemp("intact") / "sample.edge").read_bytes()


@pytest.fixture
def sample(tmp_path: Path, intact: bytes) -> Path:
    path = tmp_path / "sample.edge"
    path.write_bytes(intact)
    return path


def refusal(path: Path, **options: Any) -> str:
    """Why ``path`` is refused, without its own name before it."""
    with pytest.raises(ArtifactError) as caught:
        Artifact.open(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message.removeprefix(f"{path}: ")


def data_ranges(path: Path) -> dict[str, range]:
    """Where each entry's content is in the file."""
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    with Artifact.open(path) as artifact:
        offsets = {entry.name: entry.offset for entry in artifact.manifest.entries}
    offsets[MANIFEST] = ALIGNMENT
    return {name: range(offsets[name], offsets[name] + sizes[name]) for name in NAMES}


def flip(path: Path, offset: int, mask: int = 1) -> None:
    """Turn bits of one byte of the file around, in place."""
    with open(path, "r+b") as file:
        file.seek(offset)
        value = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([value ^ mask]))


# --- what is written is what is read -------------------------------------------------------------


def test_round_trip(sample: Path) -> None:
    with Artifact.open(sample) as artifact:
        assert replace(artifact.manifest, entries=()) == sample_manifest()
        assert [entry.name for entry in artifact.manifest.entries] == list(ENTRIES)
        assert {name: bytes(artifact.entry(name)) for name in ENTRIES} == ENTRIES
        assert artifact.size == sample.stat().st_size
        assert "chat_template.jinja" in artifact
        assert "libtvm_runtime.so" not in artifact
        with pytest.raises(KeyError):
            artifact.entry("libtvm_runtime.so")


def test_optional_entry_may_be_absent(tmp_path: Path) -> None:
    entries = {name: data for name, data in ENTRIES.items() if name != "chat_template.jinja"}
    write_artifact(tmp_path / "a.edge", sample_manifest(), entries)
    with Artifact.open(tmp_path / "a.edge") as artifact:
        assert "chat_template.jinja" not in artifact


def test_entries_from_files_and_views_give_the_same_bytes(tmp_path: Path, intact: bytes) -> None:
    sources: dict[str, bytes | memoryview | Path] = {}
    for name, data in reversed(ENTRIES.items()):
        (tmp_path / name).write_bytes(data)
        sources[name] = tmp_path / name if name != "code.so" else memoryview(data)
    written = write_artifact(tmp_path / "b.edge", sample_manifest(), sources)
    assert (tmp_path / "b.edge").read_bytes() == intact
    with Artifact.open(tmp_path / "b.edge") as artifact:
        assert artifact.manifest == written


def test_sha256_is_that_of_the_manifest_and_shown_by_zip_tools(sample: Path) -> None:
    with zipfile.ZipFile(sample) as file, Artifact.open(sample) as artifact:
        assert artifact.sha256 == hashlib.sha256(file.read(MANIFEST)).hexdigest()
        assert file.comment.decode().endswith(f"format 3, manifest sha256 {artifact.sha256}")


def test_a_released_file_of_format_1_gives_the_bits_that_it_gave(tmp_path: Path) -> None:
    """A model of one layer for any CPU with AVX2, as edge-llm 0.1.0 made it before format 2."""
    path = tmp_path / "format-1.edge"
    path.write_bytes(lzma.decompress((DATA / "format-1.edge.xz").read_bytes()))
    with Artifact.open(path) as artifact:
        layers = "int4-g32-asym"
        assert artifact.manifest.format == 1
        assert artifact.manifest.numerics.weights == Weights(layers, layers, layers, layers, "int8")
        try:
            check_target(artifact.manifest.target, host())
        except TargetError as error:
            pytest.skip(str(error))
    logits = np.asarray(device_logits(path, list(range(1, 9)), chunk=3))
    digest = "a496eadb4c48bdc4eab226d71405a94175abdd601a43945bb03f82470c4a49f0"
    assert hashlib.sha256(logits.tobytes()).hexdigest() == digest
    with Artifact.open(path) as artifact:
        executor = Executor(artifact, threads=1)
        with pytest.raises(ArtifactError, match=r"format-1\.edge: .*: compile it again"):
            _ = executor.draw
        executor.close()


def test_standard_tools_open_it(sample: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(sample) as file:
        assert file.testzip() is None
        assert file.namelist() == NAMES
        assert {info.compress_type for info in file.infolist()} == {zipfile.ZIP_STORED}
        file.extractall(tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in ENTRIES} == ENTRIES


def test_content_is_page_aligned_read_only_and_outlives_close(sample: Path) -> None:
    with Artifact.open(sample) as artifact:
        views = [artifact.entry(name) for name in ENTRIES]
        for entry, view in zip(artifact.manifest.entries, views, strict=True):
            assert entry.offset % ALIGNMENT == 0
            assert np.frombuffer(view, np.uint8).ctypes.data % os.sysconf("SC_PAGESIZE") == 0
            assert view.readonly
        artifact.close()
    assert [bytes(view) for view in views] == list(ENTRIES.values())
    with pytest.raises(ValueError, match="released"):
        artifact.entry("code.so")


def test_an_open_artifact_keeps_its_content_when_its_file_is_replaced(sample: Path) -> None:
    with Artifact.open(sample) as artifact:
        write_artifact(sample, sample_manifest(), {**ENTRIES, "code.so": b"new"})
        assert artifact.entry("code.so") == ENTRIES["code.so"]
    with Artifact.open(sample) as artifact:
        assert bytes(artifact.entry("code.so")) == b"new"


@settings(IN_PLACE)
@given(sizes=st.lists(st.integers(0, 3 * ALIGNMENT), min_size=4, max_size=4))
def test_any_sizes_make_a_sound_zip(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    names = ["code.so", "weights.bin", "tokenizer.json", "generation.json"]
    check_sizes(tmp_path_factory.mktemp("sizes") / "a.edge", dict(zip(names, sizes, strict=True)))


@pytest.mark.parametrize("padding", range(7))
def test_padding_too_short_for_an_extra_field(tmp_path: Path, padding: int) -> None:
    header = 30 + len("weights.bin")
    sizes = {"code.so": ALIGNMENT - header - padding, "weights.bin": 1}
    check_sizes(tmp_path / "a.edge", {**sizes, "tokenizer.json": 0, "generation.json": 0})


def check_sizes(path: Path, sizes: dict[str, int]) -> None:
    entries = {name: bytes(i % 256 for i in range(size)) for name, size in sizes.items()}
    memory = replace(sample_manifest().memory, weights_bytes=sizes["weights.bin"])
    write_artifact(path, sample_manifest(memory=memory, tensors=()), entries)
    with zipfile.ZipFile(path) as file, Artifact.open(path) as artifact:
        assert file.testzip() is None
        for entry in artifact.manifest.entries:
            assert file.read(entry.name) == artifact.entry(entry.name) == entries[entry.name]
            assert entry.offset % ALIGNMENT == 0


# --- damage --------------------------------------------------------------------------------------


def test_cut_short_at_every_boundary(sample: Path, intact: bytes) -> None:
    boundaries = {0, 1, 4, 29, 30, len(intact) - 1, len(intact) - 22}
    for where in data_ranges(sample).values():
        boundaries |= {where.start + d for d in (-1, 0, 1)} | {where.stop + d for d in (-1, 0, 1)}
    for length in sorted(boundaries):
        sample.write_bytes(intact[:length])
        message = refusal(sample, verify=False)
        assert "cut short" in message or length < 4


def test_cut_short_names_the_section(sample: Path, intact: bytes) -> None:
    for name, where in data_ranges(sample).items():
        sample.write_bytes(intact[: where.start + len(where) // 2])
        assert refusal(sample).startswith(f"is cut short in {'' if name == MANIFEST else 'the '}")
        assert name in refusal(sample)


@settings(IN_PLACE)
@given(data=st.data())
def test_cut_short_anywhere(sample: Path, intact: bytes, data: st.DataObject) -> None:
    sample.write_bytes(intact[: data.draw(st.integers(0, len(intact) - 1))])
    refusal(sample, verify=False)


def test_grown(sample: Path, intact: bytes) -> None:
    sample.write_bytes(intact + b"\0")
    assert refusal(sample) == "has 1 bytes after its end"


def test_every_byte_of_headers_directory_and_manifest_is_checked(
    sample: Path, intact: bytes
) -> None:
    ranges = data_ranges(sample)
    offsets = {*ranges[MANIFEST], *range(ranges["generation.json"].stop, len(intact))}
    begin = 0
    for name, where in ranges.items():  # header and extra field, then zeros to the content
        offsets |= {*range(begin, begin + 30 + len(name) + 4), where.start - 1}
        begin = where.stop
    for offset in offsets:
        flip(sample, offset)
        refusal(sample, verify=False)
        flip(sample, offset)
    with Artifact.open(sample):
        pass


@settings(IN_PLACE, max_examples=300)
@given(data=st.data())
def test_any_flipped_bit_is_found(sample: Path, intact: bytes, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, len(intact) - 1))
    mask = 1 << data.draw(st.integers(0, 7))
    flip(sample, offset, mask)
    refusal(sample)
    flip(sample, offset, mask)


def test_damage_names_the_section(sample: Path) -> None:
    ranges = data_ranges(sample)
    for name, where in ranges.items():
        flip(sample, where.start + len(where) // 2)
        assert refusal(sample).startswith(f"{name} is damaged")
        flip(sample, where.start + len(where) // 2)
    flip(sample, ranges["weights.bin"].start - 1)
    assert refusal(sample) == "the header of weights.bin is damaged"
    flip(sample, ranges["weights.bin"].start - 1)
    flip(sample, ranges["generation.json"].stop)
    assert refusal(sample) == "the directory at the end is damaged"


def test_without_verify_contents_are_not_read(sample: Path) -> None:
    flip(sample, data_ranges(sample)["weights.bin"].start)
    with Artifact.open(sample, verify=False) as artifact:
        assert artifact.entry("weights.bin")[0] == ENTRIES["weights.bin"][0] ^ 1


# --- files that were never an artifact, and forged ones ------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"PK\3\4", "is cut short in its first header"),
        (b"GGUF\3\0\0\0" + bytes(100), "is a GGUF model, not an artifact: compile it"),
        (b"#!/bin/sh\n", "is not an artifact of edge-llm"),
        (b"PK\5\6" + bytes(18), "is not an artifact of edge-llm"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "other.edge"
    path.write_bytes(content)
    assert refusal(path).startswith(message)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path).endswith("Is a directory")
    assert refusal(tmp_path / "absent.edge").endswith("No such file or directory")
    assert refusal(tmp_path / "pipe").endswith("Not a regular file")
    assert refusal(Path("/dev/zero")).endswith("Not a regular file")


def test_other_zip_files(tmp_path: Path, sample: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("readme.txt", b"text")
    assert "does not begin with manifest.json" in refusal(tmp_path / "a.zip")
    for kind, message in (
        (zipfile.ZIP_DEFLATED, "manifest.json is compressed or encrypted"),
        (zipfile.ZIP_STORED, "is cut short in the"),
    ):
        with zipfile.ZipFile(tmp_path / "b.zip", "w", kind) as file:
            for name, data in [(MANIFEST, manifest_of(sample)), *ENTRIES.items()]:
                file.writestr(name, data)
        assert refusal(tmp_path / "b.zip").startswith(message)


def manifest_of(path: Path) -> bytes:
    with zipfile.ZipFile(path) as file:
        return file.read(MANIFEST)


def test_newer_format_is_told_whatever_else_the_file_holds(tmp_path: Path) -> None:
    path = write_forged(tmp_path / "new.edge", b'{"format": 4, "sections": []}')
    newer = "manifest.json: format 4, this edge-llm reads up to 3: upgrade edge-llm"
    assert refusal(path) == newer


def absurd_size(entries: list[Any]) -> None:
    entries[1]["size"] = 2**32 - 2


def absurd_offset(entries: list[Any]) -> None:
    entries[1]["offset"] = 2**32 - 2


def negative_size(entries: list[Any]) -> None:
    entries[1]["size"] = -1


def unknown_entry(entries: list[Any]) -> None:
    entries[0]["name"] = "code.dll"


def missing_entry(entries: list[Any]) -> None:
    del entries[2]


def other_order(entries: list[Any]) -> None:
    entries.reverse()


def entry_twice(entries: list[Any]) -> None:
    entries.append(entries[0])


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (absurd_size, "manifest.json: memory.weights_bytes: differs from the size of weights.bin"),
        (absurd_offset, "manifest.json: weights.bin is at 4294967294, not at"),
        (negative_size, "manifest.json: entries[1].size: must be an integer from 0"),
        (unknown_entry, "manifest.json: entries: code.dll is unknown to this edge-llm"),
        (missing_entry, "manifest.json: entries: tokenizer.json is missing"),
        (other_order, "manifest.json: entries: not in the order of the format"),
        (entry_twice, "manifest.json: entries: code.so is listed twice"),
    ],
)
def test_forged_entry_table(sample: Path, forge: Any, message: str) -> None:
    document = json.loads(manifest_of(sample))
    forge(document["entries"])
    write_forged(sample, json.dumps(document).encode(), bytes(1000))
    assert refusal(sample).startswith(message)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (2**32 - 2**20, "is cut short in the header of code.so"),
        (2**32 - 2**17, "4295229462 bytes are more than the 4 GiB that the format allows"),
        (2**47, "140737488748566 bytes are more than the 4 GiB that the format allows"),
        (2**63, "manifest.json: memory.weights_bytes: must be an integer from 0 to"),
    ],
)
def test_absurd_lengths_that_agree_with_each_other(sample: Path, size: int, message: str) -> None:
    document = json.loads(manifest_of(sample))
    document["memory"]["weights_bytes"] = document["entries"][1]["size"] = size
    for entry in document["entries"][2:]:
        entry["offset"] += (
            size // ALIGNMENT - len(ENTRIES["weights.bin"]) // ALIGNMENT
        ) * ALIGNMENT
    write_forged(sample, json.dumps(document, indent=1).encode())
    assert refusal(sample).startswith(message)


def test_absurd_length_of_the_manifest(sample: Path) -> None:
    content = bytearray(sample.read_bytes())
    content[18:22] = (2**32 - 1).to_bytes(4, "little")
    sample.write_bytes(content)
    assert refusal(sample) == "manifest.json has 4294967295 bytes, more than the 16777216 allowed"


@settings(IN_PLACE)
@given(data=st.binary(max_size=300).map(lambda data: b"PK\3\4" + data))
def test_any_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "a.edge"
    path.write_bytes(data)
    refusal(path)


# --- writing: whole or not at all ----------------------------------------------------------------


def write_refusal(path: Path, entries: Any = ENTRIES, **changes: Any) -> str:
    with pytest.raises(ArtifactError) as caught:
        write_artifact(path, sample_manifest(**changes), entries)
    return str(caught.value).removeprefix(f"cannot write {path}: ")


def test_nothing_is_written_that_could_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.edge"
    model = replace(sample_manifest().model, layers=0)
    assert write_refusal(path, model=model).startswith("model.layers: must be an integer from 1")
    assert write_refusal(path, {**ENTRIES, "notes.txt": b""}).startswith("entries: notes.txt is")
    assert write_refusal(path, {"code.so": b""}) == "entries: weights.bin is missing"
    assert "differs from the size of weights.bin" in write_refusal(
        path, {**ENTRIES, "weights.bin": b""}
    )
    absent = {**ENTRIES, "code.so": tmp_path / "absent.so"}
    assert write_refusal(path, absent) == "No such file or directory"
    assert list(tmp_path.iterdir()) == []
    assert write_refusal(tmp_path / "absent" / "a.edge") == "No such file or directory"


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes: a write fails as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 100, 2 * ALIGNMENT, 4 * ALIGNMENT])
def test_disk_full_leaves_the_old_file(sample: Path, intact: bytes, size: int) -> None:
    with disk_of(size):
        assert write_refusal(sample, {**ENTRIES, "code.so": b"new"}) == "File too large"
    assert sample.read_bytes() == intact
    assert list(sample.parent.iterdir()) == [sample]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_failure_at_the_last_moment_leaves_the_old_file(
    sample: Path, intact: bytes, call: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        assert sample.read_bytes() == intact
        assert len(list(sample.parent.iterdir())) == 2
        raise error

    monkeypatch.setattr(os, call, fail)
    with pytest.raises((ArtifactError, KeyboardInterrupt)):
        write_artifact(sample, sample_manifest(), {**ENTRIES, "code.so": b"new"})
    assert sample.read_bytes() == intact
    assert list(sample.parent.iterdir()) == [sample]


def test_layout_of_a_random_archive_covers_every_byte_once() -> None:
    rng = random.Random(7)
    sizes = [(f"{i}.bin", rng.randrange(3 * ALIGNMENT)) for i in range(9)]
    offsets = archive.place(sizes)
    files = [
        archive.File(name, at, size, 0) for (name, size), at in zip(sizes, offsets, strict=True)
    ]
    pieces = archive.structure(files, b"comment")
    spans = [(piece.offset, len(piece.data)) for piece in pieces]
    spans += [(file.offset, file.size) for file in files]
    end = 0
    for offset, size in sorted(spans):
        assert offset == end
        end += size
