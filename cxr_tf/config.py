"""One frozen dataclass per command: the flags of its script, and what `config.json` records.

Flags that several commands share stand once, in the base classes at the top; a command that
documents a shared flag differently declares it again.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from cxr_tf.errors import UserError

Task = Literal["binary", "three_class", "labels"]

BackboneName = Literal["resnet50", "vgg16", "alexnet"]

Precision = Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"]

Engine = Literal["auto", "tensorflow", "openvino"]

EnginePrecision = Literal["float32", "bfloat16", "int8"]

Split = Literal["train", "val", "test", "all"]

# The smallest value allowed, wherever a command has a flag of that name.
LEAST = {
    **{"seed": 0, "batch_size": 1, "epochs": 0, "patience": 1, "bootstrap_samples": 1, "count": 0},
    **{"augmentation": 0, "autoencoder_epochs": 1, "shard_size": 1, "workers": 1, "readers": 1},
    **{"retries": 0, "cpus_per_worker": 0, "gpus_per_worker": 0},
}

ABOVE_ZERO = ("learning_rate", "timeout", "worker_timeout")

LARGEST_SEED = 2**32 - 1


def check_numbers(settings: Any, **least: int) -> None:
    """Raise UserError for a number out of its range or not finite, naming the flag.

    least: where a command needs more than LEAST. None is a default that is resolved later.
    """

    def refuse(field: str, expected: str) -> None:
        flag = "--" + field.replace("_", "-")
        raise UserError(f"{flag} must be {expected}, not {getattr(settings, field)}")

    for field, smallest in {**LEAST, **least}.items():
        value = getattr(settings, field, None)
        if value is not None and not smallest <= value < float("inf"):
            refuse(field, f"at least {smallest}")
    for field in ABOVE_ZERO:
        value = getattr(settings, field, None)
        if value is not None and not 0 < value < float("inf"):
            refuse(field, "above 0")
    coverage = getattr(settings, "coverage", None)
    if coverage is not None and not 0.5 <= coverage < 1:
        refuse("coverage", "from 0.5 to below 1")
    if (getattr(settings, "seed", None) or 0) > LARGEST_SEED:
        refuse("seed", f"at most {LARGEST_SEED}")


# ---------------------------------------------------------------------- shared flags


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Where a run is written."""

    name: str = ""
    """Name of the run; the default is built from what the run is of."""
    logs: str = "logs"
    """Folder of all runs, and TensorBoard's --logdir."""


@dataclass(frozen=True, kw_only=True)
class DataFlags:
    """Which radiographs."""

    data: str = "phantom"
    """Folder of radiographs, .csv list (path, label, and optionally patient and split), .npz of
    PneumoniaMNIST, or `phantom` for synthetic ones (see prepare_data.py)."""
    skip_unreadable: bool = False
    """Leave out files that cannot be decoded, instead of stopping."""


@dataclass(frozen=True, kw_only=True)
class ScoreFlags:
    """How scores are computed."""

    bootstrap_samples: int = 1000
    """Bootstrap samples (of patients) behind each 95 % interval."""
    seed: int = 0
    """Seed of everything random: splits, training, bootstrap."""


@dataclass(frozen=True, kw_only=True)
class TrainingFlags(RunFlags, DataFlags, ScoreFlags):
    """A job that trains on a catalogue and exports a model."""

    saved_models: str = "saved_models"
    """Folder of all exported models, which TF Serving serves."""
    resume: bool = False
    """Continue the interrupted run of this name; a finished one is left as it is."""
    allow_leakage: bool = False
    """Continue although a patient or an identical image appears in two splits."""
    worker_timeout: float = 600.0
    """With several workers (TF_CONFIG): seconds to wait until all of them have started."""


