"""Embeddings of a catalogue: their order, and when they are reused."""

import numpy as np
from fitted_knn import Fitted


def test_embeddings_match_the_classifier_in_split_order(fitted: Fitted) -> None:
    import tensorflow as tf

    from cxr_tf.serving.loading import load_served

    stored = fitted.embeddings()
    assert list(dict.fromkeys(stored["splits"])) == ["train", "val", "test"]
    served = load_served(str(fitted.model.parent / "tiny"))
    paths = [str(p) for p in stored["paths"][-4:]]
    out = served.signature("embed")(image_bytes=tf.constant(served.decode(paths)))
    np.testing.assert_allclose(out["embedding"], stored["embeddings"][-4:], rtol=1e-5, atol=1e-5)


def test_duplicate_training_image_is_not_indexed(fitted: Fitted) -> None:
    stored, (indexed, _) = fitted.embeddings(), fitted.metrics["model"]["index"]
    train = stored["splits"] == "train"
    assert indexed == train.sum() - 1
    assert len(set(stored["digests"][:indexed])) == indexed


def test_embeddings_of_other_models_or_images_are_not_reused(fitted: Fitted) -> None:
    from cxr_tf.neighbors.embeddings import find_stored

    stored = fitted.embeddings()
    model, digests, splits = str(stored["model"]), stored["digests"], stored["splits"]
    file = fitted.run.parent / "new" / "embeddings.npz"
    assert find_stored(file, model, digests, splits) is not None
    swapped = digests.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert find_stored(file, "another", digests, splits) is None
    assert find_stored(file, model, swapped, splits) is None
    assert find_stored(file, model, digests[:-1], splits[:-1]) is None


def test_batches_never_hold_a_single_image() -> None:
    from cxr_tf.neighbors.embeddings import batches

    for count, size in ((65, 32), (64, 32), (33, 32), (7, 3), (2, 1)):
        parts = [range(count)[b] for b in batches(count, size)]
        assert [i for b in parts for i in b] == list(range(count))
        assert size == 1 or all(len(b) > 1 for b in parts)
