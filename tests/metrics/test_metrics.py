"""Scores against scikit-learn, intervals and tests against simulation and published numbers."""

import numpy as np
import pytest
from scipy import special
from sklearn import metrics as sk

from cxr_tf import files, metrics
from cxr_tf.errors import UserError

BINARY = ("normal", "pneumonia")
THREE = ("normal", "bacterial", "viral")


def drawn(classes: int, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels int [N], somewhat informative probabilities [N, C], and the likeliest class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes)) + 1.2 * np.eye(classes)[labels]
    # Rounded, so that scores tie.
    probabilities = special.softmax(np.round(logits, 1), axis=1)
    return labels, probabilities, probabilities.argmax(axis=1)


def test_scores_of_two_classes_are_those_of_scikit_learn() -> None:
    labels, probabilities, predicted = drawn(2, 200)
    scores = metrics.classification_scores(labels, probabilities, predicted, BINARY)
    p = probabilities[:, 1]
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "precision": sk.precision_score(labels, predicted),
        "recall": sk.recall_score(labels, predicted),
        "specificity": sk.recall_score(labels, predicted, pos_label=0),
        "f1": sk.f1_score(labels, predicted),
        "auroc": sk.roc_auc_score(labels, p),
        "auprc": sk.average_precision_score(labels, p),
        "brier": sk.brier_score_loss(labels, p),
        "loss": sk.log_loss(labels, p),
        "recall/normal": sk.recall_score(labels, predicted, pos_label=0),
        "recall/pneumonia": sk.recall_score(labels, predicted),
        "auroc/normal": sk.roc_auc_score(1 - labels, probabilities[:, 0]),
    }
    assert {k: scores[k] for k in expected} == pytest.approx(expected)
    assert metrics.macro_auroc(labels, probabilities) == pytest.approx(expected["auroc"])


@pytest.mark.parametrize("seed", range(5))
def test_weighted_areas_are_those_of_scikit_learn(seed: int) -> None:
    labels, probabilities, predicted = drawn(2, 60, seed)
    # Some count nothing: in a resample every third patient is missing.
    weights = np.random.default_rng(seed).integers(0, 3, 60)
    scores = metrics.classification_scores(labels, probabilities, predicted, BINARY, weights)
    p = probabilities[:, 1]
    assert scores["auroc"] == pytest.approx(sk.roc_auc_score(labels, p, sample_weight=weights))
    expected = sk.average_precision_score(labels, p, sample_weight=weights)
    assert scores["auprc"] == pytest.approx(expected)


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        metrics.detection_scores(np.array([True, False]), np.array([np.nan, 0.1]), 0.5)


def test_scores_of_three_classes_are_macro_averages() -> None:
    labels, probabilities, predicted = drawn(3, 200)
    scores = metrics.classification_scores(labels, probabilities, predicted, THREE)
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "precision": sk.precision_score(labels, predicted, average="macro"),
        "recall": sk.recall_score(labels, predicted, average="macro"),
        "f1": sk.f1_score(labels, predicted, average="macro"),
        "auroc": sk.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"),
        "loss": sk.log_loss(labels, probabilities),
        "brier": sk.brier_score_loss(labels, probabilities, scale_by_half=True),
        "precision/viral": sk.precision_score(labels == 2, predicted == 2),
        "specificity/viral": sk.recall_score(labels != 2, predicted != 2),
        "auprc/bacterial": sk.average_precision_score(labels == 1, probabilities[:, 1]),
    }
    assert {k: scores[k] for k in expected} == pytest.approx(expected)
    assert metrics.macro_auroc(labels, probabilities) == pytest.approx(expected["auroc"])


@pytest.mark.parametrize("classes", [BINARY, THREE])
def test_a_weight_is_a_repetition(classes: tuple[str, ...]) -> None:
    labels, probabilities, predicted = drawn(len(classes), 60)
    weights = np.random.default_rng(1).integers(0, 4, 60)
    rows = np.repeat(np.arange(60), weights)
    weighted = metrics.classification_scores(labels, probabilities, predicted, classes, weights)
    repeated = metrics.classification_scores(
        labels[rows], probabilities[rows], predicted[rows], classes
    )
    assert weighted == pytest.approx(repeated)


