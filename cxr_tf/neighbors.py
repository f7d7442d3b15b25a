"""Embeddings of a trained classifier -> k nearest neighbours: chosen, measured, stored, served.

    python scripts/fit_knn.py --classifier logs/classifier/vgg16-binary
    pipeline, manifest = load_knn("saved_models/vgg16-binary-knn")
    pipeline.predict_proba(embeddings)          # float32 [N, D] -> shares of the vote [N, C]

How it chooses. Representation, metric, weights and k are chosen by balanced accuracy on validation
*and* a stressed copy of it, half each: validation alone is nearly separable and ranks nothing. Of
equals the one with the lower Brier score. Test is looked at once, at the end.

What the probabilities are: shares of the vote, not calibrated. A share moves in steps of 1/k, and a
temperature cannot move a share of 0 or 1.

Memory. The embeddings, float32 [N, D], are held once: they are kept in a file, read from it, and
changed in place. Above WIDEST_INDEX bytes only the PCA's few coordinates are searched.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pickle
import platform
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import sklearn
import tensorflow as tf
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from cxr_tf import evaluation, figures, projection, serving
from cxr_tf.classification import STRESS_SEED
from cxr_tf.comparison import Predictions, paired_tests
from cxr_tf.data import catalog as catalogs
from cxr_tf.data import pipeline as images_pipeline
from cxr_tf.errors import UserError
from cxr_tf.models import backbones
from cxr_tf.models.classifier import build_classifier, embedding_of
from cxr_tf.runs import Run, atomically, open_run, refuse_existing, write_csv, write_json
from cxr_tf.settings import FitKnn
from cxr_tf.training import compiled

log = logging.getLogger(__name__)

# The grid. Odd numbers of neighbours only: with two classes there is then no tie to break.
NEIGHBOURS = (1, 3, 5, 7, 9, 11, 15, 21, 25, 31, 41, 51, 75, 101)
WEIGHTS = ("uniform", "distance")
METRICS = ("euclidean", "cosine")
REPRESENTATIONS = ("as is", "standardised", "PCA")
PCA_WIDTH = 64

# Above this an index as wide as the embedding would be a second copy of the data, in memory and in
# every file that is written.
WIDEST_INDEX = 256 * 1024**2

# A radiograph is called unlike the training data above this quantile of validation.
NOVELTY_QUANTILE = 0.99

THUMBNAIL = 48  # pixels

MANIFEST = "knn.json"


@dataclass(frozen=True)
class Classifier:
    """A classifier to take the embedding of; `settings` is how it was trained, where known."""

    served: serving.ServedModel
    fingerprint: str
    settings: dict[str, Any] | None

    @property
    def embedder(self) -> str:
        """What tells embeddings apart: the model's files, and OpenVINO's last digits."""
        engine = self.served.engine_of("embed")
        return self.fingerprint + ("" if engine == "tensorflow" else f"-{engine}")


@dataclass(frozen=True)
class Embeddings:
    """Embeddings in a file, and what is small enough to be held besides.

    The rows are those of `catalog`, in this order: train (first `indexed` rows without identical
    copies, then the copies), val, test. So every split is a slice, and no slice is a copy.

    stressed: float32 [V, D], the val rows under strong augmentation. probabilities: float32
    [V + T, C], what the classifier itself says of val and test. labels: int64 [N].
    """

    file: Path
    catalog: catalogs.Catalog
    labels: np.ndarray
    indexed: int
    stressed: np.ndarray
    probabilities: np.ndarray

    @property
    def width(self) -> int:
        """D."""
        return int(self.stressed.shape[1])

    def read(self) -> np.ndarray:
        """All embeddings, float32 [N, D]; a new array, which the caller may change."""
        with np.load(self.file, allow_pickle=False) as stored:
            return stored["embeddings"]

    def rows(self, split: str) -> slice:
        """Where a split stands."""
        rows = self.catalog.rows(split)
        return slice(int(rows[0]), int(rows[-1]) + 1)


@dataclass(frozen=True)
class Candidate:
    """One cell of the grid, and how it did on validation and on its stressed copy."""

    representation: str
    metric: str
    weights: str
    k: int
    balanced_accuracy: float
    stressed_balanced_accuracy: float
    brier: float
    """Mean of both, every class counting alike."""

    @property
    def score(self) -> float:
        """What is chosen by, before `brier`."""
        # Rounded, so that the last bit of a sum does not decide between equals.
        return round((self.balanced_accuracy + self.stressed_balanced_accuracy) / 2, 9)


def fit_knn(settings: FitKnn) -> Run:
    """The whole job; returns the finished run. Everything lands under its directory.

    Raises UserError on a user's mistake, before anything is written wherever it can be known.
    """
    classifier = open_classifier(settings.classifier, settings.engine)
    card, classes = classifier.served.card, classifier.served.classes
    settings = resolve(settings, classifier)
    assert settings.seed is not None
    keras.utils.set_random_seed(settings.seed)
    tf.config.experimental.enable_op_determinism()

    # ------------------------------------------------------------------ data
    catalog = catalogs.open_catalog(settings.data, seed=settings.seed)
    log.info(catalogs.describe(catalog))
    catalogs.check(catalog, task=card["task"], allow_leakage=settings.allow_leakage)
    thumbnails, unreadable = images_pipeline.load_images(catalog.paths, THUMBNAIL)
    catalog, thumbnails = evaluation.leave_out_unreadable(
        catalog, thumbnails, unreadable, skip=settings.skip_unreadable
    )
    catalogs.check(catalog, task=card["task"], allow_leakage=settings.allow_leakage)
    order, indexed = split_order(catalog, catalog.labels(card["task"], classes))
    catalog = catalog.take(order)
    same_data = catalog.fingerprint() == card["data_fingerprint"]
    if not same_data:
        log.info(
            "  note: the classifier was trained on other data, or on other splits of them: what "
            "is test here it may have seen"
        )
    run = open_run(settings.logs, "knn", settings.name, settings, catalog)
    if run.finished:
        log.info("%s is finished already; nothing to do", run.directory)
        return run
    writer = run.writer()

    # ------------------------------------------------------------------ embeddings
    embeddings = embed(classifier, catalog, indexed, run, settings)
    val, test = embeddings.rows("val"), embeddings.rows("test")
    labels = embeddings.labels

    # ------------------------------------------------------------------ choice, on validation
    grid = search(embeddings)
    chosen = max(grid, key=lambda c: (c.score, -c.brier))
    log.info(
        "  chosen of %d: k = %d, %s, %s, %s weights (balanced accuracy on validation %.3f, "
        "stressed %.3f)",
        *(len(grid), chosen.k, chosen.representation, chosen.metric, chosen.weights),
        *(chosen.balanced_accuracy, chosen.stressed_balanced_accuracy),
    )
    knn = fit_pipeline(embeddings, chosen)

    # ------------------------------------------------------------------ evaluation: test, once
    values = embeddings.read()
    distances, rows = {}, {}
    for split, where in (("val", val), ("test", test)):
        distances[split], rows[split] = knn[-1].kneighbors(before_knn(knn, values[where]))
    limit = float(np.quantile(distances["val"][:, -1], NOVELTY_QUANTILE))
    results: dict[str, Any] = {}
    classifier_results: dict[str, Any] = {}
    predicted = np.full(len(labels), -1)
    probabilities = {}
    for split, where in (("val", val), ("test", test)):
        part = evaluation.Data(
            catalog.take(range(len(catalog))[where]), thumbnails[where], labels[where], classes
        )
        shares = knn.predict_proba(values[where])
        probabilities[split] = shares
        predicted[where] = shares.argmax(axis=1)
        novelty = novelty_of(distances[split], limit)
        results[split] = evaluation.score(
            part, shares, predicted[where], resamples=settings.resamples, seed=settings.seed
        )
        results[split]["novel"] = float(np.mean(novelty > 1))
        write_predictions(run, split, part, shares, predicted[where], novelty)
        own = embeddings.probabilities[: val.stop - val.start]
        if split == "test":
            own = embeddings.probabilities[val.stop - val.start :]
        own_predicted = serving.decide(tf.constant(own), card["threshold"]).numpy()
        classifier_results[split] = evaluation.score(
            part, own, own_predicted, resamples=settings.resamples, seed=settings.seed
        )
        if split == "test":
            results["knn_against_classifier"] = paired_tests(
                *(
                    Predictions(part.catalog.paths, part.catalog.patients, part.labels, p, y)
                    for p, y in ((shares, predicted[where]), (own, own_predicted))
                ),
                resamples=settings.resamples,
                seed=settings.seed,
            )
        draw_split(run, split, part, shares, predicted[where], results[split], writer)
    results["classifier"] = classifier_results
    results["model"] = {
        **dataclasses.asdict(chosen),
        "kind": "knn",
        "task": card["task"],
        "classes": list(classes),
        "classifier": str(classifier.served.folder),
        "engine": classifier.served.engine_of("embed"),
        "embedding_width": embeddings.width,
        "index": [embeddings.indexed, int(knn[-1].n_features_in_)],
        "novelty_limit": limit,
        "same_data_as_classifier": same_data,
        "probabilities": "shares of the vote, not calibrated",
    }
    results["grid"] = [dataclasses.asdict(c) for c in grid]

    # ------------------------------------------------------------------ figures
    run.write_figure("grid", figures.knn_grid(results["grid"], dataclasses.asdict(chosen)), writer)
    run.write_figure(
        "neighbors",
        draw_neighbors(
            catalog, labels, test, probabilities["test"], predicted, distances["test"],
            rows["test"], classes, card["image_size"],
        ),
        writer,
    )  # fmt: skip
    results["projection"] = project(
        run, writer, classifier, embeddings, values, predicted, thumbnails, settings
    )

    # ------------------------------------------------------------------ export
    manifest = {
        "kind": "knn",
        "task": card["task"],
        "classes": list(classes),
        "embedding_width": embeddings.width,
        "k": chosen.k,
        "metric": chosen.metric,
        "representation": chosen.representation,
        "weights": chosen.weights,
        "novelty_limit": limit,
        "classifier": {
            "name": card["name"],
            "version": card["version"],
            "fingerprint": classifier.fingerprint,
        },
    }
    agreement: dict[str, Any] = {}

    def write_beside(folder: Path) -> None:
        write_knn(knn, folder, manifest)
        # The exported model embeds with TensorFlow, and between near neighbours OpenVINO's last
        # digits can decide: then both are given TensorFlow's.
        same = classifier.served.engine_of("embed") == "tensorflow"
        asked = values[test] if same else None
        agreement.update(
            check_agreement(folder, knn, asked, catalog.paths[test], settings.batch_size)
        )

    folder = serving.export_knn(
        classifier.served,
        Path(settings.saved_models) / settings.name,
        pipeline=knn,
        index=knn[-1]._fit_X,
        index_labels=labels[: embeddings.indexed],
        index_paths=catalog.paths[: embeddings.indexed],
        novelty_limit=limit,
        card={
            **manifest,
            "backbone": card["backbone"],
            "image_size": card["image_size"],
            "threshold": 0.5,
            "data_fingerprint": catalog.fingerprint(),
            "data_is_phantom": catalog.is_phantom,
            "metrics": {s: {m: results[s][m] for m in evaluation.HEADLINE} for s in results
                        if s in ("val", "test")},
            "input": card["input"],
            "limits": card["limits"],
            "tensorflow": tf.__version__,
        },
        write_beside=write_beside,
    )  # fmt: skip
    results["model"]["saved_model"] = str(folder)
    results["served_agreement"] = agreement
    run.write_metrics(results)
    log.info("KNN %s", evaluation.result_line("test", results["test"]))
    log.info("classifier %s", evaluation.result_line("test", classifier_results["test"]))
    log.info(
        "served and pickle agree on %d of %d test images\nrun:         %s\nSavedModel:  %s",
        *(agreement["equal"], agreement["images"], run.directory, folder),
    )
    return run


# ---------------------------------------------------------------------- what is given


def open_classifier(folder: str, engine: str = "tensorflow") -> Classifier:
    """A classifier from its run's folder or its SavedModel's; UserError where it is neither."""
    path = Path(folder).expanduser()
    settings = None
    if (path / "config.json").exists():
        run = Run(path)
        settings = run.config()["settings"]
        if run.config()["job"] != "classifier":
            raise UserError(f"{folder} is the run of another job, not of a classifier")
        if not run.finished:
            raise UserError(f"the run {folder} is not finished: go on with it by --resume first")
        model = run.metrics()["model"]["saved_model"]
        if not Path(model).is_dir():
            raise UserError(
                f"{folder} exported to {model}, which is not here: start where it was trained, or "
                "name the SavedModel's folder"
            )
        folder = model
    served = serving.load_served(folder, engine=engine)
    if served.card.get("kind") != "classifier":
        raise UserError(f"{served.folder} is no classifier but: {served.card.get('kind')}")
    return Classifier(served, fingerprint(served.folder), settings)


def fingerprint(folder: Path) -> str:
    """Hash of a SavedModel's graph and weights: equal files, equal embeddings."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted([folder / "saved_model.pb", *(folder / "variables").iterdir()]):
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def resolve(settings: FitKnn, classifier: Classifier) -> FitKnn:
    """Fills in what was left to the classifier: data, seed, name. UserError where it cannot say."""
    known = classifier.settings
    if not settings.data and known is None:
        raise UserError(
            "a SavedModel does not say what it was trained on: give --data (and --seed, if the "
            "folder has no split folders)"
        )
    if settings.batch_size < 1:
        raise UserError("--batch-size must be at least 1")
    settings = dataclasses.replace(
        settings,
        data=settings.data or (known or {})["data"],
        seed=(known or {}).get("seed", 0) if settings.seed is None else settings.seed,
        name=settings.name or f"{classifier.served.card['name']}-knn",
    )
    refuse_existing(settings.logs, "knn", settings.name, settings)
    serving.check_saved_models(settings.saved_models)
    return settings


