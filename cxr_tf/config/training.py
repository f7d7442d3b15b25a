"""Settings of the training commands and of the study."""

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
    """Flags of classifier training, shared by all compared backbones."""

    task: Task = "binary"
    """binary: normal / pneumonia. three_class: normal / bacterial / viral. labels: the two to
    twenty labels of --data, unchanged."""
    positive: str = ""
    """The positive one of two labels, to which sensitivity, AUROC and the operating point refer;
    default: the second in the order normal, bacterial, viral, pneumonia, then alphabetical. --task
    labels only."""
    image_size: int = 224
    """Side of the square that images are resized to, in pixels; at least 64."""
    batch_size: int = 32
    """Images per training step."""
    epochs: int = 8
    """Epochs of fine-tuning; 0 trains the head alone."""
    trainable_blocks: int | None = None
    """Number of blocks to fine-tune, counted from the last; default: depends on the backbone, or
    all if training starts from scratch."""
    learning_rate: float | None = None
    """Peak learning rate of AdamW; default: 1e-4 from pretrained weights; from scratch, it depends
    on the backbone."""
    augmentation: float = 1.0
    """Strength of random exposure, framing and cutout, and of MixStyle; 0: none."""
    patience: int = 5
    """Stop after this many epochs without a better validation loss."""
    operating_point: str = "0.5"
    """Threshold on the probability of the positive class (pneumonia, or --positive), chosen on the
    validation set: 0.5, youden, min-sensitivity:0.95 or min-specificity:0.95. Two classes only."""
    coverage: float = 0.95
    """Target share, in each class, of images whose prediction set (the classes that cannot be
    excluded) contains the true class; at least 0.5 and below 1. Calibrated on the validation
    set."""
    precision: Precision = "auto"
    """Floating-point precision of training; auto: bfloat16 if training starts from pretrained
    weights and this machine is faster with it. The exported model is always float32."""


@dataclass(frozen=True, kw_only=True)
class TrainClassifier(TrainingBudget):
    """Train, calibrate, evaluate and export one classifier.

    Writes logs/classifier/<name>/ and saved_models/<name>/<version>/.
    """

    backbone: BackboneName = "vgg16"
    """Network below the classification head."""
    weights: str = "imagenet"
    """imagenet, none (from scratch), or a file: .weights.h5 without the top layers, or .keras."""


@dataclass(frozen=True, kw_only=True)
class CompareBackbones(TrainingBudget):
    """Train the three backbones with the same settings, and select one on the validation set.

    All three are evaluated on the test set. Writes logs/compare/<name>/, and a run of
    train_classifier.py for each backbone, named <name>-<backbone>.
    """

    resnet50_weights: str = "imagenet"
    vgg16_weights: str = "imagenet"
    alexnet_weights: str = "none"
    """imagenet, none or a file, for each backbone. Keras has no ImageNet weights for AlexNet:
    convert torchvision's with convert_alexnet_weights.py, and give the file."""
    runs: tuple[str, ...] = ()
    """Compare these finished run folders (same data, same task) instead of training."""


@dataclass(frozen=True, kw_only=True)
class FitKnn(RunFlags):
    """Fit nearest neighbours in a classifier's embedding, export them, and draw a t-SNE projection.

    Writes logs/knn/<name>/ and saved_models/<name>/<version>/.
    """

    classifier: str = ""
    """Folder of a finished run, logs/classifier/<name>, or of an exported classifier."""
    archive: str = ""
    """Find similar cases in this archive of score_archive.py, which must have embeddings; nothing
    is fitted."""
    query: tuple[str, ...] = ()
    """With --archive: images for which to find similar cases; default: only build the index and
    measure it."""
    neighbors: int = 10
    """With --archive: number of cases for each image."""
    output: str = ""
    """With --archive: output file, .csv; default: a printed table."""
    data: str = ""
    """Folder of radiographs, or `phantom`; default: the training data of the classifier."""
    engine: Engine = "tensorflow"
    """Runtime that computes the embeddings; auto: OpenVINO if it is installed and there is no GPU
    (AlexNet: TensorFlow). The exported model uses TensorFlow, whose embeddings differ from those of
    OpenVINO by up to 1e-4, so that nearly equidistant neighbours may change places."""
    batch_size: int = 32
    """Images per batch."""
    bootstrap_samples: int = 1000
    """Bootstrap samples (over patients) for each 95 % interval."""
    seed: int | None = None
    """Seed of the splits (if the folder has none), t-SNE and bootstrap; default: that of the
    classifier, so that its test images remain test images."""
    saved_models: str = "saved_models"
    resume: bool = False
    """Resume the interrupted run of this name; a finished run is left unchanged."""
    allow_leakage: bool = False
    """Continue although a patient or an identical image appears in two splits."""
    skip_unreadable: bool = False
    """Leave out files that cannot be decoded instead of stopping."""