def test_a_score_that_is_not_defined_is_nan_and_null_in_json(tmp_path) -> None:
    labels, probabilities, predicted = drawn(3, 40)
    kept = labels != 2
    scores = metrics.classification_scores(
        labels[kept], probabilities[kept], predicted[kept], THREE
    )
    for metric in ("recall/viral", "auroc/viral", "auprc/viral", "recall", "auroc"):
        assert np.isnan(scores[metric]), metric
    assert np.isfinite(scores["accuracy"])
    patients = [str(i) for i in range(kept.sum())]
    scores["ci95"] = metrics.confidence_intervals(
        labels[kept], probabilities[kept], predicted[kept], patients, THREE, bootstrap_samples=10
    )
    assert "auroc/viral" not in scores["ci95"]
    files.write_json(tmp_path / "x.json", scores)
    assert "NaN" not in (tmp_path / "x.json").read_text()
    assert '"auroc/viral": null' in (tmp_path / "x.json").read_text()


def test_one_image_and_one_class_are_scored_without_an_error() -> None:
    scores = metrics.classification_scores(
        np.array([1]), np.array([[0.2, 0.8]]), np.array([1]), BINARY
    )
    assert scores["accuracy"] == scores["recall"] == scores["precision"] == 1
    assert np.isnan(scores["auroc"])
    assert np.isnan(scores["specificity"])
    # A probability of exactly 0 for the truth costs a lot, not everything.
    sure = metrics.classification_scores(
        np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]]), np.array([1, 1]), BINARY
    )
    assert np.isfinite(sure["loss"])


def test_calibration_error_is_the_gap_between_confidence_and_truth() -> None:
    labels = np.array([1] * 7 + [0] * 3 + [1] * 2 + [0] * 8)
    p = np.array([0.9] * 10 + [0.2] * 10)
    both = np.stack([1 - p, p], axis=1)
    assert metrics.expected_calibration_error(labels, both) == pytest.approx(0.1)
    mean, share, counts = metrics.reliability(labels, both)
    np.testing.assert_allclose(mean, [0.2, 0.9])
    np.testing.assert_allclose(share, [0.2, 0.7])
    np.testing.assert_array_equal(counts, [10, 10])
    # Probabilities of 1 belong to the last bin, not to one behind it.
    edge = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert metrics.expected_calibration_error(np.array([1, 0]), edge) == 0


def test_one_patient_has_no_interval() -> None:
    labels, scores = np.arange(20) % 2, np.linspace(0, 1, 20)

    def interval(patients: list[str]) -> dict[str, list[float]]:
        probabilities, called = np.stack([1 - scores, scores], 1), np.zeros(20, int)
        return metrics.confidence_intervals(
            labels, probabilities, called, patients, ("a", "b"), bootstrap_samples=20
        )

    assert interval(["p"] * 20) == {}
    assert interval(["p", "q"] * 10)["accuracy"] == [0, 1]


