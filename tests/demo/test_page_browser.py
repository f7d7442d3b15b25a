"""The page in headless Chromium; skipped if Gradio, Playwright or a browser is missing."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cxr_tf.config import Demo

pytest.importorskip("gradio", reason="no page without requirements-demo.txt")

VERDICT = ".cxr-verdict .label"


@pytest.fixture(scope="module")
def address(browser: Any, small_models: Path) -> Iterator[str]:
    from cxr_tf.demo.demo import served
    from cxr_tf.demo.models import find_models

    settings = Demo(saved_models=str(small_models), port=0, engine="tensorflow")
    with served(find_models(settings), settings) as url:
        yield url


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Open pages for different users; none may load external content or raise an error."""
    pages, faults, elsewhere = [], [], []

    def opened(**options: Any) -> Any:
        page = browser.new_context(**options).new_page()
        page.set_default_timeout(60_000)  # heatmaps of the page before may still be computed
        page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda r: elsewhere.append(r.url))
        page.goto(address)
        page.get_by_text("Drop a radiograph").wait_for()
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.context.close()
    assert faults == []
    assert [u for u in elsewhere if not u.startswith((address, "data:", "blob:"))] == []


def upload(page: Any, *files: Path) -> None:
    page.locator("#files input[type=file]").set_input_files(files)
    page.locator("#verdict").get_by_text(files[0].name).first.wait_for()


def uploaded_bytes() -> int:
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_upload_shows_label_heatmap_cases_and_anomaly_and_leaves_no_file(
    open_page: Any, phantoms: Path
) -> None:
    page = open_page()
    upload(page, next(phantoms.glob("t*/*/*.png")))
    assert page.locator(VERDICT).inner_text() in ("normal", "pneumonia")
    page.get_by_text("Occlusion: red").wait_for()
    assert page.locator("#views img.heat").count() == 2
    assert page.locator("#cases img").count() == 3
    assert "Anomaly map; score" in page.locator("#views").inner_text()
    assert "synthetic phantoms" in page.locator("#verdict").inner_text()
    sides = page.eval_on_selector_all("#views img", "all => all.map(i => i.naturalWidth)")
    assert min(sides) >= 64
    assert uploaded_bytes() == 0


def test_sliders_respond_to_the_keyboard(open_page: Any) -> None:
    page = open_page()
    page.get_by_role("button", name="Phantom: viral").focus()
    page.keyboard.press("Enter")
    page.locator(VERDICT).wait_for()
    page.get_by_text("Occlusion: red").wait_for()
    point = page.locator("#point input[type=range]")
    point.focus()
    for key, label in (("Home", "pneumonia"), ("End", "normal")):
        page.keyboard.press(key)
        page.locator(VERDICT, has_text=label).wait_for()
    heat = page.locator("#views img.heat").first
    page.locator("#opacity input[type=range]").focus()
    for key, opacity in (("Home", "0"), ("End", "1")):
        page.keyboard.press(key)
        page.wait_for_function(
            "([e, o]) => getComputedStyle(e).opacity === o", arg=[heat.element_handle(), opacity]
        )


def test_dicom_is_predicted_like_its_pixels_and_a_lateral_view_is_refused(
    open_page: Any, tmp_path: Path
) -> None:
    pytest.importorskip("pydicom", reason="no DICOM without requirements-dicom.txt")
    from dicom_phantoms import write_dicom_phantom

    from cxr_tf.data.sources.dicom import png_bytes

    page = open_page()
    dicom = write_dicom_phantom(tmp_path / "a.dcm")
    png = tmp_path / "b.png"
    png.write_bytes(png_bytes(dicom))
    probabilities = []
    for file in (dicom, png):
        upload(page, file)
        probabilities.append(page.locator(".cxr-verdict .number").all_inner_texts())
    assert probabilities[0] == probabilities[1]
    upload(page, write_dicom_phantom(tmp_path / "lateral.dcm", ViewPosition="LL"))
    assert "a lateral view" in page.get_by_role("alert").inner_text()


def test_broken_file_shows_its_error(open_page: Any, tmp_path: Path) -> None:
    page = open_page()
    broken = tmp_path / "notes.png"
    broken.write_text("no image")
    upload(page, broken)
    page.wait_for_timeout(1500)  # no later event may clear the message
    assert page.get_by_role("alert").inner_text() == "notes.png: neither JPEG nor PNG"
    assert page.locator("#views img").count() == 0
    assert uploaded_bytes() == 0


def test_several_images_give_a_sortable_table_with_download(
    open_page: Any, phantoms: Path, tmp_path: Path
) -> None:
    page = open_page()
    files = sorted(phantoms.glob("t*/*/*.png"))[:3]
    (tmp_path / "broken.png").write_text("no image")
    upload(page, *files, tmp_path / "broken.png")
    table = page.locator("#table")
    # The first match is one that Gradio measures the columns with.
    table.get_by_text("neither JPEG nor PNG").last.wait_for()
    link = page.locator("#csv a")
    with page.expect_download() as download:
        link.click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert lines[0] == "#,file,label,normal,pneumonia,problem" and len(lines) == 5
    table.get_by_text(files[2].name).last.click()
    page.locator("#verdict").get_by_text(files[2].name).wait_for()


def test_two_users_see_their_own_images(open_page: Any, phantoms: Path) -> None:
    first, second = open_page(), open_page()
    files = sorted(phantoms.glob("t*/*/*.png"))[:2]
    for page, file in zip((first, second), files, strict=True):
        page.locator("#files input[type=file]").set_input_files(file)
    for page, file in zip((first, second), files, strict=True):
        page.get_by_text("Occlusion: red").wait_for()
        assert file.name in page.locator("#verdict").inner_text()
    first.get_by_role("button", name="Phantom: normal").click()
    first.get_by_text("phantom, normal").wait_for()
    assert files[1].name in second.locator("#verdict").inner_text()


def test_phone_width_has_no_horizontal_scroll(open_page: Any) -> None:
    page = open_page(viewport={"width": 375, "height": 800}, has_touch=True)
    page.get_by_role("button", name="Phantom: bacterial").tap()
    page.get_by_text("Occlusion: red").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    for box in page.locator("#views figure").all():
        assert re.match(r"\d", str(box.bounding_box()["width"]))
        assert box.bounding_box()["x"] + box.bounding_box()["width"] <= 375
