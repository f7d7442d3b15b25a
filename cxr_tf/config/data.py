"""Settings of the commands that prepare data and weights."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from cxr_tf.config.flags import Task


@dataclass(frozen=True, kw_only=True)
class PrepareData:
    """Download, generate or convert a data set, or check one.

    Prints classes, patients, splits and problems; --check also writes figures of them, under
    logs/data/<name>/. Exits with code 2 if there is a problem that stops training.
    """

    check: str = ""
    """Folder, .csv list or .npz to check; nothing is prepared."""
    source: Literal["phantom", "kermany", "pneumoniamnist", "dicom"] = "phantom"
    """phantom: synthetic radiographs. kermany (1.2 GB) and pneumoniamnist: downloaded from their
    publishers. dicom: converts your own files to PNG and drops the identifying header."""
    from_: Annotated[str, tyro.conf.arg(name="from")] = ""
    """kermany, pneumoniamnist: a mirror's URL, or the published file on disk. dicom: a file, a
    folder (NORMAL/ and PNEUMONIA/ in it give the labels), or a .csv list of path and label."""
    out: str = ""
    """Output folder (pneumoniamnist: file); default: data/phantom-v1, data/kermany, data/dicom,
    data/pneumoniamnist_<size>.npz."""
    size: int | None = None
    """Side in pixels. pneumoniamnist: 28, 64, 128 or 224 (default); phantom: default 128."""
    count: int = 800
    """Number of phantoms."""
    laterals: bool = False
    """dicom: also convert lateral views, which are otherwise listed and left out."""
    seed: int = 0
    """Seed of the phantoms, and of the splits, if the data have none."""
    task: Task = "binary"
    """Task that the data are checked for."""
    logs: str = "logs"


@dataclass(frozen=True, kw_only=True)
class ConvertAlexNetWeights:
    """Convert torchvision's AlexNet weights to a file for --weights.

    Requires PyTorch.
    """

    state_dict: str
    """The file published by torchvision: alexnet-owt-7be5be79.pth."""
    out: str = "alexnet_notop.weights.h5"
