"""The report: whole in one file, nothing in it taken for markup, readable figures."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from compile.report.content import Curve
from compile.report.curves import draw
from compile.report.page import human_bytes, human_count, human_time, render, write_report
from compile.report.tell import curve
from compile.work import Step
from tests.sample_report import sample_report

VOID = {"meta", "path", "use", "rect", "br", "link", "img"}


class Outline(HTMLParser):
    """The page's elements, checked to nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_one_file_with_all_that_it_needs(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", sample_report())
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    tags = [tag for tag, _ in outline.seen]
    assert tags.count("svg") == 1
    assert not {"script", "link", "img", "iframe"} & set(tags)
    links = [attrs.get("href") or attrs.get("xlink:href") for _, attrs in outline.seen]
    assert all(link.startswith("#") for link in links if link)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_texts_stay_texts() -> None:
    page = render(sample_report())
    assert "Is &lt;b&gt;this&lt;/b&gt; safe &amp; sound?" in page
    assert "Yes &lt;i&gt;&amp; no&lt;/i&gt;." in page
    for part in (
        "45.3 MB",
        "1.64 × the teacher's 12.4",
        "2 h 20 min",
        "made by an earlier run",
    ):
        assert part in page.replace("\xa0", " ")


def test_the_same_run_gives_the_same_page() -> None:
    assert render(sample_report()) == render(sample_report())


def test_curves_take_their_colours_from_the_page_and_share_no_ids() -> None:
    values = {"loss": [(1, 4.0), (2, 3.0)], "kl": [(1, 1.0)]}
    one, other = draw(Curve("distill", values)), draw(Curve("finetune", values))
    for svg in (one, other):
        assert svg.startswith("<svg")
        assert "var(--accent)" in svg
        assert not re.search(r"#0[1-4]0[1-4]0[1-4]", svg)
    assert not set(re.findall(r' id="([^"]*)"', one)) & set(re.findall(r' id="([^"]*)"', other))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (human_bytes(999), "999 B"),
        (human_bytes(97_625_344), "97.6 MB"),
        (human_bytes(2.5e9), "2.5 GB"),
        (human_count(134_515_008), "134.5 M"),
        (human_count(12), "12"),
        (human_time(4.25), "4.2 s"),
        (human_time(59.99), "60.0 s"),
        (human_time(185), "3 min 5 s"),
        (human_time(8040), "2 h 14 min"),
    ],
)
def test_figures_for_people(text: str, wanted: str) -> None:
    assert text.replace("\xa0", " ") == wanted


def test_a_curve_has_the_points_that_were_measured(tmp_path: Path) -> None:
    step = Step("finetune", "", tmp_path, 1.0, 0, {"shown": "these"})
    assert curve(step, "these") is None
    (tmp_path / "curve.jsonl").write_text(
        '{"step": 50, "loss": 2.0, "kl": null}\n{"step": 100, "loss": 1.5, "kl": 0.5}\n'
    )
    loss = [(50, 2.0), (100, 1.5)]
    assert curve(step, "these") == Curve("finetune", {"loss": loss, "kl": [(100, 0.5)]})
    assert curve(step, "others") == Curve("finetune", {"loss": loss})  # held out by now
