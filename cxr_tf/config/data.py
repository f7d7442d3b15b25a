"""Settings of the commands that prepare data and weights."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from cxr_tf.config.flags import Task


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
