"""Responses of a server are checked against its metadata; see also the hostile server."""

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.hostile_server import METADATA, right_answer
from cxr_tf.errors import UserError
from cxr_tf.serving.prediction import responses

URL = "http://server"


@pytest.fixture
def outputs() -> responses.Outputs:
    inputs, outputs = responses.signatures_of_json(METADATA, URL)["serving_default"]
    assert inputs == {"image_bytes": True}
    return outputs


def test_correct_response_becomes_arrays(outputs: responses.Outputs) -> None:
    arrays = responses.arrays_of_json(right_answer(3), outputs, 3, URL)
    assert arrays["probabilities"].dtype == np.float32
    np.testing.assert_array_equal(arrays["probabilities"], [[0.25, 0.75]] * 3)
    assert arrays["label"].tolist() == ["pneumonia"] * 3


def test_single_output_comes_without_its_name() -> None:
    expected: responses.Outputs = {"embedding": (np.dtype(np.float32), (None, 2))}
    arrays = responses.arrays_of_json({"outputs": [[1, 2.5]]}, expected, 1, URL)
    assert arrays["embedding"].tolist() == [[1.0, 2.5]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((2, 2), np.float32), "2 rows of 'probabilities' for 3 images"),
        (np.zeros((3, 2)), "type float64 for 'probabilities' instead of float32"),
        (np.full((3, 2), np.nan, np.float32), "not finite"),
        (np.zeros((3, 5), np.float32), "shape"),
    ],
)
def test_wrong_grpc_tensors_are_refused(values: np.ndarray, message: str) -> None:
    expected: responses.Outputs = {"probabilities": (np.dtype(np.float32), (None, 2))}
    tensors = {"probabilities": tf.make_tensor_proto(values)}
    with pytest.raises(UserError, match=message):
        responses.arrays_of_proto(tensors, expected, 3, URL)
    tensors["probabilities"].tensor_shape.dim[0].size = 10**6  # more than the content
    tensors["probabilities"].tensor_content = b"\x00" * 7
    with pytest.raises(UserError, match="is wrong"):
        responses.arrays_of_proto(tensors, expected, 3, URL)
