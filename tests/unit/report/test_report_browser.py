"""The pages in a real browser: what a person clicks, types and reads, on a desk, on a phone and on paper.

Skipped where no Chromium is found: on PATH, or under the path in ``RAYDDL_CHROMIUM``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rayddl.report.page import render
from rayddl.report.run import LARGE_BYTES, Run
from rayddl.stages.compare import page as comparing
from rayddl.stages.compare.entries import Comparison, Judged

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
AA = 4.5
"""The contrast of text with its ground that WCAG 2.2 asks for (level AA)."""
CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (colour) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = rgb(colour).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (colour !== "rgba(0, 0, 0, 0)" && colour !== "transparent") return colour;
    }
    return "white";
  };
  const paper = getComputedStyle(document.body).backgroundColor, found = {};
  for (const node of document.querySelectorAll("body *")) {
    const written = [...node.childNodes].some((c) => c.nodeType === 3 && c.textContent.trim());
    if (!written || node.closest("script, style, desc, title") || node.getClientRects().length === 0) continue;
    const style = getComputedStyle(node), ink = node.namespaceURI.endsWith("svg") ? style.fill : style.color;
    let under = ground(node);
    if (under.includes("/") || under.startsWith("rgba") || under.startsWith("color")) {
      canvas.fillStyle = paper; canvas.fillRect(0, 0, 1, 1); canvas.fillStyle = under; canvas.fillRect(0, 0, 1, 1);
      under = "rgb(" + [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).join(",") + ")";
    }
    const [a, b] = [light(ink), light(under)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const name = node.tagName + "." + (node.getAttribute("class") ?? "") + " " + node.textContent.trim().slice(0, 20);
    if (ratio < found[name]?.[0] || !(name in found)) found[name] = [ratio, ink, under];
  }
  return found;
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium."""
    named = os.environ.get("RAYDDL_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if named is None:
        pytest.skip("no Chromium here: none of its names is on PATH, and RAYDDL_CHROMIUM names none")
    sync_api = pytest.importorskip("playwright.sync_api", reason="the package playwright drives the browser")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=named, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def show(chromium: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens a page from its text; whatever it asks of the network, or complains about, fails the test."""
    opened: list[Any] = []
    wrong: list[str] = []

    def load(text: str, viewport: dict[str, int] = DESK, **context: Any) -> Any:
        file = tmp_path / f"page-{len(opened)}.html"
        file.write_text(text, encoding="utf-8")
        page = chromium.new_context(viewport=viewport, **context).new_page()
        page.on(
            "request", lambda r: wrong.append(r.url) if not r.url.startswith(("file:", "data:")) else None
        )
        page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: wrong.append(str(e)))
        page.goto(file.as_uri())
        opened.append(page)
        return page

    yield load
    for page in opened:
        page.context.close()
    assert wrong == []


@pytest.fixture
def compared(compare: Callable[..., str]) -> str:
    """The page of two sets by each of two methods, two networks."""
    return compare()


@pytest.fixture
def compare(make: Any) -> Callable[..., str]:
    """Renders the page of sets by each of two methods."""
    return partial(_compared, make)


def _compared(
    make: Any, nets: tuple[str, ...] = ("convnet", "mlp"), run: str = "run", ipcs: tuple[int, ...] = (1, 10)
) -> str:
    found = []
    for method, level in (("random", 0.5), ("MTT", 0.7)):
        for ipc in ipcs:
            rows = [make.row("distilled", net, 10 * ipc, [level, level + 0.002 * ipc]) for net in nets]
            rows += (
                [make.row("random", net, 10 * ipc, [level - 0.1, level]) for net in nets]
                if run != "run"
                else []
            )
            stage = make.evaluate(f"judge-{method.lower()}-{ipc}", "x", rows).stage
            stage.summary.update({"method": method, "ipc": ipc, "spent": {"s": 10.0 * ipc}, "bytes": 640})
            pictures = make.match(ipc=ipc, every=None).pictures
            found.append(Judged(run, "d0", stage, pictures))
            if run != "run":
                found.append(Judged(f"{run}-again", "d0", stage, pictures))
    stages = {j.stage.name: {"kind": "evaluate", "set": "x"} for j in found}
    return comparing.render(Comparison("both", tuple(found), {"d0": {"stages": stages}}, {"rayddl": "0"}))


def until(page: Any, holds: str) -> None:
    """Wait until an expression holds; the page's own policy forbids Playwright's way of waiting."""
    for _ in range(200):
        if page.evaluate(holds):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"after ten seconds not yet: {holds}")


def column(table: Any, number: int) -> list[str]:
    return [row.strip() for row in table.locator(f"tbody td:nth-child({number})").all_inner_texts()]


def test_tables_sort_by_click_and_by_keyboard(show: Callable[..., Any], quickstart: Run) -> None:
    """A heading sorts downwards first where it holds numbers, then upwards, and says so to screen readers."""
    page = show(render(quickstart))
    table = page.locator("#evaluate-evaluate table").last
    head = table.locator("th", has_text="Test accuracy")
    accuracies = [float(text.split()[0]) for text in column(table, 4)]

    head.get_by_role("button").click()
    assert [float(t.split()[0]) for t in column(table, 4)] == sorted(accuracies, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    head.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert [float(t.split()[0]) for t in column(table, 4)] == sorted(accuracies)
    assert head.get_attribute("aria-sort") == "ascending"


def test_without_scripts_everything_stands(show: Callable[..., Any], quickstart: Run) -> None:
    """Tables are whole, in the order written, and headings are plain text."""
    page = show(render(quickstart), java_script_enabled=False)

    assert page.locator("#evaluate-evaluate tbody tr").count() == 10
    assert page.locator("th button").count() == 0


def test_figures_lead_to_the_lines_that_made_them(show: Callable[..., Any], quickstart: Run) -> None:
    """A click on a figure's definition brings its stage into sight and marks it."""
    page = show(render(quickstart))
    page.locator("#match-distill .made a").first.click()

    until(page, "document.querySelector('pre .key:target') !== null")
    assert page.locator("pre .key:target").inner_text() == "distill"
    assert page.evaluate("location.hash") == "#stage-distill"


def test_the_keyboard_reaches_links_tables_and_folds(show: Callable[..., Any], compared: str) -> None:
    """Tab goes through the sections' links, then to scrolled tables; a fold opens by Enter."""
    page = show(compared)
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "document.activeElement.tagName + ' ' + (document.activeElement.getAttribute('href') ?? '')"
            )
        )

    assert reached[0] == "A #accuracy"
    assert any(name.startswith("SUMMARY") for name in reached)
    assert any(name.startswith(("DIV", "BUTTON")) for name in reached)
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("details[open]").count() == 1


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_nothing_is_wider_than_the_screen(
    show: Callable[..., Any], quickstart: Run, compared: str, viewport: dict[str, int]
) -> None:
    """The page scrolls downwards only; what is wider scrolls within itself."""
    for text in (render(quickstart), compared):
        page = show(text, viewport)
        assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]


