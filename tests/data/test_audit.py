"""What --check finds: copies, shortcuts, problems; and what prepare_data.py writes."""

import io
import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from PIL.PngImagePlugin import PngInfo

from cxr_tf.config import PrepareData
from cxr_tf.data.audit import inspect_images, near_duplicates, perceptual_hash, warnings
from cxr_tf.data.loading import open_catalog
from cxr_tf.data.sources.phantoms import phantom
from cxr_tf.errors import UserError
from cxr_tf.preparation.prepare_data import prepare_data

FINDINGS = ("normal", "bacterial", "viral")


@pytest.fixture(scope="module")
def drawn() -> list[Image.Image]:
    """60 phantoms of as many patients, all findings."""
    return [
        Image.fromarray(phantom(FINDINGS[n % 3], seed=2, patient=n, size=96).image)
        for n in range(60)
    ]


def thumbnails(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image.convert("L").resize((64, 64))) for image in images])


def again_as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=quality)
    return Image.open(stream)


def test_copies_are_found_and_strangers_are_not(drawn: list[Image.Image]) -> None:
    copies = [
        again_as_jpeg(drawn[3], 40),
        drawn[10].resize((60, 60)),
        ImageEnhance.Brightness(drawn[20]).enhance(0.7),
        ImageEnhance.Contrast(drawn[30]).enhance(0.8),
        again_as_jpeg(drawn[40].resize((200, 150)), 70),
    ]
    found = near_duplicates(thumbnails([*drawn, *copies]))
    assert found == [(3, 60), (10, 61), (20, 62), (30, 63), (40, 64)]


def test_images_that_are_all_but_black_are_told(drawn: list[Image.Image], tmp_path: Path) -> None:
    """As of 12 bits in a file of 16; and what a file says besides of itself does not matter."""
    said = PngInfo()
    said.add_text("note", "x" * 2**21, zip=True)
    for k, image in enumerate(drawn[:12]):
        folder = tmp_path / FINDINGS[k % 3].upper()
        folder.mkdir(exist_ok=True)
        values = np.asarray(image, np.uint16) * (16 if k < 5 else 256)
        Image.fromarray(values).save(folder / f"{k}.png", pnginfo=said if k == 7 else None)
    found = inspect_images(open_catalog(str(tmp_path)))
    assert not found.unreadable
    assert any(line.startswith("5 images are all but black") for line in warnings(found))
    row = next(k for k, path in enumerate(found.catalog.paths) if path.endswith("/7.png"))
    assert np.isnan(found.measures["width"][row])
    assert np.isfinite(np.delete(found.measures["width"], row)).all()


def test_the_hash_tells_left_from_right_and_sees_through_exposure(
    drawn: list[Image.Image],
) -> None:
    image = thumbnails(drawn[:1])
    same = perceptual_hash((image * 0.8 + 10).astype(np.uint8))
    flipped = perceptual_hash(image[:, :, ::-1])
    assert np.sum(perceptual_hash(image) != same) < 10
    assert np.sum(perceptual_hash(image) != flipped) > 60


def test_blank_images_are_no_copies_of_each_other() -> None:
    assert near_duplicates(np.zeros((3, 64, 64), np.uint8)) == []


def test_blocks_of_rows_join(drawn: list[Image.Image]) -> None:
    # More rows than are compared at a time.
    noise = np.random.default_rng(0).integers(0, 256, (1100, 64, 64), dtype=np.uint8)
    noise[1099], noise[1050] = noise[2], noise[1030]
    assert near_duplicates(noise) == [(2, 1099), (1030, 1050)]


@pytest.fixture
def data(tmp_path: Path, drawn: list[Image.Image]) -> Path:
    """A data set whose sick are smaller and wider, with two near copies and one exact."""
    folder = tmp_path / "ward"
    for number, image in enumerate(drawn):
        sick = number % 3 != 0
        path = folder / ("PNEUMONIA" if sick else "NORMAL") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Copies of other sizes keep the aspect of their class, as it happens with thumbnails.
        image.resize((110 + number % 7, 70) if sick else (120, 100 + number % 7)).save(path)
    Image.open(folder / "NORMAL/0.png").resize((90, 75)).save(folder / "NORMAL/copy.png")
    Image.open(folder / "NORMAL/3.png").resize((90, 75)).save(folder / "PNEUMONIA/copy.png")
    (folder / "NORMAL/same.png").write_bytes((folder / "NORMAL/6.png").read_bytes())
    return folder


