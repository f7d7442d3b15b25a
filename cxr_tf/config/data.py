"""Settings of the commands that prepare data and weights."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from cxr_tf.config.flags import Task


@dataclass(frozen=True, kw_only=True)
class PrepareData:
    """Download, generate or convert a data set, or check one.

    Prints classes, patients, splits and problems; --check also draws a figure, under
    logs/data/<name>/. Exits with code 2 if a problem would stop training.
    """

    check: str = ""
    """Folder, .csv list or .npz to check; nothing is prepared."""
    source: Literal["phantom", "kermany", "pneumoniamnist", "dicom"] = "phantom"
    """phantom: synthetic radiographs. kermany (1.2 GB) and pneumoniamnist: downloaded from their
    publishers. dicom: your own files, converted to PNG without the identifying header."""
    from_: Annotated[str, tyro.conf.arg(name="from")] = ""
    """kermany, pneumoniamnist: a mirror's URL, or the published file on disk. dicom: a file, a
    folder (subfolders such as NORMAL/ and PNEUMONIA/ give the labels), or a .csv list with the
    columns path and label."""
    out: str = ""
    """Output folder (pneumoniamnist: file); default: data/phantom-v1, data/kermany, data/dicom,
    data/pneumoniamnist_<size>.npz."""
    size: int | None = None
    """Side of the images in pixels. pneumoniamnist: 28, 64, 128 or 224 (default); phantom: 128 by
    default."""
    count: int = 800
    """Number of phantoms."""
    laterals: bool = False
    """dicom: also convert lateral views, which are otherwise listed and left out."""
    seed: int = 0
    """Seed of the phantoms, and of the splits if the data have none."""
    task: Task = "binary"
    """Task for which the data are checked."""
    logs: str = "logs"


@dataclass(frozen=True, kw_only=True)
class ConvertAlexNetWeights:
    """Convert torchvision's AlexNet weights to a file for --weights.

    Requires PyTorch.
    """

    state_dict: str
    """The file published by torchvision: alexnet-owt-7be5be79.pth."""
    out: str = "alexnet_notop.weights.h5"