def split_order(catalog: catalogs.Catalog, labels: np.ndarray) -> tuple[np.ndarray, int]:
    """Rows by split, train first and its identical copies last within it; how many are no copies.

    A copy would vote twice, and be shown twice among the neighbours. Copies that bear another label
    are left in: which of them is right is not known here.
    """
    train = catalog.rows("train")
    seen: set[tuple[str, int]] = set()
    first: list[int] = []
    copies: list[int] = []
    for row in train:
        key = (catalog.radiographs[row].digest, int(labels[row]))
        (copies if key in seen else first).append(int(row))
        seen.add(key)
    order = [*first, *copies, *catalog.rows("val"), *catalog.rows("test")]
    return np.array(order, np.int64), len(first)


# ---------------------------------------------------------------------- embeddings


def embed(
    classifier: Classifier,
    catalog: catalogs.Catalog,
    indexed: int,
    run: Run,
    settings: FitKnn,
) -> Embeddings:
    """The embeddings of a catalogue in split order; computed, or taken from an earlier run.

    Earlier ones are looked for in all runs beside this one. They fit if the model's files are the
    same, and the images byte for byte, row by row.
    """
    file = run.directory / "embeddings.npz"
    digests = np.array([r.digest for r in catalog.radiographs])
    splits = np.array([r.split for r in catalog.radiographs])
    labels = catalog.labels(classifier.served.card["task"], classifier.served.classes)
    earlier = find_stored(file, classifier.embedder, digests, splits)
    if earlier is not None:
        log.info("  embeddings: as computed before, %s", earlier)
        if earlier != file:
            atomically(file, lambda p: _link(earlier, p))
    else:
        started = time.perf_counter()
        values = embed_files(classifier.served, catalog.paths, settings.batch_size)
        log.info("  embeddings: %d x %d in %.0f s", *values.shape, time.perf_counter() - started)
        val = catalog.rows("val")
        judged = catalog.take(np.concatenate([val, catalog.rows("test")])).paths
        probabilities, _ = serving.predict_files(
            classifier.served, judged, batch_size=settings.batch_size
        )
        stressed = embed_stressed(classifier.served, catalog.take(val).paths, settings.batch_size)
        _write_npz(
            file,
            embeddings=values,
            stressed=stressed,
            probabilities=probabilities,
            labels=labels,
            splits=splits,
            paths=np.array(catalog.paths),
            patients=np.array(catalog.patients),
            digests=digests,
            model=np.array(classifier.embedder),
            data=np.array(catalog.fingerprint()),
        )
        del values
    with np.load(file, allow_pickle=False) as stored:
        return Embeddings(
            file=file,
            catalog=catalog,
            labels=labels,
            indexed=indexed,
            stressed=stored["stressed"],
            probabilities=stored["probabilities"],
        )


