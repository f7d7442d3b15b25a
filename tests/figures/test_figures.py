"""Tests of figures: they show the data that are passed to them."""

import numpy as np
import pytest


def test_scores_without_intervals_are_drawn() -> None:
    from cxr_tf import figures

    tables = [{"auroc": 0.9, "ci95": {}}, {"auroc": 0.8, "ci95": {"auroc": [0.7, 0.9]}}]
    drawn = figures.comparison(["one", "two"], tables, ["auroc"], "one")
    ends = [list(line.get_xdata()) for line in drawn.axes[0].lines[::2]]
    assert ends == [[0.9, 0.9], [0.7, 0.9]]


def test_each_radiograph_has_the_same_weight_in_the_mean_heatmap() -> None:
    from cxr_tf import figures

    maps = np.zeros((2, 8, 8), np.float32)
    maps[0, 1, 1], maps[1, 6, 6] = 1e-4, 0.5  # one certain, one unsure
    figure = figures.mean_heatmaps(
        np.zeros((2, 8, 8, 1), np.uint8),
        [("occlusion", maps)],
        np.zeros(2, int),
        ("normal",),
        np.zeros((8, 8), bool),
    )
    drawn = figure.axes[0].images[-1].get_array()
    assert drawn[1, 1] == drawn[6, 6] == 0.5


def test_dollar_signs_in_file_names_are_plain_text() -> None:
    from cxr_tf import figures

    image, heat = np.zeros((8, 8, 1), np.uint8), np.zeros((8, 8))
    figure = figures.heatmap_overlay(image, heat, "scan$_1_2$.png", "probability")
    figure.canvas.draw()  # a formula would be parsed only now
    assert figure.get_suptitle() == "scan$_1_2$.png"


@pytest.mark.parametrize("epochs", [1, 12])
def test_training_curves_have_plain_tick_labels_and_whole_epochs(epochs: int) -> None:
    from matplotlib import pyplot as plt
    from matplotlib.text import Text

    from cxr_tf import figures

    history = [
        {
            **{"epoch": k, "train_loss": 0.5 / k, "val_loss": 0.4, "val_stressed_loss": 0.6},
            **{"val_auroc": 0.9, "val_stressed_auroc": 0.8, "learning_rate": 1e-4},
        }
        for k in range(1, epochs + 1)
    ]
    for draw in (figures.training_curves, figures.restoration_curves):
        figure = draw(history, 1)
        figure.canvas.draw()
        for axes in figure.axes:
            assert not any("$" in t.get_text() for t in axes.findobj(Text))
            ticks = [t.get_text() for t in axes.get_xticklabels()]
            assert ticks and all(label.isdigit() for label in ticks)
        plt.close(figure)
