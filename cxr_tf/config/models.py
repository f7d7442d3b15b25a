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
    """Split to evaluate; a folder without split folders is evaluated as a whole."""
    engine: Engine = "auto"
    """Runtime of the network; auto: OpenVINO if it is installed and there is no GPU. The runtimes
    agree to 1e-4."""
    engine_precision: EnginePrecision = "float32"
    """int8, and bfloat16 on CPUs that support it, are faster and less exact; the loss of AUROC on
    validation is measured and printed. Classifiers only; requires --engine openvino."""
    shifts: bool = False
    """Also evaluate under acquisition shifts: images framed, exposed and stored as they may be at
    another hospital."""
    batch_size: int = 32
    """Images per batch."""


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Predict images with an exported model or a running TF Serving.

    Prints a table, or writes CSV or JSON with --output.
    """

    model: str
    """Folder of the model, or of one of its versions: saved_models/<name>[/<version>]. With
    --server: the name of the model."""
    images: tuple[str, ...]
    """Files, folders (read recursively), glob patterns, and studies, series or instances of a PACS:
    dicomweb://host:8042/dicom-web/studies/UID (dicomwebs:// for https)."""
    output: str = ""
    """Output file, .csv or .json; default: a printed table. For occlusion, explain and --format
    dicom a folder: predictions.csv and the heatmaps or DICOM objects. For --format dicom also a
    PACS that stores them: dicomweb://host:8042/dicom-web."""
    format: Literal["auto", "dicom"] = "auto"
    """auto: determined by the suffix of --output. dicom: a structured report of each DICOM image,
    and its heatmap as a secondary capture."""
    heatmaps: bool = True
    """With --format dicom: also write heatmaps, which take most of the time."""
    signature: str = "serving_default"
    """serving_default, embed, occlusion (classifiers), explain (autoencoders)."""
    engine: Engine = "auto"
    """Runtime of a model on disk; auto: OpenVINO if it is installed and there is no GPU. The
    runtimes agree to 1e-4. Occlusion always runs on TensorFlow."""
    engine_precision: EnginePrecision = "float32"
    """int8, and bfloat16 on CPUs that support it, are faster and less exact; evaluate.py measures
    the loss. Classifiers only, int8 for serving_default only; requires --engine openvino."""
    server: str = ""
    """Use this TF Serving: http://host:8501, https://host or grpc://host:8500."""
    version: int | None = None
    """With --server: this version of the model instead of the newest."""
    label: str = ""
    """With --server: the version with this label in models.config, such as stable."""
    on_bad_image: Literal["error", "nan"] = "error"
    """error: stop at an image that cannot be read. nan: write NaN and a reason for it, and predict
    the others."""
    batch_size: int | None = None
    """Images per request; default 32, for occlusion and explain 4."""
    timeout: float = 120.0
    """With --server: seconds to wait for the response to one request."""
    overwrite: bool = False
    """Replace an existing output."""


@dataclass(frozen=True, kw_only=True)
class ScoreArchive:
    """Predict an archive of any size shard by shard, on this machine or on a Ray cluster.

    Writes plan.json, lists/, shards/*.parquet and summary.json under --out. The same command
    resumes an interrupted archive and adds new files of --images.
    """

    out: str
    """Folder of the results, or a prefix in an object store (s3://bucket/scores)."""
    images: tuple[str, ...] = ()
    """Files, folders (read recursively), glob patterns, .csv lists with a column path, .txt lists,
    .tar and .zip archives; on disk or as URLs (s3://, gs://, https://). Default: those in the
    plan."""
    model: str = ""
    """Folder of the model, or of one of its versions: saved_models/<name>[/<version>]. Default:
    that of the plan."""
    signatures: tuple[str, ...] = ("serving_default",)
    """Signatures to predict in one pass over the files: serving_default, embed."""
    runtime: Engine = "auto"
    """Runtime of the network; auto: OpenVINO if it is installed and there is no GPU."""
    runtime_precision: EnginePrecision = "float32"
    """int8, and bfloat16 on CPUs that support it, are faster and less exact. Classifiers only;
    requires --runtime openvino."""
    engine: Literal["processes", "ray"] = "processes"
    """Engine that distributes the shards: processes on this machine, or a Ray cluster."""
    workers: int | None = None
    """Workers, each with a model of its own. Default: one per GPU, or one on CPUs; with ray as many
    as the cluster has room for."""
    address: str = ""
    """With --engine ray: the cluster, such as auto or ray://head:10001; default: this
    machine alone."""
    cpus_per_worker: float = 1
    """With --engine ray: CPU cores that a worker reserves."""
    gpus_per_worker: float = 0
    """With --engine ray: GPUs that a worker reserves; 0.5 puts two workers on one GPU."""
    only: str = ""
    """Compute one part of the shards, such as 3/16: for the jobs of a Slurm or Kubernetes array."""
    shard_size: int | None = None
    """Images per shard (one result file), the most that a killed worker can lose. Default 1024."""
    batch_size: int | None = None
    """Images per call of the model; default 32."""
    readers: int = 8
    """Files that each worker reads at the same time."""
    retries: int = 6
    """Further attempts, after growing pauses, to read a file whose URL cannot be reached."""
    retry_unreachable: bool = False
    """Recompute the shards in which a file could not be reached."""
    status: bool = False
    """Only print the progress; works on any machine that can read --out."""
    merge: str = ""
    """Only write all shards of a finished archive into one file, .parquet or .csv."""