def find_stored(file: Path, model: str, digests: np.ndarray, splits: np.ndarray) -> Path | None:
    """A file named like `file`, there or in a run beside it, with this model's embeddings."""
    for candidate in [file, *sorted(file.parent.parent.glob(f"*/{file.name}"))]:
        if not candidate.exists():
            continue
        with np.load(candidate, allow_pickle=False) as stored:
            if (
                str(stored["model"]) == model
                and np.array_equal(stored["digests"], digests)
                and np.array_equal(stored["splits"], splits)
            ):
                return candidate
    return None


def embed_files(served: serving.ServedModel, paths: Sequence[str], batch_size: int) -> np.ndarray:
    """Embeddings float32 [N, D] of image files, by the SavedModel's own `embed`."""
    ask = served.ask("embed")
    values = np.empty((0, 0), np.float32)
    for rows in batches(len(paths), batch_size):
        embedding = ask(served.decode(list(paths[rows])))["embedding"]
        if rows.start == 0:
            values = np.empty((len(paths), int(embedding.shape[1])), np.float32)
        values[rows] = embedding
    return values


def embed_stressed(
    served: serving.ServedModel, paths: Sequence[str], batch_size: int
) -> np.ndarray:
    """Embeddings float32 [N, D] of images under the augmentation that classifiers are judged by."""
    ask = served.ask("embed")
    images, _ = images_pipeline.load_images(paths, served.card["image_size"])
    found = []
    for batch in images_pipeline.evaluation_batches(
        images, batch_size=batch_size, stress_seed=STRESS_SEED
    ):
        gray = tf.saturate_cast(tf.round(batch[..., :1]), tf.uint8)
        # A PNG of the model's own size passes through `embed` unchanged.
        found.append(ask([tf.io.encode_png(image).numpy() for image in gray])["embedding"])
    return np.concatenate(found)


