"""Settings of the commands that use trained models."""

from dataclasses import dataclass
from typing import Literal

from cxr_tf.config.flags import DataFlags, Engine, EnginePrecision, RunFlags, ScoreFlags, Split


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