# ---------------------------------------------------------------------- commands


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
class Evaluate(RunFlags, DataFlags, ScoreFlags):
    """Evaluate an exported model on any folder of radiographs.

    Writes logs/evaluate/<name>/.
    """

    model: str
    """Folder of the model, or of one of its versions: saved_models/<name>[/<version>]."""
    split: Split = "test"
    """Which split to evaluate; a folder without split folders is evaluated whole."""
    engine: Engine = "auto"
    """What runs the network; auto: OpenVINO where it is installed and there is no GPU. To 1e-4 the
    numbers are the same."""
    engine_precision: EnginePrecision = "float32"
    """int8, and bfloat16 where the CPU has it, are faster and less exact: the cost in AUROC on
    validation is measured and printed. For classifiers; needs --engine openvino."""
    shifts: bool = False
    """Also evaluate under acquisition shifts: the images framed, exposed and stored differently, as
    those of another hospital may be."""
    batch_size: int = 32
    """Images per batch."""


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Predict files, folders and glob patterns, by an exported model or a running TF Serving.

    Prints a table, or writes CSV or JSON with --output.
    """

    model: str
    """Folder of the model, or of one of its versions: saved_models/<name>[/<version>]. With
    --server the model's name."""
    images: tuple[str, ...]
    """Files, folders (read recursively), glob patterns, and studies, series or instances of a PACS:
    dicomweb://host:8042/dicom-web/studies/UID (dicomwebs:// for https)."""
    output: str = ""
    """File to write: .csv or .json; without it a table is printed. For occlusion, explain and
    --format dicom a folder: predictions.csv and the heatmaps or DICOM objects. For --format dicom
    also a PACS that stores them: dicomweb://host:8042/dicom-web."""
    format: Literal["auto", "dicom"] = "auto"
    """auto: by the name of --output. dicom: for each DICOM image a structured report, and the
    heatmap as a secondary capture."""
    heatmaps: bool = True
    """With --format dicom: also write heatmaps, which takes most of the time."""
    signature: str = "serving_default"
    """serving_default, embed, occlusion (classifiers), explain (autoencoders)."""
    engine: Engine = "auto"
    """What runs the network of a model on disk; auto: OpenVINO where it is installed and there is
    no GPU. To 1e-4 the numbers are the same. Occlusion always runs on TensorFlow."""
    engine_precision: EnginePrecision = "float32"
    """int8, and bfloat16 where the CPU has it, are faster and less exact: evaluate.py measures by
    how much. For classifiers, int8 for their predictions alone; needs --engine openvino."""
    server: str = ""
    """Use this TF Serving: http://host:8501, https://host or grpc://host:8500."""
    version: int | None = None
    """With --server: this version of the model, not the newest."""
    label: str = ""
    """With --server: the version with this label in models.config, such as stable."""
    on_bad_image: Literal["error", "nan"] = "error"
    """error: an image that cannot be read stops everything. nan: it gets NaN and a reason, and the
    others their predictions."""
    batch_size: int | None = None
    """Images per request; default 32, for occlusion and explain 4."""
    timeout: float = 120.0
    """With --server: seconds to wait for the response to one request."""
    overwrite: bool = False
    """Replace an existing output."""


@dataclass(frozen=True, kw_only=True)
class ScoreArchive:
    """Predict an archive of any size, on this machine or on a Ray cluster, shard by shard.

    Writes plan.json, lists/, shards/*.parquet and summary.json under --out. The same command
    continues where it was stopped, and adds what is new in --images.
    """

    out: str
    """Folder of the results, or a prefix in an object store (s3://bucket/scores)."""
    images: tuple[str, ...] = ()
    """Files, folders (read recursively), glob patterns, .csv lists with a column path, .txt lists,
    .tar and .zip archives; on disk or as URLs (s3://, gs://, https://). Default: those planned."""
    model: str = ""
    """Folder of the model, or of one of its versions: saved_models/<name>[/<version>]. Default: the
    one of the plan."""
    signatures: tuple[str, ...] = ("serving_default",)
    """Signatures to predict in one pass over the files: serving_default, embed."""
    runtime: Engine = "auto"
    """What runs the network; auto: OpenVINO where it is installed and there is no GPU."""
    runtime_precision: EnginePrecision = "float32"
    """int8, and bfloat16 where the CPU has it, are faster and less exact. For classifiers; needs
    --runtime openvino."""
    engine: Literal["processes", "ray"] = "processes"
    """What distributes the shards: processes on this machine, or a Ray cluster."""
    workers: int | None = None
    """Workers, each with a model of its own. Default: one per GPU, or one on CPUs; with ray as many
    as the cluster has room for."""
    address: str = ""
    """With --engine ray: the cluster, such as auto or ray://head:10001; default: one of this
    machine alone."""
    cpus_per_worker: float = 1
    """With --engine ray: CPU cores that a worker reserves."""
    gpus_per_worker: float = 0
    """With --engine ray: GPUs that a worker reserves; 0.5 puts two on one."""
    only: str = ""
    """Compute one part of the shards, such as 3/16: for the jobs of a Slurm or Kubernetes array."""
    shard_size: int | None = None
    """Images per shard, a file of the result; what a killed worker loses at most. Default 1024."""
    batch_size: int | None = None
    """Images per call of the model; default 32."""
    readers: int = 8
    """Files that each worker reads at the same time."""
    retries: int = 6
    """Further attempts at a file behind a URL that cannot be reached, after growing pauses."""
    retry_unreachable: bool = False
    """Compute the shards again in which a file stayed unreachable."""
    status: bool = False
    """Only print how far the archive is; from any machine that can read --out."""
    merge: str = ""
    """Only write all shards of a finished archive into one file, .parquet or .csv."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """A web page for one radiograph or a few: prediction, heatmap, similar cases, anomaly map.

    Reachable from this machine only. Files that are dropped on it do not stay on disk.
    """

    saved_models: str = "saved_models"
    """Folder whose models are offered."""
    classifier: str = ""
    """Name of the classifier to start with; default: the one that neighbours were fitted on."""
    neighbors: str = ""
    """Name of the nearest-neighbours model to start with; default: that of the classifier."""
    autoencoder: str = ""
    """Name of the autoencoder to start with; default: the first."""
    server: str = ""
    """Use models of this TF Serving, named by the three flags above: http://host:8501,
    https://host or grpc://host:8500."""
    engine: Engine = "auto"
    """What runs the networks of models on disk; auto: OpenVINO where it is installed and there is
    no GPU."""
    port: int = 7860
    """Port of the page; 0 takes any that is free."""
    open_browser: bool = True
    """Open the page in the default browser."""


