"""Decoding of JPEG and PNG against Pillow."""

import io
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from cxr_tf.data import batches as data_batches
from cxr_tf.data import decoding
from cxr_tf.data.sources.phantoms import phantom

# Blocks of 8 pixels, as JPEG has them, so that colours survive.
COLOUR = np.kron(
    np.random.default_rng(0).integers(0, 256, (10, 7, 3)), np.ones((8, 8, 1), int)
).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def as_mode(mode: str) -> Image.Image:
    image = Image.fromarray(COLOUR)
    if mode == "I;16":
        return Image.fromarray(COLOUR[..., 0].astype(np.uint16) << 8 | 77)
    if mode in ("RGBA", "LA"):
        image = image.convert(mode)
        image.putalpha(Image.fromarray(COLOUR[..., 1]))
        return image
    return image.quantize(16) if mode == "P" else image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [(m, "PNG") for m in ("L", "RGB", "RGBA", "LA", "P", "1", "I;16")]
    + [(m, "JPEG") for m in ("L", "RGB", "CMYK")],
)
def test_decoded_luminance_matches_pillow(mode: str, kind: str) -> None:
    data = encoded(as_mode(mode), kind)
    with Image.open(io.BytesIO(data)) as read:
        if mode == "I;16":
            gray = Image.fromarray((np.asarray(read) >> 8).astype(np.uint8))
        else:
            # Transparency is dropped, and a CMYK JPEG can be converted to gray only via colour.
            gray = read.convert("RGB").convert("L")
    expected = np.asarray(gray.resize((48, 48), Image.Resampling.BILINEAR), int)
    image = decoding.decode_radiograph(tf.constant(data), 48).numpy()
    assert image.dtype == np.uint8
    assert image.shape == (48, 48, 1)
    assert np.abs(image[..., 0] - expected).max() <= 1


def test_graph_and_eager_decoding_agree() -> None:
    # Constant folding once took a gray JPEG for one of colour, and failed.
    read = tf.function(
        lambda data: decoding.decode_radiograph(data, 48),
        input_signature=[tf.TensorSpec([], tf.string)],
    )
    for mode, kind in (("L", "JPEG"), ("RGB", "JPEG"), ("CMYK", "JPEG"), ("L", "PNG")):
        data = tf.constant(encoded(as_mode(mode), kind))
        np.testing.assert_array_equal(read(data), decoding.decode_radiograph(data, 48))


def test_a_gray_image_of_the_target_size_is_unchanged() -> None:
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = decoding.decode_radiograph(tf.constant(encoded(Image.fromarray(gray), "PNG")), 16)
    np.testing.assert_array_equal(image[..., 0], gray)


@pytest.mark.parametrize("size", [24, 48, 96, 224])  # the eighth, quarter, half, whole
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_downscaling_in_the_jpeg_decoder_matches_pillow(mode: str, size: int) -> None:
    chest = phantom("bacterial", seed=1, patient=2, size=400).image
    # No multiples of eight: the decoder rounds the sides up, which must not stretch the chest.
    data = encoded(Image.fromarray(chest).resize((563, 421)).convert(mode), "JPEG", quality=90)
    image = decoding.decode_radiograph(tf.constant(data), size).numpy()[..., 0]
    with Image.open(io.BytesIO(data)) as read:
        gray = read.convert("RGB").convert("L")
    expected = np.asarray(gray.resize((size, size), Image.Resampling.BILINEAR), int)
    difference = image - expected
    assert np.abs(difference).mean() < 0.4
    # None of the ways in which the decoder shrinks is brighter than another.
    assert abs(difference.mean()) < 0.15


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (3, 5)])
def test_tiny_images_are_resized(shape: tuple[int, int]) -> None:
    data = encoded(Image.fromarray(np.full(shape, 93, np.uint8)), "PNG")
    np.testing.assert_array_equal(decoding.decode_radiograph(tf.constant(data), 64), 93)