CUT = """(tables) => [...document.querySelectorAll("td, th[scope=row]")]
  .filter((cell) => cell.getClientRects().length && cell.closest(tables))
  .map((cell) => [cell.getBoundingClientRect(), cell])
  .filter(([box, cell]) => box.right > innerWidth + 1 || box.left < -1 || cell.scrollWidth > cell.clientWidth + 1)
  .map(([box, cell]) => cell.closest("table").caption?.textContent + ": " + cell.textContent)"""


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_no_column_is_cut_off(
    show: Callable[..., Any], quickstart: Run, compare: Callable[..., str], width: int
) -> None:
    """On a phone, tables of many columns become lists of named values; others wrap, and so do long names."""
    long = compare(nets=("convnet-d4-w64-batch", "convnet-w32"), run="a-run-of-many-photos", ipcs=(1, 10, 50))
    for text in (render(quickstart), compare(), long):
        page = show(text, {**PHONE, "width": width})
        assert page.locator("td").count() > 20
        # On a desk, the pictures of many sets scroll within their table.
        assert page.evaluate(CUT, "table" if width < DESK["width"] else "table:not(.sets-gallery)") == []
        if width > PHONE["width"]:
            continue
        many = page.locator(".many tbody tr").first.locator("td")
        named = "cell => getComputedStyle(cell, '::before').content"
        assert many.nth(1).evaluate(named).strip('"') == many.nth(1).get_attribute("data-name")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(
    show: Callable[..., Any], quickstart: Run, compared: str, scheme: str
) -> None:
    """Every text that is seen has the contrast that WCAG asks for, in light and in dark."""
    for text in (render(quickstart), compared):
        found = show(text, color_scheme=scheme).evaluate(CONTRAST)
        assert len(found) > 50
        assert {name: seen for name, seen in found.items() if seen[0] < AA} == {}


def test_every_picture_says_what_it_shows(show: Callable[..., Any], quickstart: Run, compared: str) -> None:
    """Images have a text, drawings a name, and tables a caption or a label around them."""
    for text in (render(quickstart), compared):
        page = show(text)
        assert page.locator("img:not([alt]), img[alt='']").count() == 0
        unnamed = "svg:not([aria-labelledby]):not([aria-label]):not([aria-hidden])"
        assert page.locator(unnamed).count() == 0
        assert page.locator("h1").count() == 1
        assert page.evaluate(
            "[...document.querySelectorAll('table')].every(t => t.caption || t.closest('[aria-label]'))"
        )


def test_on_paper_nothing_is_folded_away_or_cut(show: Callable[..., Any], compared: str) -> None:
    """Print drops the list of sections, keeps light colours, and no table scrolls."""
    page = show(compared, {"width": 718, "height": 1000}, color_scheme="dark")  # A4 less its margins
    page.emulate_media(media="print")

    assert page.locator("nav").is_hidden()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    right = "Math.max(...[...document.querySelectorAll('table, svg, img')].map(e => e.getBoundingClientRect().right))"
    assert page.evaluate(right) <= 718.5


def test_a_thousand_classes_open_with_few_pictures_decoded(show: Callable[..., Any], make: Any) -> None:
    """10,000 images: the file keeps its limit, and what is folded away is neither drawn nor decoded."""
    names = tuple(f"n{i:08d}" for i in range(1000))
    text = render(make.run(matches=(make.match("distill", names, ipc=10, side=32, channels=3),)))
    assert len(text.encode()) < LARGE_BYTES + 500_000 < 30_000_000

    page = show(text)
    assert page.locator("img").count() == 1001
    drawn = "[...document.querySelectorAll('img')].filter(i => i.complete && i.naturalWidth).length"
    assert page.evaluate(drawn) < 100
    page.locator("summary", has_text="976 more classes").click()
    last = page.locator("img").last
    last.scroll_into_view_if_needed()
    until(page, "[...document.querySelectorAll('img')].at(-1).naturalWidth > 0")
    assert last.is_visible()
