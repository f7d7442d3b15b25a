"""Every figure: takes arrays, returns a matplotlib Figure."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")  # scripts run where there is no screen

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from sklearn import metrics as sk

from cxr_tf.metrics import reliability

plt.rcParams["text.parse_math"] = False  # a $ in the name of a file or a label is just that

# Blue, red, amber: told apart by colour-blind readers, and the same class has the same colour
# in every figure.
CLASS_COLOURS = {
    "normal": "#0072B2",
    "pneumonia": "#D55E00",
    "bacterial": "#D55E00",
    "viral": "#E69F00",
}
_CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def class_colour(name: str, index: int) -> str:
    """The colour of a class, or of the index-th thing where it is no known class."""
    return CLASS_COLOURS.get(name, _CYCLE[index % len(_CYCLE)])


def roc(
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    threshold: float | None = None,
) -> Figure:
    """ROC curve; with two classes of the second, else each class against the rest.

    labels int [N], probabilities [N, C]. `threshold` is marked as the operating point.
    """
    figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    for k in _drawn(classes):
        positive = labels == k
        if positive.all() or not positive.any():
            continue
        false_alarm, sensitivity, _ = sk.roc_curve(positive, probabilities[:, k])
        area = sk.roc_auc_score(positive, probabilities[:, k])
        colour = class_colour(classes[k], k)
        axes.plot(false_alarm, sensitivity, color=colour, label=f"{classes[k]}: AUROC {area:.3f}")
        if threshold is not None and len(classes) == 2:
            called = probabilities[:, k] >= threshold
            axes.plot(
                called[~positive].mean(),
                called[positive].mean(),
                "o",
                color=colour,
                label=f"operating point {threshold:.3g}",
            )
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_aspect("equal")
    if axes.get_legend_handles_labels()[0]:  # of one class alone there is no curve
        axes.legend(loc="lower right")
    return figure


def precision_recall(
    labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> Figure:
    """Precision against recall, with the share of positives as the line of chance."""
    figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
    for k in _drawn(classes):
        positive = labels == k
        if not positive.any():
            continue
        precision, recall, _ = sk.precision_recall_curve(positive, probabilities[:, k])
        area = sk.average_precision_score(positive, probabilities[:, k])
        colour = class_colour(classes[k], k)
        axes.plot(recall, precision, color=colour, label=f"{classes[k]}: AUPRC {area:.3f}")
        axes.axhline(positive.mean(), color=colour, linewidth=0.8, linestyle=":")
    axes.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_aspect("equal")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left")
    return figure


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> Figure:
    """Confusion matrix: counts, shaded by the share of the true class."""
    counts = sk.confusion_matrix(labels, predicted, labels=range(len(classes)))
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.6 + 0.9 * len(classes)
    figure, axes = plt.subplots(figsize=(side, side), layout="constrained")
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(counts.shape):
        axes.text(
            j,
            i,
            f"{counts[i, j]}\n{share[i, j]:.0%}",
            ha="center",
            va="center",
            color="white" if share[i, j] > 0.5 else "black",
        )
    ticks = range(len(classes))
    axes.set_xticks(ticks, classes)
    axes.set_yticks(ticks, classes, rotation=90, va="center")
    axes.set(xlabel="predicted", ylabel="true")
    return figure


def reliability_diagram(labels: np.ndarray, probabilities: np.ndarray, ece: float) -> Figure:
    """Observed share against predicted probability, with the number of images per bin."""
    mean, share, counts = reliability(labels, probabilities)
    figure, (axes, below) = plt.subplots(
        2, 1, figsize=(5, 6), layout="constrained", height_ratios=(4, 1), sharex=True
    )
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    axes.plot(mean, share, "o-", color=_CYCLE[0], label=f"expected calibration error {ece:.3f}")
    axes.set(ylabel="observed share", ylim=(-0.02, 1.02))
    axes.legend(loc="lower right")
    below.bar(mean, counts, width=0.04, color="0.6")
    below.set(
        xlabel="predicted probability" if probabilities.shape[1] == 2 else "confidence",
        ylabel="images",
        xlim=(-0.02, 1.02),
    )
    return figure


def shifts(by_shift: Mapping[str, Mapping[str, float]], classes: Sequence[str]) -> Figure:
    """Recall of each class, one row for each way the images were changed, in their order."""
    rows = np.arange(len(by_shift))
    figure, axes = plt.subplots(figsize=(7, 0.32 * len(by_shift) + 1.1), layout="constrained")
    recalls = np.array([[table[name] for name in classes] for table in by_shift.values()])
    axes.hlines(rows, recalls.min(axis=1), recalls.max(axis=1), color="0.8", zorder=0)
    for k, name in enumerate(classes):
        axes.plot(recalls[:, k], rows, "o", color=class_colour(name, k), label=name)
    axes.axhline(0.5, color="0.8", linewidth=0.8)  # below the unchanged images
    axes.set_yticks(rows, list(by_shift))
    axes.invert_yaxis()
    axes.set(xlabel="recall", xlim=(-0.02, 1.02))
    axes.grid(axis="x", color="0.9")
    figure.legend(loc="outside upper center", ncols=len(classes), frameon=False)
    return figure


def training_curves(history: Sequence[dict[str, float]], best_epoch: int) -> Figure:
    """Loss, AUROC and learning rate by epoch; the chosen epoch is marked."""
    epochs = [h["epoch"] for h in history]
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    shown = (
        ("loss", ("train_loss", "val_loss", "val_stressed_loss")),
        ("AUROC on validation", ("val_auroc", "val_stressed_auroc")),
        ("learning rate", ("learning_rate",)),
    )
    for axes, (title, keys) in zip(panels, shown, strict=True):
        for index, key in enumerate(keys):
            axes.plot(
                epochs,
                [h[key] for h in history],
                "o-",
                color=_CYCLE[index],
                markersize=3,
                label=key.replace("val_stressed", "validation, stressed:")
                .replace("val_", "validation: ")
                .replace("train_", "training: ")
                .replace(":_", ": "),
            )
        axes.axvline(best_epoch, color="0.7", linewidth=1, linestyle="--")
        axes.set(xlabel="epoch", title=title)
        if len(keys) > 1:
            axes.legend(fontsize=8)
    return figure


def radiograph_grid(
    images: np.ndarray, titles: Sequence[str], *, columns: int = 6, heading: str = ""
) -> Figure:
    """Radiographs uint8 [N, S, S, 1] with a title above each."""
    rows = max(1, -(-len(images) // columns))
    titles = [
        "\n".join(w for line in title.splitlines() for w in textwrap.wrap(line, 40))
        for title in titles
    ]
    lines = 1 + max([0, *(title.count("\n") for title in titles)])
    width, height, top = 2.1, 2.1 + 0.14 * lines, 0.35 if heading else 0.0
    figure = plt.figure(figsize=(width * columns, height * rows + top))
    # One pair of axes in inches: laying out a dozen takes longer than drawing all else.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width * columns), ylim=(0, height * rows + top))
    axes.axis("off")
    for k, (image, title) in enumerate(zip(images, titles, strict=True)):
        left, bottom = k % columns * width + 0.05, (rows - 1 - k // columns) * height + 0.05
        place = (left, left + 2.0, bottom, bottom + 2.0)
        axes.imshow(np.squeeze(image), cmap="gray", vmin=0, vmax=255, extent=place, aspect="auto")
        axes.text(left + 1.0, bottom + 2.03, title, fontsize=7, ha="center", va="bottom")
    axes.text(width * columns / 2, height * rows + 0.1, heading, fontsize=10, ha="center")
    return figure


def most_wrong(
    images: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    predicted: np.ndarray,
    classes: Sequence[str],
    *,
    count: int = 12,
) -> Figure:
    """The misclassified radiographs whose true class was given the least probability."""
    wrong = np.flatnonzero(predicted != labels)
    of_truth = probabilities[wrong, labels[wrong]]
    shown = wrong[np.argsort(of_truth, kind="stable")][:count]
    titles = [
        f"true {classes[labels[i]]}\n"
        f"predicted {classes[predicted[i]]} {probabilities[i, predicted[i]]:.2f}"
        for i in shown
    ]
    heading = f"{len(wrong)} of {len(labels)} wrong; the {len(shown)} most wrong"
    return radiograph_grid(images[shown], titles, heading=heading)


def comparison(
    names: Sequence[str], tables: Sequence[dict], metrics: Sequence[str], chosen: str
) -> Figure:
    """Scores of several models with 95 % intervals, one panel a metric."""
    figure, panels = plt.subplots(
        1, len(metrics), figsize=(2.6 * len(metrics), 0.6 * len(names) + 1.6), layout="constrained"
    )
    for axes, metric in zip(np.atleast_1d(panels), metrics, strict=True):
        for row, (name, table) in enumerate(zip(names, tables, strict=True)):
            # Of one patient there is no interval.
            low, high = table["ci95"].get(metric, (table[metric], table[metric]))
            colour = _CYCLE[0] if name == chosen else "0.5"
            axes.plot([low, high], [row, row], color=colour, linewidth=2)
            axes.plot(table[metric], row, "o", color=colour)
            axes.text(table[metric], row - 0.14, f"{table[metric]:.3f}", ha="center", fontsize=8)
        axes.set_yticks(range(len(names)), names if axes is np.atleast_1d(panels)[0] else [])
        # The first on top, as in the table.
        axes.set(title=metric, ylim=(len(names) - 0.5, -0.5))
        axes.grid(axis="x", color="0.9")
    return figure


def variants(tables: Mapping[str, Mapping[str, Any]], default: str) -> Figure:
    """AUROC of every anomaly score with its 95 % interval: alone, and joined with the context."""
    figure, axes = plt.subplots(figsize=(8, 0.32 * len(tables) + 1.2), layout="constrained")
    for k, (score, colour) in enumerate((("alone", "0.5"), ("joined", _CYCLE[0]))):
        rows = [(row, t) for row, t in enumerate(tables.values()) if score in t]
        for row, own in rows:
            low, high = own["ci95"].get(score, (own[score],) * 2)
            axes.plot([low, high], [row + 0.2 * k] * 2, color=colour, linewidth=2)
        axes.plot(
            [own[score] for _, own in rows],
            [row + 0.2 * k for row, _ in rows],
            "o",
            color=colour,
            label="joined with the context" if k else "alone",
        )
    if "joined" in tables[default]:
        axes.axvline(tables[default]["joined"], color="0.8", linewidth=1, zorder=0)
    axes.set_yticks(range(len(tables)), list(tables), fontsize=8)
    axes.set(xlabel="AUROC on validation", ylim=(len(tables) - 0.5, -0.7))
    axes.grid(axis="x", color="0.9")
    axes.legend(fontsize=8)
    return figure


def _drawn(classes: Sequence[str]) -> Sequence[int]:
    """With two classes the curve of the positive one says all."""
    return (1,) if len(classes) == 2 else range(len(classes))


def data_page(
    findings: Sequence[str],
    splits: Sequence[str],
    patients: Sequence[str],
    classes: Sequence[str],
    measures: dict[str, np.ndarray],
    thumbnails: np.ndarray,
    exact: int,
    near: Sequence[tuple[int, int]],
    shortcuts: Sequence[tuple[str, str, float, bool]],
    *,
    heading: str,
    remarks: Sequence[str],
) -> Figure:
    """A data set on one page: classes, sizes, aspect, brightness, patients, copies, samples.

    findings, splits, patients: of each image [N]. measures: width, height, aspect, brightness,
    float [N], NaN where unreadable. thumbnails: uint8 [N, S, S]. exact: number of identical
    copies. near: pairs of rows that look alike. shortcuts: (measure, finding, AUROC, suspicious).
    """
    finding_of, split_of = np.array(findings), np.array(splits)
    colours = {name: class_colour(name, k) for k, name in enumerate(classes)}
    if {"pneumonia", "bacterial"} <= set(classes):  # elsewhere never side by side
        colours["pneumonia"] = _CYCLE[2]
    figure = plt.figure(figsize=(15, 11), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.55, 1))  # type: ignore[misc]
    panels = upper.subplots(2, 4)

    axes = panels[0, 0]
    shown = [s for s in ("train", "val", "test", "") if np.any(split_of == s)]
    bottom = np.zeros(len(shown))
    for name in classes:
        counts = np.array([np.sum((finding_of == name) & (split_of == s)) for s in shown])
        axes.bar(range(len(shown)), counts, bottom=bottom, color=colours[name], label=name)
        bottom += counts
    for position, total in enumerate(bottom):
        axes.text(position, total, f"{total:.0f}", ha="center", va="bottom", fontsize=8)
    axes.margins(y=0.1)
    axes.set_xticks(range(len(shown)), [s or "no split" for s in shown])
    axes.set(title="images by split")
    axes.legend(fontsize=8)

    axes = panels[0, 1]
    for name in classes:
        own = finding_of == name
        axes.plot(
            measures["width"][own], measures["height"][own], ".", color=colours[name],
            markersize=4, alpha=0.4,
        )  # fmt: skip
    axes.set(xlabel="width in pixels", ylabel="height in pixels", title="size")
    axes.margins(0.1)

    for axes, measure in ((panels[0, 2], "aspect"), (panels[0, 3], "brightness")):
        values = measures[measure]
        known = values[np.isfinite(values)]
        low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
        if high == low:
            low, high = low - 0.5, high + 0.5
        edges = np.linspace(low, high, 1 + int(np.clip(2 * len(known) ** (1 / 3), 5, 30)))
        for name in classes:
            own = values[(finding_of == name) & np.isfinite(values)]
            # Shares, not counts: the classes differ in size, and their shapes are the question.
            weights = np.full(len(own), 1 / max(len(own), 1))
            axes.hist(own, edges, weights=weights, histtype="step", color=colours[name])
        axes.set(ylabel="share of the class")
    panels[0, 2].set(xlabel="width by height", title="aspect")
    panels[0, 3].set(xlabel="mean grey value", title="brightness")

    axes = panels[1, 0]
    _, images_of_patient = np.unique(np.array(patients), return_counts=True)
    images, counts = np.unique(images_of_patient, return_counts=True)
    axes.bar(images, counts, color="0.5")
    axes.set(xlabel="images of the patient", ylabel="patients", title="images by patient")
    axes.set(xlim=(0, images.max() + 1), ylim=(0.5, 2 * counts.max()), yscale="log")
    axes.xaxis.get_major_locator().set_params(integer=True)

    axes = panels[1, 1]
    for row, (_, _, auroc, suspicious) in enumerate(shortcuts):
        axes.barh(row, auroc - 0.5, left=0.5, color=_CYCLE[3] if suspicious else "0.6")
        axes.text(auroc + 0.01, row, f"{auroc:.2f}", va="center", fontsize=9)
    axes.set_yticks(
        range(len(shortcuts)), [f"{measure}:\n{finding}" for measure, finding, *_ in shortcuts]
    )
    axes.set(xlim=(0.5, 1.08), xlabel="AUROC, one class against the rest", title="shortcuts")
    axes.invert_yaxis()

    axes = panels[1, 2]
    axes.set(title=f"copies: {exact} identical, {len(near)} pairs nearly so")
    if near:
        pairs = [np.hstack([thumbnails[a], thumbnails[b]]) for a, b in near[:3]]
        axes.imshow(np.vstack(pairs), cmap="gray", vmin=0, vmax=255)
    axes.axis("off")

    axes = panels[1, 3]
    axes.axis("off")
    lines = [textwrap.fill(remark, 44) for remark in remarks] or ["nothing to remark"]
    axes.text(0, 1, "\n\n".join(lines), va="top", fontsize=8, transform=axes.transAxes)

    columns = 12
    rows = min(len(classes), 4)
    samples = lower.subplots(rows, columns, squeeze=False)
    rng = np.random.default_rng(0)
    for k, line in enumerate(samples):
        # More classes than rows share them.
        names = classes[k::rows]
        for position, cell in enumerate(line):
            cell.axis("off")
            name = names[position % len(names)]
            readable = (finding_of == name) & np.isfinite(measures["brightness"])
            drawn = rng.permutation(np.flatnonzero(readable))
            index = position // len(names)
            if index < len(drawn):
                cell.imshow(thumbnails[drawn[index]], cmap="gray", vmin=0, vmax=255)
                if position == 0 or len(names) > 1:
                    cell.set_title(name, fontsize=9, color=colours[name], loc="left")
    figure.suptitle(heading, fontsize=13)
    return figure


def knn_grid(candidates: Sequence[dict], chosen: dict) -> Figure:
    """k against balanced accuracy for every space, metric and weighting; the chosen one is marked.

    Upper row: validation; lower row: its stressed copy; the choice is by their mean.
    """
    spaces = list(dict.fromkeys(c["representation"] for c in candidates))
    figure, panels = plt.subplots(
        2,
        len(spaces),
        figsize=(1.2 + 3.6 * len(spaces), 6.4),
        layout="constrained",
        sharex=True,
        sharey="row",
        squeeze=False,
    )
    rows = (
        ("balanced_accuracy", "balanced accuracy,\nvalidation"),
        ("stressed_balanced_accuracy", "balanced accuracy,\nstressed validation"),
    )
    for column, space in enumerate(spaces):
        of_space = [c for c in candidates if c["representation"] == space]
        lines = dict.fromkeys((c["metric"], c["weights"]) for c in of_space)
        for axes, (key, label) in zip(panels[:, column], rows, strict=True):
            for metric, weights in lines:
                line = [c for c in of_space if (c["metric"], c["weights"]) == (metric, weights)]
                axes.plot(
                    [c["k"] for c in line],
                    [c[key] for c in line],
                    "o-" if weights == "uniform" else "o--",
                    color=_CYCLE[0] if metric == "euclidean" else _CYCLE[1],
                    markerfacecolor=None if weights == "uniform" else "white",
                    markersize=3,
                    linewidth=1,
                    label=f"{metric}, {weights}",
                )
            if space == chosen["representation"]:
                axes.plot(
                    chosen["k"], chosen[key], "o", markersize=12, color="black",
                    markerfacecolor="none",
                    label=f"chosen: k = {chosen['k']}, {chosen['metric']}, {chosen['weights']}",
                )  # fmt: skip
            axes.set_xscale("log")
            axes.grid(color="0.92")
            if column == 0:
                axes.set_ylabel(label)
        panels[0, column].set_title(space)
        panels[1, column].set_xlabel("k")
        ticks = [k for k in (1, 3, 5, 11, 25, 51, 101) if k <= max(c["k"] for c in of_space)]
        panels[1, column].set_xticks(ticks, [str(k) for k in ticks])
        panels[1, column].minorticks_off()
    column = spaces.index(chosen["representation"])
    handles, labels = panels[0, column].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    return figure


def tsne_map(
    panels: Sequence[tuple[str, np.ndarray]],
    labels: np.ndarray,
    is_test: np.ndarray,
    wrong: np.ndarray,
    classes: Sequence[str],
) -> Figure:
    """t-SNE planes side by side: (title, float [N, 2]) each; labels int [N], the rest bool [N].

    Colour is the class; test points have a dark rim; those that the KNN got wrong are crossed.
    """
    figure, drawn = plt.subplots(
        1,
        len(panels),
        figsize=(6.2 * len(panels), 6.6),
        layout="constrained",
        squeeze=False,
    )
    # Drawn in a random order, or the last class would cover the others.
    order = np.random.default_rng(0).permutation(len(labels))
    for axes, (title, plane) in zip(drawn[0], panels, strict=True):
        colours = np.array([class_colour(c, k) for k, c in enumerate(classes)])
        others, tested = order[~is_test[order]], order[is_test[order]]
        axes.scatter(*plane[others].T, s=7, c=colours[labels[others]], alpha=0.45, linewidths=0)
        axes.scatter(
            *plane[tested].T, s=20, c=colours[labels[tested]], edgecolors="black", linewidths=0.6
        )
        axes.scatter(*plane[wrong].T, s=55, c="black", marker="x", linewidths=1.3)
        axes.set_title(title, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    handles = [
        plt.Line2D([], [], linestyle="", marker="o", color=class_colour(c, k), label=c)
        for k, c in enumerate(classes)
    ]
    test: dict[str, Any] = {
        "linestyle": "",
        "marker": "o",
        "color": "white",
        "markeredgecolor": "black",
    }
    cross: dict[str, Any] = {"linestyle": "", "marker": "x", "color": "black"}
    handles += [
        plt.Line2D([], [], **test, label="test (dark rim)"),
        plt.Line2D([], [], **cross, label="test, KNN wrong"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9)
    return figure


def neighbor_table(
    images: np.ndarray,
    titles: Sequence[str],
    neighbours: Sequence[Sequence[tuple[str, float]]],
    classes: Sequence[str],
) -> Figure:
    """Radiographs with their nearest training cases, a row each.

    images: uint8 [R, 1 + K, S, S], the asked one first; titles: R, of the asked ones; neighbours:
    per row (class, distance) of the K. The frame has the colour of the class.
    """
    rows, columns = images.shape[:2]
    figure, panels = plt.subplots(
        rows,
        columns,
        figsize=(2.0 * columns, 2.35 * rows),
        layout="constrained",
        squeeze=False,
    )
    for i, j in np.ndindex(rows, columns):
        axes: Any = panels[i, j]
        axes.imshow(images[i, j], cmap="gray", vmin=0, vmax=255)
        axes.set_xticks([])
        axes.set_yticks([])
        if j == 0:
            axes.set_title(titles[i], fontsize=8, fontweight="bold")
            for side in axes.spines.values():
                side.set(color="black", linewidth=1)
            continue
        name, distance = neighbours[i][j - 1]
        colour = class_colour(name, classes.index(name))
        axes.set_title(f"{j}. {name}\ndistance {distance:.3g}", fontsize=8, color=colour)
        for side in axes.spines.values():
            side.set(color=colour, linewidth=3)
    return figure


def restoration_curves(history: Sequence[dict[str, float]], best_epoch: int) -> Figure:
    """Loss on healthy images and AUROC on validation by epoch; the chosen epoch is marked."""
    epochs = [h["epoch"] for h in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    left.plot(
        epochs, [h["train_loss"] for h in history], "o-", color=_CYCLE[0], markersize=3,
        label="training",
    )  # fmt: skip
    left.plot(
        epochs, [h["val_loss"] for h in history], "o-", color=_CYCLE[1], markersize=3,
        label="healthy validation images",
    )  # fmt: skip
    left.set(title="loss", yscale="log")
    right.plot(epochs, [h["val_auroc"] for h in history], "o-", color=_CYCLE[0], markersize=3)
    right.set(title="AUROC on validation, healthy against sick")
    for axes in (left, right):
        axes.axvline(best_epoch, color="0.6", linestyle=":", label=f"chosen epoch {best_epoch}")
        axes.set(xlabel="epoch")
    left.legend(fontsize=8)
    return figure


def score_histogram(scores: np.ndarray, findings: np.ndarray, threshold: float) -> Figure:
    """Anomaly scores float [N] by finding str [N], with the threshold."""
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    # A few images far out would squeeze all others into one bar.
    bins = np.linspace(scores.min(), max(np.quantile(scores, 0.99), threshold * 1.1), 41)
    order = [f for f in CLASS_COLOURS if f in findings]
    order += [f for f in np.unique(findings) if f not in order]
    for index, finding in enumerate(order):
        chosen = np.minimum(scores[findings == finding], bins[-1])
        axes.hist(
            chosen, bins.tolist(), density=True, alpha=0.5, color=class_colour(finding, index),
            label=f"{finding} ({len(chosen)})",
        )  # fmt: skip
    axes.axvline(threshold, color="black", linewidth=1, label=f"threshold {threshold:.3g}")
    axes.set(xlabel="anomaly score (the last bar holds all above)", ylabel="density")
    axes.legend(fontsize=8)
    return figure


def reconstructions(
    images: np.ndarray,
    reconstructed: np.ndarray,
    maps: np.ndarray,
    titles: Sequence[str],
    *,
    brightest: float,
) -> Figure:
    """Original, reconstruction and anomaly map, one column for each image.

    images: uint8 [N, S, S, 1]; reconstructed: float32 [N, S, S] in 0..255; maps: float32 [N, S, S],
    drawn from 0 to `brightest`, the same for all, so that maps can be compared.
    """
    count = len(images)
    figure, panels = plt.subplots(
        3, count, figsize=(1.7 * count + 0.9, 5.6), layout="constrained", squeeze=False
    )
    for column in range(count):
        panels[0, column].imshow(images[column, ..., 0], cmap="gray", vmin=0, vmax=255)
        panels[0, column].set_title(titles[column], fontsize=8)
        panels[1, column].imshow(reconstructed[column], cmap="gray", vmin=0, vmax=255)
        drawn = panels[2, column].imshow(maps[column], cmap="inferno", vmin=0, vmax=brightest)
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
    for axes, name in zip(panels[:, 0], ("original", "reconstruction", "anomaly map"), strict=True):
        axes.set_ylabel(name, fontsize=8)
    figure.colorbar(drawn, ax=panels[2, :].tolist(), shrink=0.8)
    return figure


def heatmap_overlay(image: np.ndarray, heat: np.ndarray, title: str, unit: str) -> Figure:
    """A radiograph beside its heatmap drawn over it, with a colour bar.

    image: uint8 [S, S, 1]; heat: float [S, S], red where above 0, blue where below.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.7), layout="constrained")
    gray = np.squeeze(image)
    left.imshow(gray, cmap="gray", vmin=0, vmax=255)
    drawn = _draw_heat(right, gray, heat)
    for axes in (left, right):
        axes.axis("off")
    figure.colorbar(drawn, ax=right, fraction=0.046, pad=0.02, label=unit)
    figure.suptitle(title, fontsize=9)
    return figure