def batches(count: int, size: int) -> Iterator[slice]:
    """Slices of `size` rows. A single last row joins the batch before it.

    For a batch of one some kernels sum in another order, and the last bits differ.
    """
    start = 0
    while start < count:
        stop = min(start + size, count)
        if count - stop == 1 and size > 1:
            stop = count
        yield slice(start, stop)
        start = stop


def embed_before(
    classifier: Classifier, paths: Sequence[str], batch_size: int
) -> np.ndarray | None:
    """Embeddings float32 [N, D] under the weights that training began with.

    None where that is not known (a SavedModel without its run), or nothing of the backbone was
    trained, so that they are the same as after.
    """
    known = classifier.settings
    if known is None or known["epochs"] == 0 or known["trainable_blocks"] == 0:
        return None
    # As training began: random weights are drawn again from the same seed.
    keras.utils.set_random_seed(known["seed"])
    model = build_classifier(
        known["backbone"],
        classes=len(classifier.served.classes),
        image_size=known["image_size"],
    )
    try:
        backbones.load_weights(model, known["backbone"], known["weights"])
    except UserError as error:
        log.info("  before training: not shown (%s)", error)
        return None
    images, _ = images_pipeline.load_images(paths, known["image_size"])
    function = compiled(embedding_of(model))
    return np.concatenate(
        [
            np.asarray(function(batch), np.float32)
            for batch in images_pipeline.evaluation_batches(images, batch_size=batch_size)
        ]
    )


