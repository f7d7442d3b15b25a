"""Settings of the benchmarks, which are the flags of their scripts."""

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
    """Train variants of the autoencoder with the same settings and compare their detection.

    Evaluates on the validation set; the test set is not used. Writes logs/compare/<name>/, and
    exports nothing.
    """

    data: str = "phantom"
    """Folder of radiographs, .csv list, .npz of PneumoniaMNIST, or `phantom`."""
    variants: tuple[AutoencoderVariant, ...] = ()
    """Train only the default network and these variants; default: all variants."""
    vgg16_weights: str = "none"
    """Weights of VGG16 for the variant `features`: imagenet or a file; none: leave it out."""
    image_size: int = 224
    """Side of the square that images are resized to, in pixels: a multiple of 32, at least 128. The
    networks see the images at half this side."""
    batch_size: int = 16
    epochs: int | None = None
    """Epochs of each network, except the one trained four times as long; default: the default of
    train_autoencoder.py."""
    bootstrap_samples: int = 1000
    """Bootstrap samples (over patients) for each 95 % interval."""
    seed: int = 0
    name: str = "autoencoders"
    logs: str = "logs"
    resume: bool = False
    """Resume the interrupted comparison of this name; finished networks are kept."""
    allow_leakage: bool = False
    """Continue although a patient or an identical image appears in two splits."""
    skip_unreadable: bool = False
    """Leave out files that cannot be decoded instead of stopping."""


@dataclass(frozen=True)
class CompareNovelty:
    """Compare out-of-distribution detectors of a trained classifier.

    Prints tables; trains nothing and exports nothing.
    """

    classifier: str = ""
    """Folder of a finished run: logs/classifier/<name>."""
    data: str = ""
    """Folder of radiographs, or `phantom`; default: the classifier's training data."""
    count: int = 300
    """Number of images in each generated set, and in each set of transformed test images."""
    save_features: str = ""
    """Output file (.npz) for the features of all images, to be read with --features."""
    features: str = ""
    """Read the features from this file instead of running the network."""


@dataclass(frozen=True)
class Benchmark:
    """Benchmark the package against alternatives; measure its memory, and how its time grows.

    Prints tables, and writes logs/benchmark/<name>.json.
    """

    jobs: tyro.conf.Positional[tuple[str, ...]] = ()
    """Benchmarks to run: bounds, startup, knn, tsne, input, occlusion, savedmodel, folder,
    finetuning, transfer, memory, scaling; default: all. Alternatives that are not installed
    are left out."""
    data: str = ""
    """Folder of radiographs for bounds, input, folder and transfer; default: phantoms of realistic
    size (1300 x 900 pixels, JPEG)."""
    images: int = 160
    """Number of images for folder and transfer; input uses four times as many, bounds 16."""
    image_size: int = 224
    points: int = 5000
    """Number of embeddings for knn and tsne."""
    width: int = 512
    """Width of these embeddings."""
    backbones: tuple[BackboneName, ...] = ("vgg16", "resnet50", "alexnet")
    """Networks for bounds, occlusion, savedmodel, folder and finetuning, with random weights, which
    do not affect the speed."""
    vgg16_weights: str = "none"
    """Weights of VGG16 in transfer, savedmodel and folder: imagenet, none (random), or a file; the
    same for all alternatives."""
    sizes: tuple[int, ...] = (500, 1000, 2000, 4000)
    """Numbers of images or embeddings for scaling."""
    repeats: int | None = None
    """Number of timed rounds after a warm-up; the default depends on the benchmark."""
    seed: int = 0
    name: str = ""
    """Name of the output file; default: date and time."""
    logs: str = "logs"


@dataclass(frozen=True)
class LoadTest:
    """Measure latency and throughput of exported models under concurrent requests.

    Prints a table, and writes logs/benchmark/<name>.json.
    """

    backbones: tuple[BackboneName, ...] = ("vgg16", "resnet50", "alexnet")
    """Networks, with random weights, which do not affect the speed."""
    precisions: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    image_size: int = 224
    requests: int = 160
    """Number of requests in each measurement, whether from one client or from all."""
    clients: int = 8
    """Number of concurrent clients."""
    batch: int = 8
    """Largest batch, for backends that batch requests."""
    seed: int = 0
    name: str = ""
    """Name of the output file; default: date and time."""
    logs: str = "logs"
