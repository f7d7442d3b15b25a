"""Conversion of DICOM radiographs to 8-bit PNG, without identifying metadata.

    png = png_bytes(Path("IM0001"))                          # for prediction
    convert(Path("ward"), Path("data/ward"))                 # images/*.png and catalogue.csv

Only the elements that the picture needs are read from a file, and those that identify the patient;
the latter are written as a hash under a random key that is not kept. Needs pydicom
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
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from cxr_tf.data.conventions import label_of_folders, visible_files
from cxr_tf.data.lists import Listed, read_list
from cxr_tf.errors import UserError
from cxr_tf.files import temporary_sibling, write_csv

if TYPE_CHECKING:
    import pydicom

log = logging.getLogger(__name__)


SUFFIXES = (".dcm", ".dicom")

# Lateral by PS3.3 C.8.1.1.9, and what scanners write instead. LLD and RLD are frontal images of a
# patient lying on one side.
LATERAL_VIEWS = {"LL", "RL", "LATERAL", "LAT"}

# The only elements that are read. A name that is not in memory cannot be written.
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
    """One rendered radiograph.

    pixels: uint8 [H, W], air dark. patient: an identifier that must never be written.
    """

    pixels: np.ndarray
    patient: str
    lateral: bool


def is_dicom(path: Path) -> bool:
    """Return whether a file is DICOM, by its suffix or, as scanners often omit it, its content."""
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
    """Return the radiograph in a DICOM file as an 8-bit gray PNG without metadata.

    Raises UserError where it holds none.
    """
    return _png(read_radiograph(path).pixels)


def has_dicom_content(content: bytes, name: str) -> bool:
    """Whether bytes are those of a DICOM file, by its name or by themselves."""
    return name.lower().endswith(SUFFIXES) or content[128:132] == b"DICM"


def png_of_content(content: bytes, name: str) -> bytes:
    """The same as `png_bytes`, of the content of a file, which errors call by `name`."""
    return _png(_radiograph(io.BytesIO(content), name).pixels)


def read_radiograph(path: Path) -> DicomRadiograph:
    """Read one file and render it as a workstation does: rescale, VOI LUT or window, polarity.

    Raises UserError that names the file and quotes none of its content.
    """
    with path.open("rb") as file:
        return _radiograph(file, path)


def _radiograph(file: IO[bytes], path: Path | str) -> DicomRadiograph:
    pydicom = _pydicom()
    try:
        with silent():
            return _read(pydicom.dcmread(file, specific_tags=_ELEMENTS), path)
    except pydicom.errors.InvalidDicomError:
        raise UserError(f"{path}: not a DICOM file") from None
    except (UserError, MemoryError):
        raise
    except Exception as error:  # its message could quote the file
        # Errors of the disk have a number: pydicom raises a bare OSError where a file ends early.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{path}: truncated or corrupt DICOM file") from None


def _read(dataset: "pydicom.Dataset", path: Path | str) -> DicomRadiograph:
    if "PixelData" not in dataset or not dataset.get("Rows"):
        raise UserError(f"{path}: a DICOM file without an image")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise UserError(f"{path}: {frames} frames; only files with one radiograph are supported")
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
    """Convert a DICOM file, a folder of them, or a .csv list (path, label[, patient][, split]).

    Writes `folder`/images/<patient>_<n>.png and `folder`/catalogue.csv, whole or not at all. In a
    folder the labels are the names NORMAL, PNEUMONIA and so on of the folders in it. Files left out
    are logged with the reason. Returns the path of the catalogue, and the number of images without
    a label. Raises UserError where nothing can be converted.
    """
    if folder.exists():
        raise UserError(f"{folder} exists; remove it or choose another --out")
    listed = _files_to_convert(origin)
    _pydicom()
    # With a discarded key, the hashes cannot be tested against a list of identities.
    key = secrets.token_bytes(32)
    images_of: Counter[str] = Counter()
    rows: list[list[str]] = []
    reasons: list[str] = []
    with temporary_sibling(folder) as partial:
        if folder.exists():  # written by another process meanwhile
            raise UserError(f"{folder} exists; remove it or choose another --out")
        (partial / "images").mkdir()
        for item in listed:
            try:
                radiograph = read_radiograph(item.path)
                if radiograph.lateral and not laterals:
                    raise UserError(f"{item.path}: a lateral view (see --laterals)")
            except (UserError, OSError) as error:
                reason = str(error)
                if isinstance(error, OSError):
                    reason = f"{item.path}: {error.strerror}"
                reasons.append(reason)
                log.info("  left out: %s", reason)
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


def _files_to_convert(origin: Path) -> list[Listed]:
    """Return the DICOM files to convert, with their known labels."""
    if not origin.exists():
        raise UserError(f"--from {origin}: no such file or folder")
    if origin.suffix.lower() == ".csv":
        return read_list(origin)
    if origin.is_file():
        return [Listed(str(origin), origin, "", "", "")]
    files = [path for path in visible_files(origin) if is_dicom(path)]
    if not files:
        raise UserError(f"no DICOM file in {origin}")
    rows = [(path, *label_of_folders(path, origin)) for path in files]
    return [Listed(str(path), path, label, "", split) for path, label, split in rows]


def _render(dataset: "pydicom.Dataset") -> np.ndarray:
    """Render uint8 [H, W] by the greyscale pipeline of PS3.3 C.11: modality, VOI, polarity."""
    from pydicom.pixels import apply_modality_lut, apply_windowing

    values = np.asarray(apply_modality_lut(dataset.pixel_array, dataset))
    if dataset.get("VOILUTSequence"):
        table, first = _voi_table(dataset)
        shown = table[np.clip(np.round(values).astype(np.int64) - first, 0, len(table) - 1)]
        low, high = float(table.min()), float(table.max())
    elif dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        if "VOILUTFunction" in dataset and not dataset.VOILUTFunction:
            del dataset.VOILUTFunction  # empty means LINEAR, as does absence, which pydicom handles
        shown = apply_windowing(values, dataset)
        # The values below and above every window give the output range.
        with np.errstate(over="ignore"):
            low, high = apply_windowing(np.array([-1e9, 1e9]), dataset)
    else:
        shown, low, high = values, float(values.min()), float(values.max())
    share = np.clip((shown - low) / (high - low), 0, 1) if high != low else np.zeros(values.shape)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        share = 1 - share
    return np.round(255 * share).astype(np.uint8)


def _voi_table(dataset: "pydicom.Dataset") -> tuple[np.ndarray, int]:
    """Return the first VOI LUT and the value of its first entry.

    pydicom's `apply_voi` holds the index in the type of the entries, so that an 8-bit table of 4096
    entries wraps around at 256.
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
    """Silence pydicom, whose warnings quote values of the file."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
