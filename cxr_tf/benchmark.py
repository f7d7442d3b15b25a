"""Our speed against what a user would otherwise write: measured in turn, with equal results.

    python scripts/benchmark.py knn savedmodel

How it measures. Ours and the alternatives run in one process, in turn, after a warm-up: A B, B A,
A B, ... What else the machine does then slows both alike. A ratio is taken in each round; the
median of the rounds is told, and the lowest and the highest. The alternatives are written as their
own documentation shows them, at the same precision, and what comes out is compared.

Each job is a generator of rows: a row that is measured is told at once.
"""

import contextlib
import dataclasses
import importlib.util
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from cxr_tf import serving
from cxr_tf.data import catalog as catalogs
from cxr_tf.data import pipeline
from cxr_tf.data.phantom import FINDINGS, phantom
from cxr_tf.errors import UserError
from cxr_tf.explain import occlusion as occlusions
from cxr_tf.explain.network import read_network
from cxr_tf.models import backbones
from cxr_tf.models.classifier import build_classifier, embedding_of
from cxr_tf.runs import RECORDED_PACKAGES, check_name, write_json
from cxr_tf.settings import Benchmark

log = logging.getLogger(__name__)

# One measured call: returns nothing, or the seconds that count, where only a part of it does.
Way = Callable[[], float | None]

ALTERNATIVES = ("torch", "captum", "monai", "tf-explain")

BATCH = 32

# Width and height of a radiograph as published.
ORIGINAL_SIZE = (1300, 900)


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of each round, and by how many MB a call made the process grow at most."""

    seconds: list[float]
    grown_mb: float


@dataclasses.dataclass(frozen=True)
class Row:
    """Ours against one alternative. `count` things are done in `ours` and in `theirs` seconds."""

    job: str
    alternative: str
    at_least: float
    ours: Timing
    theirs: Timing
    unit: str
    count: float
    same: bool
    check: str
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        """How many times as fast ours is, round by round."""
        return [b / a for a, b in zip(self.ours.seconds, self.theirs.seconds, strict=True)]

    @property
    def ratio(self) -> float:
        """Median of the rounds."""
        return float(np.median(self.ratios))

    def record(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return {
            **dataclasses.asdict(self),
            "ratio": self.ratio,
            "ratio_lowest": min(self.ratios),
            "ratio_highest": max(self.ratios),
            "reached": self.ratio >= self.at_least,
        }


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A row that could not be measured, and why."""

    job: str
    alternative: str
    reason: str


Found = Iterator[Row | Skipped]


def benchmark(settings: Benchmark) -> Path:
    """Measures the jobs asked for, prints the table, returns the JSON file.

    Raises UserError on a user's mistake, before anything is measured.
    """
    if unknown := [job for job in settings.jobs if job not in JOBS]:
        raise UserError(f"unknown job '{unknown[0]}'; known: {', '.join(JOBS)}")
    for flag, value, least in (
        ("--images", settings.images, 16),
        ("--points", settings.points, 200),
        ("--width", settings.width, 2),
        ("--repeats", 1 if settings.repeats is None else settings.repeats, 1),
        ("--image-size", settings.image_size, backbones.SMALLEST_SIZE),
    ):
        if value < least:
            raise UserError(f"{flag} must be at least {least}, not {value}")
    name = settings.name or datetime.now().strftime("%Y-%m-%d-%H%M%S")
    check_name(name)
    file = Path(settings.logs) / "benchmark" / f"{name}.json"
    if file.exists():
        raise UserError(f"{file} exists: choose another --name")
    keras.utils.set_random_seed(settings.seed)

    rows: list[Row] = []
    skipped: list[Skipped] = []
    about: dict[str, Any] = {
        "settings": dataclasses.asdict(settings),
        "machine": machine(),
        "load_before": load(),
    }

    def write(finished: bool) -> None:
        results = {
            "finished": finished,
            "load_after": load(),
            "rows": [row.record() for row in rows],
            "skipped": [dataclasses.asdict(s) for s in skipped],
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {**about, **results})

    with tempfile.TemporaryDirectory(prefix="benchmark-") as place:
        for job in settings.jobs or tuple(JOBS):
            log.info("%s ...", job)
            for found in JOBS[job](settings, Path(place)):
                if isinstance(found, Row):
                    rows.append(found)
                    log.info("  %s", line(found))
                else:
                    skipped.append(found)
                    log.info("  left out: %s: %s", found.alternative, found.reason)
                write(finished=False)  # an interrupted run of an hour keeps what it has
    write(finished=True)
    print(table(rows, skipped, about["machine"]))
    log.info("written:     %s", file)
    return file


# ---------------------------------------------------------------------- measuring


