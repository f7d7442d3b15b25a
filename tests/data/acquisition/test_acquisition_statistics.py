"""Each statistic measures what its name says: known shifts change it in the right direction."""

from pathlib import Path

import numpy as np
import pytest

from cxr_tf.data.acquisition.shifts import SHIFTS
from cxr_tf.data.acquisition.statistics import (
    STATISTICS,
    acquisition_statistics,
    mean_chest,
)
from cxr_tf.data.decoding import load_images


@pytest.fixture(scope="module")
def healthy(phantoms: Path) -> np.ndarray:
    """The healthy phantoms of the training split: uint8 [N, 64, 64, 1]."""
    paths = sorted(str(p) for p in (phantoms / "train" / "NORMAL").iterdir())
    images, unreadable = load_images(paths, 64)
    assert not unreadable
    return images


def change(healthy: np.ndarray, shift: str) -> dict[str, float]:
    """Return the median change of each statistic by a shift, over the images."""
    chest = mean_chest(healthy)
    before = acquisition_statistics(healthy, chest)
    after = acquisition_statistics(SHIFTS[shift](healthy), chest)
    return dict(zip(STATISTICS, np.median(after - before, axis=0), strict=True))


def test_framing_shifts_change_chest_height_or_width_alone(healthy: np.ndarray) -> None:
    lower, wider = change(healthy, "framed lower"), change(healthy, "framed wider")
    assert lower["chest_height"] == pytest.approx(np.log(1.22), abs=0.06)
    assert abs(lower["chest_width"]) < 0.05
    assert wider["chest_width"] == pytest.approx(-np.log(1.22), abs=0.06)
    assert abs(wider["chest_height"]) < 0.05


def test_exposure_and_noise_change_tone_and_detail(healthy: np.ndarray) -> None:
    assert change(healthy, "brighter")["mean"] > 10
    assert change(healthy, "darker")["mean"] < -10
    lit = change(healthy, "lit from below")
    assert lit["border_bottom"] > 0.1 and lit["border_top"] < -0.1
    assert change(healthy, "noisy")["detail_finest"] > 0.1
    assert change(healthy, "black margins")["black"] > 0.15


def test_tone_and_framing_statistics_hardly_depend_on_image_size(healthy: np.ndarray) -> None:
    chest = mean_chest(healthy)
    small = acquisition_statistics(healthy, chest)
    large = acquisition_statistics(healthy.repeat(2, axis=1).repeat(2, axis=2), chest)
    # Sharpness belongs to the pixels that the model sees, framing and tone to the image.
    geometry = [STATISTICS.index(k) for k in ("mean", "spread", "chest_width", "chest_height")]
    np.testing.assert_allclose(large[:, geometry], small[:, geometry], rtol=0.05, atol=0.03)


def test_a_blank_image_has_finite_statistics(healthy: np.ndarray) -> None:
    blank = np.zeros((2, 64, 64, 1), np.uint8)
    assert np.isfinite(acquisition_statistics(blank, mean_chest(healthy))).all()
