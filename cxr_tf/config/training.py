"""Settings of the commands that train, and of the study that runs all of them."""

from dataclasses import dataclass
from typing import Literal

from cxr_tf.config.flags import (
    BackboneName,
    DataFlags,
    Engine,
    Precision,
    RunFlags,
    Task,
    TrainingFlags,
)


@dataclass(frozen=True, kw_only=True)
class TrainingBudget(TrainingFlags):
    """What training one classifier takes, the same for every backbone that is compared."""

    task: Task = "binary"
    """binary: normal / pneumonia. three_class: normal / bacterial / viral. labels: the labels of
    --data as they are, two to twenty."""
    positive: str = ""
    """Of two labels the positive one, which recall, AUROC and the operating point refer to;
    default: the second in alphabetical order, and never normal. --task labels only."""
    image_size: int = 224
    """Side of the square that images are resized to, in pixels; at least 64."""
    batch_size: int = 32
    """Images per training step."""
    epochs: int = 8
    """Epochs of fine-tuning; 0 trains the head alone."""
    trainable_blocks: int | None = None
    """How many blocks, counted from the last, are fine-tuned; default by backbone, and all
    of them from scratch."""
    learning_rate: float | None = None
    """Peak learning rate of AdamW; default 1e-4 from pretrained weights, else by backbone."""
    augmentation: float = 1.0
    """Strength of the random exposure, framing and cutout, and of MixStyle; 0 is none."""
    patience: int = 5
    """Stop after this many epochs without a better validation loss."""
    operating_point: str = "0.5"
    """Threshold on the probability of pneumonia, chosen on validation: 0.5, youden,
    min-sensitivity:0.95 or min-specificity:0.95. Two classes only."""
    coverage: float = 0.95
    """Share of the images of each class whose prediction set, the classes that cannot be excluded,
    is to hold the true class; from 0.5 to below 1. Calibrated on validation."""
    precision: Precision = "auto"
    """Floating-point precision of training; auto is bfloat16 from pretrained weights, where this
    machine is faster with it. The exported model is always float32."""


@dataclass(frozen=True, kw_only=True)
class TrainClassifier(TrainingBudget):
    """Train, calibrate, evaluate and export one classifier.

    Writes logs/classifier/<name>/ and saved_models/<name>/<version>/.
    """

    backbone: BackboneName = "vgg16"
    """The network below the last layer."""
    weights: str = "imagenet"
    """imagenet, none (from scratch), or a weights file: .weights.h5 without the top, or .keras."""


@dataclass(frozen=True, kw_only=True)
class CompareBackbones(TrainingBudget):
    """Train the three backbones alike, choose by validation, report once on test.

    Writes logs/compare/<name>/, and for each backbone what train_classifier.py writes, under
    <name>-<backbone>.
    """

    resnet50_weights: str = "imagenet"
    vgg16_weights: str = "imagenet"
    alexnet_weights: str = "none"
    """imagenet, none, or a file, for each. Keras has no ImageNet weights of AlexNet: convert
    torchvision's with convert_alexnet_weights.py and name the file."""
    runs: tuple[str, ...] = ()
    """Compare these finished run folders (same data, same task) instead of training."""


@dataclass(frozen=True, kw_only=True)
class FitKnn(RunFlags):
    """Fit k-nearest neighbours on the embedding of a trained classifier: pickle, SavedModel, t-SNE.

    Writes logs/knn/<name>/ and saved_models/<name>/<version>/.
    """

    classifier: str = ""
    """Folder of a finished run, logs/classifier/<name>, or of an exported classifier."""
    archive: str = ""
    """Fit nothing: find similar cases in this archive of score_archive.py, which has embeddings."""
    query: tuple[str, ...] = ()
    """With --archive: the images to find similar cases of; without them its index is built and
    measured."""
    neighbors: int = 10
    """With --archive: how many cases to find for each image."""
    output: str = ""
    """With --archive: .csv to write; without it a table is printed."""
    data: str = ""
    """Folder of radiographs, or `phantom`; default: what the classifier was trained on."""
    engine: Engine = "tensorflow"
    """What computes the embeddings; auto: OpenVINO where it is installed and there is no GPU. The
    exported model computes its own with TensorFlow, which differ from OpenVINO's by up to 1e-4: of
    two equally distant neighbours the other may then come first."""
    batch_size: int = 32
    """Images per batch."""
    bootstrap_samples: int = 1000
    """Bootstrap samples (of patients) behind each 95 % interval."""
    seed: int | None = None
    """Seed of the splits (where the folder has none), t-SNE and bootstrap; default: the
    classifier's own, so that its test images stay test images."""
    saved_models: str = "saved_models"
    resume: bool = False
    """Continue the interrupted run of this name; a finished one is left as it is."""
    allow_leakage: bool = False
    """Continue although a patient or an identical image appears in two splits."""
    skip_unreadable: bool = False
    """Leave out files that cannot be decoded, instead of stopping."""


