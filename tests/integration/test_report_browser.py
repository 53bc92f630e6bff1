"""The HTML report in a real browser, from disk: no request, no error, everything within reach of mouse and keyboard."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compress.report.files import read_report
from compress.report.html import render_html

playwright = pytest.importorskip("playwright.sync_api", reason="playwright (group test) is not installed")

EXAMPLE = Path(__file__).parents[1] / "data" / "report_example.json"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SHIPPED = "student-int8"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium that is installed on this machine; nothing is downloaded."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no Chromium on this machine (looked for {', '.join(BROWSERS)})")
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=[*sandbox, "--disable-background-networking"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_html(read_report(EXAMPLE)), encoding="utf-8")
    return path


class Opened:
    """A page with everything that must not happen on it."""

    def __init__(self, page: Any, file: Path) -> None:
        self.page = page
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("dialog", self._dialog)
        page.goto(file.as_uri())
        self.uri = file.as_uri()

    def _dialog(self, dialog: Any) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def point(self, step: str) -> Any:
        """Return the point of a step in the first Pareto plot that can be seen."""
        return self.page.locator(f"#results .wide svg g.stage[data-step='{step}']").first

    def assert_quiet(self) -> None:
        assert self.requests == [self.uri]
        assert self.complaints == []


@pytest.fixture
def opened(browser: Any, file: Path) -> Iterator[Opened]:
    context = browser.new_context(viewport={"width": 1440, "height": 1000}, reduced_motion="reduce")
    it = Opened(context.new_page(), file)
    yield it
    context.close()


@pytest.mark.parametrize("width", [375, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_from_disk_asks_for_nothing_and_fits_the_width(
    browser: Any, file: Path, width: int, scheme: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    it = Opened(context.new_page(), file)
    it.page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
    it.page.mouse.wheel(0, 4000)
    assert it.page.evaluate("document.documentElement.scrollWidth") == width
    outside = """() => [...document.querySelectorAll('main *, header *')]
        .filter((it) => !it.closest('.scroll, pre, caption, svg') && it.getBoundingClientRect().right > innerWidth + 1)
        .map((it) => it.outerHTML.slice(0, 80))"""
    assert it.page.evaluate(outside) == []
    shown = it.page.evaluate("[...document.querySelectorAll('svg.plot')].filter((s) => s.checkVisibility()).length")
    assert shown * 2 == it.page.locator("svg.plot").count()
    it.assert_quiet()
    context.close()


def test_a_label_that_is_a_script_is_text(opened: Opened) -> None:
    cell = opened.page.locator("#classes th", has_text="<script>alert(1)</script>").first
    assert cell.inner_text() == "<script>alert(1)</script>"
    assert opened.page.locator("script").count() == 1
    assert opened.page.locator("#examples td, #examples th", has_text="⟨U+202E⟩").count() == 1
    opened.assert_quiet()


def test_the_policy_stops_a_script_that_is_not_the_reports_own(browser: Any, file: Path, tmp_path: Path) -> None:
    """Were a text ever not escaped, it still would not run."""
    broken = tmp_path / "broken.html"
    planted = "<script>document.title = 'taken'</script><b onclick='1' id='b'></b></main>"
    broken.write_text(file.read_text(encoding="utf-8").replace("</main>", planted), encoding="utf-8")
    page = browser.new_page()
    page.goto(broken.as_uri())
    assert page.locator("main script").count() == 1
    assert page.title().startswith("Invented")
    page.close()


def test_pointing_at_a_point_shows_its_figures(opened: Opened) -> None:
    opened.point(SHIPPED).locator(".marker").hover()
    tip = opened.page.locator("#tip")
    assert tip.is_visible()
    assert "88.02 %" in tip.inner_text()
    assert "4.17 ms" in tip.inner_text()
    opened.page.mouse.move(1, 1)
    assert not tip.is_visible()
    opened.assert_quiet()


def test_a_click_picks_the_stage_out_everywhere_and_escape_lets_go(opened: Opened) -> None:
    page = opened.page
    opened.point(SHIPPED).locator(".marker").click()
    row = page.locator(f"#results tr[data-step='{SHIPPED}']").first
    other = page.locator("#results tr[data-step='onnx-fp32']").first
    assert "picked" in row.get_attribute("class")
    assert row.get_attribute("aria-current") == "true"
    assert "picked" in page.locator(f"#stages .wide g[data-step='{SHIPPED}']").first.get_attribute("class")
    assert float(other.evaluate("row => getComputedStyle(row).opacity")) < 0.5
    assert float(row.evaluate("row => getComputedStyle(row).opacity")) == 1
    assert page.get_by_role("status").inner_text() == f"{SHIPPED} is picked out"
    page.keyboard.press("Escape")
    assert page.locator(".picked").count() == 0
    assert float(other.evaluate("row => getComputedStyle(row).opacity")) == 1
    row.locator("td").nth(1).click()
    assert opened.point(SHIPPED).get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="Clear (Esc)").click()
    assert page.locator(".picked").count() == 0
    opened.assert_quiet()


def test_the_keyboard_reaches_points_rows_and_folds(opened: Opened) -> None:
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the verdict"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "verdict"

    page.keyboard.press("Tab")
    first = page.evaluate("document.activeElement.dataset.step")
    assert page.locator("#tip").is_visible()
    assert first in page.locator("#tip").inner_text()
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.dataset.step") == SHIPPED
    outline = "getComputedStyle(document.activeElement.querySelector('.hit')).fillOpacity"
    assert 0 < float(page.evaluate(outline)) < 1
    page.keyboard.press("Enter")
    assert page.locator(f"#results tr.picked[data-step='{SHIPPED}']").count() >= 1
    page.keyboard.press("Escape")
    assert page.locator(".picked, #tip:visible").count() == 0

    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    fold = page.evaluate_handle("document.activeElement.parentElement").as_element()
    assert fold.evaluate("fold => fold.open") is False
    page.keyboard.press("Enter")
    assert fold.evaluate("fold => fold.open") is True
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "TR"
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.matches('tr:nth-child(2)')")
    page.keyboard.press("Space")
    assert page.evaluate("document.activeElement.matches('.picked')")
    opened.assert_quiet()


def test_everything_is_readable_without_its_script(browser: Any, file: Path) -> None:
    context = browser.new_context(java_script_enabled=False, viewport={"width": 1440, "height": 1000})
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator("#results tr[data-step]").first.is_visible()
    point = page.locator(f"#results .wide g.stage[data-step='{SHIPPED}'] title").first
    assert "88.02 %" in point.text_content()
    assert page.locator("#results .wide svg").first.get_attribute("role") == "img"
    page.locator("#stages summary").first.click()
    assert page.locator("#stages details table").first.is_visible()
    context.close()


def test_on_paper_every_fold_is_open_and_nothing_floats(opened: Opened) -> None:
    page = opened.page
    page.emulate_media(media="print")
    assert page.locator("#stages details table").first.is_visible()
    assert not page.locator("nav").is_visible()
    assert page.pdf(format="A4")[:5] == b"%PDF-"


def test_names_for_those_who_do_not_see_it(opened: Opened) -> None:
    page = opened.page
    assert (
        page.locator("main").count() == page.locator("nav[aria-label]").count() == page.locator("header").count() == 1
    )
    assert page.locator("table:not(:has(> caption))").count() == 0
    assert page.locator("svg.plot:not([aria-label]), svg.plot:not(:has(> desc))").count() == 0
    assert page.locator("main > section:not([aria-labelledby])").count() == 0
    unnamed = "[...document.querySelectorAll('[role=button], [role=group]')].filter((it) => !it.ariaLabel).length"
    assert page.evaluate(unnamed) == 0
    captions = page.locator("caption").all_text_contents()
    assert all(caption.strip() for caption in captions)
