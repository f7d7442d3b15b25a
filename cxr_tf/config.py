"""One frozen dataclass per command: the flags of its script, and what `config.json` records."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from cxr_tf.errors import UserError

Task = Literal["binary", "three_class", "labels"]

BackboneName = Literal["resnet50", "vgg16", "alexnet"]

Precision = Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"]

Engine = Literal["auto", "tensorflow", "openvino"]

EnginePrecision = Literal["float32", "bfloat16", "int8"]

# The least that a number may be, wherever a job has one of that name.
LEAST = {
    **{"seed": 0, "batch_size": 1, "epochs": 0, "patience": 1, "resamples": 1, "count": 0},
    **{"augmentation": 0, "autoencoder_epochs": 1},
}

ABOVE_ZERO = ("learning_rate", "timeout")

LARGEST_SEED = 2**32 - 1


def check_numbers(settings: Any, **least: int) -> None:
    """Raises UserError for a number out of its range, not finite or no number, naming the flag.

    least: where a job asks for more than LEAST. None is a default that is settled later.
    """

    def refuse(field: str, asked: str) -> None:
        flag = "--" + field.replace("_", "-")
        raise UserError(f"{flag} must be {asked}, not {getattr(settings, field)}")

    for field, smallest in {**LEAST, **least}.items():
        value = getattr(settings, field, None)
        if value is not None and not smallest <= value < float("inf"):
            refuse(field, f"at least {smallest}")
    for field in ABOVE_ZERO:
        value = getattr(settings, field, None)
        if value is not None and not 0 < value < float("inf"):
            refuse(field, "above 0")
    if (getattr(settings, "seed", None) or 0) > LARGEST_SEED:
        refuse("seed", f"at most {LARGEST_SEED}")


@dataclass(frozen=True)
class TrainingBudget:
    """What training one classifier takes, the same for every backbone that is compared."""

    data: str = "phantom"
    """Folder of radiographs, .csv list (path, label, and optionally patient and split), .npz of
    PneumoniaMNIST, or `phantom` for synthetic ones (see prepare_data.py)."""
    task: Task = "binary"
    """binary: normal / pneumonia. three_class: normal / bacterial / viral. labels: the labels of
    --data as they are, two to twenty."""
    positive: str = ""
    """Of two labels the one that recall, AUROC and the operating point are about; default: the
    second by alphabet, and never normal. --task labels only."""
    image_size: int = 224
    """Side of the square that images are resized to, in pixels; at least 64."""
    batch_size: int = 32
    epochs: int = 8
    """Epochs of fine-tuning; 0 trains the head alone."""
    trainable_blocks: int | None = None
    """How many blocks, counted from the last, are fine-tuned; default by backbone, and all
    of them from scratch."""
    learning_rate: float | None = None
    """Peak rate of AdamW; default 1e-4 from pretrained weights, else by backbone."""
    augmentation: float = 1.0
    """Strength of the random exposure, position and cutout, and of mixed styles; 0 is none."""
    patience: int = 5
    """Stop after so many epochs without a better validation loss."""
    operating_point: str = "half"
    """Threshold on the probability of pneumonia, chosen on validation: half (0.5), youden,
    min-sensitivity:0.95 or min-specificity:0.95. Binary task only."""
    precision: Precision = "auto"
    """Arithmetic of training; auto takes bfloat16 from pretrained weights, where this machine is
    faster with it. The exported model is always float32."""
    resamples: int = 1000
    """Bootstrap resamples (of patients) behind each 95 % interval."""
    seed: int = 0
    name: str = ""
    """Name of the run; default: from backbone and task."""
    logs: str = "logs"
    saved_models: str = "saved_models"
    resume: bool = False
    """Go on with the interrupted run of this name; a finished one is left as it is."""
    allow_leakage: bool = False
    """Train although a patient or an identical image stands in two splits."""
    skip_unreadable: bool = False
    """Leave out files that cannot be decoded, instead of stopping."""


@dataclass(frozen=True)
class TrainClassifier(TrainingBudget):
    """Train, calibrate, evaluate and export one classifier.

    Writes logs/classifier/<name>/ and saved_models/<name>/<version>/.
    """

    backbone: BackboneName = "vgg16"
    weights: str = "imagenet"
    """imagenet, none (from scratch), or a weights file: .weights.h5 without the top, or .keras."""


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Evaluate:
    """Score a SavedModel of ours on any folder of radiographs.

    Writes logs/evaluate/<name>/.
    """

    model: str
    """Folder of the model, or of one of its versions: saved_models/<name>[/<version>]."""
    data: str = "phantom"
    split: Literal["train", "val", "test", "all"] = "test"
    """Which split to score; a folder without split folders is scored whole."""
    engine: Engine = "auto"
    """What runs the network; auto: OpenVINO where it is installed and there is no GPU. To 1e-4 the
    numbers are the same."""
    engine_precision: EnginePrecision = "float32"
    """int8, and bfloat16 where the CPU has it, are faster and less exact: what that costs in AUROC
    on validation is measured and printed. For classifiers; needs --engine openvino."""
    shifts: bool = False
    """Also score the images framed, exposed and stored otherwise, as those of another hospital may
    be."""
    batch_size: int = 32
    resamples: int = 1000
    seed: int = 0
    name: str = ""
    """Name of the run; default: from model and data."""
    logs: str = "logs"
    skip_unreadable: bool = False


@dataclass(frozen=True)
class Predict:
    """Predictions for files, folders and globs, of a SavedModel on disk or of a running TF Serving.

    Prints a table, or writes CSV or JSON with --output.
    """

    model: str
    """Folder of the model, or of one of its versions: saved_models/<name>[/<version>]. With
    --server the model's name."""
    images: tuple[str, ...]
    """Files, folders (read recursively) and glob patterns."""
    output: str = ""
    """File to write: .csv or .json; without it a table is printed. For occlusion and explain a
    folder: predictions.csv and one picture of each heatmap."""
    signature: str = "serving_default"
    """What to ask for: serving_default, embed, occlusion (classifiers), explain (autoencoders)."""
    engine: Engine = "auto"
    """What runs the network of a model on disk; auto: OpenVINO where it is installed and there is
    no GPU. To 1e-4 the numbers are the same. Occlusion is TensorFlow's."""
    engine_precision: EnginePrecision = "float32"
    """int8, and bfloat16 where the CPU has it, are faster and less exact: evaluate.py measures by
    how much. For classifiers, int8 for their predictions alone; needs --engine openvino."""
    server: str = ""
    """Ask this TF Serving: http://host:8501, https://host or grpc://host:8500."""
    version: int | None = None
    """With --server: this version of the model, not the newest."""
    label: str = ""
    """With --server: the version with this label in models.config, such as stable."""
    on_bad_image: Literal["error", "nan"] = "error"
    """An image that cannot be read stops everything, or gets NaN and a reason, and the others their
    predictions."""
    batch_size: int | None = None
    """Images to a request; default 32, for occlusion and explain 4."""
    timeout: float = 120.0
    """With --server: seconds to wait for the answer to one request."""
    overwrite: bool = False
    """Replace an existing output."""


