"""Tests of the autoencoder variants: their scores, and the default of the package."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from benchmarks.config import AutoencoderVariant, CompareAutoencoders
from cxr_tf.errors import UserError


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> CompareAutoencoders:
    """200 phantoms at the smallest image size."""
    from cxr_tf.data.sources.phantoms import write_phantoms

    folder = tmp_path_factory.mktemp("chests") / "phantoms"
    write_phantoms(folder, count=200, size=64, seed=3)
    return CompareAutoencoders(
        str(folder), image_size=128, batch_size=8, epochs=2, bootstrap_samples=5,
        logs=str(folder.parent / "logs"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def material(settings: CompareAutoencoders) -> Any:
    from benchmarks.autoencoder import compare_autoencoders
    from benchmarks.autoencoder import material as autoencoder_material

    data = compare_autoencoders.load_data(settings)
    train = data.split("train")
    healthy = train.take(np.flatnonzero(train.labels == 0))
    return autoencoder_material.make_material(settings, healthy, data.split("val"))


@pytest.fixture(scope="module")
def network() -> Any:
    """An untrained denoising network."""
    import keras

    from cxr_tf.models.autoencoder import build_network

    keras.utils.set_random_seed(5)
    return build_network("denoising", 128)


def test_default_network_equals_that_of_train_autoencoder(material: Any, tmp_path: Path) -> None:
    """Bit for bit, if the last epoch is selected, as in this test."""
    import keras
    import tensorflow as tf

    from benchmarks.autoencoder import material as autoencoder_material
    from cxr_tf.anomaly import fitting
    from cxr_tf.anomaly.resolved import ResolvedAutoencoder
    from cxr_tf.models.autoencoder import build_network
    from cxr_tf.training import checkpoints

    tf.config.experimental.enable_op_determinism()
    found, last, _ = autoencoder_material.trained(material, material.seen, material.lungs)
    settings = ResolvedAutoencoder(epochs=2, batch_size=8, image_size=128)
    keras.utils.set_random_seed(settings.seed)
    expected = build_network("denoising", 128)
    state = checkpoints.TrainingState(tmp_path)
    losses = iter([1.0, 0.5])  # the last is the best
    fitting.fit(
        expected,
        material.seen,
        lambda epoch: {"epoch": epoch, **dict.fromkeys(("val_loss", "val_auroc"), 0.0),
                       "selection_loss": next(losses)},
        state,
        tf.summary.create_noop_writer(),
        settings,
    )  # fmt: skip
    state.restore_best(expected)
    for a, b in zip(found.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(np.abs(a - b).max() > 1e-6 for a, b in zip(found.get_weights(), last, strict=True))


def test_alternative_measures_are_combined_like_the_default(material: Any, network: Any) -> None:
    import tensorflow as tf

    from benchmarks.autoencoder import residuals
    from cxr_tf.data.restoration.local_contrast import local_contrast

    rows = dict(residuals.other_residuals(network, material))
    assert len(rows) == 5
    mark = material.score(network, "lesion_mask")
    np.testing.assert_allclose(rows["lesion mask of the network"].alone, mark, rtol=1e-4)
    x = local_contrast(tf.constant(material.shown))
    removed = np.maximum(network(x, training=False)["residual"].numpy(), 0)
    row, default = material.measured(residuals.highest_tenth(removed)), material.row(network)
    np.testing.assert_allclose(row.alone, default.alone, rtol=1e-4)
    np.testing.assert_allclose(row.joined, default.joined, atol=2e-3)
    assert np.ptp(default.joined) > 0.5


def test_pixels_are_standardised_by_other_patients(material: Any) -> None:
    from benchmarks.autoencoder import residuals

    rng = np.random.default_rng(0)
    maps = rng.random((len(material.shown), 16, 16, 1)).astype(np.float32)
    before = residuals.by_pixel(maps, material)
    patients = np.array(material.val.catalog.patients)
    healthy = patients[~material.sick]
    patients = np.concatenate([patients, healthy, healthy, healthy])
    assert np.isfinite(before).all() and (before >= 0).all()
    person = healthy[0]
    maps[patients == person] += 50
    after = residuals.by_pixel(maps, material)
    changed = (before != after).any(axis=(1, 2, 3))
    # They are not standardised by themselves, so the whole addition stands out.
    assert after[patients == person].mean() > 50
    assert changed.sum() > (patients == person).sum()


def test_phantom_opacities_lie_in_the_lungs(material: Any) -> None:
    from benchmarks.autoencoder import variants

    raised = variants.phantom_lesions(material, 0)
    assert raised[material.lungs == 0].max() == 0
    painted = (raised > 5).any(axis=(1, 2, 3)).mean()
    assert 0.6 < painted < 0.95
    assert not np.array_equal(raised, variants.phantom_lesions(material, 1))


def test_shifted_images_equal_the_image_at_another_position(material: Any) -> None:
    from benchmarks.autoencoder import residuals

    images = material.val.images[:2]
    moved = list(residuals.shifts(images, share=2 / 128))
    assert len(moved) == 4
    for (down, across), x in zip([(-2, -2), (-2, 2), (2, -2), (2, 2)], moved, strict=True):
        here = x[:, 4:-4, 4:-4]
        there = images[:, 4 + down : 124 + down, 4 + across : 124 + across]
        np.testing.assert_allclose(here, there, atol=1e-3)


def test_differences_from_the_default_have_the_right_sign(material: Any) -> None:
    from benchmarks.autoencoder import compare_autoencoders
    from benchmarks.autoencoder import material as autoencoder_material

    sick = material.sick
    noise = np.random.default_rng(0).normal(size=len(sick))
    rows = {
        autoencoder_material.DEFAULT: autoencoder_material.Row(noise, noise),
        "perfect": autoencoder_material.Row(None, sick.astype(float)),
        "opposite": autoencoder_material.Row(-1.0 * sick, None),
    }
    tables = compare_autoencoders.evaluate_rows(rows, material.val, bootstrap_samples=50)
    assert tables[autoencoder_material.DEFAULT]["difference"] == 0
    assert tables[autoencoder_material.DEFAULT]["ci95"]["difference"] == [0, 0]
    assert tables["perfect"]["joined"] == 1 and "alone" not in tables["perfect"]
    low, high = tables["perfect"]["ci95"]["difference"]
    assert 0 < low <= 1 - tables[autoencoder_material.DEFAULT]["joined"] <= high
    assert tables["opposite"]["difference"] < 0
    printed = compare_autoencoders.table(tables, material.val)
    assert f"{(~sick).sum()} healthy and {sick.sum()} abnormal" in printed and "perfect" in printed


def test_all_variants_are_compared_and_finished_ones_are_kept(
    settings: CompareAutoencoders, network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dummy networks and scores: one interruption, all rows, no training on sick images."""
    from benchmarks.autoencoder import compare_autoencoders, variants
    from benchmarks.autoencoder import material as autoencoder_material
    from cxr_tf.models.autoencoder import build_network

    trained: list[np.ndarray] = []

    def untrained(
        material: Any, images: np.ndarray, lungs: np.ndarray, **changes: Any
    ) -> tuple[Any, list[np.ndarray], float]:
        if len(trained) == 3:
            trained.append(images)
            raise KeyboardInterrupt
        trained.append(images)
        if images.shape[1] != 64:
            return build_network("denoising", 2 * images.shape[1]), [], 1.0
        return network, network.get_weights(), 1.0

    def scores(material: Any, network: Any, name: str) -> np.ndarray:
        return np.random.default_rng(len(name)).normal(size=len(material.val.labels))

    monkeypatch.setattr(variants, "trained", untrained)
    monkeypatch.setattr(autoencoder_material.Material, "score", scores)
    quick = dataclasses.replace(settings, vgg16_weights="none", name="quick")
    with pytest.raises(KeyboardInterrupt):
        compare_autoencoders.compare_autoencoders(quick)
    folder = Path(quick.logs) / "compare" / "quick"
    assert not (folder / "metrics.json").exists()
    with pytest.raises(UserError, match="was interrupted"):
        compare_autoencoders.compare_autoencoders(quick)
    kept = json.loads((folder / "rows.json").read_text())
    assert len(kept) == 3

    run = compare_autoencoders.compare_autoencoders(dataclasses.replace(quick, resume=True))
    assert len(trained) == 16  # fifteen, one of them twice
    compared = run.metrics["variants"]
    assert len(compared) == 27 and {
        "both seeds averaged",
        "grey levels instead of local contrast",
    } <= set(compared)
    assert (
        compared["default"]["alone"] == compared["the next seed"]["alone"]
    )  # the same network here
    assert (folder / "figures" / "variants.png").exists() and not (folder / "rows.json").exists()
    lines = (folder / "variants.csv").read_text().splitlines()
    assert len(lines) == 1 + len(compared)
    # What the first training was given is the healthy images and no other.
    data = compare_autoencoders.load_data(settings).split("train")
    from cxr_tf.models.autoencoder import as_network_sees

    healthy = as_network_sees(data.images[data.labels == 0], "denoising")
    np.testing.assert_array_equal(trained[0], healthy)