# ---------------------------------------------------------------------- choosing and fitting


def search(embeddings: Embeddings) -> list[Candidate]:
    """Every cell of the grid, judged on validation; one neighbour search per metric and space."""
    train, val = slice(0, embeddings.indexed), embeddings.rows("val")
    labels = embeddings.labels
    truth = np.concatenate([labels[val], labels[val]])
    v = val.stop - val.start
    classes = int(labels.max()) + 1
    largest = embeddings.indexed
    found = []
    for representation in representations(embeddings.indexed, embeddings.width):
        for metric in METRICS:
            steps, values = fit_steps(representation, metric, embeddings)
            stressed = Pipeline(steps).transform(embeddings.stressed) if steps else (
                embeddings.stressed
            )  # fmt: skip
            queries = np.concatenate([values[val], stressed])
            knn = KNeighborsClassifier(
                min(largest, max(NEIGHBOURS)), algorithm="brute", metric="euclidean"
            ).fit(values[train], labels[train])
            distances, rows = knn.kneighbors(queries)
            del knn, values
            for weights in WEIGHTS:
                for k in (k for k in NEIGHBOURS if k <= largest):
                    shares = vote(distances[:, :k], labels[rows[:, :k]], weights, classes)
                    found.append(
                        Candidate(
                            representation=representation,
                            metric=metric,
                            weights=weights,
                            k=k,
                            balanced_accuracy=balanced_accuracy(truth[:v], shares[:v]),
                            stressed_balanced_accuracy=balanced_accuracy(truth[v:], shares[v:]),
                            brier=balanced_brier(truth, shares),
                        )
                    )
    return found


def representations(rows: int, width: int) -> tuple[str, ...]:
    """Which are tried: those as wide as the embedding only while an index of them is small."""
    return REPRESENTATIONS if rows * width * 4 <= WIDEST_INDEX else ("PCA",)


def fit_steps(
    representation: str, metric: str, embeddings: Embeddings
) -> tuple[list[tuple[str, Any]], np.ndarray]:
    """Preprocessing fitted on the training rows, and all embeddings after it, float32 [N, E].

    Reads the embeddings and changes them in place, so that they are there once. The cosine metric
    is unit length and Euclidean distance, d^2 = 2 (1 - cosine), which ranks the same.
    """
    values = embeddings.read()
    train = slice(0, embeddings.indexed)
    steps: list[tuple[str, Any]] = []
    if representation in ("standardised", "PCA"):
        scaler = StandardScaler(copy=False)
        # In parts, because the fit makes a copy of what it is given, in float64.
        for start in range(0, embeddings.indexed, 4096):
            scaler.partial_fit(values[start : min(start + 4096, embeddings.indexed)])
        scaler.transform(values)
        steps.append(("standardise", scaler))
    if representation == "PCA":
        width = min(PCA_WIDTH, *values[train].shape)
        # By way of the covariance, the one solver that does not copy what it is given; but not for
        # fewer images than numbers, when the covariance is the larger matrix by far.
        wide = embeddings.indexed < values.shape[1]
        solver = "full" if wide else "covariance_eigh"
        pca = PCA(width, svd_solver=solver, copy=wide).fit(values[train])
        values = pca.transform(values)
        steps.append(("project", pca))
    if metric == "cosine":
        unit = Normalizer(copy=False).fit(values[train])
        unit.transform(values)
        steps.append(("unit_length", unit))
    # What is pickled must not change the arrays of those who use it.
    for _, step in steps:
        step.set_params(copy=True)
    return steps, values