@dataclass(frozen=True)
class PrepareData:
    """Get a data set, or check one.

    Prints classes, patients, splits and problems; --check also draws them, under logs/data/<name>/.
    Exit code 2 if there is a problem that stops training.
    """

    check: str = ""
    """Folder, .csv list or .npz to check, instead of preparing one."""
    source: Literal["phantom", "kermany", "pneumoniamnist", "dicom"] = "phantom"
    """phantom: synthetic radiographs. kermany (1.2 GB) and pneumoniamnist: from their publishers.
    dicom: files of your own, to PNG without any identity."""
    from_: Annotated[str, tyro.conf.arg(name="from")] = ""
    """kermany, pneumoniamnist: a mirror's URL, or the published file on disk. dicom: a file, a
    folder (NORMAL/ and PNEUMONIA/ in it give the labels), or a .csv list of path and label."""
    out: str = ""
    """Folder to write (pneumoniamnist: file); default data/phantom-v1, data/kermany, data/dicom,
    data/pneumoniamnist_<size>.npz."""
    size: int | None = None
    """Side in pixels. pneumoniamnist: 28, 64, 128 or 224 (default); phantom: default 128."""
    count: int = 800
    """Number of phantoms."""
    laterals: bool = False
    """dicom: convert lateral views too; else they are listed and left out."""
    seed: int = 0
    """Seed of the phantoms, and of the split where --data has none."""
    task: Task = "binary"
    """Task whose needs are checked."""
    logs: str = "logs"


@dataclass(frozen=True)
class ConvertAlexNetWeights:
    """Turn torchvision's AlexNet weights into a file for --weights.

    Needs PyTorch, and nothing else of this project does.
    """

    state_dict: str
    """torchvision's published file: alexnet-owt-7be5be79.pth."""
    out: str = "alexnet_notop.weights.h5"


