"""English to calibrate with, to train on, and held out, fetched as Debian packages.

texts = fetch_texts(Path(".cache/quality"))     # makes calibration.txt and the others there
texts.heldout.read_text()
"""

from __future__ import annotations

import gzip
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TypeAlias

from benchmarks.speed.workbench import PROJECT, run
from edge_llm.files import replacing

Reader: TypeAlias = Callable[[str], Iterator[str]]  # a file's text → its paragraphs

PASSAGE = 2500  # characters that follow each other in the work
SHORTEST = 120  # characters of a paragraph of prose
LETTERS = 0.78  # of its characters, at least
INLINE = frozenset(("a", "abbr", "acronym", "app", "b", "cite", "code", "em", "gui", "guiseq"))
INLINE |= {"i", "key", "q", "span", "strong", "tt", "u"}
UNREAD = frozenset(("head", "pre", "screen", "script", "style"))


@dataclass(frozen=True)
class Work:
    """What is taken of one package: ``characters`` in passages spread evenly over its files."""

    package: str
    files: str  # a glob in the unpacked package
    read: Reader
    characters: int


@dataclass(frozen=True)
class Texts:
    """The files; the held-out text has no work in common with the others."""

    calibration: Path
    training: Path  # more of the calibration's works
    heldout: Path


def fetch_texts(folder: Path) -> Texts:
    """The texts in ``folder``, made there the first time; needs apt-get and its network."""
    texts = Texts(*(folder / f"{name}.txt" for name in ("calibration", "training", "heldout")))
    folder.mkdir(parents=True, exist_ok=True)
    ours = [(PROJECT / "tests/data" / name).read_text(encoding="utf-8").strip() for name in OURS]
    for path, own, works in (
        (texts.calibration, [], CALIBRATION),
        (texts.training, [], [replace(work, characters=TRAINING) for work in CALIBRATION]),
        (texts.heldout, ours, HELDOUT),
    ):
        if not path.exists():
            content = "\n\n".join([*own, *interleaved(map(excerpts, works))])
            with replacing(path) as file:
                file.write(f"{content}\n".encode())
    return texts


def excerpts(work: Work) -> list[str]:
    """The work's passages; its package is unpacked in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="edge-llm-texts-") as name:
        folder = Path(name)
        run(["env", "--chdir", name, "apt-get", "--quiet", "download", work.package])
        (package,) = folder.glob("*.deb")
        run(["dpkg-deb", "--extract", str(package), name])
        paragraphs = prose(
            paragraph
            for path in sorted(folder.glob(work.files))
            for paragraph in work.read(content(path))
        )
        return passages(list(paragraphs), work.characters)


def content(path: Path) -> str:
    """A file's text, unpacked where it is compressed."""
    packed = path.suffix in (".dz", ".gz")
    return (gzip.decompress(path.read_bytes()) if packed else path.read_bytes()).decode(
        "utf-8", "replace"
    )


def prose(paragraphs: Iterable[str]) -> Iterator[str]:
    """Those that read as English sentences, each once, with single spaces."""
    seen = set()
    for paragraph in paragraphs:
        text = " ".join(paragraph.split())
        letters = sum(c.isascii() and (c.isalpha() or c == " ") for c in text)
        sentences = re.fullmatch(r"[A-Z\"'\u201c\u2018].*[.!?][\"'\u201d\u2019)]*", text)
        if len(text) >= SHORTEST and letters >= LETTERS * len(text) and sentences:
            if text not in seen:
                yield text
            seen.add(text)


def passages(paragraphs: Sequence[str], characters: int) -> list[str]:
    """Passages of about PASSAGE characters that begin evenly spaced; none repeats another's end.

    Args:
        paragraphs: the work.
        characters: what the passages have together, about; less where the work has less.
    """
    size = sum(map(len, paragraphs))
    count = max(1, min(characters, size) // PASSAGE)
    chosen: list[list[str]] = [[] for _ in range(count)]
    begin = 0
    for paragraph in paragraphs:
        part, place = divmod(begin * count, size)  # the work in count parts; place: in 1 / count
        if place < PASSAGE * count:
            chosen[part].append(paragraph)
        begin += len(paragraph)
    return ["\n\n".join(passage) for passage in chosen if passage]


def interleaved(works: Iterable[Sequence[str]]) -> list[str]:
    """The passages of all works in turns, so that any beginning is a mixture of all."""
    placed = [
        ((index + 0.5) / len(work), passage) for work in works for index, passage in enumerate(work)
    ]
    return [passage for _, passage in sorted(placed, key=lambda pair: pair[0])]


def marked_up(text: str) -> Iterator[str]:
    """The paragraphs of HTML or XML."""
    parser = Paragraphs()
    parser.feed(text)
    parser.close()
    return iter("".join(parser.pieces).split("\f"))


class Paragraphs(HTMLParser):
    """Collects text, with a form feed wherever a block begins or ends."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self._unread = 0  # elements around that are not prose

    def handle_starttag(self, tag: str, _attributes: object) -> None:
        self._boundary(tag, 1)

    def handle_endtag(self, tag: str) -> None:
        self._boundary(tag, -1)

    def handle_startendtag(self, tag: str, _attributes: object) -> None:
        self._boundary(tag, 0)

    def handle_data(self, data: str) -> None:
        if not self._unread:
            self.pieces.append(data)

    def _boundary(self, tag: str, step: int) -> None:
        if tag in UNREAD:
            self._unread += step
        if tag not in INLINE:
            self.pieces.append("\f")


def dictionary(text: str) -> Iterator[str]:
    """The paragraphs of dictd entries, without cross-references' braces and subject labels."""
    for paragraph in text.split("\n\n"):
        yield re.sub(r"^\s*(\d+\. )?(<[^>]*> )?|[{}]", "", paragraph)


def dialogue(text: str) -> Iterator[str]:
    """What a game's characters say and a narrator tells between them: lines in back quotes."""
    for line in re.findall(r"^\s*`([^`]*)`\s*$", text, re.MULTILINE):
        if "<" not in line:  # a name is to be filled in
            yield line


def game_help(text: str) -> Iterator[str]:
    """The paragraphs of Freeciv's translatable strings, up to its license."""
    ours, _, _ = text.partition('name = _("Copying")')
    for string in re.findall(r'_\("(.*?)"\)', ours.replace("\\\n", ""), re.DOTALL):
        yield from string.replace("\\n", "\n").split("\n\n")


OURS = ("english.txt", "story.txt")  # tests/data: everyday English, a story
CALIBRATION = (
    Work("anarchism", "usr/share/doc/anarchism/html/sec*.html", marked_up, 130_000),
    Work("debian-handbook", "usr/share/doc/*/html/en-US/*.html", marked_up, 110_000),
    Work("dict-foldoc", "usr/share/dictd/foldoc.dict.dz", dictionary, 90_000),
    Work("endless-sky-data", "usr/share/games/endless-sky/data/*.txt", dialogue, 110_000),
)
TRAINING = 1_400_000  # characters of each work, or all that it has
HELDOUT = (
    Work("gnome-user-docs", "usr/share/help/C/gnome-help/*.page", marked_up, 14_000),
    Work("debian-history", "usr/share/doc/*/docs/detailed.en.html", marked_up, 13_000),
    Work("freeciv-data", "usr/share/games/freeciv/helpdata.txt", game_help, 14_000),
)

if __name__ == "__main__":
    print(fetch_texts(PROJECT / ".cache" / "quality"))
