"""Variants of the autoencoder: what each is measured by, and that the default is ours."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from cxr_tf.errors import UserError
from cxr_tf.settings import AutoencoderVariant, CompareAutoencoders


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> CompareAutoencoders:
    """200 phantoms, as small as they may be."""
    from cxr_tf.data.phantom import write_phantoms

    folder = tmp_path_factory.mktemp("chests") / "phantoms"
    write_phantoms(folder, count=200, size=64, seed=3)
    return CompareAutoencoders(
        str(folder), image_size=128, batch_size=8, epochs=2, resamples=5,
        logs=str(folder.parent / "logs"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def material(settings: CompareAutoencoders) -> Any:
    from cxr_tf import anomaly_comparison as comparison
    from cxr_tf import anomaly_variants as variants

    data = comparison.load_data(settings)
    train = data.split("train")
    healthy = train.take(np.flatnonzero(train.labels == 0))
    return variants.make_material(settings, healthy, data.split("val"))


@pytest.fixture(scope="module")
def network() -> Any:
    """A restoring network that nobody trained."""
    import keras

    from cxr_tf.models.autoencoder import build_network

    keras.utils.set_random_seed(5)
    return build_network("restoring", 128)


def test_the_default_is_that_of_train_autoencoder(material: Any, tmp_path: Path) -> None:
    """Bit for bit, where that takes the last epoch, as it is told to here."""
    import keras
    import tensorflow as tf

    from cxr_tf import anomaly, training
    from cxr_tf import anomaly_variants as variants
    from cxr_tf.models.autoencoder import build_network
    from cxr_tf.settings import TrainAutoencoder

    tf.config.experimental.enable_op_determinism()
    found, last, _ = variants.trained(material, material.seen, material.lungs)
    own = TrainAutoencoder(epochs=2, batch_size=8, image_size=128)
    keras.utils.set_random_seed(own.seed)
    expected = build_network("restoring", 128)
    state = training.TrainingState(tmp_path)
    judged = iter([1.0, 0.5])  # the last is the best
    anomaly.fit(
        expected,
        material.seen,
        lambda epoch: {"epoch": epoch, **dict.fromkeys(("val_loss", "val_auroc"), 0.0),
                       "selection_loss": next(judged)},
        state,
        tf.summary.create_noop_writer(),
        own,
    )  # fmt: skip
    state.restore_best(expected)
    for a, b in zip(found.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(np.abs(a - b).max() > 1e-6 for a, b in zip(found.get_weights(), last, strict=True))


def test_other_measures_are_taken_and_joined_as_the_default_is(material: Any, network: Any) -> None:
    import tensorflow as tf

    from cxr_tf import anomaly_variants as variants
    from cxr_tf.data.contrast import local_contrast

    rows = dict(variants.other_residuals(network, material))
    assert len(rows) == 5
    mark = material.score(network, "mark")
    np.testing.assert_allclose(rows["the mark of the network"].alone, mark, rtol=1e-4)
    x = local_contrast(tf.constant(material.shown))
    removed = np.maximum(network(x, training=False)["removed"].numpy(), 0)
    row, default = material.measured(variants.highest_tenth(removed)), material.row(network)
    np.testing.assert_allclose(row.alone, default.alone, rtol=1e-4)
    np.testing.assert_allclose(row.joined, default.joined, atol=2e-3)
    assert np.ptp(default.joined) > 0.5


def test_deviations_of_pixels_are_of_the_other_patients(material: Any) -> None:
    from cxr_tf import anomaly_variants as variants

    rng = np.random.default_rng(0)
    maps = rng.random((len(material.shown), 16, 16, 1)).astype(np.float32)
    before = variants.by_pixel(maps, material)
    patients = np.array(material.val.catalog.patients)
    healthy = patients[~material.sick]
    patients = np.concatenate([patients, healthy, healthy, healthy])
    assert np.isfinite(before).all() and (before >= 0).all()
    person = healthy[0]
    maps[patients == person] += 50
    after = variants.by_pixel(maps, material)
    changed = (before != after).any(axis=(1, 2, 3))
    # What is healthy in them is no measure for themselves: they stand out by all that was added.
    assert after[patients == person].mean() > 50
    assert changed.sum() > (patients == person).sum()


def test_the_phantoms_opacities_lie_in_the_lungs(material: Any) -> None:
    from cxr_tf import anomaly_variants as variants

    raised = variants.phantom_lesions(material, 0)
    assert raised[material.lungs == 0].max() == 0
    painted = (raised > 5).any(axis=(1, 2, 3)).mean()
    assert 0.6 < painted < 0.95
    assert not np.array_equal(raised, variants.phantom_lesions(material, 1))


def test_shifted_images_are_the_image_elsewhere(material: Any) -> None:
    from cxr_tf import anomaly_variants as variants

    images = material.val.images[:2]
    moved = list(variants.shifts(images, share=2 / 128))
    assert len(moved) == 4
    for (down, across), x in zip([(-2, -2), (-2, 2), (2, -2), (2, 2)], moved, strict=True):
        here = x[:, 4:-4, 4:-4]
        there = images[:, 4 + down : 124 + down, 4 + across : 124 + across]
        np.testing.assert_allclose(here, there, atol=1e-3)


def test_a_better_score_is_told_from_the_default(material: Any) -> None:
    from cxr_tf import anomaly_comparison as comparison
    from cxr_tf import anomaly_variants as variants

    sick = material.sick
    noise = np.random.default_rng(0).normal(size=len(sick))
    rows = {
        variants.DEFAULT: variants.Row(noise, noise),
        "perfect": variants.Row(None, sick.astype(float)),
        "opposite": variants.Row(-1.0 * sick, None),
    }
    tables = comparison.judge(rows, material.val, resamples=50)
    assert tables[variants.DEFAULT]["difference"] == 0
    assert tables[variants.DEFAULT]["ci95"]["difference"] == [0, 0]
    assert tables["perfect"]["joined"] == 1 and "alone" not in tables["perfect"]
    low, high = tables["perfect"]["ci95"]["difference"]
    assert 0 < low <= 1 - tables[variants.DEFAULT]["joined"] <= high
    assert tables["opposite"]["difference"] < 0
    printed = comparison.table(tables, material.val)
    assert f"{(~sick).sum()} healthy and {sick.sum()} sick" in printed and "perfect" in printed


def test_all_variants_are_compared_and_finished_ones_are_kept(
    settings: CompareAutoencoders, network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With networks and scores of nothing: one interruption, every row, and nothing sick learnt."""
    from cxr_tf import anomaly_comparison as comparison
    from cxr_tf import anomaly_variants as variants
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
            return build_network("restoring", 2 * images.shape[1]), [], 1.0
        return network, network.get_weights(), 1.0

    def scores(material: Any, network: Any, name: str) -> np.ndarray:
        return np.random.default_rng(len(name)).normal(size=len(material.val.labels))

    monkeypatch.setattr(variants, "trained", untrained)
    monkeypatch.setattr(variants.Material, "score", scores)
    quick = dataclasses.replace(settings, vgg16_weights="none", name="quick")
    with pytest.raises(KeyboardInterrupt):
        comparison.compare(quick)
    folder = Path(quick.logs) / "compare" / "quick"
    assert not (folder / "metrics.json").exists()
    with pytest.raises(UserError, match="was interrupted"):
        comparison.compare(quick)
    kept = json.loads((folder / "rows.json").read_text())
    assert len(kept) == 3

    run = comparison.compare(dataclasses.replace(quick, resume=True))
    assert len(trained) == 16  # fifteen, one of them twice
    told = run.metrics()["variants"]
    assert len(told) == 27 and {"both seeds averaged", "grey levels, not local contrast"} <= set(
        told
    )
    assert told["default"]["alone"] == told["the next seed"]["alone"]  # the same network here
    assert (folder / "figures" / "variants.png").exists() and not (folder / "rows.json").exists()
    lines = (folder / "variants.csv").read_text().splitlines()
    assert len(lines) == 1 + len(told)
    # What the first training was given is the healthy images and no other.
    data = comparison.load_data(settings).split("train")
    from cxr_tf.models.autoencoder import as_network_sees

    healthy = as_network_sees(data.images[data.labels == 0], "restoring")
    np.testing.assert_array_equal(trained[0], healthy)


