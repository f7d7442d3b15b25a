"""Benchmarks of transfer learning on a frozen backbone, and of fine-tuning steps."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.config import Benchmark
from benchmarks.material import BATCH, catalog_of, radiographs, set_norm_statistics, spread_logits
from benchmarks.measurement import Results, Row, Skipped, Way, in_turn, missing
from cxr_tf.data import batches as data_batches
from cxr_tf.data import decoding, tf_data
from cxr_tf.data.sources.phantoms import FINDINGS, phantom
from cxr_tf.models import backbones
from cxr_tf.models import weights as models_weights
from cxr_tf.models.classifier import build_classifier, logits_of
from cxr_tf.training.inference import compiled, infer
from cxr_tf.training.optimizer import averaged_adamw
from cxr_tf.training.precision import resolve_precision

EPOCHS = 10  # of transfer learning by the alternatives

# Steps of fine-tuning in each timed call, and in the warm-up, after which the loss must have
# decreased.
STEPS, CHECKED = 4, 8

# Learning rate and weight decay of fine-tuning. The rate is far below that for pretrained weights,
# because features from random weights are ten times as large.
RATE, DECAY = 3e-6, 0.05


def transfer(settings: Benchmark, place: Path) -> Results:
    """Benchmark training a head on frozen VGG16, from files to the AUROC on the validation set."""
    from sklearn.metrics import roc_auc_score

    from cxr_tf.classification.fitting import fit_head
    from cxr_tf.data.dataset import ImageDataset

    root = radiographs(settings, place)
    size, classes = settings.image_size, ("NORMAL", "PNEUMONIA")
    start = build_classifier("vgg16", classes=2, image_size=size)
    models_weights.load_weights(start, "vgg16", settings.vgg16_weights)
    weights = start.get_weights()
    files = {
        split: [
            (str(p), k) for k, c in enumerate(classes) for p in sorted((root / split / c).glob("*"))
        ]
        for split in ("train", "val")
    }
    truth = np.array([k for _, k in files["val"]], np.int64)
    auroc: dict[str, float] = {}

    def ours() -> None:
        parts = {}
        for split, labelled in files.items():
            images, _ = decoding.load_images([path for path, _ in labelled], size)
            labels = np.array([k for _, k in labelled], np.int64)
            parts[split] = ImageDataset(
                catalog_of([split] * len(labelled)), images, labels, classes
            )
        precision = resolve_precision(
            "auto", gains=backbones.backbone("vgg16").gains_in_bfloat16(size, True)
        )
        model = build_classifier("vgg16", classes=2, image_size=size, precision=precision)
        model.set_weights(weights)
        fit_head(model, parts["train"], parts["val"], BATCH)
        val = data_batches.evaluation_batches(parts["val"].images, batch_size=BATCH)
        logits = infer(compiled(logits_of(model)), val)
        auroc["ours"] = roc_auc_score(truth, logits[:, 1] - logits[:, 0])

    def by_keras(epochs: int = EPOCHS) -> None:
        sets = {
            split: keras.utils.image_dataset_from_directory(
                root / split, image_size=(size, size), batch_size=BATCH, seed=settings.seed,
                shuffle=split == "train", verbose=False,
            )
            for split in ("train", "val")
        }  # fmt: skip
        base = keras.applications.VGG16(
            include_top=False, weights=None, input_shape=(size, size, 3)
        )
        base.set_weights(weights[: len(base.weights)])
        base.trainable = False
        inputs = keras.Input((size, size, 3))
        x = base(keras.applications.vgg16.preprocess_input(inputs), training=False)
        x = keras.layers.Dropout(0.2)(keras.layers.GlobalAveragePooling2D()(x))
        model = keras.Model(inputs, keras.layers.Dense(1)(x))
        model.compile(
            keras.optimizers.Adam(),
            keras.losses.BinaryCrossentropy(from_logits=True),
            metrics=[keras.metrics.BinaryAccuracy(threshold=0.0)],
        )
        train, val = (sets[s].prefetch(tf.data.AUTOTUNE) for s in ("train", "val"))
        model.fit(train, validation_data=val, epochs=epochs, shuffle=False, verbose=0)
        labels = np.concatenate([y for _, y in val.as_numpy_iterator()])
        auroc["Keras"] = roc_auc_score(labels, model.predict(val, verbose=0)[:, 0])

    ways: dict[str, Way] = {"ours": ours, "Keras": by_keras}
    job = f"transfer learning, frozen VGG16 at {size}, {settings.images} images"
    if reason := missing("torch"):
        yield Skipped(job, "PyTorch", reason)
    else:
        from benchmarks import pytorch

        network = pytorch.as_torch(_bare_vgg16(weights, size))
        train, val = (pytorch.Files(files[s], size) for s in ("train", "val"))

        def by_pytorch(epochs: int = EPOCHS) -> None:
            logits = pytorch.transfer(network, train, val, width=512, batch=BATCH, epochs=epochs)
            auroc["PyTorch"] = roc_auc_score(truth, logits)

        by_pytorch(epochs=1)
        ways["PyTorch"] = by_pytorch
    # One epoch of each alternative suffices as warm-up; ten take minutes.
    by_keras(epochs=1)
    timings = in_turn(ways, settings.repeats or 2, warm_up=False)
    recipes = {
        "Keras": "Keras's guide: image_dataset_from_directory, frozen base, fit",
        "PyTorch": "PyTorch's tutorial: DataLoader, frozen base, a new linear layer",
    }
    for other in [x for x in ways if x != "ours"]:
        yield Row(
            job=job,
            alternative=f"{recipes[other]}, {EPOCHS} epochs",
            at_least=8,
            ours=timings["ours"],
            theirs=timings[other],
            unit="s",
            count=1,
            same=auroc["ours"] >= auroc[other] - 0.02,
            check=f"AUROC on the validation set {auroc['ours']:.3f} and {auroc[other]:.3f}",
        )


def _bare_vgg16(weights: list[np.ndarray], size: int) -> keras.Model:
    """Return VGG16 with the first of `weights`: [N, S, S, 3] in 0..255 -> features [N, 512]."""
    images = keras.Input((size, size, 3))
    model = keras.Model(images, backbones.backbone("vgg16").features(images))
    model.set_weights(weights[: len(model.weights)])
    return model


def finetuning(settings: Benchmark, place: Path, rate: float = RATE) -> Results:
    """Benchmark fine-tuning steps on one batch in memory: forward, backward, AdamW.

    rate: the learning rate.
    """
    size = settings.image_size
    drawn = [
        phantom(FINDINGS[k % 2], seed=settings.seed, patient=k, size=size).image
        for k in range(BATCH)
    ]
    images = np.repeat(np.stack(drawn)[..., None], 3, 3).astype(np.float32)
    labels = np.arange(BATCH, dtype=np.int64) % 2
    for name in settings.backbones:
        yield from _finetuning_of(name, images, labels, settings, rate)


def _finetuning_of(
    name: str, images: np.ndarray, labels: np.ndarray, settings: Benchmark, rate: float
) -> Results:
    from cxr_tf.classification.fitting import training_model

    size, repeats = settings.image_size, settings.repeats or 3
    precision = resolve_precision(
        "auto", gains=backbones.backbone(name).gains_in_bfloat16(size, True)
    )

    def build(dtype: str) -> keras.Model:
        model = build_classifier(name, classes=2, image_size=size, precision=dtype)
        # As if the weights were pretrained: the last blocks are trained, BatchNorm is frozen.
        blocks = backbones.backbone(name).tuned_blocks
        backbones.freeze(model, name, trainable_blocks=blocks, batch_norm=False)
        return model

    keras.utils.set_random_seed(settings.seed)
    start = build("float32")
    models_weights.load_weights(start, name, "none")
    set_norm_statistics(start, images)
    spread_logits(start, images[:4])
    weights = start.get_weights()
    # Both models use `tf_data.prefetch`: without it, a short fit could seem to take twice as long.
    batches = tf_data.prefetch(tf.data.Dataset.from_tensors((images, labels)).repeat())
    common: dict[str, Any] = {
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "metrics": ["accuracy"],
    }
    models = {}
    for way, dtype in (("ours", precision), ("Keras", "float32")):
        model = build(dtype)
        model.set_weights(weights)
        ours = way == "ours"
        models[way] = training_model(model, name, pretrained=True) if ours else logits_of(model)
    models["Keras"].compile(keras.optimizers.AdamW(rate, weight_decay=DECAY), **common)
    models["ours"].compile(
        averaged_adamw(rate, steps=20, weight_decay=DECAY),
        # Training enables op determinism, under which Keras does not use XLA. The switch applies to
        # the whole process, and would also affect the Keras alternative.
        jit_compile=False,
        **common,
    )

    def steps_of(model: keras.Model) -> Callable[[int], object]:
        return lambda count: model.fit(batches, steps_per_epoch=count, shuffle=False, verbose=0)

    def loss_of(model: keras.Model) -> Callable[[], float]:
        return lambda: float(common["loss"](labels, model(images, training=False)))

    steps = {k: steps_of(m) for k, m in models.items()}
    losses = {k: loss_of(m) for k, m in models.items()}
    job = f"fine-tuning step, {name} at {size}, batch {BATCH}"
    reason = missing("torch")
    if not reason:
        from benchmarks import pytorch

        try:
            network = pytorch.as_torch(logits_of(start))
        except ValueError as error:
            reason = str(error)
        else:
            short = precision == "mixed_bfloat16"
            fit = pytorch.Fit(network, images, labels, rate, DECAY, autocast=short)
            steps["PyTorch"], losses["PyTorch"] = fit.steps, fit.loss
    if reason:
        yield Skipped(job, "PyTorch", reason)

    before = {k: loss() for k, loss in losses.items()}
    for run in steps.values():
        run(CHECKED)
    after = {k: loss() for k, loss in losses.items()}
    timings = in_turn(
        {k: functools.partial(run, STEPS) for k, run in steps.items()}, repeats, warm_up=False
    )
    recipes = {
        "Keras": ("Keras with its default settings: float32, compile, fit", 1.6),
        "PyTorch": (
            f"PyTorch, {'float32' if precision == 'float32' else 'bfloat16 autocast'}, "
            "channels_last",
            1.0,
        ),
    }
    for other in [x for x in steps if x != "ours"]:
        alternative, at_least = recipes[other]
        # The difference includes bfloat16 rounding through a deep network.
        begin_alike = abs(before["ours"] - before[other]) < 0.05 * before[other]
        yield Row(
            job=job,
            alternative=alternative,
            at_least=at_least,
            ours=timings["ours"],
            theirs=timings[other],
            unit="images/s",
            count=STEPS * BATCH,
            same=begin_alike and all(after[k] < 0.95 * before[k] for k in ("ours", other)),
            check=f"loss {before['ours']:.3f} and {before[other]:.3f}, after {CHECKED} steps "
            f"{after['ours']:.3f} and {after[other]:.3f}",
            note=f"ours in {precision}, with clipped gradients, MixStyle and averaged weights",
        )
