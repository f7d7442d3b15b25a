"""Settings of the benchmarks: the flags of the scripts that compare things."""

from dataclasses import dataclass
from typing import Literal

import tyro

from cxr_tf.config import BackboneName

AutoencoderVariant = Literal[
    "seed", "long", "fixed-lungs", "phantoms", "hard", "soft", "small", "large", "scanners",
    "covered", "grey-levels", "narrow", "wide", "larger", "features",
]  # fmt: skip


@dataclass(frozen=True)
class CompareAutoencoders:
    """Train variants of the autoencoder alike, and compare what finds the sick on validation.

    Writes logs/compare/<name>/. Exports nothing; test is not looked at.
    """

    data: str = "phantom"
    """Folder of radiographs, .csv list, .npz of PneumoniaMNIST, or `phantom`."""
    variants: tuple[AutoencoderVariant, ...] = ()
    """Train only these beside the default, instead of all."""
    vgg16_weights: str = "none"
    """imagenet or a file, for the rows on features of a pretrained VGG16; none leaves them out."""
    image_size: int = 224
    """Side of the square that images are resized to, in pixels: a multiple of 32 from 128 on, of
    which the networks see half."""
    batch_size: int = 16
    epochs: int | None = None
    """For each of the networks but the one that is trained four times as long. Default: that of
    train_autoencoder.py."""
    bootstrap_samples: int = 1000
    """Bootstrap resamples (of patients) behind each 95 % interval."""
    seed: int = 0
    name: str = "autoencoders"
    logs: str = "logs"
    resume: bool = False
    """Go on with the interrupted comparison of this name: networks that are done are kept."""
    allow_leakage: bool = False
    """Go on although a patient or an identical image stands in two splits."""
    skip_unreadable: bool = False
    """Leave out files that cannot be decoded, instead of stopping."""


@dataclass(frozen=True)
class CompareNovelty:
    """Compare out-of-distribution detectors of a trained classifier; prints tables.

    Trains nothing and exports nothing.
    """

    classifier: str = ""
    """Folder of a finished run: logs/classifier/<name>."""
    data: str = ""
    """Folder of radiographs, or `phantom`; default: the classifier's training data."""
    count: int = 300
    """Images in each set; as many test images are changed."""
    save_features: str = ""
    """File (.npz) to write with the features of all images, to compare detectors again."""
    features: str = ""
    """Read the features from this file instead of running the network."""


@dataclass(frozen=True)
class Benchmark:
    """Our speed against what a user would otherwise write, measured in turn; memory; cost by size.

    Prints tables, and writes logs/benchmark/<name>.json.
    """

    jobs: tyro.conf.Positional[tuple[str, ...]] = ()
    """Which rows: bounds, startup, knn, tsne, input, occlusion, savedmodel, folder, finetuning,
    transfer, memory, scaling; default all whose alternatives are installed."""
    data: str = ""
    """Folder of radiographs to measure bounds, input, folder and transfer on; default: phantoms of
    realistic size (1300 x 900 pixels, JPEG)."""
    images: int = 160
    """How many images folder and transfer take; input takes four times as many, bounds few."""
    image_size: int = 224
    points: int = 5000
    """How many embeddings knn and tsne take."""
    width: int = 512
    """How many numbers one of those embeddings has."""
    backbones: tuple[BackboneName, ...] = ("vgg16", "resnet50", "alexnet")
    """Which networks bounds, occlusion, savedmodel, folder and finetuning take, with random
    weights: they cost the same."""
    vgg16_weights: str = "none"
    """What transfer starts from, and VGG16 has in savedmodel and folder: imagenet, none (random),
    or a weights file; both sides alike."""
    sizes: tuple[int, ...] = (500, 1000, 2000, 4000)
    """How many images or embeddings scaling takes, in turn."""
    repeats: int | None = None
    """How often each way is timed, after a warm-up; default by job."""
    seed: int = 0
    name: str = ""
    """Name of the file; default: the time."""
    logs: str = "logs"


@dataclass(frozen=True)
class LoadTest:
    """Measure latency and throughput of exported models under concurrent requests.

    Prints a table, and writes logs/benchmark/<name>.json.
    """

    backbones: tuple[BackboneName, ...] = ("vgg16", "resnet50", "alexnet")
    """Which networks, with random weights: they cost the same."""
    precisions: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    image_size: int = 224
    requests: int = 160
    """Requests to each backend, for one client and again for all."""
    clients: int = 8
    """Clients that send at the same time."""
    batch: int = 8
    """Most images that run together, where requests are batched."""
    seed: int = 0
    name: str = ""
    """Name of the file; default: the time."""
    logs: str = "logs"
