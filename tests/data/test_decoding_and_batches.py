"""Decoding against Pillow, and augmentation that is bounded, repeatable and keeps sides apart."""

import io
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from cxr_tf.data import augmentation, decoding
from cxr_tf.data import batches as data_batches
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
def test_decoding_is_the_luminance_of_pillow(mode: str, kind: str) -> None:
    data = encoded(as_mode(mode), kind)
    with Image.open(io.BytesIO(data)) as read:
        if mode == "I;16":
            gray = Image.fromarray((np.asarray(read) >> 8).astype(np.uint8))
        else:
            # Transparency is dropped, and a CMYK JPEG has no way to gray but by colour.
            gray = read.convert("RGB").convert("L")
    expected = np.asarray(gray.resize((48, 48), Image.Resampling.BILINEAR), int)
    image = decoding.decode_radiograph(tf.constant(data), 48).numpy()
    assert image.dtype == np.uint8
    assert image.shape == (48, 48, 1)
    assert np.abs(image[..., 0] - expected).max() <= 1


def test_a_graph_of_its_own_reads_what_eager_does() -> None:
    # Constant folding once took a gray JPEG for one of colour, and failed.
    read = tf.function(
        lambda data: decoding.decode_radiograph(data, 48),
        input_signature=[tf.TensorSpec([], tf.string)],
    )
    for mode, kind in (("L", "JPEG"), ("RGB", "JPEG"), ("CMYK", "JPEG"), ("L", "PNG")):
        data = tf.constant(encoded(as_mode(mode), kind))
        np.testing.assert_array_equal(read(data), decoding.decode_radiograph(data, 48))


def test_gray_of_the_right_size_is_not_touched() -> None:
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = decoding.decode_radiograph(tf.constant(encoded(Image.fromarray(gray), "PNG")), 16)
    np.testing.assert_array_equal(image[..., 0], gray)


@pytest.mark.parametrize("size", [24, 48, 96, 224])  # the eighth, quarter, half, whole
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_large_jpegs_are_shrunk_by_the_decoder_to_nearly_the_same_pixels(
    mode: str, size: int
) -> None:
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
def test_the_smallest_images_are_resized(shape: tuple[int, int]) -> None:
    data = encoded(Image.fromarray(np.full(shape, 93, np.uint8)), "PNG")
    np.testing.assert_array_equal(decoding.decode_radiograph(tf.constant(data), 64), 93)


def test_files_that_cannot_be_read_are_told_apart(tmp_path: Path) -> None:
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