def in_turn(ways: dict[str, Way], repeats: int, warm_up: bool = True) -> dict[str, Timing]:
    """Times every way `repeats` times, one after the other, the order reversed every round."""
    names = list(ways)
    seconds: dict[str, list[float]] = {n: [] for n in names}
    grown = dict.fromkeys(names, 0.0)
    for number in range(-1 if warm_up else 0, repeats):
        for name in names if number % 2 == 0 else names[::-1]:
            before = _memory("VmRSS")
            _reset_peak()
            started = time.perf_counter()
            told = ways[name]()
            spent = time.perf_counter() - started
            grown[name] = max(grown[name], _memory("VmHWM") - before)
            if number >= 0:
                seconds[name].append(spent if told is None else told)
    return {n: Timing(seconds[n], grown[n]) for n in names}


def _memory(field: str) -> float:
    """VmRSS or VmHWM of this process in MB; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(x.split()[1]) / 1024 for x in lines if x.startswith(field)), 0.0)


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # then VmHWM is that of the whole run


def load() -> float:
    """How many processes wanted the processor in the last minute."""
    return os.getloadavg()[0]


def machine() -> dict[str, Any]:
    """What it ran on, as a table of results has to say."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        model = named[0].split(":")[1].strip() if named else model
    packages = (*RECORDED_PACKAGES, "openTSNE", *ALTERNATIVES)
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3),
        "gpus": len(tf.config.list_physical_devices("GPU")),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {p: _version(p) for p in packages},
    }


# ---------------------------------------------------------------------- jobs


def startup(settings: Benchmark, place: Path) -> Found:
    """`--help` of the slowest script against the import that every one of them needs later."""
    scripts = sorted((Path(__file__).parent.parent / "scripts").glob("*.py"))
    if not scripts:
        yield Skipped("startup", "import tensorflow", "the scripts are not beside the package")
        return

    def seconds_of(*command: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, *command], capture_output=True, check=True)
        return time.perf_counter() - started

    timings = in_turn(
        {
            "ours": lambda: max(seconds_of(str(s), "--help") for s in scripts),
            "theirs": lambda: seconds_of("-c", "import tensorflow"),
        },
        settings.repeats or 5,
    )
    yield Row(
        job=f"--help, the slowest of {len(scripts)} scripts",
        alternative="import tensorflow",
        at_least=10,
        ours=dataclasses.replace(timings["ours"], grown_mb=0.0),
        theirs=dataclasses.replace(timings["theirs"], grown_mb=0.0),
        unit="s",
        count=1,
        same=True,
        check="",
    )


