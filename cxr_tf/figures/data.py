"""The figure that shows a data set on one page."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, NullFormatter

from cxr_tf.figures.style import CYCLE, class_colour


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
    """Draw a data set on one page: classes, sizes, aspect, brightness, patients, copies, samples.

    findings, splits, patients: of each image [N]. measures: width, height, aspect, brightness,
    float [N], NaN where unreadable. thumbnails: uint8 [N, S, S]. exact: number of identical
    copies. near: pairs of near-duplicate rows. shortcuts: (measure, finding, AUROC, suspicious).
    """
    finding_of, split_of = np.array(findings), np.array(splits)
    colours = {name: class_colour(name, k) for k, name in enumerate(classes)}
    if {"pneumonia", "bacterial"} <= set(classes):  # which share a colour in other figures
        colours["pneumonia"] = CYCLE[2]
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
        rows = finding_of == name
        axes.plot(
            measures["width"][rows], measures["height"][rows], ".", color=colours[name],
            markersize=4, alpha=0.4,
        )  # fmt: skip
    axes.set(xlabel="width in pixels", ylabel="height in pixels", title="image size")
    axes.margins(0.1)

    for axes, measure in ((panels[0, 2], "aspect"), (panels[0, 3], "brightness")):
        values = measures[measure]
        known = values[np.isfinite(values)]
        low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
        if high == low:
            low, high = low - 0.5, high + 0.5
        edges = np.linspace(low, high, 1 + int(np.clip(2 * len(known) ** (1 / 3), 5, 30)))
        for name in classes:
            of_class = values[(finding_of == name) & np.isfinite(values)]
            # Shares, not counts: the classes differ in size.
            weights = np.full(len(of_class), 1 / max(len(of_class), 1))
            axes.hist(of_class, edges, weights=weights, histtype="step", color=colours[name])
        axes.set(ylabel="share of the class")
    panels[0, 2].set(xlabel="width / height", title="aspect ratio")
    panels[0, 3].set(xlabel="mean grey value", title="brightness")

    axes = panels[1, 0]
    _, images_of_patient = np.unique(np.array(patients), return_counts=True)
    images, counts = np.unique(images_of_patient, return_counts=True)
    axes.bar(images, counts, color="0.5")
    axes.set(xlabel="images of one patient", ylabel="patients", title="images per patient")
    axes.set(xlim=(0, images.max() + 1), ylim=(0.5, 2 * counts.max()), yscale="log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    # Mathematical text is disabled (see cxr_tf.figures): a log axis would print its markup.
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())

    axes = panels[1, 1]
    for row, (_, _, auroc, suspicious) in enumerate(shortcuts):
        axes.barh(row, auroc - 0.5, left=0.5, color=CYCLE[3] if suspicious else "0.6")
        axes.text(auroc + 0.01, row, f"{auroc:.2f}", va="center", fontsize=9)
    axes.set_yticks(
        range(len(shortcuts)), [f"{measure}:\n{finding}" for measure, finding, *_ in shortcuts]
    )
    axes.set(xlim=(0.5, 1.08), xlabel="AUROC, one class versus the rest", title="shortcuts")
    axes.invert_yaxis()

    axes = panels[1, 2]
    axes.set(title=f"copies: {exact} identical, {len(near)} near-duplicate pairs")
    if near:
        pairs = [np.hstack([thumbnails[a], thumbnails[b]]) for a, b in near[:3]]
        axes.imshow(np.vstack(pairs), cmap="gray", vmin=0, vmax=255)
    axes.axis("off")

    axes = panels[1, 3]
    axes.axis("off")
    lines = [textwrap.fill(remark, 44) for remark in remarks] or ["no remarks"]
    axes.text(0, 1, "\n\n".join(lines), va="top", fontsize=8, transform=axes.transAxes)

    columns = 12
    rows = min(len(classes), 4)
    samples = lower.subplots(rows, columns, squeeze=False)
    rng = np.random.default_rng(0)
    for k, line in enumerate(samples):
        # If there are more classes than rows, several share a row.
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