@dataclass(frozen=True)
class FitKnn:
    """Nearest neighbours in the embedding of a trained classifier: pickle, SavedModel, t-SNE.

    Writes logs/knn/<name>/ and saved_models/<name>/<version>/.
    """

    classifier: str
    """Folder of a finished run, logs/classifier/<name>, or of a SavedModel of a classifier."""
    data: str = ""
    """Folder of radiographs, or `phantom`; default: what the classifier was trained on."""
    engine: Engine = "tensorflow"
    """What computes the embeddings; auto: OpenVINO where it is installed and there is no GPU. The
    exported model computes its own with TensorFlow, which differ from OpenVINO's by up to 1e-4: of
    two neighbours equally far the other may then come first."""
    batch_size: int = 32
    resamples: int = 1000
    """Bootstrap resamples (of patients) behind each 95 % interval."""
    seed: int | None = None
    """Seed of the splits (where the folder has none), t-SNE and bootstrap; default: the
    classifier's own, so that its test images stay test images."""
    name: str = ""
    """Name of the run and the model; default: <classifier>-knn."""
    logs: str = "logs"
    saved_models: str = "saved_models"
    resume: bool = False
    """Go on with the interrupted run of this name; a finished one is left as it is."""
    allow_leakage: bool = False
    """Go on although a patient or an identical image stands in two splits."""
    skip_unreadable: bool = False
    """Leave out files that cannot be decoded, instead of stopping."""


@dataclass(frozen=True)
class TrainAutoencoder:
    """Train an autoencoder on healthy radiographs; detect anomalies by what it restores.

    Writes logs/autoencoder/<name>/ and saved_models/<name>/<version>/.
    """

    data: str = "phantom"
    """Folder of radiographs, .csv list (path, label, and optionally patient and split), .npz of
    PneumoniaMNIST, or `phantom` for synthetic ones (see prepare_data.py)."""
    model: Literal["restoring", "plain"] = "restoring"
    """restoring: takes painted opacities out of healthy lungs. plain: squeezes the image through a
    code of 128 numbers; far weaker here, kept to compare."""
    score: Literal["", "combined", "context", "removed", "mark", "mse", "ssim"] = ""
    """What an anomaly is judged by. restoring: combined, context, removed or mark. plain: mse or
    ssim. Default: the one with the highest AUROC on validation; the first of them where there is no
    sick image."""
    image_size: int = 224
    """Side of the square that images are resized to, in pixels. restoring: a multiple of 32 from
    128 on, of which the network sees half. plain: a multiple of 16 from 64 on."""
    batch_size: int = 16
    epochs: int | None = None
    """Default: 8, and up to 60 where healthy images are so few that it would learn in fewer than
    500 steps; plain: 30."""
    learning_rate: float = 2e-3
    """Peak rate of AdamW."""
    augmentation: float = 1.0
    """Strength of the random framing and exposure in the training of the network; 0 is none."""
    max_false_alarm: float | None = None
    """Threshold: highest share of healthy validation images that may be called anomalies. Default:
    Youden's point on the ROC curve of validation as it is, under another exposure and from another
    scanner (plain: as it is)."""
    min_sensitivity: float | None = None
    """Threshold: lowest share of sick validation images that must be called anomalies."""
    resamples: int = 1000
    """Bootstrap resamples (of patients) behind each 95 % interval."""
    seed: int = 0
    name: str = ""
    """Name of the run and the model; default: autoencoder-<model>."""
    logs: str = "logs"
    saved_models: str = "saved_models"
    resume: bool = False
    """Go on with the interrupted run of this name; a finished one is left as it is."""
    allow_leakage: bool = False
    """Go on although a patient or an identical image stands in two splits."""
    skip_unreadable: bool = False
    """Leave out files that cannot be decoded, instead of stopping."""