@dataclass(frozen=True, kw_only=True)
class TrainAutoencoder(TrainingFlags):
    """Train an autoencoder on healthy radiographs, and choose its anomaly threshold.

    Writes logs/autoencoder/<name>/ and saved_models/<name>/<version>/.
    """

    model: Literal["denoising", "plain"] = "denoising"
    """denoising: removes synthetic opacities from healthy lungs. plain: compresses the image to a
    code of 128 numbers; far weaker here, kept for comparison."""
    score: Literal["", "combined", "appearance", "residual", "lesion_mask", "mse", "ssim"] = ""
    """The anomaly score. denoising: combined, appearance, residual or lesion_mask. plain: mse or
    ssim. Default: the one with the highest AUROC on validation; the first of them where there is no
    sick image."""
    image_size: int = 224
    """Side of the square that images are resized to, in pixels. denoising: a multiple of 32 from
    128 on, of which the network sees half. plain: a multiple of 16 from 64 on."""
    batch_size: int = 16
    """Images per training step."""
    epochs: int | None = None
    """Default: 8, and up to 60 where healthy images are so few that training would take fewer than
    500 steps; plain: 30."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW."""
    augmentation: float = 1.0
    """Strength of the random framing and exposure in the training of the network; 0 is none."""
    operating_point: str = "youden"
    """Threshold on the score, chosen on validation: youden, min-sensitivity:0.95 or
    min-specificity:0.95. youden takes the validation images as they are and their perturbed copies
    together (plain: as they are); without sick images it becomes min-specificity:0.95."""


@dataclass(frozen=True, kw_only=True)
class RunStudy(RunFlags, DataFlags):
    """Do all five jobs on one catalogue, and write a report: logs/study/<name>/report.html.

    Compares the backbones for both tasks, fits nearest neighbours and t-SNE on the chosen
    classifiers, trains the autoencoder, draws heatmaps, exports everything. The same command
    resumes an interrupted study, and repeats only what a changed setting affects.
    """

    preset: Literal["quickstart", "full"] = "full"
    """quickstart: 64 pixels, few epochs, from scratch: minutes, to see everything once. full: the
    defaults of the jobs, ImageNet weights: overnight."""
    resnet50_weights: str = ""
    vgg16_weights: str = ""
    alexnet_weights: str = ""
    """imagenet, none, or a file, for each; default by preset: full takes imagenet, and none for
    AlexNet, for which Keras has none; quickstart none."""
    image_size: int | None = None
    """Side of the square that classifiers see, in pixels; default by preset: 224 or 64."""
    batch_size: int | None = None
    """Default by preset: 32 or 16."""
    epochs: int | None = None
    """Epochs of fine-tuning for each classifier; default by preset."""
    autoencoder_epochs: int | None = None
    """Default by preset: that of train_autoencoder.py, or 5."""
    bootstrap_samples: int | None = None
    """Bootstrap samples (of patients) behind each 95 % interval; default by preset: 1000 or 200."""
    seed: int = 0
    saved_models: str = "saved_models"
    allow_leakage: bool = False
    """Continue although a patient or an identical image appears in two splits."""
    worker_timeout: float = 600.0
    """With several workers (TF_CONFIG): seconds to wait until all of them have started."""
    compare: tuple[str, ...] = ()
    """Run nothing: print what changed between these two finished studies, by name or folder."""