def test_patients_are_resampled_whole() -> None:
    patients = ["b", "a", "b", "c", "b", "a"]
    weights = metrics.bootstrap_weights(patients, bootstrap_samples=200, seed=3)
    assert weights.shape == (200, 6)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, 0], weights[:, 4])
    np.testing.assert_array_equal(weights[:, 1], weights[:, 5])
    np.testing.assert_array_equal(weights[:, [0, 1, 3]].sum(axis=1), 3)
    np.testing.assert_array_equal(
        weights, metrics.bootstrap_weights(patients, bootstrap_samples=200, seed=3)
    )


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Accuracy of 30 patients with 5 images each, all five right or wrong together."""
    rng = np.random.default_rng(0)
    patients = np.repeat([f"p{i}" for i in range(30)], 5)
    truth, covered, by_image = 0.7, 0, 0
    for trial in range(120):
        right = np.repeat(rng.random(30) < truth, 5)
        for names, by_patient in ((list(patients), True), ([str(i) for i in range(150)], False)):
            weights = metrics.bootstrap_weights(names, bootstrap_samples=200, seed=trial)
            means = (weights * right).sum(axis=1) / weights.sum(axis=1)
            low, high = np.percentile(means, [2.5, 97.5])
            covered += by_patient and low <= truth <= high
            by_image += not by_patient and low <= truth <= high
    assert covered / 120 >= 0.88
    # Images taken as independent claim more than they know: what resampling patients is for.
    assert by_image / 120 <= 0.75


def test_intervals_are_percentiles_of_the_score_over_resamples() -> None:
    labels, probabilities, predicted = drawn(2, 50)
    patients = [f"p{i // 2}" for i in range(50)]
    intervals = metrics.confidence_intervals(
        labels, probabilities, predicted, patients, BINARY, bootstrap_samples=60, seed=1
    )
    rng = np.random.default_rng(1)
    areas = []
    names = sorted(set(patients))
    for _ in range(60):
        times = dict(zip(names, rng.multinomial(25, np.full(25, 1 / 25)), strict=True))
        rows = [i for i, p in enumerate(patients) for _ in range(times[p])]
        areas.append(sk.roc_auc_score(labels[rows], probabilities[rows, 1]))
    np.testing.assert_allclose(intervals["auroc"], np.percentile(areas, [2.5, 97.5]))


@pytest.mark.parametrize("truth", [0.5, 1.0, 3.0])
def test_the_temperature_of_the_draw_is_found(truth: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (6000, 3))
    chance = special.softmax(logits / truth, axis=1)
    labels = (rng.random((6000, 1)) > chance.cumsum(axis=1)).sum(axis=1)
    assert metrics.fit_temperature(logits, labels) == pytest.approx(truth, rel=0.1)


def test_the_temperature_is_bounded_where_labels_are_separated() -> None:
    logits = np.array([[4.0, -4.0], [-4.0, 4.0]])
    assert 0.04 < metrics.fit_temperature(logits, np.array([0, 1])) < 0.5
    assert 15 < metrics.fit_temperature(logits, np.array([1, 0])) <= 20.01


#                    0    0    1    0    1    1
LABELS = np.array([0, 0, 1, 0, 1, 1])
SCORES = np.array([0.1, 0.2, 0.3, 0.6, 0.7, 0.9])


def rates(threshold: float, labels=LABELS, scores=SCORES) -> tuple[float, float]:
    called = scores >= threshold
    return called[labels == 1].mean(), (~called)[labels == 0].mean()


@pytest.mark.parametrize(
    ("rule", "sensitivity", "specificity"),
    [
        ("0.5", 2 / 3, 2 / 3),
        ("youden", 2 / 3, 1.0),
        ("min-sensitivity:0.95", 1.0, 2 / 3),
        ("min-sensitivity:0.5", 2 / 3, 1.0),
        ("min-sensitivity:1", 1.0, 2 / 3),
        ("min-specificity:0.95", 2 / 3, 1.0),
        ("min-specificity:0.6", 1.0, 2 / 3),
        ("min-specificity:0.1", 1.0, 1 / 3),
    ],
)
def test_operating_points_by_their_rules(rule, sensitivity, specificity) -> None:
    threshold = metrics.operating_point(LABELS, SCORES, rule)
    assert 0 < threshold < 1
    assert rates(threshold) == pytest.approx((sensitivity, specificity))


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.7, 0.9, 0.95, 0.99])
def test_operating_points_keep_their_word_at_every_count(share: float) -> None:
    """Also where the share is met exactly, which floating point can miss by a bit."""
    for count in (5, 10, 20, 40, 100):
        scores = np.arange(2 * count) / (2 * count)
        labels = np.arange(2 * count) % 2
        sensitivity, _ = rates(
            metrics.operating_point(labels, scores, f"min-sensitivity:{share}"), labels, scores
        )
        assert share - 1e-9 <= sensitivity < share + 1 / count - 1e-9
        _, specificity = rates(
            metrics.operating_point(labels, scores, f"min-specificity:{share}"), labels, scores
        )
        assert share - 1e-9 <= specificity < share + 1 / count - 1e-9


def test_a_specificity_that_no_score_reaches_takes_a_threshold_above_all() -> None:
    labels, scores = np.array([0, 1, 1]), np.array([1.0, 0.5, 0.2], np.float32)
    threshold = metrics.operating_point(labels, scores, "min-specificity:0.95")
    assert not (scores >= np.float32(threshold)).any()


@pytest.mark.parametrize(
    "rule",
    [
        *("best", "min-sensitivity", "min-sensitivity:2", "min-sensitivity:0"),
        *("min-sensitivity:nan", "min-specificity:x", "0.5:0.4", "youden:1", ""),
    ],
)
def test_unknown_rules_are_refused(rule: str) -> None:
    with pytest.raises(UserError):
        metrics.operating_point(LABELS, SCORES, rule)


def jackknife_z(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """DeLong's statistic from pairwise comparisons, as the paper defines it."""
    positive, negative = labels == 1, labels == 0
    of_positives, of_negatives = [], []
    for score in (first, second):
        gap = score[positive][:, None] - score[negative][None]
        wins = (gap > 0) + 0.5 * (gap == 0)
        of_positives.append(wins.mean(axis=1))
        of_negatives.append(wins.mean(axis=0))
    variance = np.var(of_positives[0] - of_positives[1], ddof=1) / positive.sum()
    variance += np.var(of_negatives[0] - of_negatives[1], ddof=1) / negative.sum()
    return (of_positives[0].mean() - of_positives[1].mean()) / np.sqrt(variance)


