"""TensorBoard on the runs of a study, by the README's command, in a real browser.

Skipped if Playwright or a browser is missing.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BACKBONES = ("resnet50", "vgg16", "alexnet")
PATIENCE = 60_000  # milliseconds: TensorBoard reads the runs while the first page is open


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a TensorBoard that shows the logs of a study."""
    from tiny_study import run_tiny_study

    logs = run_tiny_study(tmp_path_factory.getbasetemp() / "tiny-study").logs
    program = Path(sys.executable).with_name("tensorboard")
    process = subprocess.Popen(
        [program, "--logdir", logs, "--port", "0"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        said = (re.search(r"at (http://\S+?)/? ", line) for line in process.stderr)
        yield next(found[1] for found in said if found)
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A browser window; any error in it fails the test."""
    opened = browser.new_page(viewport={"width": 1400, "height": 900})
    opened.set_default_timeout(PATIENCE)
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    opened.close()
    assert errors == []


def test_time_series_show_every_run(page: Any, address: str) -> None:
    page.goto(f"{address}/#timeseries")
    for run in (
        *(f"classifier/tiny-binary-{b}" for b in BACKBONES),
        "autoencoder/tiny-autoencoder",
    ):
        page.get_by_text(run).first.wait_for()
    page.locator("tb-filter-input input[placeholder^='Filter tags']").fill(
        "^(val/auroc|train/loss)$"
    )
    for tag in ("val/auroc", "train/loss"):
        page.locator("scalar-card").filter(has_text=tag).locator("line-chart").first.wait_for()


def test_images_are_drawn(page: Any, address: str) -> None:
    page.goto(f"{address}/#images")
    page.locator("tf-image-loader img").first.wait_for()
    widths = page.eval_on_selector_all("tf-image-loader img", "all => all.map(i => i.naturalWidth)")
    assert len(widths) >= 3 and max(widths) > 300


def test_all_backbones_have_precision_recall_curves(page: Any, address: str) -> None:
    page.goto(f"{address}/#pr_curves")
    page.get_by_text("test/pneumonia").first.wait_for()
    for backbone in BACKBONES:
        page.get_by_text(f"classifier/tiny-binary-{backbone} is at").first.wait_for()


def test_hparams_compare_the_backbones(page: Any, address: str) -> None:
    page.goto(f"{address}/#hparams")
    for backbone in BACKBONES:
        page.get_by_text(f"tiny-binary-{backbone}").first.wait_for()
    page.get_by_text("final/test_auroc").first.wait_for()


def test_projector_holds_every_radiograph(page: Any, address: str) -> None:
    page.goto(f"{address}/#projector")
    plugin = page.frame_locator("iframe").frame_locator("iframe")
    plugin.locator(".numDataPoints").get_by_text("90", exact=True).wait_for()