@dataclass(frozen=True, kw_only=True)
class TrainAutoencoder(TrainingFlags):
    """Train an autoencoder on healthy radiographs and choose its anomaly threshold.

    Writes logs/autoencoder/<name>/ and saved_models/<name>/<version>/.
    """

    model: Literal["denoising", "plain"] = "denoising"
    """denoising: removes synthetic opacities from healthy lungs. plain: compresses the image to a
    code of 128 numbers; far less accurate, for comparison."""
    score: Literal["", "combined", "appearance", "residual", "lesion_mask", "mse", "ssim"] = ""
    """The anomaly score. denoising: combined, appearance, residual or lesion_mask. plain: mse or
    ssim. Default: the one of these with the highest AUROC on the validation set, or the first if
    that set has no abnormal image."""
    image_size: int = 224
    """Side of the square that images are resized to, in pixels. denoising: a multiple of 32, at
    least 128; the network's input is half that size. plain: a multiple of 16, at least 64."""
    batch_size: int = 16
    """Images per training step."""
    epochs: int | None = None
    """Epochs of training; default: 8, or up to 60 if there are few healthy images, to reach 500
    steps; plain: 30."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW."""
    augmentation: float = 1.0
    """Strength of random framing and exposure in training; 0: none."""
    operating_point: str = "youden"
    """Threshold on the score, chosen on the validation set: youden, min-sensitivity:0.95 or
    min-specificity:0.95. youden uses the validation images together with their perturbed copies
    (plain: the images only); without abnormal images it becomes min-specificity:0.95."""


@dataclass(frozen=True, kw_only=True)
class RunStudy(RunFlags, DataFlags):
    """Train, evaluate and export all models on one data set, and write a report.

    Compares the backbones for both tasks, fits nearest neighbours and t-SNE on the selected
    classifiers, trains the autoencoder, draws heatmaps, and exports and verifies all models. Writes
    logs/study/<name>/report.html. The same command resumes an interrupted study and repeats only
    the steps that a changed setting affects.
    """

    preset: Literal["quickstart", "full"] = "full"
    """quickstart: 64 pixels, few epochs, from scratch; takes minutes. full: the defaults of the
    commands, with ImageNet weights; runs overnight."""
    resnet50_weights: str = ""
    vgg16_weights: str = ""
    alexnet_weights: str = ""
    """imagenet, none or a file, for each backbone; default: imagenet for full (none for
    AlexNet, since Keras has no weights for it), none for quickstart."""
    image_size: int | None = None
    """Side of the square that images are resized to for classifiers, in pixels; default: 224 (full)
    or 64 (quickstart)."""
    batch_size: int | None = None
    """Images per training step of a classifier; default: 32 (full) or 16 (quickstart)."""
    epochs: int | None = None
    """Epochs of fine-tuning for each classifier; the default depends on the preset."""
    autoencoder_epochs: int | None = None
    """Epochs of the autoencoder; default: as in train_autoencoder.py (full) or 5 (quickstart)."""
    bootstrap_samples: int | None = None
    """Bootstrap samples (over patients) for each 95 % interval; default: 1000 (full) or 200
    (quickstart)."""
    seed: int = 0
    saved_models: str = "saved_models"
    allow_leakage: bool = False
    """Continue although a patient or an identical image appears in two splits."""
    worker_timeout: float = 600.0
    """With several workers (TF_CONFIG): seconds to wait until all of them have started."""
    compare: tuple[str, ...] = ()
    """Only print the differences between these two finished studies, by name or folder."""