def delong_of_scores(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """Of two classes, told apart by one score [N] each."""
    return metrics.delong_test(labels, *(np.stack([-s, s], axis=1) for s in (first, second)))


def test_delong_is_the_paper_s_and_keeps_its_level() -> None:
    from scipy import stats

    rng = np.random.default_rng(0)
    rejected = 0
    for trial in range(200):
        labels = np.arange(80) % 2
        shared = rng.normal(size=80) + labels
        first, second = (np.round(shared + rng.normal(size=80), 1) for _ in range(2))
        p = delong_of_scores(labels, first, second)
        rejected += p < 0.05
        if trial < 20:
            z = jackknife_z(labels, first, second)
            assert p == pytest.approx(2 * stats.norm.sf(abs(z)), rel=1e-9)
    assert 1 <= rejected <= 22  # of 200 true null hypotheses, 5 % are rejected by chance


def test_delong_of_three_classes_is_about_the_macro_average() -> None:
    # Equal for healthy against the rest, and one tells bacterial from viral, the other does not:
    # the difference that is printed beside the p-value is real, and so must the p-value say.
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 60)
    healthy = np.where(labels == 0, 0.8, 0.2)
    split = np.where(labels == 2, 0.7, 0.3)
    knows = np.stack([healthy, (1 - healthy) * (1 - split), (1 - healthy) * split], 1)
    guess = rng.uniform(size=180)
    guesses = np.stack([healthy, (1 - healthy) * (1 - guess), (1 - healthy) * guess], 1)
    assert metrics.macro_auroc(labels, knows) > metrics.macro_auroc(labels, guesses) + 0.1
    assert metrics.delong_test(labels, knows, guesses) < 1e-6
    assert metrics.delong_test(labels, guesses, knows) < 1e-6
    # Order of the classes is nothing to an average over them.
    turned = [2, 0, 1]
    p = metrics.delong_test(labels, guesses, knows[:, [0, 2, 1]])
    again = metrics.delong_test(
        (labels + 1) % 3, guesses[:, turned], knows[:, [0, 2, 1]][:, turned]
    )
    assert p == pytest.approx(again, rel=1e-9)


def test_delong_of_three_classes_keeps_its_level_and_agrees_with_the_bootstrap() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], 40)
    rejected = 0
    for _ in range(200):
        shared = rng.normal(size=(120, 3)) + 1.5 * np.eye(3)[labels]
        first, second = (shared + rng.normal(size=(120, 3)) for _ in range(2))
        rejected += metrics.delong_test(labels, first, second) < 0.05
    assert 1 <= rejected <= 22
    # The standard error behind the last p-value, against that of resampled images.
    difference = metrics.macro_auroc(labels, first) - metrics.macro_auroc(labels, second)
    from scipy import stats

    z = stats.norm.isf(metrics.delong_test(labels, first, second) / 2)
    draws = metrics.bootstrap_weights([str(i) for i in range(120)], bootstrap_samples=1000, seed=0)
    resampled = [
        metrics.macro_auroc(labels, first, w) - metrics.macro_auroc(labels, second, w)
        for w in draws
    ]
    assert abs(difference) / z == pytest.approx(np.std(resampled), rel=0.15)


