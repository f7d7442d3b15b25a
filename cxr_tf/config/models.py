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
    """Runtime of the network; auto: OpenVINO if it is installed and there is no GPU (AlexNet:
    TensorFlow). The outputs of the runtimes agree to within 1e-4."""
    engine_precision: EnginePrecision = "float32"
    """int8, and bfloat16 on CPUs that support it, are faster and less exact; the loss of AUROC on
    the validation set is measured and printed. Classifiers only; requires --engine openvino."""
    shifts: bool = False
    """Also evaluate under acquisition shifts: images framed, exposed and stored as they may be at
    another hospital."""
    batch_size: int = 32
    """Images per batch."""


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Classify or score images with an exported model, on disk or on a TF Serving server.

    Prints a table, or writes CSV or JSON with --output.
    """

    model: str
    """Folder of the model, or of one of its versions: saved_models/<name>[/<version>]. With
    --server: the name of the model."""
    images: tuple[str, ...]
    """Files, folders (read recursively), glob patterns, and studies, series or instances in a PACS:
    dicomweb://host:8042/dicom-web/studies/UID (dicomwebs:// for https)."""
    output: str = ""
    """Output file, .csv or .json; default: a printed table. For occlusion, explain and --format
    dicom: a folder, for predictions.csv and the heatmaps or DICOM objects. --format dicom also
    accepts a PACS in which to store the objects: dicomweb://host:8042/dicom-web."""
    format: Literal["auto", "dicom"] = "auto"
    """auto: determined by the suffix of --output. dicom: a structured report for each DICOM image,
    and its heatmap as a secondary capture."""
    heatmaps: bool = True
    """With --format dicom: also write heatmaps, which take most of the time."""
    signature: str = "serving_default"
    """Signature: serving_default, embed, occlusion (classifiers) or explain (autoencoders)."""
    engine: Engine = "auto"
    """Runtime of a model on disk; auto: OpenVINO if it is installed and there is no GPU (AlexNet:
    TensorFlow). The outputs of the runtimes agree to within 1e-4. Occlusion runs on TensorFlow
    only."""
    engine_precision: EnginePrecision = "float32"
    """int8, and bfloat16 on CPUs that support it, are faster and less exact; evaluate.py measures
    the loss. Classifiers only, and int8 only for serving_default; requires --engine openvino."""
    server: str = ""
    """Address of a TF Serving server: http://host:8501, https://host or grpc://host:8500."""
    version: int | None = None
    """With --server: version of the model; default: the newest."""
    label: str = ""
    """With --server: label of the version in models.config, such as stable."""
    on_bad_image: Literal["error", "nan"] = "error"
    """error: stop at an image that cannot be read. nan: write NaN and the reason for such an image,
    and continue with the others."""
    batch_size: int | None = None
    """Images per request; default: 32, or 4 for occlusion and explain."""
    timeout: float = 120.0
    """With --server: seconds to wait for the response to one request."""
    overwrite: bool = False
    """Replace an existing output."""