def test_large_sets_live_in_a_file_without_a_name(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    paths = sorted(map(str, phantoms.glob("val/*/*.png")))
    in_memory, _ = decoding.load_images(paths, 64)
    monkeypatch.setattr(decoding, "LARGEST_IN_MEMORY", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    on_disk, _ = decoding.load_images(paths, 64)
    assert isinstance(on_disk, np.memmap)
    assert on_disk.any()
    np.testing.assert_array_equal(in_memory, on_disk)
    assert list(tmp_path.iterdir()) == []
    kept = list(data_batches.evaluation_batches(on_disk, batch_size=4))
    np.testing.assert_array_equal(np.concatenate(kept), in_memory)


# ---------------------------------------------------------------------- training batches

IMAGES = np.random.default_rng(1).integers(0, 256, (10, 64, 64, 1)).astype(np.uint8)
LABELS = np.arange(10)  # each image its own class: a label tells the row


def batches(epochs: range, **changed) -> list[tuple[np.ndarray, np.ndarray]]:
    options = {"batch_size": 3, "seed": 5, "strength": 1.0} | changed
    stream = data_batches.training_batches(IMAGES, LABELS, epochs=epochs, **options)
    return list(stream.as_numpy_iterator())


def by_row(found: list[tuple[np.ndarray, np.ndarray]]) -> dict[int, np.ndarray]:
    return {int(y): x for xs, ys in found for x, y in zip(xs, ys, strict=True)}


def test_an_epoch_is_the_same_wherever_the_stream_begins() -> None:
    whole, later = batches(range(4)), batches(range(2, 4))
    steps = data_batches.steps_per_epoch(10, 3)
    assert len(whole) == 4 * steps
    for (x, y), (again, same) in zip(whole[2 * steps :], later, strict=True):
        np.testing.assert_array_equal(x, again)
        np.testing.assert_array_equal(y, same)


def test_batch_size_does_not_change_what_an_image_becomes() -> None:
    one, five = by_row(batches(range(1), batch_size=1)), by_row(batches(range(1), batch_size=5))
    assert one.keys() == five.keys() == set(range(10))
    for row in one:  # not to the bit: vectorised powers round otherwise at the end of a batch
        np.testing.assert_allclose(one[row], five[row], atol=0.05)
    other = by_row(batches(range(1), batch_size=5, seed=6))
    assert all(np.abs(other[row] - five[row]).mean() > 1 for row in five)


def test_every_epoch_is_another_permutation() -> None:
    orders = [
        tuple(np.concatenate([y for _, y in batches(range(e, e + 1), batch_size=2)]))
        for e in range(6)
    ]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len(set(orders)) == 6
    short = batches(range(1), batch_size=4)
    assert [len(y) for _, y in short] == [4, 4]
    assert len(np.unique(np.concatenate([y for _, y in short]))) == 8


def test_an_epoch_augments_anew() -> None:
    first, second = (
        by_row(batches(range(1), batch_size=1)),
        by_row(batches(range(1, 2), batch_size=1)),
    )
    assert all(np.abs(first[row] - second[row]).mean() > 1 for row in first)


def test_no_strength_is_no_change_but_three_channels() -> None:
    for x, y in batches(range(1), strength=0.0):
        assert x.dtype == np.float32
        np.testing.assert_allclose(x, np.repeat(IMAGES[y], 3, axis=-1), atol=1e-3)
    clean = np.concatenate(list(data_batches.evaluation_batches(IMAGES, batch_size=4)))
    np.testing.assert_array_equal(clean, IMAGES)


def test_the_stressed_copy_is_fixed_and_another_one() -> None:
    def stressed(batch_size: int, seed: int = 3) -> np.ndarray:
        stream = data_batches.evaluation_batches(IMAGES, batch_size=batch_size, stress_seed=seed)
        return np.concatenate(list(stream))

    np.testing.assert_array_equal(stressed(3), stressed(3))
    # Vectorised powers round by a bit otherwise at the end of a batch.
    np.testing.assert_allclose(stressed(3), stressed(10), atol=0.05)
    assert (stressed(3) != stressed(3, seed=4)).mean() > 0.5
    assert (stressed(3) != IMAGES).mean() > 0.5


# ---------------------------------------------------------------------- augmentation

SIZE = 128


def squares(*centres: tuple[int, int]) -> np.ndarray:
    """Bright squares of 7 pixels at (row, column), float32 [S, S, 1]."""
    image = np.zeros((SIZE, SIZE, 1), np.float32)
    for row, column in centres:
        image[row - 3 : row + 4, column - 3 : column + 4] = 200
    return image


def centre_of(images: np.ndarray) -> np.ndarray:
    """Centre of brightness (row, column) of each image, from the image's middle."""
    weight = np.asarray(images)[..., 0]
    axis = np.arange(SIZE) - (SIZE - 1) / 2
    total = weight.sum(axis=(1, 2))
    rows, columns = weight.sum(axis=2) @ axis / total, weight.sum(axis=1) @ axis / total
    return np.stack([rows, columns], axis=1)


def moved(image: np.ndarray, draws: np.ndarray) -> np.ndarray:
    batch = np.repeat(image[None], len(draws), axis=0)
    return augmentation.augment(tf.constant(batch), tf.constant(draws, tf.float32)).numpy()


def only(column: int, *values: float) -> np.ndarray:
    """Draws that are zero but for one column; no cutout."""
    draws = np.zeros((len(values), augmentation.AUGMENTATION_DRAWS), np.float32)
    draws[:, column] = values
    draws[:, 11] = 1
    return draws


# Bounds as in the docstring of `augment`, with room for tuning: an eighth more or less is taste,
# degrees taken for radians or a share for pixels are not.


def test_shift_is_a_few_percent() -> None:
    for column, axis in ((3, 1), (4, 0)):
        left, still, right = centre_of(moved(squares((64, 64)), only(column, -1, 0, 1)))[:, axis]
        assert still == pytest.approx(0.5, abs=1e-3)
        assert left - still == pytest.approx(still - right, abs=0.1)
        assert 0.02 * SIZE < left - still < 0.08 * SIZE


def test_rotation_is_a_few_degrees_about_the_centre() -> None:
    places = centre_of(moved(squares((24, 64)), only(0, -1, 0, 1)))
    first, still, last = np.degrees(np.arctan2(places[:, 1], -places[:, 0]))
    assert first - still == pytest.approx(still - last, abs=0.1)
    assert 2 < abs(first - still) < 8
    np.testing.assert_allclose(np.hypot(*places.T), np.hypot(*places[1]), atol=0.5)


def test_width_and_height_are_scaled_apart() -> None:
    for column, scaled, kept in ((1, 1, 0), (2, 0, 1)):
        places = centre_of(moved(squares((24, 24)), only(column, -1, 0, 1)))
        np.testing.assert_allclose(places[:, kept], places[1, kept], atol=0.3)
        wider, _, narrower = places[:, scaled] / places[1, scaled]
        assert 1.1 < wider < 1.2
        assert wider * narrower == pytest.approx(1, abs=0.02)


def test_a_marker_stays_on_its_side() -> None:
    draws = augmentation.augmentation_draws(200, tf.constant([7, 0], tf.int64)).numpy()
    draws[:, 5:8], draws[:, 11] = 0, 1  # position alone
    places = centre_of(moved(squares((30, 30)), draws))
    assert (places < -10).all()


def test_exposure_is_bounded_and_pixels_stay_in_range() -> None:
    draws = augmentation.augmentation_draws(200, tf.constant([7, 1], tf.int64)).numpy()
    assert draws.shape == (200, augmentation.AUGMENTATION_DRAWS)
    assert draws.min() >= -1
    assert draws.max() < 1
    assert np.abs(draws).max() > 0.98
    images = np.repeat(IMAGES[:1], 200, axis=0)
    out = augmentation.augment(tf.constant(images), tf.constant(draws), 2.0).numpy()
    assert np.isfinite(out).all()
    assert out.min() >= 0
    assert out.max() <= 255
    flat = np.full((SIZE, SIZE, 1), 100, np.float32)
    for column in (5, 7):  # gamma, brightness
        low, same, high = np.sort(moved(flat, only(column, -1, 0, 1)).mean(axis=(1, 2, 3)))
        assert same == pytest.approx(100, abs=0.01)
        assert 5 < 100 - low < 50
        assert 5 < high - 100 < 50


def test_cutout_hides_a_square_of_bounded_size_in_some_images() -> None:
    draws = augmentation.augmentation_draws(400, tf.constant([7, 2], tf.int64)).numpy()
    draws[:, :8], draws[:, 12:] = 0, 0  # cutout alone
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 1)).astype(np.float32)
    changed = np.abs(moved(noise, draws) - noise)[..., 0] > 1e-2
    hidden = changed.any(axis=(1, 2))
    assert 0.15 < hidden.mean() < 0.6
    for mask in changed[hidden]:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert np.ptp(rows) < 0.31 * SIZE
        assert np.ptp(columns) < 0.31 * SIZE