def test_delong_at_its_edges() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    good = np.array([0.1, 0.2, 0.5, 0.4, 0.8, 0.9])
    assert delong_of_scores(labels, good, good**3) == 1.0
    assert delong_of_scores(labels, labels, labels) == 1.0
    # A perfect score and its reverse: nothing varies, and they are as different as can be.
    assert delong_of_scores(labels, labels, 1 - labels) == 0.0
    assert np.isnan(delong_of_scores(np.array([0, 0, 1]), good[:3], good[3:]))


def test_mcnemar_counts_what_only_one_gets_right() -> None:
    labels = np.zeros(40, int)
    first, second = labels.copy(), labels.copy()
    second[:9], first[9:11], first[20:25], second[20:25] = 1, 1, 1, 1
    # 9 against 2 of 11 discordant: twice the binomial tail, (1 + 11 + 55) / 2^11.
    assert metrics.mcnemar_test(labels, first, second) == pytest.approx(2 * 67 / 2048)
    assert metrics.mcnemar_test(labels, first, first) == 1.0


# ---------------------------------------------------------------------- detection, localisation


def test_detection_scores_are_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    sick = rng.random(200) < 0.4
    scores = rng.normal(size=200) + sick
    found = metrics.detection_scores(sick, scores, 0.3)
    called = scores >= 0.3
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(sick, scores))
    assert found["auprc"] == pytest.approx(sk.average_precision_score(sick, scores))
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(sick, called))
    assert found["precision"] == pytest.approx(sk.precision_score(sick, called))
    assert found["recall"] == pytest.approx(sk.recall_score(sick, called))
    assert found["specificity"] == pytest.approx(sk.recall_score(~sick, ~called))
    assert found["f1"] == pytest.approx(sk.f1_score(sick, called))
    nobody = metrics.detection_scores(np.zeros(5, bool), np.arange(5.0), 3.0)
    assert np.isnan(nobody["auroc"]) and np.isnan(nobody["recall"])
    assert nobody["specificity"] == pytest.approx(0.6)


def test_thresholds_of_scores_below_zero() -> None:
    sick = np.array([False, False, True, True])
    scores = np.array([-3.0, -2.0, -1.5, -1.0])
    assert -2.0 < metrics.operating_point(sick, scores, "youden") < -1.5
    everything = metrics.operating_point(~sick, scores, "min-sensitivity:1")
    assert everything < -3.0
    assert metrics.operating_point(~sick, scores, "min-specificity:1") > -1.0


def test_localisation_of_perfect_and_of_random_maps() -> None:
    rng = np.random.default_rng(0)
    lesions = np.zeros((20, 40, 40), bool)
    lesions[:, 5:12, 5:12] = True
    lesions[:, 25:27, 25:27] = True  # a small one counts as much as the large one
    perfect = lesions + 0.01 * rng.random(lesions.shape)
    assert metrics.pixel_auroc(perfect, lesions) == pytest.approx(1.0)
    assert metrics.per_region_overlap(perfect, lesions) == pytest.approx(1.0)
    assert metrics.pointing_hits(perfect, lesions).all()
    noise = rng.random(lesions.shape)
    assert metrics.pixel_auroc(noise, lesions) == pytest.approx(0.5, abs=0.03)
    assert metrics.per_region_overlap(noise, lesions) == pytest.approx(0.15, abs=0.03)
    # Only the large lesion is found: half of the overlap, although it has nine pixels in ten.
    half = perfect.copy()
    half[:, 25:27, 25:27] = -1.0
    assert metrics.per_region_overlap(half, lesions) == pytest.approx(0.5, abs=0.01)
    flat = np.zeros_like(noise)
    assert metrics.per_region_overlap(flat, lesions) == pytest.approx(0.15, abs=0.01)