@dataclass(frozen=True, kw_only=True)
class ScoreArchive:
    """Classify or score an archive of any size, shard by shard, on this machine or a Ray cluster.

    Writes plan.json, lists/, shards/*.parquet and summary.json under --out. Running the same
    command again resumes an interrupted archive and adds new files of --images.
    """

    out: str
    """Folder of the results, or a prefix in an object store (s3://bucket/scores)."""
    images: tuple[str, ...] = ()
    """Files, folders (read recursively), glob patterns, .csv lists with a column path, .txt lists,
    .tar and .zip archives; on disk or as URLs (s3://, gs://, https://). Default: those in the
    existing plan."""
    model: str = ""
    """Folder of the model, or of one of its versions: saved_models/<name>[/<version>]. Default:
    that in the existing plan."""
    signatures: tuple[str, ...] = ("serving_default",)
    """Signatures to predict in one pass over the files: serving_default, embed."""
    runtime: Engine = "auto"
    """Runtime of the network; auto: OpenVINO if it is installed and there is no GPU (AlexNet:
    TensorFlow)."""
    runtime_precision: EnginePrecision = "float32"
    """int8, and bfloat16 on CPUs that support it, are faster and less exact. Classifiers only;
    requires --runtime openvino."""
    engine: Literal["processes", "ray"] = "processes"
    """Engine that distributes the shards: processes on this machine, or a Ray cluster."""
    workers: int | None = None
    """Number of workers, each with its own copy of the model. Default: one per GPU, or one if there
    is no GPU; with ray, as many as the cluster has resources for."""
    address: str = ""
    """With --engine ray: address of the cluster, such as auto or ray://head:10001; default: this
    machine alone."""
    cpus_per_worker: float = 1
    """With --engine ray: CPU cores that a worker reserves."""
    gpus_per_worker: float = 0
    """With --engine ray: GPUs that a worker reserves; 0.5 puts two workers on one GPU."""
    only: str = ""
    """Process only one part of the shards, such as 3/16 (the third of 16 parts): for the jobs of a
    Slurm or Kubernetes array."""
    shard_size: int | None = None
    """Images per shard. A shard is one result file, and the most that a killed worker can lose.
    Default: that of the existing plan, or 1024."""
    batch_size: int | None = None
    """Images per call of the model; default: that of the existing plan, or 32."""
    readers: int = 8
    """Number of files that each worker reads at the same time."""
    retries: int = 6
    """Number of further attempts, after growing pauses, to read a file that cannot be reached."""
    retry_unreachable: bool = False
    """Recompute the shards in which a file could not be reached."""
    status: bool = False
    """Only print the progress; works on any machine that can read --out."""
    merge: str = ""
    """Only merge all shards of a finished archive into this file, .parquet or .csv."""


@dataclass(frozen=True, kw_only=True)
class Explain(RunFlags):
    """Explain a classifier's predictions with heatmaps, for a split or for given images.

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
    """Fill of the patch. mean: the mean grey of the image; air: the grey of aerated lung; gray:
    mid-grey; blur: the blurred image; noise: noise with the mean and standard deviation of the
    image. auto: air if the explained class is a pneumonia, because mean grey on a lung looks like
    one; otherwise mean."""
    target: str = "predicted"
    """Class to explain, or `predicted` for the predicted class of each radiograph."""
    drop: Literal["probability", "logit"] = "probability"
    """Measure the decrease of the calibrated probability, or that of its log odds, which still
    change when the probability is close to 1."""
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
    """Convert an exported classifier to another format and verify the result on its runtime.

    Writes the model and its card to --out. With float32, fails and writes nothing if any
    probability of a test image differs from that of the SavedModel by more than 0.001.
    """

    model: str
    """Folder of the model, or of one of its versions: saved_models/<name>[/<version>]."""
    format: Literal["onnx", "litert", "openvino"]
    """onnx: for ONNX Runtime and many other runtimes. litert: for phones and small devices.
    openvino: for Intel processors."""
    out: str = ""
    """Output folder; default: exports/<model>-<format>."""
    precision: Literal["float32", "int8"] = "float32"
    """int8 (litert only): a quarter of the size, with weights of 8 bits; the loss of AUROC is
    measured and printed."""
    data: str = "phantom"
    """Folder of radiographs; the export is verified on its test split."""
    batch_size: int = 32
    """Images per batch."""
    seed: int = 0
    """Seed of the splits if the folder has none."""


@dataclass(frozen=True, kw_only=True)
class CheckServed(RunFlags):
    """Verify exported models: predict all test images again, and compare with the runs' results.

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
    """Serve a web page that shows predictions, heatmaps, similar cases and anomaly maps.

    The page is reachable only from this machine, and uploaded radiographs are not stored on disk.
    """

    saved_models: str = "saved_models"
    """Folder of the models to choose from."""
    classifier: str = ""
    """Name of the classifier to start with; default: the one that the nearest neighbours were
    fitted on."""
    neighbors: str = ""
    """Name of the nearest-neighbours model to start with; default: the one fitted on the
    classifier."""
    autoencoder: str = ""
    """Name of the autoencoder to start with; default: the first."""
    server: str = ""
    """Address of a TF Serving server that serves the models named above: http://host:8501,
    https://host or grpc://host:8500."""
    engine: Engine = "auto"
    """Runtime of models on disk; auto: OpenVINO if it is installed and there is no GPU (AlexNet:
    TensorFlow)."""
    port: int = 7860
    """Port of the page; 0: any free port."""
    open_browser: bool = True
    """Open the page in the default browser."""