def knn(settings: Benchmark, place: Path) -> Found:
    """Choosing k, metric, weights and representation for nearest neighbours."""
    from sklearn.decomposition import PCA
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import Normalizer, StandardScaler

    from cxr_tf import neighbors

    held_out = max(20, settings.points // 10)
    values, labels = embeddings(settings.points + held_out, settings.width, settings.seed)
    train, val = np.arange(settings.points), np.arange(settings.points, settings.points + held_out)
    noise = np.random.default_rng(settings.seed).normal(0, 0.3, (held_out, settings.width))
    stressed = values[val] + noise.astype(np.float32)
    file = place / "embeddings.npz"
    with file.open("wb") as opened:
        np.savez(opened, embeddings=values)
    given = neighbors.Embeddings(
        file=file,
        catalog=_catalog_of(["train"] * len(train) + ["val"] * len(val)),
        labels=labels,
        indexed=len(train),
        stressed=stressed,
        probabilities=np.empty((0, 2), np.float32),
    )
    # The same two validation sets, the second the stressed one.
    x = np.concatenate([values, stressed])
    y = np.concatenate([labels, labels[val]])
    folds = [(train, val), (train, np.arange(len(values), len(x)))]
    width = min(neighbors.PCA_WIDTH, settings.points, settings.width)
    steps: dict[str, Any] = {
        "as is": ["passthrough", "passthrough"],
        "standardised": [StandardScaler(), "passthrough"],
        "PCA": [StandardScaler(), PCA(width, svd_solver="covariance_eigh")],
    }
    units = {"euclidean": "passthrough", "cosine": Normalizer()}
    shown = neighbors.representations(settings.points, settings.width)
    grid = [
        {
            "scale": [steps[name][0]],
            "project": [steps[name][1]],
            "unit": list(units.values()),
            "knn__weights": list(neighbors.WEIGHTS),
            "knn__n_neighbors": list(neighbors.NEIGHBOURS),
        }
        for name in shown
    ]
    found: dict[str, Any] = {}

    def ours() -> None:
        found["ours"] = neighbors.search(given)

    def theirs() -> None:
        # With its cache, so that it does not fit the same PCA for every number of neighbours.
        with tempfile.TemporaryDirectory(dir=place) as cache:
            steps = [(name, "passthrough") for name in ("scale", "project", "unit")]
            pipe = Pipeline([*steps, ("knn", KNeighborsClassifier())], memory=cache)
            search = GridSearchCV(pipe, grid, scoring="balanced_accuracy", cv=folds, refit=False)
            found["theirs"] = search.fit(x, y).cv_results_

    # No warm-up: nothing here is compiled, and theirs takes a minute.
    timings = in_turn({"ours": ours, "theirs": theirs}, settings.repeats or 3, warm_up=False)

    def cell(row: dict[str, Any]) -> tuple[str, str, str, int]:
        by_steps = {(str(a), str(b)): name for name, (a, b) in steps.items()}
        return (
            by_steps[str(row["scale"]), str(row["project"])],
            "euclidean" if row["unit"] == "passthrough" else "cosine",
            row["knn__weights"],
            row["knn__n_neighbors"],
        )

    results = zip(found["theirs"]["params"], found["theirs"]["mean_test_score"], strict=True)
    scores = {cell(row): score for row, score in results}
    differences = [
        abs(scores[c.representation, c.metric, c.weights, c.k] - c.score) for c in found["ours"]
    ]
    equal = float(np.mean(np.array(differences) < 1e-6))
    yield Row(
        job=f"KNN with choice of {len(scores)} settings, {settings.points:,} x {settings.width}",
        alternative="scikit-learn GridSearchCV, same grid and folds, cached steps",
        at_least=5,
        ours=timings["ours"],
        theirs=timings["theirs"],
        unit="s",
        count=1,
        # One neighbour more or less may follow from the last bit of a distance.
        same=len(differences) == len(scores) and max(differences) <= 1.01 / held_out,
        check=f"scores equal in {equal:.0%} of the grid, else within {max(differences):.1g}",
    )


def tsne(settings: Benchmark, place: Path) -> Found:
    """Embeddings to the plane, PCA included."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE, trustworthiness
    from sklearn.preprocessing import StandardScaler

    from cxr_tf import projection

    values, _ = embeddings(settings.points, settings.width, settings.seed)
    planes: dict[str, np.ndarray] = {}

    def ours(points: np.ndarray = values) -> None:
        planes["ours"] = projection.project(points, seed=settings.seed).plane

    def theirs(points: np.ndarray = values) -> None:
        scaled = StandardScaler().fit_transform(points)
        coordinates = PCA(min(50, *points.shape)).fit_transform(scaled)
        planes["theirs"] = TSNE(random_state=settings.seed).fit_transform(coordinates)

    for way in (ours, theirs):
        way(values[:200])
    timings = in_turn({"ours": ours, "theirs": theirs}, settings.repeats or 3, warm_up=False)
    coordinates = PCA(min(50, *values.shape)).fit_transform(StandardScaler().fit_transform(values))
    trust = {n: trustworthiness(coordinates, p, n_neighbors=10) for n, p in planes.items()}
    yield Row(
        job=f"t-SNE of {settings.points:,} x {settings.width}",
        alternative="scikit-learn TSNE",
        at_least=1.5,
        ours=timings["ours"],
        theirs=timings["theirs"],
        unit="s",
        count=1,
        same=trust["ours"] >= trust["theirs"] - 0.005,
        check=f"trustworthiness {trust['ours']:.3f} and {trust['theirs']:.3f}",
    )


def reading(settings: Benchmark, place: Path) -> Found:
    """Files of original size to batches float32 [B, S, S, 3]: the first epoch, and later ones."""
    folder = radiographs(settings, place)
    size = settings.image_size
    by_keras = keras.utils.image_dataset_from_directory(
        folder, labels=None, image_size=(size, size), batch_size=BATCH, shuffle=False, verbose=False
    )
    paths = list(by_keras.file_paths)

    def read(path: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
        return tf.image.resize(image, [size, size], antialias=True)

    by_hand = (
        tf.data.Dataset.from_tensor_slices(paths)
        .map(read, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(BATCH)
        .prefetch(tf.data.AUTOTUNE)
    )

    def through(batches: tf.data.Dataset, times: int = 1) -> None:
        for _ in range(times):
            for _batch in batches:
                pass

    def first_epoch() -> None:
        images, _ = pipeline.load_images(paths, size)
        through(pipeline.evaluation_batches(images, batch_size=BATCH))

    images, _ = pipeline.load_images(paths, size)
    kept = pipeline.evaluation_batches(images, batch_size=BATCH)
    ours = np.concatenate(list(kept.as_numpy_iterator()))
    passes = 10

    def later_epochs() -> float:
        started = time.perf_counter()
        through(kept, passes)
        return (time.perf_counter() - started) / passes

    timings = in_turn(
        {
            "first": first_epoch,
            "later": later_epochs,
            "keras": lambda: through(by_keras),
            "by hand": lambda: through(by_hand),
        },
        settings.repeats or 5,
    )
    for other, batches, name, most in (
        ("keras", by_keras, "Keras image_dataset_from_directory", 12.0),
        ("by hand", by_hand, "tf.data by hand, antialiased", 0.7),
    ):
        theirs = np.concatenate(list(batches.as_numpy_iterator()))
        mean = float(np.abs(ours - theirs).mean())
        for epoch, job, at_least in (
            ("first", "input, first epoch", 1.3),
            ("later", "input, later epochs", 20),
        ):
            yield Row(
                job=job,
                alternative=name,
                at_least=at_least,
                ours=timings[epoch],
                theirs=timings[other],
                unit="images/s",
                count=len(paths),
                same=mean < most,
                check=f"pixels differ by {mean:.2f} of 255 in the mean"
                + (" (it does not antialias)" if other == "keras" else ""),
            )


def occlusion(settings: Benchmark, place: Path) -> Found:
    """One map of each network: grey patches, the network's input taken as it is."""
    size = settings.image_size
    image = np.repeat(
        phantom("bacterial", seed=settings.seed, patient=1, size=size).image[None, ..., None], 3, 3
    ).astype(np.float32)
    for name in settings.backbones:
        yield from _occlusion_of(name, image, settings)


def _occlusion_of(name: str, image: np.ndarray, settings: Benchmark) -> Found:
    model = plain_classifier(name, image)
    target, size = 1, settings.image_size
    grid = occlusions.make_grid(size)
    apart = occlusions.make_grid(size, grid.patch, grid.patch)
    grey = occlusions.cover_images(image, "gray", grid.patch)
    maps: dict[str, np.ndarray] = {}

    def our_way(which: occlusions.Grid, key: str) -> Way:
        function = occlusions.compiled(occlusions.make_occluder(model, which))
        places = occlusions.all_places(which)

        def way() -> None:
            plain, covered = function(image, grey, places)
            drops = occlusions.drop(plain, covered, [target], "probability")
            maps[key] = occlusions.heatmaps(which, drops).numpy()[0]
            maps[f"{key}, covered"] = tf.nn.softmax(covered)[0, :, target].numpy()

        return way

    def note(which: occlusions.Grid) -> str:
        plan = occlusions.make_occluder(model, which).plan
        return f"{plan.share:.0%} of the multiplications" if plan else "the plain way"

    job = f"occlusion map, {name} at {size}, patch {grid.patch}"
    at_least = {"vgg16": 8.0}.get(name, 3.0)
    repeats = settings.repeats or 3

    # ------------------------------------------------------------------ tf-explain
    missing = _missing("tf_explain", "cv2")
    if not missing and size % grid.patch:
        missing = f"its patches do not fill {size} pixels"
    if missing:
        yield Skipped(job, "tf-explain", missing)
    else:
        import cv2
        from tf_explain.core.occlusion_sensitivity import OcclusionSensitivity

        explainer = OcclusionSensitivity(batch_size=BATCH)

        def tf_explain() -> None:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                maps["tf-explain"] = explainer.get_sensitivity_map(
                    model, image[0], target, grid.patch
                )

        timings = in_turn({"ours": our_way(apart, "apart"), "theirs": tf_explain}, repeats)
        side = len(apart.starts)
        expected = cv2.resize(
            1 - maps["apart, covered"].reshape(side, side).astype(np.float64), (size, size)
        )
        yield _occlusion_row(
            f"{job}, stride {grid.patch}", "tf-explain", at_least, timings,
            np.abs(maps["tf-explain"] - expected).max(), np.ptp(expected), note(apart),
        )  # fmt: skip

    # ------------------------------------------------------------------ PyTorch
    torch_ways: dict[str, Way] = {}
    job = f"{job}, stride {grid.stride}"
    if missing := _missing("torch"):
        for other in ("Captum", "MONAI"):
            yield Skipped(job, other, missing)
        return
    import torch

    try:
        network = as_torch(model)
    except ValueError as error:
        yield Skipped(job, "Captum and MONAI", str(error))
        return
    tensor = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        plain = torch.softmax(network(tensor), 1)[0, target].item()
    if missing := _missing("captum"):
        yield Skipped(job, "Captum", missing)
    else:
        from captum.attr import Occlusion

        ablator = Occlusion(lambda x: torch.softmax(network(x), 1))

        def captum() -> None:
            found = ablator.attribute(
                tensor,
                sliding_window_shapes=(3, grid.patch, grid.patch),
                strides=(3, grid.stride, grid.stride),
                baselines=127.5,
                target=target,
                perturbations_per_eval=BATCH,
            )
            maps["Captum"] = found[0, 0].numpy()

        torch_ways["Captum"] = captum
    if missing := _missing("monai"):
        yield Skipped(job, "MONAI", missing)
    else:
        from monai.visualize import OcclusionSensitivity as Sensitivity

        sensitivity = Sensitivity(
            network, mask_size=grid.patch, overlap=1 - grid.stride / grid.patch, mode=127.5,
            n_batch=BATCH, verbose=False,
        )  # fmt: skip

        def monai() -> None:
            maps["MONAI"] = plain - np.asarray(sensitivity(tensor)[0])[0, target]

        torch_ways["MONAI"] = monai
    if not torch_ways:
        return
    timings = in_turn({"ours": our_way(grid, "ours"), **torch_ways}, repeats)
    for other in torch_ways:
        yield _occlusion_row(
            job, other, at_least, {"ours": timings["ours"], "theirs": timings[other]},
            np.abs(maps[other] - maps["ours"]).max(), np.ptp(maps["ours"]), note(grid),
        )  # fmt: skip


def _occlusion_row(
    job: str,
    alternative: str,
    at_least: float,
    timings: dict[str, Timing],
    difference: float,
    spread: float,
    note: str,
) -> Row:
    return Row(
        job=job,
        alternative=alternative,
        at_least=at_least,
        ours=timings["ours"],
        theirs=timings["theirs"],
        unit="maps/min",
        count=60,
        same=bool(difference < 1e-3 * spread + 1e-5),
        check=f"maps differ by at most {difference:.0e}, they span {spread:.2g}",
        note=note,
    )


def savedmodel(settings: Benchmark, place: Path) -> Found:
    """The exported model's `tensor` signature, float32, on one image and on 32."""
    rng = np.random.default_rng(settings.seed)
    size = settings.image_size
    for name in settings.backbones:
        model, served = exported(name, settings, place)
        signature = served.signature("tensor")
        for batch, calls, at_least in ((1, 20, 3.0), (BATCH, 1, 1.2)):
            images = rng.uniform(0, 255, (batch, size, size, 3)).astype(np.float32)
            yield _served_row(
                name, model, signature, images, calls, at_least, settings.repeats or 5
            )


def _served_row(
    name: str,
    model: keras.Model,
    signature: Callable[..., dict[str, tf.Tensor]],
    images: np.ndarray,
    calls: int,
    at_least: float,
    repeats: int,
) -> Row:
    found: dict[str, np.ndarray] = {}

    def ours() -> None:
        for _ in range(calls):
            found["ours"] = signature(images=tf.constant(images))["probabilities"].numpy()

    def theirs() -> None:
        for _ in range(calls):
            found["theirs"] = model.predict(images, verbose=0)

    timings = in_turn({"ours": ours, "theirs": theirs}, repeats)
    difference = float(np.abs(found["ours"] - found["theirs"]).max())
    return Row(
        job=f"SavedModel, {name} at {images.shape[1]}, batch {len(images)}",
        alternative="Keras predict",
        at_least=at_least,
        ours=timings["ours"],
        theirs=timings["theirs"],
        unit="ms" if len(images) == 1 else "images/s",
        count=calls if len(images) == 1 else len(images),
        same=bool(difference < 1e-5 and found["ours"].min() > 1e-3),
        check=f"probabilities differ by at most {difference:.0e} "
        f"(from {found['ours'].min():.2f} to {found['ours'].max():.2f})",
    )


def folder(settings: Benchmark, place: Path) -> Found:
    """Embeddings of a folder of files of original size, in float32."""
    paths = sorted(str(p) for p in radiographs(settings, place).rglob("*.*"))
    for name in settings.backbones:
        model, served = exported(name, settings, place)
        yield _folder_row(name, embedding_of(model), served, paths, settings)


def _folder_row(
    name: str,
    embedding: keras.Model,
    served: serving.ServedModel,
    paths: list[str],
    settings: Benchmark,
) -> Row:
    from cxr_tf.neighbors import embed_files

    side = (settings.image_size, settings.image_size)
    found: dict[str, np.ndarray] = {}

    def ours() -> None:
        found["ours"] = embed_files(served, paths, BATCH)

    def theirs() -> None:
        features = []
        for start in range(0, len(paths), BATCH):
            images = [
                # Pillow's bilinear filter is antialiased, as ours is.
                keras.utils.img_to_array(
                    keras.utils.load_img(path, target_size=side, interpolation="bilinear")
                )
                for path in paths[start : start + BATCH]
            ]
            features.append(embedding.predict(np.stack(images), verbose=0))
        found["theirs"] = np.concatenate(features)

    timings = in_turn({"ours": ours, "theirs": theirs}, settings.repeats or 3)
    difference = np.abs(found["ours"] - found["theirs"]).max() / found["theirs"].std()
    return Row(
        job=f"embeddings of a folder, {name} at {settings.image_size}",
        alternative="load_img and Keras predict, in batches",
        at_least=1.5,
        ours=timings["ours"],
        theirs=timings["theirs"],
        unit="images/s",
        count=len(paths),
        same=bool(difference < 0.05),
        check=f"embeddings differ by at most {difference:.1g} of their spread",
    )


def transfer(settings: Benchmark, place: Path) -> Found:
    """From files to a trained head on frozen VGG16, and its AUROC on validation."""
    from sklearn.metrics import roc_auc_score

    from cxr_tf.classification import fit_head
    from cxr_tf.evaluation import Data
    from cxr_tf.models.classifier import logits_of
    from cxr_tf.training import compiled, infer, resolve_precision

    root = radiographs(settings, place)
    size, classes = settings.image_size, ("NORMAL", "PNEUMONIA")
    start = build_classifier("vgg16", classes=2, image_size=size)
    backbones.load_weights(start, "vgg16", settings.vgg16_weights)
    weights = start.get_weights()
    auroc: dict[str, float] = {}

    def ours() -> None:
        parts = {}
        for split in ("train", "val"):
            files = [
                (p, k) for k, c in enumerate(classes) for p in sorted((root / split / c).glob("*"))
            ]
            images, _ = pipeline.load_images([str(p) for p, _ in files], size)
            labels = np.array([k for _, k in files], np.int64)
            parts[split] = Data(_catalog_of([split] * len(files)), images, labels, classes)
        precision = resolve_precision("auto", size)
        model = build_classifier("vgg16", classes=2, image_size=size, precision=precision)
        model.set_weights(weights)
        fit_head(model, parts["train"], parts["val"], BATCH)
        val = pipeline.evaluation_batches(parts["val"].images, batch_size=BATCH)
        logits = infer(compiled(logits_of(model)), val)
        auroc["ours"] = roc_auc_score(parts["val"].labels, logits[:, 1] - logits[:, 0])

    def theirs(epochs: int = 10) -> None:
        sets = {
            split: keras.utils.image_dataset_from_directory(
                root / split, image_size=(size, size), batch_size=BATCH, seed=settings.seed,
                shuffle=split == "train", verbose=False,
            )
            for split in ("train", "val")
        }  # fmt: skip
        base = keras.applications.VGG16(
            include_top=False, weights=None, input_shape=(size, size, 3)
        )
        base.set_weights(weights[: len(base.weights)])
        base.trainable = False
        inputs = keras.Input((size, size, 3))
        x = base(keras.applications.vgg16.preprocess_input(inputs), training=False)
        x = keras.layers.Dropout(0.2)(keras.layers.GlobalAveragePooling2D()(x))
        model = keras.Model(inputs, keras.layers.Dense(1)(x))
        model.compile(
            keras.optimizers.Adam(),
            keras.losses.BinaryCrossentropy(from_logits=True),
            metrics=[keras.metrics.BinaryAccuracy(threshold=0.0)],
        )
        train, val = (sets[s].prefetch(tf.data.AUTOTUNE) for s in ("train", "val"))
        model.fit(train, validation_data=val, epochs=epochs, verbose=0)
        labels = np.concatenate([y for _, y in val.as_numpy_iterator()])
        auroc["theirs"] = roc_auc_score(labels, model.predict(val, verbose=0)[:, 0])

    theirs(epochs=1)
    timings = in_turn({"ours": ours, "theirs": theirs}, settings.repeats or 2, warm_up=False)
    yield Row(
        job=f"transfer learning, frozen VGG16 at {size}, {settings.images} images",
        alternative="Keras's guide: image_dataset_from_directory, frozen base, fit, 10 epochs",
        at_least=8,
        ours=timings["ours"],
        theirs=timings["theirs"],
        unit="s",
        count=1,
        same=auroc["ours"] >= auroc["theirs"] - 0.02,
        check=f"AUROC on validation {auroc['ours']:.3f} and {auroc['theirs']:.3f}",
    )


# ---------------------------------------------------------------------- what they work on


def embeddings(count: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings float32 [count, width] as of a backbone, and labels int64 [count].

    Never negative, of some thirty true dimensions, the classes overlapping.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    hidden = rng.normal(size=(count, 32)) + 0.4 * rng.normal(size=(2, 32))[labels]
    values = hidden @ rng.normal(size=(32, width)) + rng.normal(size=(count, width))
    return np.maximum(values, 0).astype(np.float32), labels


def _catalog_of(splits: list[str]) -> catalogs.Catalog:
    """A catalogue of nothing but splits."""
    rows = tuple(
        catalogs.Radiograph(path=f"{k}.png", finding="normal", patient=str(k), split=s, digest="")
        for k, s in enumerate(splits)
    )
    return catalogs.Catalog("made up", rows, ("normal", "pneumonia"))


def radiographs(settings: Benchmark, place: Path) -> Path:
    """<place>/radiographs/{train,val}/{NORMAL,PNEUMONIA}/: as many of each class, once a run.

    Links to files of --data, or phantoms as 8-bit gray JPEG of 1300 x 900 pixels, 200 kB each, as
    the radiographs of children that Kermany published.
    """
    root = place / "radiographs"
    if root.exists():
        return root
    parts = {"train": settings.images * 3 // 4, "val": settings.images - settings.images * 3 // 4}
    if settings.data:
        catalog = catalogs.open_catalog(settings.data, seed=settings.seed)
        labels = catalog.labels("binary")
        for split, count in parts.items():
            rows = catalog.rows(split)
            for k, name in enumerate(("NORMAL", "PNEUMONIA")):
                chosen = [i for i in rows if labels[i] == k][: count // 2]
                if not chosen:
                    raise UserError(f"--data {settings.data} has no {name.lower()} in {split}")
                (root / split / name).mkdir(parents=True)
                for i in chosen:
                    path = Path(catalog.paths[i]).resolve()
                    (root / split / name / f"{i:06d}{path.suffix}").symlink_to(path)
        return root
    rng = np.random.default_rng(settings.seed)
    number = 0
    for split, count in parts.items():
        # Patients are drawn once and exposed anew: drawing costs more than all that is measured.
        drawn = [
            phantom(FINDINGS[k % 2], seed=settings.seed, patient=number + k, size=512).image
            for k in range(min(count, 8))
        ]
        for k in range(count):
            name = ("NORMAL", "PNEUMONIA")[k % len(drawn) % 2]
            (root / split / name).mkdir(parents=True, exist_ok=True)
            large = Image.fromarray(drawn[k % len(drawn)]).resize(ORIGINAL_SIZE)
            noisy = np.asarray(large, np.float32) * rng.uniform(0.9, 1.0)
            noisy += rng.normal(0, 3, noisy.shape).astype(np.float32)
            Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(
                root / split / name / f"phantom{number:05d}.jpeg", quality=90
            )
            number += 1
    return root


def plain_classifier(name: str, image: np.ndarray) -> keras.Model:
    """A backbone behind its own preprocessing, without our standardisation, as users have it.

    Random weights, scaled to probabilities far from 0 and 1 on `image`: float32 [1, S, S, 3].
    """
    images = keras.Input(image.shape[1:], name="images")
    features = backbones.backbone(name).features(images)
    logits = keras.layers.Dense(2, name="logits")(features)
    model = keras.Model(images, keras.layers.Softmax(name="probabilities")(logits))
    backbones.load_weights(model, name, "none")
    spread_logits(model, image)
    return model


def spread_logits(model: keras.Model, images: np.ndarray) -> None:
    """Scales the last kernel to logits one apart: equal results at 0 or 1 would prove nothing."""
    layer = model.get_layer("logits")
    features = np.asarray(keras.Model(model.input, layer.input)(images, training=False))
    apart = np.ptp(features @ np.asarray(layer.kernel), axis=1).mean()
    layer.kernel.assign(layer.kernel / apart)


def exported(
    name: str, settings: Benchmark, place: Path
) -> tuple[keras.Model, serving.ServedModel]:
    """One of our classifiers with random weights, and its SavedModel, written once a run."""
    keras.utils.set_random_seed(settings.seed)  # so that it is the same model for every job
    model = build_classifier(name, classes=2, image_size=settings.image_size)
    backbones.load_weights(model, name, "none")
    drawn = phantom("viral", seed=settings.seed, patient=1, size=settings.image_size).image
    spread_logits(model, np.repeat(drawn[None, ..., None], 3, 3).astype(np.float32))
    base, classes = place / "saved_models" / name, ("normal", "pneumonia")
    if not base.exists():
        serving.export_classifier(
            model,
            base,
            classes=classes,
            threshold=0.5,
            card={"kind": "classifier", "classes": list(classes)},
        )
    return model, serving.load_served(str(base))


def as_torch(model: keras.Model) -> Any:
    """The same network with the same weights in PyTorch: [N, 3, S, S] in 0..255 -> logits [N, C].

    For the flat classifiers of `plain_classifier`.
    """
    import torch
    from torch import nn

    class ChannelsLast(nn.Module):
        """Keras flattens [H, W, C]."""

        def forward(self, x: Any) -> Any:
            return x.permute(0, 2, 3, 1).flatten(1)

    def tensor(values: Any) -> Any:
        return torch.from_numpy(np.array(values, np.float32))

    def module(operation: Any, padding: int) -> Any:
        layers = keras.layers
        if isinstance(operation, layers.Conv2D):
            if operation.padding == "same":
                padding = operation.kernel_size[0] // 2
            conv = nn.Conv2d(
                operation.kernel.shape[2], operation.filters, operation.kernel_size,
                operation.strides, padding,
            )  # fmt: skip
            conv.weight.data = tensor(np.transpose(operation.kernel, (3, 2, 0, 1)))
            conv.bias.data = tensor(operation.bias)
            relu = operation.activation is keras.activations.relu
            return nn.Sequential(conv, nn.ReLU()) if relu else conv
        if isinstance(operation, layers.BatchNormalization):
            norm = nn.BatchNorm2d(operation.gamma.shape[0], eps=operation.epsilon)
            norm.weight.data, norm.bias.data = tensor(operation.gamma), tensor(operation.beta)
            norm.running_mean = tensor(operation.moving_mean)
            norm.running_var = tensor(operation.moving_variance)
            return norm
        if isinstance(operation, layers.Dense):
            dense = nn.Linear(*operation.kernel.shape)
            dense.weight.data = tensor(np.transpose(operation.kernel))
            dense.bias.data = tensor(operation.bias)
            relu = operation.activation is keras.activations.relu
            return nn.Sequential(dense, nn.ReLU()) if relu else dense
        if isinstance(operation, layers.MaxPooling2D):
            # Behind a ReLU, padding with 0 and with minus infinity are the same.
            return nn.MaxPool2d(operation.pool_size, operation.strides, padding)
        if isinstance(operation, layers.GlobalAveragePooling2D):
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        if isinstance(operation, layers.Flatten):
            return ChannelsLast()
        if isinstance(operation, layers.Dropout):
            return nn.Identity()
        if isinstance(operation, layers.Activation):
            return nn.ReLU()
        raise ValueError(f"no counterpart of {type(operation).__name__} in PyTorch")

    steps = read_network(model).after
    first = next(
        k for k, s in enumerate(steps)
        if isinstance(s.operation, (keras.layers.Conv2D, keras.layers.ZeroPadding2D))
    )  # fmt: skip
    # What comes before is affine in the colours; four colours tell it.
    before = keras.Model(model.input, steps[first].inputs[0])
    colours = np.zeros((4, *model.input_shape[1:]), np.float32)
    colours[1:] = 255 * np.eye(3, dtype=np.float32)[:, None, None]
    seen = np.asarray(before(colours))[:, 0, 0]
    affine = nn.Conv2d(3, 3, 1)
    affine.weight.data = tensor((seen[1:] - seen[0]).T / 255)[..., None, None]
    affine.bias.data = tensor(seen[0])

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.parts = affine, nn.ModuleList()
            self.plan: list[tuple[list[int], int, bool]] = []
            padded: dict[int, tuple[int, int]] = {}
            for step in steps[first:]:
                inputs, output = [id(x) for x in step.inputs], id(step.output)
                if isinstance(step.operation, keras.layers.ZeroPadding2D):
                    padded[output] = (inputs[0], step.operation.padding[0][0])
                    continue
                if isinstance(step.operation, keras.layers.Softmax):
                    break
                source, padding = padded.get(inputs[0], (inputs[0], 0))
                add = isinstance(step.operation, keras.layers.Add)
                parts = [] if add else [module(step.operation, padding)]
                parts += [module(f, 0) for f in step.followers]
                self.parts.append(nn.Sequential(*parts))
                self.plan.append((inputs if add else [source], output, add))

        def forward(self, x: Any) -> Any:
            values = {id(steps[first].inputs[0]): self.before(x)}
            for part, (inputs, output, add) in zip(self.parts, self.plan, strict=True):
                value = values[inputs[0]]
                if add:
                    value = value + values[inputs[1]]
                values[output] = value = part(value)
            return value

    return Network().eval()


# ---------------------------------------------------------------------- telling


def line(row: Row) -> str:
    """One row in a line of the log."""
    return (
        f"{row.job}: {row.ratio:.2f} times as fast as {row.alternative} "
        f"({min(row.ratios):.2f} to {max(row.ratios):.2f}; asked for {row.at_least:g}); {row.check}"
    )


def table(rows: list[Row], skipped: list[Skipped], about: dict[str, Any]) -> str:
    """Markdown: what it ran on, one line for each row, and what was left out."""
    lines = [
        f"{about['processor']}, {about['cores']} cores, {about['memory_gb']} GB, "
        f"{about['gpus'] or 'no'} GPU; TensorFlow {about['packages']['tensorflow']}, "
        f"Python {about['python']}",
        "",
        "| job | alternative | ours | theirs | times as fast (lowest to highest) | asked for "
        "| same result |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        reached = "" if row.ratio >= row.at_least else ", missed"
        same = row.check if row.same else f"NOT THE SAME: {row.check}"
        lines.append(
            f"| {row.job} | {row.alternative} | {amount(row, row.ours)} | {amount(row, row.theirs)}"
            f" | {row.ratio:.2f} ({min(row.ratios):.2f} to {max(row.ratios):.2f})"
            f" | {row.at_least:g}{reached} | {same} |"
        )
    lines += [f"\nleft out: {s.job}, {s.alternative}: {s.reason}" for s in skipped]
    return "\n".join(lines)


def amount(row: Row, timing: Timing) -> str:
    """The median of the rounds in the row's unit: seconds of one, or how many in a time."""
    seconds = float(np.median(timing.seconds))
    value = {
        "s": seconds / row.count,
        "ms": 1000 * seconds / row.count,
        "images/s": row.count / seconds,
        "maps/min": row.count / seconds,
    }[row.unit]
    return f"{value:,.0f} {row.unit}" if value >= 100 else f"{value:.3g} {row.unit}"


def _missing(*modules: str) -> str:
    absent = [m for m in modules if importlib.util.find_spec(m) is None]
    return f"{absent[0]} is not installed (requirements-benchmark.txt)" if absent else ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


JOBS: dict[str, Callable[[Benchmark, Path], Found]] = {
    "startup": startup,
    "knn": knn,
    "tsne": tsne,
    "input": reading,
    "occlusion": occlusion,
    "savedmodel": savedmodel,
    "folder": folder,
    "transfer": transfer,
}