@dataclass(frozen=True, kw_only=True)
class PrepareData:
    """Get a data set, or check one.

    Prints classes, patients, splits and problems; --check also draws them, under logs/data/<name>/.
    Exit code 2 if there is a problem that stops training.
    """

    check: str = ""
    """Folder, .csv list or .npz to check, instead of preparing one."""
    source: Literal["phantom", "kermany", "pneumoniamnist", "dicom"] = "phantom"
    """phantom: synthetic radiographs. kermany (1.2 GB) and pneumoniamnist: from their publishers.
    dicom: your own files, to PNG without the header's identity."""
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


@dataclass(frozen=True, kw_only=True)
class ConvertAlexNetWeights:
    """Turn torchvision's AlexNet weights into a file for --weights.

    Needs PyTorch, which nothing else in this project does.
    """

    state_dict: str
    """torchvision's published file: alexnet-owt-7be5be79.pth."""
    out: str = "alexnet_notop.weights.h5"


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
class Explain(RunFlags):
    """Draw heatmaps of what a classifier's decisions rest on, for a split or for images.

    Writes logs/explain/<name>/.
    """

    classifier: str
    """Folder of a finished run: logs/classifier/<name>."""
    data: str = ""
    """Folder of radiographs, or `phantom`; default: what the classifier was trained on."""
    split: Split = "test"
    """Which split of --data to draw from; a folder without split folders is split as in training,
    from the classifier's seed."""
    images: tuple[str, ...] = ()
    """Files, folders (read recursively) and glob patterns, instead of --data."""
    count: int = 12
    """How many radiographs to draw from the split, evenly over classes; 0 takes all."""
    method: Literal["occlusion", "gradcam++", "scorecam", "smoothgrad", "all"] = "occlusion"
    """all shows the four side by side and measures their --faithfulness."""
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
    log odds, which still move where the probability is close to 1."""
    refine: float = 0.0
    """Occlusion from coarse to fine: only this share of the fine patches is computed, where a
    coarse map is hot (0.25 is a start); the error is measured on a few images. 0 computes all."""
    faithfulness: bool = False
    """Also measure insertion, deletion and sensitivity to shuffled weights; takes minutes."""
    batch_size: int = 64
    """Covered images in memory at once."""
    seed: int = 0
    """Seed of the drawn radiographs, of noise and of SmoothGrad."""
    skip_unreadable: bool = False
    """Leave out files that cannot be decoded, instead of stopping."""


@dataclass(frozen=True, kw_only=True)
class CheckServed(RunFlags):
    """Verify exported models: predict all test images again, and compare with what was measured.

    Exit code 1 where a prediction differs. Writes logs/served/<name>/.
    """

    runs: tuple[str, ...] = ()
    """Folders of finished runs, such as logs/classifier/<name>, logs/knn/<name> or
    logs/autoencoder/<name>."""
    runtime: Literal["tensorflow", "c++"] = "tensorflow"
    """tensorflow: a Python process that imports only TensorFlow. c++: the C++ runtime that TF
    Serving is built on, in a process without TensorFlow's Python package. It also compares every
    output of every signature, sends a bad image, replays the warm-up requests and runs eight
    threads at once."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Convert an exported classifier to another format, and verify it on that format's runtime.

    Writes the model and its card to --out. Fails and writes nothing where a probability of a test
    image differs by more than 0.001 from the SavedModel's.
    """

    model: str
    """Folder of the model, or of one of its versions: saved_models/<name>[/<version>]."""
    format: Literal["onnx", "litert", "openvino"]
    """onnx: for ONNX Runtime and many others. litert: for phones and small devices. openvino: for
    Intel processors."""
    out: str = ""
    """Folder to write; default: exports/<model>-<format>."""
    precision: Literal["float32", "int8"] = "float32"
    """int8 (litert only): a quarter of the size, calibrated on phantoms; its cost in AUROC is
    measured and printed."""
    data: str = "phantom"
    """Folder of radiographs whose test split verifies the export."""
    batch_size: int = 32
    """Images per batch."""
    seed: int = 0
    """Seed of the splits, where the folder has none."""


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
