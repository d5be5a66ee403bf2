"""The report of a run over real cells, in a real browser, from files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cvm_batch.cli.demo import MODEL
from cvm_batch.cli.demo import SLIDES as DEMO_SLIDES
from cvm_batch.model.precision import Precision
from cvm_batch.model.registry import find_bundle
from cvm_batch.results.layout import slide_stem
from cvm_batch.results.report import lists
from cvm_batch.results.report.writing import write_report
from tests.results.nights import HOSTILE, screened

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium")
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}


@dataclass
class Opened:
    """A page, and all that went on in it."""

    page: Any
    folder: Path
    requests: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)

    def go(self, file: str) -> Any:
        self.page.goto((self.folder / file).as_uri())
        return self.page

    def names(self) -> list[str]:
        found: list[str] = self.page.locator(
            "#slides-table tbody th[scope=row] bdi"
        ).all_inner_texts()
        return found

    def check_quiet(self) -> None:
        assert self.console == []
        outside = [
            one for one in self.requests if not one.startswith((self.folder.as_uri(), "data:"))
        ]
        assert outside == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        # Chromium's own sandbox does not work for root, as whom CI runs.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        opened = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def real_cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the demo's slides, one of them damaged."""
    out = tmp_path_factory.mktemp("demo") / "results"
    bundle = find_bundle(MODEL)
    run_id = screened(DEMO_SLIDES, bundle, out, precision=Precision.FP32).run_id
    write_report(out)
    return out / "reports" / run_id


def opened_in(browser: Any, folder: Path, **how: Any) -> Opened:
    context = browser.new_context(**{"viewport": DESK} | how)
    opened = Opened(context.new_page(), folder)
    opened.page.on("request", lambda request: opened.requests.append(request.url))
    opened.page.on("console", lambda message: opened.console.append(message.text))
    opened.page.on("pageerror", lambda error: opened.console.append(str(error)))
    return opened


@pytest.fixture
def opened(browser: Any, real_cells: Path) -> Iterator[Opened]:
    found = opened_in(browser, real_cells)
    yield found
    found.check_quiet()
    found.page.context.close()


def files(folder: Path) -> list[str]:
    """One page of each kind, with a complete and a failed slide."""
    slides = sorted((folder / "slides").glob("*.html"), key=lambda path: path.stat().st_size)
    some = [f"slides/{path.name}" for path in (slides[0], slides[-1])]
    return [*(path.name for path in sorted(folder.glob("*.html"))), *some]


def test_from_the_front_page_to_cells_and_back(opened: Opened) -> None:
    page = opened.go("index.html")
    assert page.locator("h1").inner_text() == "Finished, 1 slide is not complete"
    assert page.locator("ol.first > li").count() == 9
    page.get_by_role("link", name="Worklist", exact=True).click()
    first = opened.names()[0]
    page.get_by_role("link", name=first).click()
    assert page.locator("h1").inner_text() == first
    widths = page.eval_on_selector_all(".gallery img", "all => all.map(each => each.naturalWidth)")
    assert len(widths) == 20
    assert min(widths) >= 64
    assert page.locator("svg.map text").count() == 20
    with page.expect_download() as download:
        page.get_by_role("link", name="Cells for QuPath").click()
    assert download.value.suggested_filename == f"{first}.geojson"
    page.get_by_role("link", name="Next").click()
    assert page.locator("h1").inner_text() != first
    page.go_back()
    page.go_back()
    assert opened.names()[0] == first