def test_selected_variants_are_trained_with_the_default(
    settings: CompareAutoencoders, network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.autoencoder import compare_autoencoders, variants

    pairs = []

    def untrained(material: Any, images: np.ndarray, *args: Any, **changes: Any) -> tuple:
        pairs.append(changes.get("pair"))
        return network, network.get_weights(), 1.0

    monkeypatch.setattr(variants, "trained", untrained)
    some = dataclasses.replace(
        settings, vgg16_weights="none", variants=("large", "seed", "small"), name="some"
    )
    compared = compare_autoencoders.compare_autoencoders(some).metrics["variants"]
    assert "both seeds averaged" in compared and "mean lung position" not in compared
    # In the order of the table, with the opacities that their names state.
    asked = []
    monkeypatch.setattr(variants.opacities, "paint", lambda x, *_, **how: asked.append(how) or x)
    assert [pair is None for pair in pairs] == [True, True, False, False]
    for pair in pairs[2:]:
        pair(np.zeros((1, 64, 64, 1), np.float32), None, None)
    assert asked == [{"extent": 0.5}, {"extent": 2}]


def test_every_variant_can_be_selected_by_its_flag(
    settings: CompareAutoencoders, material: Any
) -> None:
    from benchmarks.autoencoder import compare_autoencoders, variants

    known = variants.variants(material, lambda images, block: images)
    assert list(known) == ["default", *get_args(AutoencoderVariant)]
    bare = dataclasses.replace(settings, vgg16_weights="none", variants=("features",), name="bare")
    with pytest.raises(UserError, match="features needs --vgg16-weights"):
        compare_autoencoders.compare_autoencoders(bare)


def test_too_few_patients_are_refused(settings: CompareAutoencoders, tmp_path: Path) -> None:
    from benchmarks.autoencoder import compare_autoencoders
    from cxr_tf.data.sources.phantoms import write_phantoms

    write_phantoms(tmp_path / "few", count=75, size=64, seed=3)
    few = dataclasses.replace(settings, data=str(tmp_path / "few"), name="few")
    with pytest.raises(UserError, match=r"sick patients in the validation set; .* 5 of"):
        compare_autoencoders.compare_autoencoders(few)
    assert not (Path(settings.logs) / "compare" / "few").exists()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    import keras

    yield
    keras.backend.clear_session()
