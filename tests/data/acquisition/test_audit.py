"""The audit of a data set: copies, shortcuts, unreadable files."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from PIL.PngImagePlugin import PngInfo
from ward import draw_phantoms, write_ward

from cxr_tf.data.acquisition.audit import (
    audited,
    inspect_images,
    margins,
    near_duplicates,
    perceptual_hash,
    warnings,
)
from cxr_tf.data.dataset import ImageDataset, decode_catalog
from cxr_tf.data.loading import open_catalog
from cxr_tf.data.sources.phantoms import FINDINGS


@pytest.fixture(scope="module")
def drawn() -> list[Image.Image]:
    """60 phantoms, each of a different patient, with all findings."""
    return draw_phantoms()


@pytest.fixture
def data(tmp_path: Path, drawn: list[Image.Image]) -> Path:
    """A data set whose sick images are smaller and wider; with two near copies and one exact."""
    return write_ward(tmp_path / "ward", drawn)


def thumbnails(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image.convert("L").resize((64, 64))) for image in images])


def again_as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=quality)
    return Image.open(stream)


def test_near_duplicates_finds_copies_and_no_unrelated_pairs(drawn: list[Image.Image]) -> None:
    copies = [
        again_as_jpeg(drawn[3], 40),
        drawn[10].resize((60, 60)),
        ImageEnhance.Brightness(drawn[20]).enhance(0.7),
        ImageEnhance.Contrast(drawn[30]).enhance(0.8),
        again_as_jpeg(drawn[40].resize((200, 150)), 70),
    ]
    found = near_duplicates(thumbnails([*drawn, *copies]))
    assert found == [(3, 60), (10, 61), (20, 62), (30, 63), (40, 64)]


def test_almost_black_images_are_reported(drawn: list[Image.Image], tmp_path: Path) -> None:
    """The audit measures pixels: a large text chunk in a file does not matter."""
    text = PngInfo()
    text.add_text("note", "x" * 2**21, zip=True)
    for k, image in enumerate(drawn[:12]):
        folder = tmp_path / FINDINGS[k % 3].upper()
        folder.mkdir(exist_ok=True)
        values = np.asarray(image) // (12 if k < 5 else 1)
        Image.fromarray(values).save(folder / f"{k}.png", pnginfo=text if k == 7 else None)
    found = inspect_images(open_catalog(str(tmp_path)))
    assert not found.unreadable
    assert any(line.startswith("5 images are almost black") for line in warnings(found))
    row = next(k for k, path in enumerate(found.catalog.paths) if path.endswith("/7.png"))
    assert np.isnan(found.measures["width"][row])
    assert np.isfinite(np.delete(found.measures["width"], row)).all()


def test_the_perceptual_hash_ignores_exposure_but_not_mirroring(
    drawn: list[Image.Image],
) -> None:
    image = thumbnails(drawn[:1])
    same = perceptual_hash((image * 0.8 + 10).astype(np.uint8))
    flipped = perceptual_hash(image[:, :, ::-1])
    assert np.sum(perceptual_hash(image) != same) < 10
    assert np.sum(perceptual_hash(image) != flipped) > 60


def test_blank_images_are_not_duplicates_of_each_other() -> None:
    assert near_duplicates(np.zeros((3, 64, 64), np.uint8)) == []


def test_duplicates_are_detected_across_blocks_of_rows(drawn: list[Image.Image]) -> None:
    # More rows than are compared at a time.
    noise = np.random.default_rng(0).integers(0, 256, (1100, 64, 64), dtype=np.uint8)
    noise[1099], noise[1050] = noise[2], noise[1030]
    assert near_duplicates(noise) == [(2, 1099), (1030, 1050)]


def test_phantoms_give_no_warning(tmp_path: Path, phantoms: Path) -> None:
    found = inspect_images(open_catalog(str(phantoms)))
    assert warnings(found) == []
    assert {s.measure: s.auroc for s in found.shortcuts}["aspect"] == 0.5


def test_oversized_headers_and_unreadable_folders_are_reported(data: Path) -> None:
    huge = bytearray((data / "NORMAL/9.png").read_bytes())
    huge[16:24] = (20_000).to_bytes(4, "big") * 2
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    (data / "NORMAL/9.png").write_bytes(huge)
    found = inspect_images(open_catalog(str(data)))
    assert [reason for reason in found.unreadable.values()] == ["more than 50 megapixels"]
    for path in data.glob("*/*.png"):
        path.write_text(f"text of {path.name}")
    found = inspect_images(open_catalog(str(data)))
    assert len(found.unreadable) == len(found.catalog) and not found.near


def test_margins_and_inverted_images_are_reported(drawn: list[Image.Image], tmp_path: Path) -> None:
    for k, image in enumerate(drawn[:20]):
        folder = tmp_path / ("NORMAL" if k % 3 == 0 else "PNEUMONIA")
        folder.mkdir(exist_ok=True)
        pixels = np.asarray(image)
        if k < 3:
            pixels = np.pad(pixels, ((0, 0), (20, 20)), constant_values=200)
        elif k < 7:
            pixels = 255 - pixels
        Image.fromarray(pixels).save(folder / f"{k:02d}.png")
    found = inspect_images(open_catalog(str(tmp_path)))
    names = [Path(path).stem for path in found.catalog.paths]
    assert {n for n, m in zip(names, margins(found.thumbnails), strict=True) if m > 0.08} == {
        "00", "01", "02",
    }  # fmt: skip
    lines = " ".join(warnings(found))
    assert "3 images have uniform margins of 8 % or more" in lines
    assert "4 images look inverted" in lines


def test_warnings_are_recorded_with_the_data(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    catalog, images = decode_catalog(open_catalog(str(data)), 96, skip=False)
    labels = catalog.labels("binary")
    with caplog.at_level("INFO", logger="cxr_tf"):
        checked = audited(ImageDataset(catalog, images, labels, catalog.classes("binary")))
    recorded = checked.catalog.about()
    assert recorded["images_by_finding"]["test"].keys() == {"normal", "pneumonia"}
    for part in ("aspect alone separates", "2 pairs of images look the same", "the test split has"):
        assert any(part in line for line in recorded["warnings"]), part
        assert part in caplog.text
    assert checked.split("test").catalog.warnings == checked.catalog.warnings