def test_sorting_and_filtering(opened: Opened) -> None:
    page = opened.go("worklist.html")
    ranked = opened.names()
    assert len(ranked) == 10
    assert page.locator("th[aria-sort]").inner_text() == "Rank"
    cells = page.locator("th[data-key=cells]")
    cells.get_by_role("button").click()
    assert cells.get_attribute("aria-sort") == "descending"
    assert opened.names()[0] == "frame-8d62bc02"
    # A failed slide never comes among the ranked ones.
    assert opened.names()[-1] == ranked[-1] == "frame-ec342d2f-damaged.zip"
    cells.get_by_role("button").click()
    assert cells.get_attribute("aria-sort") == "ascending"
    assert opened.names()[-2:] == ["frame-8d62bc02", "frame-ec342d2f-damaged.zip"]
    page.get_by_label("Slide", exact=True).fill("ZIP")
    assert sorted(opened.names()) == ["frame-379c7ce2.zip", "frame-ec342d2f-damaged.zip"]
    assert page.locator("#told").inner_text() == "2 of 10 slides"
    page.get_by_label("List").select_option(label="Failed")
    assert opened.names() == ["frame-ec342d2f-damaged.zip"]
    page.get_by_label("Slide", exact=True).fill("no such slide")
    assert page.locator("#told").inner_text() == "No slide is like that"
    page.get_by_role("button", name="Show all").click()
    page.get_by_text("10 of 10 slides").wait_for()
    assert opened.names() == ranked
    page.get_by_label("Highest grade").select_option(label="SCC")
    assert 0 < len(opened.names()) < 9


def test_by_keyboard_alone(opened: Opened) -> None:
    page = opened.go("worklist.html")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "find"
    page.keyboard.type("27ce")
    assert opened.names() == ["frame-27ce7fac"]
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "frame-27ce7fac":
            break
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    page.wait_for_selector("h1.slide")
    assert page.locator("h1").inner_text() == "frame-27ce7fac"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible(browser: Any, real_cells: Path, scheme: str) -> None:
    opened = opened_in(browser, real_cells, color_scheme=scheme)
    for file in files(real_cells):
        found = axe.Axe().run(opened.go(file))
        bad = [
            (one["id"], [node["html"][:200] for node in one["nodes"][:3]])
            for one in found.response["violations"]
        ]
        assert bad == [], file
    opened.check_quiet()
    opened.page.context.close()


def test_on_a_phone_and_without_scripts(browser: Any, real_cells: Path) -> None:
    opened = opened_in(browser, real_cells, viewport=PHONE, java_script_enabled=False)
    for file in files(real_cells):
        page = opened.go(file)
        assert page.locator("h1").is_visible()
    opened.go("worklist.html")
    assert len(opened.names()) == 10
    assert not opened.page.locator("#tools").is_visible()
    opened.check_quiet()
    opened.page.context.close()
    opened = opened_in(browser, real_cells, viewport=PHONE)
    for file in files(real_cells):
        page = opened.go(file)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], file
    opened.page.context.close()


def test_on_paper(opened: Opened) -> None:
    page = opened.go("index.html")
    page.emulate_media(media="print")
    assert not page.get_by_role("navigation").first.is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_hostile_names_in_a_browser(browser: Any, reported: Path) -> None:
    opened = opened_in(browser, reported)
    dialogs: list[str] = []
    opened.page.on("dialog", lambda dialog: dialogs.append(dialog.message))
    opened.go("worklist.html")
    assert len(opened.names()) == len(HOSTILE) + 6
    opened.page.get_by_label("Slide", exact=True).fill("<script>")
    assert opened.names() == [HOSTILE[0]]
    opened.page.locator("#slides-table tbody a").click()
    assert opened.page.locator("h1").inner_text() == HOSTILE[0]
    for name in HOSTILE:
        opened.go(f"slides/{slide_stem(name)}.html")
    assert dialogs == []
    opened.check_quiet()
    opened.page.context.close()


def test_many_slides_turn_pages(
    browser: Any, real_cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the script there are links to further pages; with it, all is on the first."""
    results = real_cells.parent.parent
    monkeypatch.setattr(lists.pages_of, "__defaults__", (4,))
    write_report(results, out=tmp_path)
    plain = opened_in(browser, tmp_path, java_script_enabled=False)
    page = plain.go("worklist.html")
    seen = plain.names()
    while page.get_by_role("link", name="Next").count():
        page.get_by_role("link", name="Next").click()
        seen += plain.names()
    opened = opened_in(browser, tmp_path)
    opened.go("worklist.html")
    assert opened.names() == seen
    assert len(seen) == 10
    assert opened.page.get_by_role("link", name="Next").count() == 0
    plain.check_quiet()
    for one in (plain, opened):
        one.page.context.close()