def heatmap_sheet(
    images: np.ndarray,
    maps: Sequence[tuple[str, np.ndarray]],
    titles: Sequence[str],
    *,
    heading: str = "",
    pairs: int = 3,
) -> Figure:
    """Radiographs uint8 [N, S, S, 1] with their heatmaps beside them: (name, float [N, S, S]) each.

    With one method `pairs` of radiograph and heatmap stand in a row; with more a row is one
    radiograph. Each heatmap has its own scale, whose end is written under it.
    """
    per_row = pairs if len(maps) == 1 else 1
    rows = -(-len(images) // per_row)
    columns = per_row * (1 + len(maps))
    figure, panels = plt.subplots(
        rows,
        columns,
        figsize=(1.85 * columns, 2.25 * rows + 0.5),
        layout="constrained",
        squeeze=False,
    )
    for axes in panels.flat:
        axes.axis("off")
    for k, (image, title) in enumerate(zip(images, titles, strict=True)):
        gray = np.squeeze(image)
        row, column = divmod(k, per_row)
        column *= 1 + len(maps)
        panels[row, column].imshow(gray, cmap="gray", vmin=0, vmax=255)
        panels[row, column].set_title(title, fontsize=7)
        for place, (name, heat) in enumerate(maps, start=1):
            axes = panels[row, column + place]
            _draw_heat(axes, gray, heat[k])
            axes.set_title(f"{name}\n{_range_of(heat[k])}", fontsize=7)
    if heading:
        figure.suptitle(heading, fontsize=9)
    return figure


def heatmaps_alone(
    mean: np.ndarray,
    maps: Sequence[tuple[str, np.ndarray]],
    titles: Sequence[str],
    *,
    heading: str = "",
    per_row: int = 6,
) -> Figure:
    """Heatmaps (name, float [N, S, S]) each, without the radiographs they are of.

    They lie over the mean radiograph [S, S, 1], which says where the lungs are and shows nobody:
    a picture to hand on where those of patients must not be.
    """
    panels = [(title, name, heat[k]) for k, title in enumerate(titles) for name, heat in maps]
    per_row = per_row if len(maps) == 1 else len(maps)
    rows = -(-len(panels) // per_row)
    figure, grid = plt.subplots(
        rows,
        per_row,
        figsize=(1.85 * per_row, 2.35 * rows + 0.5),
        layout="constrained",
        squeeze=False,
    )
    for axes in grid.flat:
        axes.axis("off")
    for axes, (title, name, heat) in zip(grid.flat, panels, strict=False):
        _draw_heat(axes, np.squeeze(mean), heat)
        axes.set_title(f"{title}\n{name} {_range_of(heat)}", fontsize=7)
    if heading:
        figure.suptitle(heading, fontsize=9)
    return figure


def mean_heatmaps(
    images: np.ndarray,
    maps: Sequence[tuple[str, np.ndarray]],
    labels: np.ndarray,
    classes: Sequence[str],
    outside: np.ndarray,
    *,
    heading: str = "",
) -> Figure:
    """Mean heatmap by class over the mean radiograph; a row a method, a column a class.

    Each map counts alike, scaled to its own peak: else the few radiographs of which the network is
    unsure, where the probability moves most, would be the mean.

    images: uint8 [N, S, S, 1]; maps: (name, float [N, S, S]) each; labels: int [N]; outside:
    bool [S, S], outlined; the share of the positive heat that lies in it is written above.
    """
    figure, panels = plt.subplots(
        len(maps),
        len(classes),
        figsize=(3.5 * len(classes), 3.15 * len(maps) + 0.3),
        layout="constrained",
        squeeze=False,
    )
    for (name, heat), line in zip(maps, panels, strict=True):
        for k, axes in enumerate(line):
            axes.axis("off")
            own = labels == k
            if not own.any():
                axes.set_title(f"no {classes[k]} image", fontsize=9)
                continue
            peaks = np.maximum(np.abs(heat[own]).max((1, 2), keepdims=True), 1e-12)
            mean = (heat[own] / peaks).mean(axis=0)
            drawn = _draw_heat(axes, np.squeeze(images[own].mean(axis=0)), mean)
            axes.contour(outside, [0.5], colors="white", linewidths=0.8, linestyles="--")
            positive = np.maximum(heat[own], 0)
            totals = positive.sum((1, 2))
            shares = positive[:, outside].sum(axis=1)[totals > 0] / totals[totals > 0]
            share = f"{shares.mean():.0%}" if len(shares) else "none"
            axes.set_title(
                f"{name}: {classes[k]}, {own.sum()} images\n{share} of the heat outside "
                f"(even heat: {outside.mean():.0%})",
                fontsize=9,
            )
            figure.colorbar(drawn, ax=axes, fraction=0.046, pad=0.02)
    if heading:
        figure.suptitle(heading, fontsize=10)
    return figure


def _draw_heat(axes: Any, gray: np.ndarray, heat: np.ndarray) -> Any:
    """Draws heat over a gray image: red above 0, blue below, clearer the nearer to 0."""
    limit = max(float(np.abs(heat).max()), 1e-12)
    axes.imshow(gray, cmap="gray", vmin=0, vmax=255)
    strength = np.abs(heat) / limit
    # Faint heat must not veil the lungs, nor strong heat hide what it lies on.
    return axes.imshow(
        heat, cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=0.75 * np.clip(strength, 0, 1) ** 0.8
    )


def _range_of(heat: np.ndarray) -> str:
    return f"{heat.min():+.2g} to {heat.max():+.2g}"
