"""The report in headless Chromium, by Playwright; skipped if either is missing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def report(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_study import run_tiny_study

    settings = run_tiny_study(tmp_path_factory.getbasetemp() / "tiny-study")
    return Path(settings.logs) / "study" / settings.name / "report.html"


@pytest.fixture
def opened(browser: Any, report: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The report in a new window; errors in the console fail the test."""
    page = browser.new_page(**getattr(request, "param", {}))
    errors, asked = [], []
    page.on("console", lambda m: errors.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda r: asked.append(r.url))
    page.goto(report.as_uri())
    yield page
    page.close()
    assert errors == []
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]


def test_all_figures_are_drawn(opened: Any) -> None:
    opened.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    widths = opened.evaluate("""
        Promise.all([...document.querySelectorAll('main img')].map(
            async image => { await image.decode(); return image.getBoundingClientRect().width; }))
    """)
    assert len(widths) > 20 and min(widths) > 100


def test_hover_shows_radiograph_and_description(opened: Any) -> None:
    tip = opened.locator(".map .tip")
    assert tip.is_hidden()
    data = opened.evaluate("JSON.parse(document.querySelector('.map script').textContent)")
    point = opened.locator(".map g.point").nth(7)
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    opened.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert tip.is_visible()
    # Where dots overlap, the nearest one is shown; it lies within a dot of the pointer.
    shown = data["descriptions"].index(tip.locator(".description").inner_text())
    selected = opened.locator(".map g.selected circle").bounding_box()
    assert abs(selected["x"] - box["x"]) < 12 and abs(selected["y"] - box["y"]) < 12
    columns = data["columns"]
    position = tip.locator(".thumb").evaluate("e => e.style.backgroundPosition")
    across, down = (float(v.rstrip("%")) * (columns - 1) / 100 for v in position.split())
    assert (round(across), round(down)) == (shown % columns, shown // columns)
    pixels = tip.locator(".thumb").screenshot()
    assert len(set(pixels)) > 100  # a picture, not a black square
    opened.mouse.move(1, 1)
    assert tip.is_hidden()


def test_map_responds_to_keyboard_and_filters(opened: Any) -> None:
    svg, tip = opened.locator(".map svg").first, opened.locator(".map .tip .description")
    svg.focus()
    opened.keyboard.press("ArrowRight")
    first = tip.inner_text()
    opened.keyboard.press("ArrowRight")
    second = tip.inner_text()
    opened.keyboard.press("Escape")
    assert first and second and first != second and not tip.is_visible()

    def places() -> list[str]:
        return opened.eval_on_selector_all(".map g.point", "all => all.map(p => p.style.transform)")

    after = places()
    opened.locator(".map input[value=before]").check()
    assert places() != after
    opened.locator(".map input[value=after]").check()
    assert places() == after
    opened.locator(".map input[value=only-test]").check()
    hidden = opened.locator(".map g.other").first
    assert not hidden.is_visible() and opened.locator(".map g.test").first.is_visible()


def test_figure_opens_large_and_closes(opened: Any) -> None:
    opened.locator("#data .zoom").first.click()
    assert opened.locator("dialog").is_visible()
    assert opened.evaluate("document.querySelector('dialog img').naturalWidth") > 600
    opened.keyboard.press("Escape")
    assert opened.locator("dialog").is_hidden()


@pytest.mark.parametrize(
    "opened", [{"viewport": {"width": 375, "height": 800}, "has_touch": True}], indirect=True
)
def test_phone_width_has_no_horizontal_scroll(opened: Any) -> None:
    opened.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert opened.evaluate("document.documentElement.scrollWidth") <= 375
    box = opened.locator(".map g.point").nth(3).bounding_box()
    opened.locator(".map g.point").nth(3).scroll_into_view_if_needed()
    box = opened.locator(".map g.point").nth(3).bounding_box()
    opened.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tip = opened.locator(".map .tip").bounding_box()
    assert tip["x"] >= 0 and tip["x"] + tip["width"] <= 375


@pytest.mark.parametrize(
    "opened, width",
    [({"viewport": {"width": w, "height": 800}}, w) for w in (1280, 375)],
    indirect=["opened"],
)
def test_long_names_do_not_break_the_layout(opened: Any, width: int) -> None:
    """A name of a file, class or study may be 200 characters without a space."""
    opened.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    named = "h1, h2, td.text, tbody th, thead th, figcaption, li, .card span, caption, pre code"
    opened.eval_on_selector_all(named, "all => all.forEach(e => e.textContent = 'x'.repeat(200))")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    if width == 1280:
        tables = opened.eval_on_selector_all(
            ".scroll", "a => a.map(e => e.scrollWidth - e.clientWidth)"
        )
        assert tables and max(tables) <= 0


def brightness(page: Any, selector: str, what: str) -> float:
    colour = page.eval_on_selector(selector, f"e => getComputedStyle(e).{what}")
    return sum(map(float, colour[colour.index("(") + 1 : -1].split(",")[:3])) / 765


@pytest.mark.parametrize(
    "opened, dark",
    [({"color_scheme": "light"}, False), ({"color_scheme": "dark"}, True)],
    indirect=["opened"],
)
def test_theme_follows_the_colour_scheme(opened: Any, dark: bool) -> None:
    page, text = (brightness(opened, "body", w) for w in ("backgroundColor", "color"))
    assert (page < text) is dark and abs(page - text) > 0.7


def test_print_is_light_and_shows_all_details(opened: Any) -> None:
    opened.emulate_media(media="print", color_scheme="dark")
    assert brightness(opened, "body", "backgroundColor") > 0.9
    assert brightness(opened, "body", "color") < 0.2
    assert opened.locator(".map .controls").first.is_hidden()
    opened.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert opened.locator("details:not([open])").count() == 0
    opened.evaluate("dispatchEvent(new Event('afterprint'))")
    assert opened.locator("details[open]").count() == 0
    assert len(opened.pdf()) > 50_000
