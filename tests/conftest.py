"""Shared fixtures: a folder of phantoms, a small network, a finished run."""

import os
import shutil
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")  # as the scripts do

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from skips import NO_BROWSER, without_skips

from cxr_tf.config import TrainClassifier
from cxr_tf.data.sources.phantoms import write_phantoms

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# Modules that use the same study, the same training run or the same exported models, each of which
# takes long to make.
STUDY = (
    *("test_run_study", "test_state", "test_plan", "test_report", "test_report_pictures"),
    *("test_report_browser", "test_tensorboard_browser", "test_compare_studies"),
    *("test_compare_backbones", "test_check_served"),
)
NEIGHBORS = ("test_fit_knn", "test_storage", "test_embeddings", "test_projection")
PREDICTION = ("test_analysis", "test_page_browser", "test_dicom_results")
TRAINING = ("test_train_classifier", "test_classifier_fitting", "test_export")
AUTOENCODER = ("test_train_autoencoder", "test_scoring", "test_evaluate_autoencoder")
EXPORTS = (
    *("test_serving_contract", "test_client", "test_cpp_runtime", "test_conversion", "test_load"),
)
GROUPS = (
    dict.fromkeys(STUDY, "study")
    | dict.fromkeys(TRAINING, "training")
    | dict.fromkeys(AUTOENCODER, "autoencoder")
    | dict.fromkeys(NEIGHBORS, "neighbors")
    | dict.fromkeys(EXPORTS, "exports")
    | dict.fromkeys(PREDICTION, "prediction")
)

# Groups that take longest run first, so that no process waits for another at the end. (By default
# pytest-xdist would start the groups with the most tests first; see the Makefile.)
LONGEST = ("study", "test_packaging", "training", "exports", "autoencoder")

# Modules and tests of `make test-slow`: benchmarks, other runtimes, several processes.
SLOW = {
    *("test_anomaly_variants", "test_benchmark", "test_benchmark_embeddings", "test_bounds"),
    *("test_load", "test_material", "test_measurement", "test_reliability", "test_tables"),
    "test_training",
    *("test_openvino_engine", "test_conversion", "test_cpp_runtime"),
    *("test_engines", "test_object_store", "test_workers", "test_replicas"),
    "test_wheel_trains_in_a_separate_environment",
    "test_training_on_two_devices",
    "test_default_epochs_are_recorded",
    "test_weights_do_not_depend_on_abnormal_images",
}


@pytest.hookimpl(wrapper=True)  # before xdist and -m, which read the marks in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None, None, None]:
    """Mark slow tests; run the tests of a module in one process, where they share its fixtures."""
    for item in items:
        module = item.path.stem
        item.add_marker(pytest.mark.xdist_group(GROUPS.get(module, module)))
        if {module, getattr(item, "originalname", item.name)} & SLOW:
            item.add_marker(pytest.mark.slow)
    order = {name: k for k, name in enumerate(LONGEST)}
    items.sort(key=lambda i: order.get(GROUPS.get(i.path.stem, i.path.stem), len(order)))
    yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report a skipped test as an error in CI, where everything that tests need is installed."""
    report = yield
    return without_skips(report) if os.environ.get("CI") else report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Report a module that is skipped as a whole as an error in CI."""
    report = yield
    return without_skips(report) if os.environ.get("CI") else report


@pytest.fixture(scope="module", autouse=True)
def forget_models() -> Iterator[None]:
    """Release the models that a test module has built, because Keras keeps all of them."""
    yield
    if "keras" in sys.modules:
        sys.modules["keras"].utils.clear_session(free_memory=True)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 phantoms of 64 pixels, as a folder with split folders."""
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(folder, count=72, size=64, seed=11)
    return folder


@pytest.fixture(scope="session")
def tiny_backbone() -> Iterator[str]:
    """A backbone in the table that trains in a second."""
    from tiny_backbone import register

    from cxr_tf.models import backbones

    yield register()
    del backbones.BACKBONES["tiny"]


@pytest.fixture(scope="session")
def small_models(
    tiny_backbone: str, phantoms: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Untrained exported models: classifiers of three and of two classes, KNN, autoencoder."""
    import small_models

    root = tmp_path_factory.mktemp("small_models") / "saved_models"
    small_models.write_models(root, tiny_backbone, phantoms)
    small_models.write_binary_model(root, tiny_backbone)
    return root


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The system's Chromium, driven by Playwright; without either, tests are skipped."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, BROWSERS)), None)
        try:
            # Containers seldom allow Chromium's own sandbox, and the pages are our own.
            opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"{NO_BROWSER}: {str(error).splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def finished(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainClassifier:
    """The settings of a finished run: a real VGG16, trained for an epoch.

    The learning rate is low: three steps at the usual rate drive the probabilities to 0 and 1,
    where images can no longer be distinguished.
    """
    from cxr_tf.classification.train_classifier import train_classifier

    root = tmp_path_factory.mktemp("finished")
    settings = TrainClassifier(
        data=str(phantoms),
        backbone="vgg16",
        weights="none",
        image_size=64,
        batch_size=16,
        epochs=1,
        learning_rate=1e-5,
        precision="float32",
        operating_point="youden",
        bootstrap_samples=30,
        name="shared",
        logs=str(root / "logs"),
        saved_models=str(root / "saved_models"),
    )
    train_classifier(settings)
    return settings