def test_unreadable_files_are_reported_with_their_reason(tmp_path: Path) -> None:
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120), np.uint8))
    jpeg, png = encoded(large, "JPEG"), encoded(large, "PNG")
    corrupt = "truncated or corrupt image"
    contents = {
        "good.jpeg": (jpeg, None),
        "half.jpeg": (jpeg[: len(jpeg) // 2], corrupt),
        "without_end.jpeg": (jpeg[:-2], corrupt),
        "half.png": (png[: len(png) // 2], corrupt),
        "without_end.png": (png[:-13], corrupt),
        "flipped.png": (png[:200] + bytes([png[200] ^ 255]) + png[201:], corrupt),
        "text.jpeg": (b"this is no image\n", "neither JPEG nor PNG"),
        "gif_called.png": (encoded(large, "GIF"), "neither JPEG nor PNG"),
        "bitmap_called.jpg": (encoded(large, "BMP"), "neither JPEG nor PNG"),
        "tiny.png": (encoded(large.resize((15, 40)), "PNG"), "a side of less than 16 pixels"),
        "empty.png": (b"", "empty"),
        "png_called.jpeg": (png, None),
        "gone.png": (None, "no such file"),
        "good.png": (png, None),
    }
    paths = [str(tmp_path / name) for name in contents]
    for path, (data, _) in zip(paths, contents.values(), strict=True):
        if data is not None:
            Path(path).write_bytes(data)
    images, unreadable = decoding.load_images(paths, 32)
    reasons = [reason for _, reason in contents.values()]
    assert unreadable == {row: reason for row, reason in enumerate(reasons) if reason}
    for row, path in enumerate(paths):
        if row in unreadable:
            assert not images[row].any()
        else:
            one = decoding.decode_radiograph(tf.io.read_file(path), 32)
            np.testing.assert_array_equal(images[row], one)


def test_large_sets_are_kept_in_an_unnamed_file(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    paths = sorted(map(str, phantoms.glob("val/*/*.png")))
    in_memory, _ = decoding.load_images(paths, 64)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    on_disk, _ = decoding.load_images(paths, 64, in_memory=1000)
    assert isinstance(on_disk, np.memmap)
    assert on_disk.any()
    np.testing.assert_array_equal(in_memory, on_disk)
    assert list(tmp_path.iterdir()) == []
    kept = list(data_batches.evaluation_batches(on_disk, batch_size=4))
    np.testing.assert_array_equal(np.concatenate(kept), in_memory)


# ---------------------------------------------------------------------- content


def lung_mask(size: int = 300) -> np.ndarray:
    return phantom("normal", seed=1, patient=3, size=size).lungs.astype(np.uint8) * 255


def test_images_without_content_are_refused(tmp_path: Path) -> None:
    chest = phantom("viral", seed=1, patient=3, size=300).image
    faint = np.random.default_rng(0).normal(128, 1, (300, 300)).astype(np.uint8)
    contents = {
        "black.png": encoded(Image.new("L", (500, 500)), "PNG"),
        "white.jpeg": encoded(Image.new("RGB", (500, 500), "white"), "JPEG"),
        "faint.png": encoded(Image.fromarray(faint), "PNG"),
        "mask.png": encoded(Image.fromarray(lung_mask()), "PNG"),
        "mask.jpeg": encoded(Image.fromarray(lung_mask()), "JPEG"),
        "chest.png": encoded(Image.fromarray(chest), "PNG"),
        "dim.jpeg": encoded(Image.fromarray(chest // 8 + 20), "JPEG"),
        "framed.png": encoded(Image.fromarray(np.pad(chest, 100)), "PNG"),
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    paths = [str(tmp_path / name) for name in contents]
    _, unreadable = decoding.load_images(paths, 64)
    assert list(unreadable) == [0, 1, 2, 3, 4]
    assert set(unreadable.values()) == {"a blank or two-valued image, not a radiograph"}
    # Lesion masks are images of two values.
    masks, unreadable = decoding.load_images(paths[3:4], 64, masks=True)
    assert not unreadable and masks.max() == 255


# ---------------------------------------------------------------------- 16 bits


def deep(values: np.ndarray, significant: int = 0) -> tf.Tensor:
    info = PngInfo()
    if significant:
        info.add(b"sBIT", bytes([significant]))
    return tf.constant(encoded(Image.fromarray(values.astype(np.uint16)), "PNG", pnginfo=info))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_16_bit_pngs_are_scaled_by_the_bits_in_use(bits: int) -> None:
    chest = phantom("normal", seed=1, patient=3, size=64).image.astype(int)
    chest[0, 0] = 255
    values = np.round(chest * ((2**bits - 1) / 255))
    image = decoding.decode_radiograph(deep(values), 64).numpy()[..., 0]
    assert np.abs(image - chest).max() <= 1


def test_the_sbit_chunk_states_the_bits_of_a_dark_image() -> None:
    chest = phantom("normal", seed=1, patient=3, size=64).image.astype(int)
    dark = chest * 3  # of 4,095
    image = decoding.decode_radiograph(deep(dark, significant=12), 64).numpy()[..., 0]
    assert np.abs(image - dark * 255 / 4095).max() <= 1
    # As the PNG specification has it, 12 bits are scaled to 16 and the chunk states how many there
    # were.
    image = decoding.decode_radiograph(deep(chest * 257, significant=12), 64).numpy()[..., 0]
    assert np.abs(image - chest).max() <= 1


# ---------------------------------------------------------------------- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    chest = Image.fromarray(phantom("normal", seed=1, patient=3, size=96).image).resize((120, 96))
    exif = Image.Exif()
    exif[0x010F] = "a manufacturer"  # another tag before it
    exif[0x0112] = orientation
    data = encoded(chest, kind, exif=exif)
    with Image.open(io.BytesIO(data)) as read:
        upright = ImageOps.exif_transpose(read)
    expected = np.asarray(upright.resize((48, 48), Image.Resampling.BILINEAR), int)
    image = decoding.decode_radiograph(tf.constant(data), 48).numpy()[..., 0]
    assert np.abs(image - expected).max() <= 2


def test_a_damaged_but_readable_jpeg_is_logged_with_its_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(encoded(Image.fromarray(phantom("normal", seed=1, patient=3).image), "JPEG"))
    (tmp_path / "sound.jpeg").write_bytes(data)
    start = len(data) // 2
    data[start : start + 40] = bytes([0xFF, 0xD0] * 20)  # markers where there should be none
    (tmp_path / "damaged.jpeg").write_bytes(data)
    paths = [str(tmp_path / f"{name}.jpeg") for name in ("sound", "damaged")]
    with caplog.at_level("INFO"):
        _, unreadable = decoding.load_images(paths, 64)
    assert not unreadable
    lines = [r.getMessage() for r in caplog.records if "damaged JPEG" in r.getMessage()]
    assert len(lines) == 1 and "/damaged.jpeg (Corrupt JPEG data" in lines[0]
    assert "JPEG" not in capfd.readouterr().err
