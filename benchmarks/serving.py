"""Benchmarks of exported models, called on images in memory and on a folder of files."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.config import Benchmark
from benchmarks.material import BATCH, exported, radiographs
from benchmarks.measurement import Results, Row, Skipped, in_turn
from cxr_tf.data.sources.phantoms import FINDINGS, phantom
from cxr_tf.errors import UserError
from cxr_tf.models.batch_norm_folding import fold_norms
from cxr_tf.models.classifier import build_classifier, embedding_of
from cxr_tf.serving import loading
from cxr_tf.serving.prediction.batch_prediction import predict_in_batches
from cxr_tf.serving.prediction.client import PredictFn
from cxr_tf.training.precision import resolve_precision


def savedmodel(settings: Benchmark, place: Path) -> Results:
    """Benchmark the exported model on one image and on 32, in float32 and in bfloat16."""
    size = settings.image_size
    # Phantoms, because a network with random weights saturates on noise, and equal outputs of 0
    # and 1 would prove nothing.
    drawn = [
        phantom(FINDINGS[k % 3], seed=settings.seed, patient=k, size=size).image
        for k in range(BATCH)
    ]
    images = np.repeat(np.stack(drawn)[..., None], 3, 3).astype(np.float32)
    batches = {count: images[:count] for count in (1, BATCH)}
    for name in settings.backbones:
        model, served = exported(name, settings, place)
        ways = {"float32": (model, served.signature("tensor"), 1e-5)}
        if resolve_precision("auto") == "mixed_bfloat16":
            # Models are exported in float32. The same network in bfloat16 separates the gain of
            # the export from that of the precision.
            short, loaded = _in_bfloat16(name, model, place)
            ways["bfloat16"] = (short, loaded.signatures["serving_default"], 0.02)
        else:
            reason = "this machine does not support bfloat16 natively"
            yield Skipped(f"SavedModel, {name} at {size}, bfloat16", "Keras predict", reason)
        for precision, (counterpart, signature, most) in ways.items():
            for count, images in batches.items():
                yield _served_row(
                    f"SavedModel, {name} at {size}, {precision}, batch {count}",
                    counterpart, signature, images, settings.repeats or 5,
                    exact=model, most=most,
                )  # fmt: skip


def _in_bfloat16(name: str, model: keras.Model, place: Path) -> tuple[keras.Model, Any]:
    """Return the network under mixed_bfloat16, and its SavedModel, exported and loaded."""
    size = int(model.input_shape[1])
    short = build_classifier(name, classes=2, image_size=size, precision="mixed_bfloat16")
    short.set_weights(model.get_weights())
    light = fold_norms(short)
    archive = keras.export.ExportArchive()
    archive.add_endpoint(
        "serving_default",
        lambda images: {"probabilities": light(images, training=False)},
        [tf.TensorSpec([None, size, size, 3], tf.float32, name="images")],
    )
    folder = place / "bfloat16" / name
    archive.write_out(str(folder), verbose=False)
    return short, tf.saved_model.load(str(folder))


def _served_row(
    job: str,
    model: keras.Model,
    signature: Callable[..., dict[str, tf.Tensor]],
    images: np.ndarray,
    repeats: int,
    *,
    exact: keras.Model,
    most: float,
) -> Row:
    """Benchmark `signature` against `model`; `exact` is the model in float32."""
    count = len(images)
    calls, at_least = (20, 3.0) if count == 1 else (1, 1.2)
    outputs_of: dict[str, np.ndarray] = {}

    def ours() -> None:
        for _ in range(calls):
            outputs_of["ours"] = signature(images=tf.constant(images))["probabilities"].numpy()

    def theirs() -> None:
        for _ in range(calls):
            outputs_of["theirs"] = model.predict(images, verbose=0)

    timings = in_turn({"ours": ours, "theirs": theirs}, repeats)
    difference = float(np.abs(outputs_of["ours"] - outputs_of["theirs"]).max())
    check = (
        f"probabilities differ by at most {difference:.0e} "
        f"(from {outputs_of['ours'].min():.2f} to {outputs_of['ours'].max():.2f})"
    )
    if model is not exact:
        in_float32 = exact.predict(images, verbose=0)
        off = [float(np.abs(outputs_of[k] - in_float32).max()) for k in ("ours", "theirs")]
        check += f"; from float32, ours by {off[0]:.0e} and theirs by {off[1]:.0e}"
    return Row(
        job=job,
        alternative="Keras predict",
        at_least=at_least,
        ours=timings["ours"],
        theirs=timings["theirs"],
        unit="ms" if count == 1 else "images/s",
        count=calls if count == 1 else count,
        same=bool(difference < most and outputs_of["ours"].min() > 1e-3),
        check=check,
    )


def folder(settings: Benchmark, place: Path) -> Results:
    """Benchmark each engine on the embeddings and predictions of a folder against Keras."""
    paths = sorted(str(p) for p in radiographs(settings, place).rglob("*.*"))
    for name in settings.backbones:
        model, served = exported(name, settings, place)
        for signature, network in (("embed", embedding_of(model)), ("serving_default", model)):
            yield from _folder_of(signature, network, served, paths, settings.repeats or 2)


def _folder_of(
    signature: str,
    network: keras.Model,
    served: loading.ServedModel,
    paths: list[str],
    repeats: int,
) -> Results:
    answer, what = {
        "embed": ("embedding", "embeddings"),
        "serving_default": ("probabilities", "predictions"),
    }[signature]
    side = network.input_shape[1:3]
    job = f"{what} of a folder, {network.name} at {side[0]}"
    outputs_of: dict[str, np.ndarray] = {}

    def by_keras(files: list[str]) -> None:
        results = []
        for start in range(0, len(files), BATCH):
            images = [
                # Pillow's bilinear filter is antialiased, as in this package.
                keras.utils.img_to_array(
                    keras.utils.load_img(path, target_size=side, interpolation="bilinear")
                )
                for path in files[start : start + BATCH]
            ]
            results.append(network.predict(np.stack(images), verbose=0))
        outputs_of["Keras"] = np.concatenate(results)

    def asking(engine: str, ask: PredictFn) -> Callable[[list[str]], None]:
        def way(files: list[str]) -> None:
            answers = predict_in_batches(ask, files, BATCH, "error")
            outputs_of[engine] = np.concatenate([a.outputs[answer] for a in answers])

        return way

    ways = {"Keras": by_keras, "TensorFlow": asking("TensorFlow", served.predictor(signature))}
    for precision in ("float32", "bfloat16", "int8"):
        engine = f"OpenVINO in {precision}"
        try:
            on_openvino = loading.load_served(
                str(served.folder), engine="openvino", precision=precision
            )
            ways[engine] = asking(engine, on_openvino.predictor(signature))
        except UserError as error:
            yield Skipped(job, f"ours with {engine}", str(error))
    for way in ways.values():
        way(paths[:BATCH])
    timings = in_turn(
        {k: functools.partial(way, paths) for k, way in ways.items()}, repeats, warm_up=False
    )
    exact = outputs_of["Keras"]
    for engine in [x for x in ways if x != "Keras"]:
        # The JPEG decoder of this package halves large images: pixels differ by half a grey level.
        most = 0.05 if "float32" in engine or engine == "TensorFlow" else 0.1
        off = np.sqrt(np.mean((outputs_of[engine] - exact) ** 2))
        difference = float(off / exact.std())
        yield Row(
            job=f"{job}, ours with {engine}",
            alternative="load_img and Keras predict, in batches, float32",
            at_least=2.5 if "OpenVINO" in engine else 1.5,
            ours=timings[engine],
            theirs=timings["Keras"],
            unit="images/s",
            count=len(paths),
            same=difference < most,
            check=f"{what} differ by {difference:.1g} of their spread (root mean square)",
        )
