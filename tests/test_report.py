"""The report: one page that needs nothing else, in light and dark, on a desk and on a phone; and its figures."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from alenv.compare import compare
from alenv.figures import INK, draw
from alenv.grid import Cell, expand
from alenv.report import page
from alenv.verdict import Verdict

CONFIG: dict[str, Any] = {
    "datasets": ["digits", "iris"], "selectors": [{"name": "random_pick"}], "fixed": ["uniform", "margin"], "seeds": 2,
    "budget": {"initial": 12, "batch": 4, "rounds": 2}, "executor": "inline", "device": "cpu",
}  # fmt: skip
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Verdict]:
    root = tmp_path_factory.mktemp("comparison")
    return root, compare(CONFIG, root)


class Tags(HTMLParser):
    """Notes every tag, and every one left open."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        self.open += [tag] * (tag not in self.VOID)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_loads_nothing(made: tuple[Path, Verdict]) -> None:
    text = (made[0] / "report.html").read_text(encoding="utf-8")
    tags = Tags(text)
    assert tags.open == []
    assert "script" not in {tag for tag, _ in tags.seen}
    for tag, attributes in tags.seen:
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name) or "data:"
            assert value.startswith(("data:", "#")), f"<{tag} {name}={value[:60]}> would be loaded"
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []


def test_the_page_says_who_is_better_and_how_it_was_made(made: tuple[Path, Verdict]) -> None:
    text = (made[0] / "report.html").read_text(encoding="utf-8")
    for policy in made[1].policies:
        assert f"<b>{policy}</b>: {made[1].sentence(policy)}" in text
    assert "2 seeds: too few" in text
    assert "batch: 4" in text
    assert "color-scheme: light dark" in text
    assert INK not in text, "figures take the colour of the page's text"


def test_names_are_escaped(made: tuple[Path, Verdict]) -> None:
    verdict = Verdict(made[1].rounds.replace({"policy": {"margin": "<script>alert(1)</script>"}}))
    cell = Cell("<b>", "standard", "x & y", 0, {})
    text = page(verdict, [], [(cell, "<i>log</i>")], {"a": "<u>"})
    assert "<script>" not in text
    assert "&lt;b&gt; / x &amp; y / seed 0" in text
    assert "&lt;i&gt;log&lt;/i&gt;" in text
    assert "a: &lt;u&gt;" in text


def test_figures_are_files_that_programs_can_read(made: tuple[Path, Verdict]) -> None:
    folder = made[0] / "figures"
    names = {file.name for file in folder.iterdir()}
    assert names == {
        "curves_digits.svg", "curves_iris.svg", "ranks.svg", "seconds.svg", "weights_digits.svg", "weights_iris.svg",
        "queried_digits_random_pick.png", "queried_digits_uniform.png", "queried_digits_margin.png",
    }  # fmt: skip
    for file in folder.glob("*.svg"):
        assert ElementTree.parse(file).getroot().tag.endswith("svg")
    for file in folder.glob("*.png"):
        with Image.open(file) as picture:
            assert picture.width > 100


def test_figures_name_policies_and_strategies(made: tuple[Path, Verdict]) -> None:
    text = (made[0] / "figures" / "curves_digits.svg").read_text()
    assert all(f">{policy}<" in text for policy in made[1].policies)
    assert all(f">{name}<" in (made[0] / "figures" / "weights_iris.svg").read_text() for name in ("badge", "kmeans", "bald")[1:])


def test_one_run_of_one_policy_makes_a_page_too(made: tuple[Path, Verdict]) -> None:
    rounds = made[1].rounds
    verdict = Verdict(rounds[(rounds["policy"] == "margin") & (rounds["seed"] == 0) & (rounds["task"] == "iris")])
    figures = draw(verdict, [], made[0])
    assert [figure.name for figure in figures] == ["curves_iris", "seconds"]
    assert "one seed, so nothing can be said" in page(verdict, figures, [], {})


def test_what_is_gone_from_the_grid_is_gone_from_the_figures(made: tuple[Path, Verdict], tmp_path: Path) -> None:
    shutil.copytree(made[0], tmp_path / "copy")
    compare({**CONFIG, "datasets": ["iris"]}, tmp_path / "copy")
    assert not list((tmp_path / "copy" / "figures").glob("*digits*"))
    assert len(list((tmp_path / "copy" / "cells").iterdir())) == len(expand({**compare_defaults(), **CONFIG}))


def compare_defaults() -> dict[str, Any]:
    from alenv.compare import _defaults

    return _defaults()


@pytest.mark.slow
@pytest.mark.parametrize("width", [380, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_the_page_without_sideways_scrolling(
    made: tuple[Path, Verdict], tmp_path: Path, width: int, dark: bool
) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("chromium is absent")
    text = (made[0] / "report.html").read_text(encoding="utf-8").replace("&", "&amp;").replace('"', "&quot;")
    probe = "[document.documentElement.scrollWidth, getComputedStyle(document.body).backgroundColor].join(';')"
    inner = text.replace("</body>", f"<script>document.title = {probe}</script></body>")
    told = "<script>f.onload = () => document.title = f.contentDocument.title</script>"
    (tmp_path / "probe.html").write_text(f'<iframe id=f style="width:{width}px;border:0" srcdoc="{inner}"></iframe>{told}')
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    words += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=3000", "--dump-dom"]
    done = subprocess.run([*words, f"file://{tmp_path}/probe.html"], capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r"<title>(\d+);rgba?\((\d+)", done.stdout)
    assert found, done.stdout[:300]
    assert int(found[1]) <= width
    assert (int(found[2]) < 100) is dark
