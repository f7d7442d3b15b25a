"""DICOM radiographs as 8-bit PNG, without anything that tells whose they are.

    png = png_bytes(Path("IM0001"))                          # for prediction
    convert(Path("ward"), Path("data/ward"))                 # images/*.png and catalogue.csv

Only the elements that the picture needs are read from a file at all, and two that tell which
images are of one patient; those leave as a hash under a random key that is not kept. Needs pydicom
(requirements-dicom.txt).
"""

import contextlib
import hashlib
import io
import logging
import os
import secrets
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxr_tf.data.conventions import label_of_folders, visible_files
from cxr_tf.data.lists import Listed, read_list
from cxr_tf.errors import UserError
from cxr_tf.files import temporary_sibling, write_csv

if TYPE_CHECKING:
    import pydicom

log = logging.getLogger(__name__)


SUFFIXES = (".dcm", ".dicom")

# Lateral by PS3.3 C.8.1.1.9 and what scanners write in its stead. LLD and RLD are frontal images of
# a patient who lies on one side.
LATERAL_VIEWS = {"LL", "RL", "LATERAL", "LAT"}

# All that is ever read. A name that is not in memory cannot be written.
_ELEMENTS = [
    *("PatientID", "StudyInstanceUID", "SOPInstanceUID", "ViewPosition", "BurnedInAnnotation"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
]


@dataclass(frozen=True)
class DicomRadiograph:
    """pixels: uint8 [H, W], air dark. patient: what tells patients apart; never to be written."""

    pixels: np.ndarray
    patient: str
    lateral: bool


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its name, or by its first bytes: scanners often give no suffix."""
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def is_lateral(path: Path) -> bool:
    """Whether a DICOM file is labelled as a lateral view; False where it cannot be read."""
    pydicom = _pydicom()
    try:
        with silent():
            return _is_lateral(pydicom.dcmread(path, specific_tags=["ViewPosition"]))
    except Exception:  # what it says could quote the file
        return False


def _is_lateral(dataset: "pydicom.Dataset") -> bool:
    return str(dataset.get("ViewPosition") or "").strip().upper() in LATERAL_VIEWS


def png_bytes(path: Path) -> bytes:
    """The radiograph in a DICOM file as an 8-bit gray PNG, pixels and nothing else.

    Raises UserError where it holds none.
    """
    return _png(read_radiograph(path).pixels)


def read_radiograph(path: Path) -> DicomRadiograph:
    """Reads one file and renders it as a workstation would: rescale, VOI LUT or window, polarity.

    Raises UserError that names the file and tells no more of its content than its kind.
    """
    pydicom = _pydicom()
    try:
        with silent(), path.open("rb") as file:
            return _read(pydicom.dcmread(file, specific_tags=_ELEMENTS), path)
    except pydicom.errors.InvalidDicomError:
        raise UserError(f"{path}: no DICOM file") from None
    except (UserError, MemoryError):
        raise
    except Exception as error:  # what it says could quote the file
        # Of the disk only what has a number: pydicom raises a bare OSError where a file ends early.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{path}: truncated or corrupt DICOM file") from None


def _read(dataset: "pydicom.Dataset", path: Path) -> DicomRadiograph:
    if "PixelData" not in dataset or not dataset.get("Rows"):
        raise UserError(f"{path}: a DICOM file without an image")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise UserError(f"{path}: {frames} frames; one radiograph to a file is read")
    if dataset.get("PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2"):
        raise UserError(f"{path}: a colour image, no radiograph")
    if str(dataset.get("BurnedInAnnotation", "")).upper() == "YES":
        raise UserError(f"{path}: text is burnt into the image, which may tell whose it is")
    try:
        pixels = _render(dataset)
    except Exception:
        syntax = dataset.file_meta.TransferSyntaxUID
        if not syntax.is_compressed:
            raise
        raise UserError(
            f"{path}: its pixels are compressed ({syntax.name}) and cannot be decoded: damaged, "
            "or no installed plug-in can (see requirements-dicom.txt)"
        ) from None
    # Without an identity the study keeps the images of one visit together.
    known = [str(dataset.get(k) or "").strip() for k in ("PatientID", "StudyInstanceUID")]
    patient = known[0] or known[1] or str(dataset.get("SOPInstanceUID") or path)
    return DicomRadiograph(pixels, patient, _is_lateral(dataset))


def convert(origin: Path, folder: Path, *, laterals: bool = False) -> tuple[Path, int]:
    """Converts a DICOM file, a folder of them, or a .csv list (path, label[, patient][, split]).

    Writes `folder`/images/<patient>_<n>.png and `folder`/catalogue.csv, whole or not at all. In a
    folder the labels are the names NORMAL, PNEUMONIA and so on of the folders in it. What is left
    out is listed with the reason. Returns the catalogue, and how many images in it have no label
    yet. Raises UserError where nothing can be converted.
    """
    if folder.exists():
        raise UserError(f"{folder} exists; remove it or choose another --out")
    listed = _find(origin)
    _pydicom()
    # Under a key that nobody keeps, a hash cannot be tried against a list of identities.
    key = secrets.token_bytes(32)
    images_of: Counter[str] = Counter()
    rows: list[list[str]] = []
    reasons: list[str] = []
    with temporary_sibling(folder) as partial:
        if folder.exists():  # another process was at it
            raise UserError(f"{folder} exists; remove it or choose another --out")
        (partial / "images").mkdir()
        for item in listed:
            try:
                radiograph = read_radiograph(item.path)
                if radiograph.lateral and not laterals:
                    raise UserError(f"{item.path}: a lateral view (see --laterals)")
            except (UserError, OSError) as error:
                told = str(error)
                if isinstance(error, OSError):
                    told = f"{item.path}: {error.strerror}"
                reasons.append(told)
                log.info("  left out: %s", told)
                continue
            identity = (item.patient or radiograph.patient).encode()
            patient = hashlib.blake2b(identity, key=key, digest_size=8).hexdigest()
            images_of[patient] += 1
            name = f"images/{patient}_{images_of[patient]:02d}.png"
            (partial / name).write_bytes(_png(radiograph.pixels))
            rows.append([name, item.label, patient, item.split])
            if not item.label:
                log.info("  no label: %s, now %s", item.path, name)
        if not rows:
            raise UserError(
                reasons[0]
                if len(reasons) == 1
                else f"none of {len(reasons)} DICOM files in {origin} could be converted"
            )
        write_csv(partial / "catalogue.csv", ["path", "label", "patient", "split"], rows)
        os.rename(partial, folder)
    log.info("%d of %d DICOM files converted, to %s", len(rows), len(listed), folder)
    return folder / "catalogue.csv", sum(not row[1] for row in rows)


def _find(origin: Path) -> list[Listed]:
    """The DICOM files to convert, with the labels known of them."""
    if not origin.exists():
        raise UserError(f"--from {origin}: no such file or folder")
    if origin.suffix.lower() == ".csv":
        return read_list(origin)
    if origin.is_file():
        return [Listed(str(origin), origin, "", "", "")]
    found = [path for path in visible_files(origin) if is_dicom(path)]
    if not found:
        raise UserError(f"no DICOM file in {origin}")
    rows = [(path, *label_of_folders(path, origin)) for path in found]
    return [Listed(str(path), path, label, "", split) for path, label, split in rows]


def _render(dataset: "pydicom.Dataset") -> np.ndarray:
    """uint8 [H, W] by the grey-scale pipeline of PS3.3 C.11: modality, VOI, polarity."""
    from pydicom.pixels import apply_modality_lut, apply_windowing

    values = np.asarray(apply_modality_lut(dataset.pixel_array, dataset))
    if dataset.get("VOILUTSequence"):
        table, first = _voi_table(dataset)
        shown = table[np.clip(np.round(values).astype(np.int64) - first, 0, len(table) - 1)]
        low, high = float(table.min()), float(table.max())
    elif dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        if "VOILUTFunction" in dataset and not dataset.VOILUTFunction:
            del dataset.VOILUTFunction  # empty means LINEAR, as does absence, which pydicom knows
        shown = apply_windowing(values, dataset)
        # What is below and above every window, whatever the range it maps to.
        with np.errstate(over="ignore"):
            low, high = apply_windowing(np.array([-1e9, 1e9]), dataset)
    else:
        shown, low, high = values, float(values.min()), float(values.max())
    share = np.clip((shown - low) / (high - low), 0, 1) if high != low else np.zeros(values.shape)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        share = 1 - share
    return np.round(255 * share).astype(np.uint8)


def _voi_table(dataset: "pydicom.Dataset") -> tuple[np.ndarray, int]:
    """The first VOI LUT and the value that its first entry is for.

    Read here, because pydicom's `apply_voi` holds the index in the type of the entries: an 8-bit
    table of 4096 entries wraps around at 256.
    """
    item = dataset.VOILUTSequence[0]
    count, first, bits = (int(v) for v in item.LUTDescriptor)
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        table = np.frombuffer(data, f"{order}u2" if len(data) >= 2 * (count or 65536) else "u1")
    else:
        table = np.asarray(data)
    return table[: count or 65536].astype(np.int64) & (2**bits - 1), first


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, format="PNG")
    return encoded.getvalue()


def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError:
        raise UserError("DICOM needs pydicom: pip install -r requirements-dicom.txt") from None
    return pydicom


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Silences pydicom, whose warnings quote the values that they are about."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