@dataclass(frozen=True)
class Explain:
    """Heatmaps of what a classifier's decisions rest on, for a split or for images.

    Writes logs/explain/<name>/.
    """

    classifier: str
    """Folder of a finished run: logs/classifier/<name>."""
    data: str = ""
    """Folder of radiographs, or `phantom`; default: what the classifier was trained on."""
    split: Literal["train", "val", "test", "all"] = "test"
    """Which split of --data to draw from; a folder without split folders is split as in training,
    from the classifier's seed."""
    images: tuple[str, ...] = ()
    """Files, folders (read recursively) and glob patterns, instead of --data."""
    count: int = 12
    """How many radiographs to draw from the split, evenly over classes; 0 takes all."""
    method: Literal["occlusion", "gradcam++", "scorecam", "smoothgrad", "all"] = "occlusion"
    """all lays the four side by side and measures their --faithfulness."""
    patch: int | None = None
    """Side of the covered square in pixels of the model's input; default two strides."""
    stride: int | None = None
    """Distance of the patches; default half of --patch, or a fourteenth of the side: 16 at 224."""
    fill: Literal["auto", "mean", "air", "gray", "blur", "noise"] = "auto"
    """What covers the patch: the image's mean grey, the grey of aerated lung, the middle of the
    scale, the image blurred, or noise of the image's mean and spread. auto: air where the explained
    class is a pneumonia, because on a lung the mean grey looks like one; else mean."""
    target: str = "predicted"
    """The class to explain, or `predicted` for each radiograph's own."""
    drop: Literal["probability", "logit"] = "probability"
    """What is measured when a patch is covered: the fall of the calibrated probability, or of its
    log odds, which still move where the probability is all but 1."""
    refine: float = 0.0
    """Occlusion from coarse to fine: only so much of the fine patches is computed, where a coarse
    map is hot (0.25 is a start); the error is measured on a few images. 0 computes all."""
    faithfulness: bool = False
    """Also measure insertion, deletion and sensitivity to shuffled weights; takes minutes."""
    batch_size: int = 64
    """Covered images in memory at once."""
    seed: int = 0
    """Of the draw of radiographs, of noise and of SmoothGrad."""
    name: str = ""
    """Name of the run; default: from classifier and method."""
    logs: str = "logs"
    skip_unreadable: bool = False
    """Leave out files that cannot be decoded, instead of stopping."""


@dataclass(frozen=True)
class CheckServed:
    """Ask exported models for the test images again, as TF Serving would, and compare.

    Exit code 1 where an answer differs from what was measured. Writes logs/served/<name>/.
    """

    runs: tuple[str, ...] = ()
    """Folders of finished runs, such as logs/classifier/<name>, logs/knn/<name> or
    logs/autoencoder/<name>."""
    name: str = ""
    """Name of the result; default: that of the first run."""
    logs: str = "logs"


@dataclass(frozen=True)
class RunStudy:
    """All five jobs on one catalogue, and a report of them: logs/study/<name>/report.html.

    Compares the backbones for both tasks, fits nearest neighbours and t-SNE on the chosen
    classifiers, trains the autoencoder, draws heatmaps, exports everything. The same command goes
    on where a study was stopped, and redoes only what a changed setting touches.
    """

    data: str = "phantom"
    """Folder of radiographs, .csv list (path, label, and optionally patient and split), .npz of
    PneumoniaMNIST, or `phantom` for synthetic ones (see prepare_data.py)."""
    preset: Literal["quickstart", "full"] = "full"
    """quickstart: 64 pixels, few epochs, from scratch: minutes, to see everything once. full: the
    defaults of the jobs, ImageNet weights: overnight."""
    name: str = ""
    """Name of the study, with which the names of all its runs and models begin; default: the
    preset's."""
    resnet50_weights: str = ""
    vgg16_weights: str = ""
    alexnet_weights: str = ""
    """imagenet, none, or a file, for each; default by preset: full takes imagenet, and none for
    AlexNet, of which Keras has none; quickstart none."""
    image_size: int | None = None
    """Side of the square that classifiers see, in pixels; default by preset: 224 or 64."""
    batch_size: int | None = None
    """Default by preset: 32 or 16."""
    epochs: int | None = None
    """Of fine-tuning each classifier; default by preset."""
    autoencoder_epochs: int | None = None
    """Default by preset: that of train_autoencoder.py, or 5."""
    resamples: int | None = None
    """Bootstrap resamples (of patients) behind each 95 % interval; default by preset: 1000 or
    200."""
    seed: int = 0
    logs: str = "logs"
    saved_models: str = "saved_models"
    allow_leakage: bool = False
    """Go on although a patient or an identical image stands in two splits."""
    skip_unreadable: bool = False
    """Leave out files that cannot be decoded, instead of stopping."""
    compare: tuple[str, ...] = ()
    """Run nothing: print what changed between these two finished studies, by name or folder."""