def before_knn(knn: Pipeline, values: np.ndarray) -> np.ndarray:
    """Embeddings float32 [N, D] after the steps that come before the neighbours, if there are any.

    scikit-learn cannot transform by a pipeline of no steps.
    """
    return knn[:-1].transform(values) if len(knn.steps) > 1 else values


def fit_pipeline(embeddings: Embeddings, chosen: Candidate) -> Pipeline:
    """The chosen candidate as a scikit-learn pipeline: embeddings float32 [N, D] -> class index."""
    steps, values = fit_steps(chosen.representation, chosen.metric, embeddings)
    train = slice(0, embeddings.indexed)
    knn = KNeighborsClassifier(
        chosen.k, weights=chosen.weights, algorithm="brute", metric="euclidean"
    )
    knn.fit(values[train], embeddings.labels[train])
    return Pipeline([*steps, ("knn", knn)])


def vote(distances: np.ndarray, neighbours: np.ndarray, weights: str, classes: int) -> np.ndarray:
    """Shares of the vote, float [N, C], as KNeighborsClassifier counts them.

    distances: [N, k] ascending; neighbours: int [N, k], their labels.
    """
    given = np.ones(distances.shape)
    if weights == "distance":
        identical = distances == 0
        with np.errstate(divide="ignore"):
            given = np.where(identical.any(axis=1, keepdims=True), identical, 1 / distances)
    votes = np.stack([np.where(neighbours == c, given, 0).sum(axis=1) for c in range(classes)], 1)
    return votes / votes.sum(axis=1, keepdims=True)


def balanced_accuracy(labels: np.ndarray, shares: np.ndarray) -> float:
    """Mean recall of the classes; labels int [N], shares [N, C]."""
    right = shares.argmax(axis=1) == labels
    return float(np.mean([right[labels == c].mean() for c in np.unique(labels)]))


def balanced_brier(labels: np.ndarray, shares: np.ndarray) -> float:
    """Brier score with every class counting alike."""
    squared = ((shares - np.eye(shares.shape[1])[labels]) ** 2).sum(axis=1) / 2
    return float(np.mean([squared[labels == c].mean() for c in np.unique(labels)]))


# ---------------------------------------------------------------------- evaluation


def novelty_of(distances: np.ndarray, limit: float) -> np.ndarray:
    """Distance to the k-th neighbour over `limit`, float [N]; distances: [N, k] ascending.

    `limit` is the NOVELTY_QUANTILE of that distance over validation: above 1 a radiograph is
    farther from all training ones than 99 of 100 validation radiographs are.
    """
    return distances[:, -1] / limit


def write_predictions(
    run: Run,
    split: str,
    part: evaluation.Data,
    shares: np.ndarray,
    predicted: np.ndarray,
    novelty: np.ndarray,
) -> None:
    """`predictions-<split>.csv` as of a classifier, with a column `novelty`."""
    write_csv(
        run.directory / f"predictions-{split}.csv",
        ["path", "patient", "label", *part.classes, "predicted", "novelty"],
        [
            [r.path, r.patient, part.classes[y], *(f"{v:.8g}" for v in p), part.classes[k],
             f"{n:.6g}"]
            for r, y, p, k, n in zip(
                part.catalog.radiographs, part.labels, shares, predicted, novelty, strict=True
            )
        ],
    )  # fmt: skip


def draw_split(
    run: Run,
    split: str,
    part: evaluation.Data,
    shares: np.ndarray,
    predicted: np.ndarray,
    scores: dict[str, Any],
    writer: tf.summary.SummaryWriter,
) -> None:
    """ROC, confusion and reliability of one split; the headline scores as scalars."""
    labels, classes = part.labels, part.classes
    for name, figure in {
        "roc": figures.roc(labels, shares, classes),
        "confusion": figures.confusion(labels, predicted, classes),
        "reliability": figures.reliability_diagram(labels, shares, scores["ece"]),
    }.items():
        run.write_figure(f"{name}-{split}", figure, writer)
    with writer.as_default(step=0):
        for metric in evaluation.HEADLINE:
            tf.summary.scalar(f"final/{split}_{metric}", scores[metric])


