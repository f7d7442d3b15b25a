"""Tests of predictions that are read from runs and compared."""

import dataclasses

import numpy as np
import pytest

from cxr_tf.errors import UserError
from cxr_tf.scoring.predictions import Predictions, check_same_rows


def test_runs_with_images_in_different_orders_are_not_compared() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet((1, 1), 20)
    labels, patients = np.arange(20) % 2, [f"p{k}" for k in range(20)]
    one = Predictions(patients, patients, labels, probabilities, probabilities.argmax(1))
    check_same_rows({"one": one, "two": one})
    order = rng.permutation(20)
    names = [patients[k] for k in order]
    two = Predictions(names, names, labels[order], probabilities[order], one.predicted[order])
    with pytest.raises(UserError, match="in the same order"):
        check_same_rows({"one": one, "two": two})
    # Nor where two images of one patient are swapped, although their labels agree.
    paths = patients[:2][::-1] + patients[2:]
    same = dataclasses.replace(one, patients=["p"] * 20, labels=np.zeros(20, int))
    with pytest.raises(UserError, match="in the same order"):
        check_same_rows({"one": same, "two": dataclasses.replace(same, paths=paths)})
