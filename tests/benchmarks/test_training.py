"""Tests of the fine-tuning benchmark: both sides learn from the same weights."""

import pytest

from benchmarks import training
from benchmarks.config import Benchmark
from benchmarks.measurement import Row


@pytest.fixture
def fine_tuned(tiny_backbone: str, tmp_path):
    """Rows of the fine-tuning job on a small network, as a function of the learning rate."""

    def measured(rate: float) -> list[Row]:
        settings = Benchmark(backbones=(tiny_backbone,), image_size=64, repeats=1)
        return [x for x in training.finetuning(settings, tmp_path, rate) if isinstance(x, Row)]

    return measured


def test_both_fine_tunings_learn_from_the_same_weights(fine_tuned) -> None:
    for found in fine_tuned(1e-2):
        assert found.same, found.check
        assert found.unit == "images/s" and len(found.ours.seconds) == 1


def test_training_that_learns_nothing_is_marked_as_different(fine_tuned) -> None:
    for found in fine_tuned(1e-9):
        assert not found.same, found.check
