"""Tables and progress bars fit the terminal; in a file, they are plain lines."""

import io
import sys

import numpy as np
import pytest

from cxr_tf import console
from cxr_tf.evaluation import prediction_output


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


HEADER = ["path", "label", "pneumonia"]
LONG = "/data/" + "ward/" * 30 + "image [1].png"
ROWS = [[LONG, "pneumonia", "0.9001"], ["b.png", "normal", "0.1"]]


def test_a_table_fits_the_terminal_and_loses_nothing() -> None:
    lines = console.table(HEADER, ROWS, width=60).splitlines()
    assert max(map(len, lines)) <= 60
    folded = "".join(line[: lines[0].index("label")].strip() for line in lines[1:-1])
    assert folded.replace(" ", "") == LONG.replace(" ", "")
    assert lines[1].endswith("pneumonia     0.9001")


def test_table_written_to_a_file_has_one_line_per_row() -> None:
    lines = console.table(HEADER, ROWS).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["path", LONG, "b.png"]
    # Numbers to the right, names to the left.
    assert {len(line) for line in lines} == {len(lines[0])}


def test_a_narrow_terminal_shows_only_the_probability_of_the_label(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="cxr_tf")
    classes = [f"finding number {k}" for k in range(8)]
    predictions = {
        0: {"label": classes[2], "probabilities": {c: k / 28 for k, c in enumerate(classes)}}
    }
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "80")
    prediction_output.print_table([LONG], predictions, {}, False)
    lines = caplog.messages[-1].splitlines()
    assert lines[0].split() == ["path", "label", "probability"] and "0.0714" in lines[1]
    assert max(map(len, lines)) <= 80
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    prediction_output.print_table([LONG], predictions, {}, False)
    assert classes[7] in caplog.messages[-1].splitlines()[0]


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with console.Progress(40, "images") as show:
        for done in (1, 20, 40):
            show(done)
    shown = sys.stderr.getvalue()
    assert "40/40" in shown and "images" in shown and shown.endswith("\n\x1b[?25h")


def test_progress_to_a_file_is_printed_as_occasional_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    now = iter([0.0, 1.0, 20.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    with console.Progress(40, "images", before=10) as show:
        show(12)
        show(30)
    assert sys.stderr.getvalue() == "30 of 40 images, 1.0/s, 10 s left\n"


def test_remarks_are_printed_in_words() -> None:
    outputs = {
        "label": np.array(["viral"], object),
        "classes": np.array([["normal", "bacterial", "viral"]], object),
        "probabilities": np.array([[0.1, 0.4, 0.5]]),
        "prediction_set": np.array([[False, True, True]]),
        "is_novel": np.array([True]),
    }
    predicted = prediction_output.image_predictions(outputs, 0)
    words = "unlike the training images; cannot distinguish bacterial from viral"
    assert predicted["remarks"] == words
    assert prediction_output.cells(predicted)["remarks"] == words
    # A model of an earlier version states neither.
    assert "remarks" not in prediction_output.image_predictions(
        {k: outputs[k] for k in ("label", "classes", "probabilities")}, 0
    )
