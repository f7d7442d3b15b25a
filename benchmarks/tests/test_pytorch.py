"""The PyTorch counterpart is the same network, with equal logits, gradients and frozen layers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from benchmarks import material, measurement, pytorch
from cxr_tf.models import backbones, weights
from cxr_tf.models.classifier import build_classifier, logits_of

if reason := measurement.missing("torch"):
    pytest.skip(reason, allow_module_level=True)

import torch

LABELS = np.array([0, 1, 0, 1])


Both = tuple[keras.Model, torch.nn.Module, np.ndarray]


@pytest.fixture(scope="module", params=["vgg16", "resnet50"])
def both(request: pytest.FixtureRequest) -> Both:
    """A classifier up to its logits with a trainable last block, its counterpart, and images."""
    keras.utils.set_random_seed(3)
    images = np.random.default_rng(0).uniform(0, 255, (4, 64, 64, 3)).astype(np.float32)
    model = build_classifier(request.param, classes=2, image_size=64)
    weights.load_weights(model, request.param, "none")
    material.set_norm_statistics(model, images)
    material.spread_logits(model, images)
    backbones.freeze(model, request.param, trainable_blocks=1, batch_norm=False)
    return logits_of(model), pytorch.as_torch(logits_of(model)), images


def logits_by_torch(network: torch.nn.Module, images: np.ndarray) -> torch.Tensor:
    return network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))


def test_logits_equal_those_of_keras(both: Both) -> None:
    model, network, images = both
    expected = np.asarray(model(images, training=False))
    assert np.ptp(expected) > 0.1
    found = logits_by_torch(network, images).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_trainable_variables_and_their_gradients_are_equal(both: Both) -> None:
    model, network, images = both
    with tf.GradientTape() as tape:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(
            LABELS, model(images, training=False)
        )
    expected = tape.gradient(loss, [v.value for v in model.trainable_variables])
    torch.nn.functional.cross_entropy(
        logits_by_torch(network, images), torch.from_numpy(LABELS)
    ).backward()
    found = [p.grad.numpy() for p in network.parameters() if p.requires_grad]
    # Kernels are transposed, and the branches of a ResNet are in a different order.
    turned = [x.transpose({4: (2, 3, 1, 0), 2: (1, 0)}.get(x.ndim, (0,))) for x in found]
    assert len(turned) == len(expected) > 4
    for gradient in map(np.asarray, expected):
        # The difference may have a hundredth of the gradient's norm: a unit within rounding error
        # of 0 may be on different sides of its ReLU in the two networks. A different padding or a
        # lost branch would change all of the gradient.
        off = [np.linalg.norm(x - gradient) for x in turned if x.shape == gradient.shape]
        assert min(off) < 1e-2 * np.linalg.norm(gradient)


def test_steps_change_trainable_variables_only(both: Both) -> None:
    model, _, images = both
    network = pytorch.as_torch(model)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    pytorch.Fit(network, images, LABELS, rate=1e-3, decay=0.0, autocast=True).steps(2)
    moving = {k for k, p in network.named_parameters() if p.requires_grad}
    changed = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == moving and len(moving) > 4