def draw_neighbors(
    catalog: catalogs.Catalog,
    labels: np.ndarray,
    test: slice,
    shares: np.ndarray,
    predicted: np.ndarray,
    distances: np.ndarray,
    rows: np.ndarray,
    classes: tuple[str, ...],
    size: int,
) -> Any:
    """Two right, two wrong and two uncertain test radiographs, with their nearest training ones."""
    truth, called = labels[test], predicted[test]
    margin = np.diff(np.sort(shares, axis=1)[:, -2:], axis=1)[:, 0]
    by_margin = np.argsort(-margin, kind="stable")
    kinds = {
        "right": [i for i in by_margin if called[i] == truth[i]],
        "wrong": [i for i in by_margin if called[i] != truth[i]],
        "uncertain": list(by_margin[::-1]),
    }
    picked: list[tuple[str, int]] = []
    for kind, candidates in kinds.items():
        # One of each class where there is one, and none twice.
        fresh = [i for i in candidates if i not in [j for _, j in picked]]
        first = fresh[:1]
        other = [i for i in fresh[1:] if truth[i] != truth[first[0]]][:1] if first else []
        picked += [(kind, int(i)) for i in [*first, *(other or fresh[1:2])]]
    columns = min(5, rows.shape[1])
    paths = [catalog.paths[row] for _, i in picked for row in (test.start + i, *rows[i, :columns])]
    images, _ = images_pipeline.load_images(paths, size)
    return figures.neighbor_table(
        images.reshape(len(picked), columns + 1, size, size),
        [
            f"{kind}: true {classes[truth[i]]}\n"
            f"predicted {classes[called[i]]} {shares[i, called[i]]:.2f}"
            for kind, i in picked
        ],
        [
            [(classes[labels[row]], float(d)) for row, d in zip(rows[i], distances[i], strict=True)]
            for _, i in picked
        ],
        classes,
    )


# ---------------------------------------------------------------------- picture of the space


def project(
    run: Run,
    writer: tf.summary.SummaryWriter,
    classifier: Classifier,
    embeddings: Embeddings,
    values: np.ndarray,
    predicted: np.ndarray,
    thumbnails: np.ndarray,
    settings: FitKnn,
) -> dict[str, Any]:
    """t-SNE of the embedding, after and before training: figure, numbers, TensorBoard projector."""
    assert settings.seed is not None
    catalog, classes = embeddings.catalog, classifier.served.classes
    drawn = projection.draw_points(len(catalog), settings.seed)
    shown = catalog.take(drawn)
    labels, is_test = embeddings.labels[drawn], drawn >= embeddings.rows("test").start
    known = predicted[drawn] >= 0
    wrong = known & (predicted[drawn] != labels)
    planes = {"after training": projection.project(values[drawn], seed=settings.seed)}
    before = stored_before(classifier, shown, run, settings)
    if before is not None:
        planes = {
            "before training": projection.project(before, seed=settings.seed),
            **planes,
        }
    results: dict[str, Any] = {
        name.split()[0]: projection.quality(plane, labels, is_test, classes)
        for name, plane in planes.items()
    }
    results["points"] = len(drawn)
    figure = figures.tsne_map(
        [
            (f"{name}: {projection.caption(results[name.split()[0]])}", plane.plane)
            for name, plane in planes.items()
        ],
        labels,
        is_test,
        wrong & is_test,
        classes,
    )
    run.write_figure("tsne", figure, writer)
    projection.write_projector(
        run.directory,
        {
            f"{tensor} {name}": getattr(plane, attribute)
            for name, plane in reversed(planes.items())
            for tensor, attribute in (("t-SNE", "plane"), ("embedding, PCA-50", "coordinates"))
        },
        header=["class", "split", "correct", "predicted", "patient", "path"],
        rows=[
            [
                classes[y],
                r.split,
                ("no" if w else "yes") if asked else "in the index",
                classes[p] if asked else "",
                r.patient,
                r.path,
            ]
            for r, y, w, asked, p in zip(
                shown.radiographs, labels, wrong, known, predicted[drawn], strict=True
            )
        ],
        thumbnails=thumbnails[drawn],
    )
    return results


def stored_before(
    classifier: Classifier, shown: catalogs.Catalog, run: Run, settings: FitKnn
) -> np.ndarray | None:
    """`embed_before`, kept in `embeddings-before.npz` and taken from there when it fits."""
    file = run.directory / "embeddings-before.npz"
    digests = np.array([r.digest for r in shown.radiographs])
    splits = np.array([r.split for r in shown.radiographs])
    earlier = find_stored(file, classifier.fingerprint, digests, splits)
    if earlier is not None:
        with np.load(earlier, allow_pickle=False) as stored:
            return stored["embeddings"]
    values = embed_before(classifier, shown.paths, settings.batch_size)
    if values is not None:
        _write_npz(
            file,
            embeddings=values,
            digests=digests,
            splits=splits,
            model=np.array(classifier.fingerprint),
        )
    return values


# ---------------------------------------------------------------------- stored and loaded