def check(data: Path, tmp_path: Path) -> Path:
    prepare_data(PrepareData(check=str(data), logs=str(tmp_path / "logs")))
    return tmp_path / "logs" / "data" / data.name


def test_a_page_a_table_and_warnings(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="cxr_tf"):
        run = check(data, tmp_path)
    config = json.loads((run / "config.json").read_text())
    assert config["job"] == "data" and config["packages"]["tensorflow"][0].isdigit()
    said = caplog.text
    assert "size alone tells" in said
    assert "aspect alone tells 'normal' from the rest with AUROC 1.00 (lower in it)" in said
    assert "brightness alone tells" not in said
    assert "2 pairs of images look the same" in said
    assert "1 of these pairs stand under two labels" in said
    assert "1 images are byte-identical copies" in said
    written = json.loads((run / "metrics.json").read_text())
    assert written["near_duplicates"] == 2
    assert written["aspect_auroc/normal"] > 0.98
    pairs = (run / "near-duplicates.csv").read_text().splitlines()
    assert len(pairs) == 3
    assert Image.open(run / "figures" / "data.png").size > (1000, 800)
    assert len(list(run.glob("events.out.*"))) == 1
    # The next check replaces the page; TensorBoard shows one, not both.
    check(data, tmp_path)
    assert len(list(run.glob("events.out.*"))) == 1


def test_equal_classes_give_no_warning(tmp_path: Path, phantoms: Path) -> None:
    found = inspect_images(open_catalog(str(phantoms)))
    assert warnings(found) == []
    assert {s.measure: s.auroc for s in found.shortcuts}["aspect"] == 0.5


def test_unreadable_files_are_listed_and_stop(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = (data / "NORMAL/9.png").read_bytes()
    (data / "NORMAL/9.png").write_bytes(whole[: len(whole) // 2])
    (data / "NORMAL/12.png").write_text("text")
    with (
        caplog.at_level("INFO", logger="cxr_tf"),
        pytest.raises(UserError, match=r"2 images of .* cannot be read"),
    ):
        check(data, tmp_path)
    assert "9.png (truncated or corrupt image)" in caplog.text
    assert "12.png (neither JPEG nor PNG)" in caplog.text
    assert (tmp_path / "logs/data/ward/figures/data.png").exists()


def test_a_header_that_claims_too_much_and_a_folder_without_a_readable_file(data: Path) -> None:
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


def test_the_page_of_a_study_or_of_other_data_is_left_alone(data: Path, tmp_path: Path) -> None:
    run = check(data, tmp_path)
    others = tmp_path / "others" / data.name
    shutil.copytree(data, others)
    (others / "NORMAL/9.png").unlink()
    before = (run / "metrics.json").read_bytes()
    check(others, tmp_path)
    assert (run / "metrics.json").read_bytes() == before
    second = run.with_name(f"{data.name}-2")
    assert json.loads((second / "metrics.json").read_text())["source"] == str(others.resolve())
    # A study's page names no source.
    (run / "metrics.json").write_text('{"splits": {}}')
    check(data, tmp_path)
    assert (run / "metrics.json").read_text() == '{"splits": {}}'
    assert (run.with_name(f"{data.name}-3") / "metrics.json").exists()


def test_what_a_training_would_refuse_is_refused_here(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="task binary needs neither"):
        prepare_data(PrepareData(check=str(data), task="three_class", logs=str(tmp_path / "logs")))


def test_many_labels_fit_on_the_page(tmp_path: Path, drawn: list[Image.Image]) -> None:
    lines = ["path,label"]
    for number, image in enumerate(drawn):
        image.save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,finding number {number % 12}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    prepare_data(
        PrepareData(check=str(tmp_path / "list.csv"), task="labels", logs=str(tmp_path / "logs"))
    )
    assert (tmp_path / "logs/data/list/figures/data.png").exists()


def test_phantoms_are_written_where_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = PrepareData(out="mine", count=40, size=32, seed=3)
    with caplog.at_level("INFO", logger="cxr_tf"):
        prepare_data(settings)
    assert len(list(Path("mine").glob("t*/*/*.png"))) > 30
    assert "synthetic phantoms" in caplog.text
    with pytest.raises(UserError, match="exists"):
        prepare_data(settings)
    with pytest.raises(UserError, match="--out"):
        prepare_data(PrepareData(count=40))
    with pytest.raises(UserError, match="28, 64, 128 and 224"):
        prepare_data(PrepareData(source="pneumoniamnist", size=32))