def test_some_variants_can_be_trained_beside_the_default(
    settings: CompareAutoencoders, network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cxr_tf import anomaly_comparison as comparison
    from cxr_tf import anomaly_variants as variants

    pairs = []

    def untrained(material: Any, images: np.ndarray, *args: Any, **changes: Any) -> tuple:
        pairs.append(changes.get("pair"))
        return network, network.get_weights(), 1.0

    monkeypatch.setattr(variants, "trained", untrained)
    some = dataclasses.replace(
        settings, vgg16_weights="none", variants=("large", "seed", "small"), name="some"
    )
    told = comparison.compare(some).metrics()["variants"]
    assert "both seeds averaged" in told and "lungs where they are on average" not in told
    # In the order of the table, with the paint that their names say.
    asked = []
    monkeypatch.setattr(variants.opacities, "paint", lambda x, *_, **how: asked.append(how) or x)
    assert [pair is None for pair in pairs] == [True, True, False, False]
    for pair in pairs[2:]:
        pair(np.zeros((1, 64, 64, 1), np.float32), None, None)
    assert asked == [{"extent": 0.5}, {"extent": 2}]


def test_every_variant_has_its_flag(settings: CompareAutoencoders, material: Any) -> None:
    from cxr_tf import anomaly_comparison as comparison
    from cxr_tf import anomaly_variants as variants

    known = variants.variants(material, lambda images, block: images)
    assert list(known) == ["default", *get_args(AutoencoderVariant)]
    bare = dataclasses.replace(settings, vgg16_weights="none", variants=("features",), name="bare")
    with pytest.raises(UserError, match="features needs --vgg16-weights"):
        comparison.compare(bare)


def test_too_few_patients_to_compare_by_are_refused(
    settings: CompareAutoencoders, tmp_path: Path
) -> None:
    from cxr_tf import anomaly_comparison as comparison
    from cxr_tf.data.phantom import write_phantoms

    write_phantoms(tmp_path / "few", count=75, size=64, seed=3)
    few = dataclasses.replace(settings, data=str(tmp_path / "few"), name="few")
    with pytest.raises(UserError, match=r"healthy and \d+ sick patients in validation; .* 5 of"):
        comparison.compare(few)
    assert not (Path(settings.logs) / "compare" / "few").exists()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    import keras

    yield
    keras.backend.clear_session()