def write_knn(knn: Pipeline, folder: Path, manifest: dict[str, Any]) -> None:
    """`knn.pkl`, `knn.skops` and the manifest `knn.json` that vouches for both."""
    import skops.io

    with (folder / "knn.pkl").open("wb") as file:
        pickle.dump(knn, file, protocol=5)
    skops.io.dump(knn, folder / "knn.skops")
    write_json(
        folder / MANIFEST,
        {
            **manifest,
            "sha256": {name: _sha256(folder / name) for name in ("knn.pkl", "knn.skops")},
            "scikit-learn": sklearn.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    )


def load_knn(
    model: str, *, embedding_width: int | None = None, without_code: bool = False
) -> tuple[Pipeline, dict[str, Any]]:
    """The pipeline and its manifest, from saved_models/<name> (newest version) or a version.

    `embedding_width` is D of the embeddings that it is to be used on. A pickle can run any code
    when it is loaded; the checksum in the manifest only says that the file is the one that was
    written with it. `without_code` loads `knn.skops` instead, which holds no code to run.

    Raises UserError where the file is not the one of the manifest, or the width another. Warns
    where scikit-learn is of another version than the one that fitted it.
    """
    folder = Path(model).expanduser()
    if not (folder / MANIFEST).exists():
        found = serving.versions(folder)
        if not found or not (folder / str(found[-1]) / MANIFEST).exists():
            raise UserError(f"{model} holds no {MANIFEST}: it is no nearest-neighbours model")
        folder = folder / str(found[-1])
    manifest = json.loads((folder / MANIFEST).read_text())
    name = "knn.skops" if without_code else "knn.pkl"
    file = folder / name
    if not file.exists():
        raise UserError(f"{folder} lacks {name}")
    content = file.read_bytes()
    # Before it is unpickled, and of the very bytes that will be.
    if hashlib.sha256(content).hexdigest() != manifest["sha256"][name]:
        raise UserError(
            f"{file} is not the file that {MANIFEST} was written for (its sha256 differs): it is "
            "not loaded; fit it again, or get it from where you trust it"
        )
    if embedding_width is not None and embedding_width != manifest["embedding_width"]:
        raise UserError(
            f"{file} takes embeddings of width {manifest['embedding_width']}, not "
            f"{embedding_width}: it belongs to {manifest['classifier']['name']} version "
            f"{manifest['classifier']['version']}"
        )
    if manifest["scikit-learn"] != sklearn.__version__:
        warnings.warn(
            f"{file} was fitted with scikit-learn {manifest['scikit-learn']}, this is "
            f"{sklearn.__version__}: results may differ",
            stacklevel=2,
        )
    if without_code:
        import skops.io

        return skops.io.loads(content), manifest
    return pickle.loads(content), manifest


def check_agreement(
    folder: Path, knn: Pipeline, values: np.ndarray | None, paths: Sequence[str], batch_size: int
) -> dict[str, Any]:
    """Asks a written SavedModel for the test images, and compares with the pipeline.

    values: float32 [N, D], the embeddings of `paths`; None asks the exported model's own classifier
    for them. Returns how many images agree in label and, to 1e-4, in probabilities. Raises
    RuntimeError for one that does not, unless its k-th and next neighbours are at the same distance
    to six digits, where the last bit of an embedding decides.
    """
    served = serving.ServedModel(folder, {}, tf.saved_model.load(str(folder)))
    signature = served.signature("serving_default")
    if values is None:
        classifier = serving.ServedModel(folder, {}, served.loaded.classifier)
        values = embed_files(classifier, paths, batch_size)
    shares = knn.predict_proba(values)
    found, labels = np.empty_like(shares), []
    for rows in batches(len(paths), batch_size):
        encoded = tf.constant(served.decode(list(paths[rows])))
        out = signature(image_bytes=encoded)
        found[rows] = out["probabilities"]
        names = [c.decode() for c in out["classes"].numpy()[0]]
        labels += [names.index(x.decode()) for x in out["label"].numpy()]
    difference = np.abs(found - shares).max(axis=1)
    differs = (difference > 1e-4) | (np.array(labels) != shares.argmax(axis=1))
    ties = np.zeros(len(differs), bool)
    if differs.any() and knn[-1].n_neighbors < knn[-1].n_samples_fit_:
        last = knn[-1].n_neighbors
        distances, _ = knn[-1].kneighbors(before_knn(knn, values), last + 1)
        ties = distances[:, last] - distances[:, last - 1] <= 1e-6 * distances[:, last]
    if (differs & ~ties).any():
        raise RuntimeError(
            f"the exported model disagrees with the pickle on {paths[int(np.argmax(differs))]} and "
            f"{int(differs.sum()) - 1} more of {len(paths)} images; nothing was exported"
        )
    return {
        "images": len(paths),
        "equal": int((~differs).sum()),
        "largest_difference": float(difference.max()),
    }


def _write_npz(file: Path, **arrays: np.ndarray) -> None:
    def write(p: Path) -> None:
        with p.open("wb") as opened:  # a file object, because savez adds .npz to names
            np.savez(opened, allow_pickle=False, **arrays)

    atomically(file, write)


def _link(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the file system has no links.

    Safe because these files are replaced whole, never changed.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
