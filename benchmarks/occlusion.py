"""Benchmarks of occlusion maps against tf-explain, Captum and MONAI."""

import contextlib
import os
from pathlib import Path

import numpy as np
import tensorflow as tf

from benchmarks.config import Benchmark
from benchmarks.material import BATCH, plain_classifier
from benchmarks.measurement import Results, Row, Skipped, Timing, Way, in_turn, missing
from benchmarks.pytorch import as_torch
from cxr_tf.data.sources.phantoms import phantom
from cxr_tf.models.occlusion import occluder


def occlusion_maps(settings: Benchmark, place: Path) -> Results:
    """Benchmark one occlusion map of each network, with grey patches."""
    size = settings.image_size
    image = np.repeat(
        phantom("bacterial", seed=settings.seed, patient=1, size=size).image[None, ..., None], 3, 3
    ).astype(np.float32)
    for name in settings.backbones:
        yield from _occlusion_of(name, image, settings)


def _occlusion_of(name: str, image: np.ndarray, settings: Benchmark) -> Results:
    model = plain_classifier(name, image)
    target, size = 1, settings.image_size
    grid = occluder.make_grid(size)
    apart = occluder.make_grid(size, grid.patch, grid.patch)
    grey = occluder.cover_images(image, "gray", grid.patch)
    maps: dict[str, np.ndarray] = {}

    def our_way(which: occluder.Grid, key: str) -> Way:
        function = occluder.compiled(occluder.make_occluder(model, which))
        places = occluder.all_places(which)

        def way() -> None:
            plain, covered = function(image, grey, places)
            drops = occluder.drop(plain, covered, [target], "probability")
            maps[key] = occluder.heatmaps(which, drops).numpy()[0]
            maps[f"{key}, covered"] = tf.nn.softmax(covered)[0, :, target].numpy()

        return way

    def note(which: occluder.Grid) -> str:
        plan = occluder.make_occluder(model, which).plan
        return f"{plan.share:.0%} of the multiplications" if plan else "plain computation"

    job = f"occlusion map, {name} at {size}, patch {grid.patch}"
    at_least = {"vgg16": 8.0}.get(name, 3.0)
    repeats = settings.repeats or 3

    # ------------------------------------------------------------------ tf-explain
    reason = missing("tf_explain", "cv2")
    if not reason and size % grid.patch:
        reason = f"--image-size {size} is not a multiple of the patch of {grid.patch} pixels"
    if reason:
        yield Skipped(job, "tf-explain", reason)
    else:
        import cv2
        from tf_explain.core.occlusion_sensitivity import OcclusionSensitivity

        explainer = OcclusionSensitivity(batch_size=BATCH)

        def tf_explain() -> None:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                maps["tf-explain"] = explainer.get_sensitivity_map(
                    model, image[0], target, grid.patch
                )

        timings = in_turn({"ours": our_way(apart, "apart"), "theirs": tf_explain}, repeats)
        side = len(apart.starts)
        expected = cv2.resize(
            1 - maps["apart, covered"].reshape(side, side).astype(np.float64), (size, size)
        )
        yield _occlusion_row(
            f"{job}, stride {grid.patch}", "tf-explain", at_least, timings,
            np.abs(maps["tf-explain"] - expected).max(), np.ptp(expected), note(apart),
        )  # fmt: skip

    # ------------------------------------------------------------------ PyTorch
    torch_ways: dict[str, Way] = {}
    job = f"{job}, stride {grid.stride}"
    if reason := missing("torch"):
        for other in ("Captum", "MONAI"):
            yield Skipped(job, other, reason)
        return
    import torch

    try:
        network = as_torch(model)
    except ValueError as error:
        yield Skipped(job, "Captum and MONAI", str(error))
        return
    tensor = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        plain = torch.softmax(network(tensor), 1)[0, target].item()
    if reason := missing("captum"):
        yield Skipped(job, "Captum", reason)
    else:
        from captum.attr import Occlusion

        ablator = Occlusion(lambda x: torch.softmax(network(x), 1))

        def captum() -> None:
            attributions = ablator.attribute(
                tensor,
                sliding_window_shapes=(3, grid.patch, grid.patch),
                strides=(3, grid.stride, grid.stride),
                baselines=127.5,
                target=target,
                perturbations_per_eval=BATCH,
            )
            maps["Captum"] = attributions[0, 0].numpy()

        torch_ways["Captum"] = captum
    if reason := missing("monai"):
        yield Skipped(job, "MONAI", reason)
    else:
        from monai.visualize import OcclusionSensitivity as Sensitivity

        sensitivity = Sensitivity(
            network, mask_size=grid.patch, overlap=1 - grid.stride / grid.patch, mode=127.5,
            n_batch=BATCH, verbose=False,
        )  # fmt: skip

        def monai() -> None:
            maps["MONAI"] = plain - np.asarray(sensitivity(tensor)[0])[0, target]

        torch_ways["MONAI"] = monai
    if not torch_ways:
        return
    timings = in_turn({"ours": our_way(grid, "ours"), **torch_ways}, repeats)
    for other in torch_ways:
        yield _occlusion_row(
            job, other, at_least, {"ours": timings["ours"], "theirs": timings[other]},
            np.abs(maps[other] - maps["ours"]).max(), np.ptp(maps["ours"]), note(grid),
        )  # fmt: skip


def _occlusion_row(
    job: str,
    alternative: str,
    at_least: float,
    timings: dict[str, Timing],
    difference: float,
    spread: float,
    note: str,
) -> Row:
    return Row(
        job=job,
        alternative=alternative,
        at_least=at_least,
        ours=timings["ours"],
        theirs=timings["theirs"],
        unit="maps/min",
        count=60,
        same=bool(difference < 1e-3 * spread + 1e-5),
        check=f"maps differ by at most {difference:.0e}; their range is {spread:.2g}",
        note=note,
    )