@dataclass(frozen=True, kw_only=True)
class Explain(RunFlags):
    """Explain a classifier's predictions by heatmaps, for a split or for given images.

    Writes logs/explain/<name>/.
    """

    classifier: str
    """Folder of a finished run: logs/classifier/<name>."""
    data: str = ""
    """Folder of radiographs, or `phantom`; default: the training data of the classifier."""
    split: Split = "test"
    """Split of --data to sample from; a folder without split folders is split as in training, with
    the seed of the classifier."""
    images: tuple[str, ...] = ()
    """Files, folders (read recursively) and glob patterns, instead of --data."""
    count: int = 12
    """Number of radiographs to sample from the split, evenly over classes; 0: all."""
    method: Literal["occlusion", "gradcam++", "scorecam", "smoothgrad", "all"] = "occlusion"
    """all: the four methods side by side; implies --faithfulness."""
    patch: int | None = None
    """Side of the occluded square, in pixels of the model's input; default: two strides."""
    stride: int | None = None
    """Distance between patches in pixels; default: half of --patch, or 1/14 of the image side (16
    at 224)."""
    fill: Literal["auto", "mean", "air", "gray", "blur", "noise"] = "auto"
    """Fill of the patch: the mean grey of the image, the grey of aerated lung, mid-grey, the
    blurred image, or noise with the mean and standard deviation of the image. auto: air if the
    explained class is a pneumonia, because mean grey on a lung looks like one; otherwise mean."""
    target: str = "predicted"
    """Class to explain, or `predicted` for the predicted class of each radiograph."""
    drop: Literal["probability", "logit"] = "probability"
    """Decrease to measure: of the calibrated probability, or of its log odds, which still change
    where the probability is close to 1."""
    refine: float = 0.0
    """Coarse-to-fine occlusion: compute only this share of the fine patches, those where a coarse
    map is high (try 0.25), and measure the error on a few images. 0: compute all."""
    faithfulness: bool = False
    """Also measure insertion, deletion and sensitivity to shuffled weights; takes minutes."""
    batch_size: int = 64
    """Occluded images per batch."""
    seed: int = 0
    """Seed of the sampled radiographs, the noise fill and SmoothGrad."""
    skip_unreadable: bool = False
    """Leave out files that cannot be decoded instead of stopping."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Convert an exported classifier to another format and verify it on the runtime of that format.

    Writes the model and its card to --out. Fails and writes nothing if a probability of a test
    image differs from that of the SavedModel by more than 0.001.
    """

    model: str
    """Folder of the model, or of one of its versions: saved_models/<name>[/<version>]."""
    format: Literal["onnx", "litert", "openvino"]
    """onnx: for ONNX Runtime and many others. litert: for phones and small devices. openvino: for
    Intel processors."""
    out: str = ""
    """Output folder; default: exports/<model>-<format>."""
    precision: Literal["float32", "int8"] = "float32"
    """int8 (litert only): a quarter of the size, calibrated on phantoms; the loss of
    AUROC is measured and printed."""
    data: str = "phantom"
    """Folder of radiographs whose test split verifies the export."""
    batch_size: int = 32
    """Images per batch."""
    seed: int = 0
    """Seed of the splits, if the folder has none."""


@dataclass(frozen=True, kw_only=True)
class CheckServed(RunFlags):
    """Verify exported models: repeat the predictions on all test images and compare.

    Exits with code 1 if a prediction differs. Writes logs/served/<name>/.
    """

    runs: tuple[str, ...] = ()
    """Folders of finished runs, such as logs/classifier/<name>, logs/knn/<name> or
    logs/autoencoder/<name>."""
    runtime: Literal["tensorflow", "c++"] = "tensorflow"
    """tensorflow: a Python process that imports only TensorFlow. c++: the C++ runtime that TF
    Serving is built on, in a process without TensorFlow's Python package. c++ also compares
    every output of every signature, sends an invalid image, replays the warm-up requests and runs
    eight concurrent threads."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Serve a web page that shows prediction, heatmap, similar cases and anomaly map of
    radiographs.

    It is reachable from this machine only, and does not keep uploaded files on disk.
    """

    saved_models: str = "saved_models"
    """Folder of the models to choose from."""
    classifier: str = ""
    """Name of the classifier to start with; default: the one that the
    nearest neighbours were fitted on."""
    neighbors: str = ""
    """Name of the nearest-neighbours model to start with; default: the one fitted on the
    classifier."""
    autoencoder: str = ""
    """Name of the autoencoder to start with; default: the first."""
    server: str = ""
    """Use the models of this TF Serving that the three flags above name: http://host:8501,
    https://host or grpc://host:8500."""
    engine: Engine = "auto"
    """Runtime of models on disk; auto: OpenVINO if it is installed and there is no GPU."""
    port: int = 7860
    """Port of the page; 0: any free port."""
    open_browser: bool = True
    """Open the page in the default browser."""
