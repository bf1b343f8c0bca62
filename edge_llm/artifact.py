"""The artifact: one file that holds a compiled model and all it takes to run it.

A zip whose entries are stored, each at a multiple of 64 KiB, so that standard tools open it and a
device maps it: opening is checking, nothing is copied. The format's spec is docs/artifact.md.

>>> with Artifact.open("smollm2-rpi5.edge") as artifact:                        # doctest: +SKIP
...     print(artifact.manifest.model.name, len(artifact.entry("weights.bin")))
"""

from __future__ import annotations

import hashlib
import mmap
import zlib
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from types import TracebackType

from edge_llm import archive
from edge_llm.archive import File, Piece
from edge_llm.errors import ArtifactError
from edge_llm.files import map_file, replacing
from edge_llm.hashing import Hashing
from edge_llm.manifest import Entry, Manifest

MANIFEST = "manifest.json"
LARGEST = archive.LIMIT  # bytes of an artifact
MANIFEST_LIMIT = 16 * 2**20  # bytes

# In the order of the file; True where an artifact must have it.
ENTRIES = {
    "code.so": True,
    "weights.bin": True,
    "tokenizer.json": True,
    "chat_template.jinja": False,
    "generation.json": True,
}


class Artifact:
    """An artifact that is mapped and checked; make one with :meth:`open`.

    Attributes:
        path: where it was opened.
        manifest: what it says about itself.
        sha256: of manifest.json, which holds the hash of every other entry: the artifact's name
            among all others.
        size: bytes of the file.
    """

    path: Path
    manifest: Manifest
    sha256: str
    size: int

    def __init__(self, path: Path, manifest: Manifest, sha256: str, view: memoryview) -> None:
        self.path = path
        self.manifest = manifest
        self.sha256 = sha256
        self.size = len(view)
        self._view = view
        self._entries = {entry.name: entry for entry in manifest.entries}
        self._hashing: Hashing | None = None

    @classmethod
    def open(cls, path: str | PathLike[str], verify: bool = True) -> Artifact:
        """Map a file and check it against itself.

        Args:
            path: the artifact. It must be replaced, never altered, while it is mapped.
            verify: hash every entry too. Without it the zip's structure and the manifest are
                still checked, but not the content of the other entries.

        Raises:
            ArtifactError: the file cannot be read, is cut short, altered, of another format
                version, or no artifact; the message names the file and the part at fault.
        """
        path = Path(path)
        try:
            view = map_file(path)
        except OSError as error:
            raise ArtifactError(f"cannot open {path}: {error.strerror}") from None
        try:
            artifact = cls._check(path, view)
        except ArtifactError as error:
            raise ArtifactError(f"{path}: {error}") from None
        if verify:
            artifact.hash_beside()
            for name in artifact._entries:
                artifact.entry(name).release()
        return artifact

    @classmethod
    def _check(cls, path: Path, view: memoryview) -> Artifact:
        content = archive.first_entry(view, MANIFEST, MANIFEST_LIMIT)
        manifest = _parse_manifest(content)
        digest = hashlib.sha256(content).hexdigest()
        files = _files(content, manifest.entries)
        pieces = archive.structure(files, _comment(manifest, digest))
        _check_length(view, files, pieces)
        _check_structure(view, pieces)
        return cls(path, manifest, digest, view)

    def hash_beside(self) -> None:
        """Hash every entry on a thread; :meth:`entry` gives none before it is known to be whole.

        A start has other things to do meanwhile.
        """
        self._hashing = Hashing(
            (entry.name, self._slice(entry), entry.sha256) for entry in self._entries.values()
        )

    def entry(self, name: str) -> memoryview:
        """The content of an entry, in place and read-only; KeyError where there is none.

        It stays valid after :meth:`close`: the mapping goes with its last view.

        Raises:
            ArtifactError: it is being hashed, and damaged.
        """
        entry = self._entries[name]
        if self._hashing is not None:
            try:
                self._hashing.wait(name)
            except ArtifactError as error:
                raise ArtifactError(f"{self.path}: {error}") from None
        return self._slice(entry)

    def _slice(self, entry: Entry) -> memoryview:
        return self._view[entry.offset : entry.offset + entry.size]

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def forget_pages(self) -> None:
        """Give back the memory of pages read so far; those used again are mapped in again.

        Checking reads the whole file, running only the weights.
        """
        mapping = self._view.obj
        if isinstance(mapping, mmap.mmap):
            mapping.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Let go of the mapping. Idempotent."""
        self._view.release()

    def __enter__(self) -> Artifact:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def write_artifact(
    path: str | PathLike[str],
    manifest: Manifest,
    entries: Mapping[str, bytes | memoryview | Path],
) -> Manifest:
    """Write an artifact aside and put it in the place of ``path`` when it is whole.

    Args:
        path: the file to make or replace.
        manifest: without ``entries``; what it has there is replaced.
        entries: content by name, or the file that holds it: see ``ENTRIES``. Equal content and
            manifest give equal bytes.

    Returns:
        The manifest as written.

    Raises:
        ArtifactError: the manifest contradicts itself or the entries, or writing failed.
    """
    path = Path(path)
    try:
        contents = {name: _content(entries[name]) for name in _ordered(list(entries))}
        manifest, document = _complete(manifest, contents)
        files = _files(document, manifest.entries)
        pieces = archive.structure(files, _comment(manifest, hashlib.sha256(document).hexdigest()))
        with replacing(path) as file:
            parts = [memoryview(document), *contents.values()]
            for piece, data in zip(pieces[:-1], parts, strict=True):
                file.write(piece.data)
                file.write(data)
            file.write(pieces[-1].data)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror}") from None
    except ArtifactError as error:
        raise ArtifactError(f"cannot write {path}: {error}") from None
    return manifest


def _content(source: bytes | memoryview | Path) -> memoryview:
    return map_file(source) if isinstance(source, Path) else memoryview(source).cast("B")


def _complete(manifest: Manifest, contents: Mapping[str, memoryview]) -> tuple[Manifest, bytes]:
    """The manifest with its entry table, and its JSON."""
    table = [
        Entry(name, 0, len(data), hashlib.sha256(data).hexdigest(), zlib.crc32(data))
        for name, data in contents.items()
    ]
    document = b""
    while True:  # the length of the offsets' digits moves what follows: settles in a few rounds
        sizes = [(MANIFEST, len(document)), *((entry.name, entry.size) for entry in table)]
        offsets = archive.place(sizes)[1:]
        table = [replace(entry, offset=at) for entry, at in zip(table, offsets, strict=True)]
        manifest = replace(manifest, entries=tuple(table))
        if manifest.dump() == document:
            break
        document = manifest.dump()
    Manifest.parse(document)  # nothing is written that could not be read
    return manifest, document


def _ordered(names: list[str]) -> list[str]:
    """``names`` as the file has them; ArtifactError where one is unknown or missing."""
    if unknown := next((name for name in names if name not in ENTRIES), None):
        raise ArtifactError(f"entries: {unknown} is unknown to this edge-llm")
    if missing := next((name for name in ENTRIES if ENTRIES[name] and name not in names), None):
        raise ArtifactError(f"entries: {missing} is missing")
    return [name for name in ENTRIES if name in names]


def _parse_manifest(content: bytes) -> Manifest:
    try:
        manifest = Manifest.parse(content)
        names = [entry.name for entry in manifest.entries]
        if names != _ordered(names):
            raise ArtifactError("entries: not in the order of the format")
    except ArtifactError as error:
        raise ArtifactError(f"{MANIFEST}: {error}") from None
    return manifest


def _files(document: bytes, entries: tuple[Entry, ...]) -> list[File]:
    """All entries in the order of the file; ArtifactError where one is not at its place."""
    sizes = [(MANIFEST, len(document)), *((entry.name, entry.size) for entry in entries)]
    offsets = archive.place(sizes)
    files = [File(MANIFEST, offsets[0], len(document), zlib.crc32(document))]
    for entry, offset in zip(entries, offsets[1:], strict=True):
        if entry.offset != offset:
            raise ArtifactError(f"{MANIFEST}: {entry.name} is at {entry.offset}, not at {offset}")
        files.append(File(entry.name, offset, entry.size, entry.crc32))
    return files


def _comment(manifest: Manifest, digest: str) -> bytes:
    """The zip's own comment: what `unzip -z` shows."""
    return f"edge-llm artifact, format {manifest.format}, manifest sha256 {digest}".encode()


def _check_length(view: memoryview, files: list[File], pieces: list[Piece]) -> None:
    total = pieces[-1].end
    if len(view) > total:
        raise ArtifactError(f"has {len(view) - total} bytes after its end")
    if len(view) < total:
        ends = [(file.end, file.name) for file in files]
        ends = sorted(ends + [(piece.end, piece.name) for piece in pieces])
        name = next(name for end, name in ends if len(view) < end)
        raise ArtifactError(f"is cut short in the {name}: has {len(view)} of {total} bytes")


def _check_structure(view: memoryview, pieces: list[Piece]) -> None:
    for piece in pieces:
        if view[piece.offset : piece.end] != piece.data:
            raise ArtifactError(f"the {piece.name} is damaged")
