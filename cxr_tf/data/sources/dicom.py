"""Convert DICOM radiographs to 8-bit PNG, without identifying metadata.

    png = png_bytes(Path("IM0001"))                          # for prediction
    convert(Path("ward"), Path("data/ward"))                 # images/*.png and catalogue.csv

Only the elements that the image needs and those that identify the patient are read from a file. The
identity is written only as a hash with a random key, which is discarded. Requires pydicom
(requirements-dicom.txt).
"""

import contextlib
import hashlib
import io
import logging
import secrets
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from cxr_tf.data.reading.conventions import label_of_folders, visible_files
from cxr_tf.data.reading.lists import Listed, placeholder_patient, read_list
from cxr_tf.data.sources.burned_in_text import has_text
from cxr_tf.data.sources.dicom_rendering import ELEMENTS, render
from cxr_tf.errors import UserError
from cxr_tf.files import publish, temporary_sibling, write_csv

if TYPE_CHECKING:
    import pydicom

log = logging.getLogger(__name__)


SUFFIXES = (".dcm", ".dicom")

# Codes of lateral views in PS3.3 C.8.1.1.9, and what scanners write instead of them. LLD and RLD
# are frontal images of a patient lying on one side.
LATERAL_VIEWS = {"LL", "RL", "LATERAL", "LAT"}

# PS3.3 C.7.3.1.1.1: computed and digital radiography, and modalities used for scanned films.
RADIOGRAPHY = {"CR", "DX", "DR", "RG", "OT", "SC", "XR", "RF"}

# PS3.16, annex L, and common additions.
CHEST_PARTS = {"CHEST", "THORAX", "LUNG", "LUNGS", "CHESTABDOMEN", "CHEST PA", "CHEST AP", "RIBS"}

# Values of PatientID that identify nobody.
PLACEHOLDERS = {"ANONYMOUS", "ANON", "ANONYMIZED", "ANONYMISED", "UNKNOWN", "NONE", "NA", "0", "-"}

# The only elements that are read. A name that is not in memory cannot be written.
_ELEMENTS = [
    *("PatientID", "StudyInstanceUID", "SOPInstanceUID", "BurnedInAnnotation"),
    *("Modality", "BodyPartExamined", "ViewPosition", "PresentationIntentType"),
    *ELEMENTS,
]

# A file without a preamble begins with one of these elements, in little endian.
_FIRST_ELEMENTS = {(2, 0), (2, 1), (2, 2), (8, 0), (8, 1), (8, 5), (8, 8), (8, 0x16), (8, 0x18)}


@dataclass(frozen=True)
class DicomRadiograph:
    """One rendered radiograph.

    pixels: uint8 [H, W], with dark air. patient, study: identifiers that must never be written;
    patient is empty if the file has none. without_text: whether the file states that no text is
    burned in.
    """

    pixels: np.ndarray
    patient: str
    study: str
    without_text: bool


def is_dicom(path: Path) -> bool:
    """Return whether a file is DICOM, by its suffix or, as that is often missing, its content."""
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            head = file.read(132)
    except OSError:
        return False
    first = tuple(int.from_bytes(head[k : k + 2], "little") for k in (0, 2))
    return head[128:] == b"DICM" or (len(head) == 132 and first in _FIRST_ELEMENTS)


def png_bytes(path: Path) -> bytes:
    """Return the radiograph in a DICOM file as an 8-bit gray PNG without metadata.

    Raises UserError if the file does not contain one.
    """
    return _png(read_radiograph(path).pixels)


def has_dicom_content(content: bytes, name: str) -> bool:
    """Return whether a file is DICOM, by its name or by its content."""
    return name.lower().endswith(SUFFIXES) or content[128:132] == b"DICM"


def png_of_content(content: bytes, name: str) -> bytes:
    """Convert the content of a DICOM file as `png_bytes` does; error messages call it `name`."""
    return _png(_radiograph(io.BytesIO(content), name).pixels)


def read_radiograph(path: Path, *, laterals: bool = False) -> DicomRadiograph:
    """Read one file and render it as a workstation does: rescale, VOI LUT or window, polarity.

    laterals: accept lateral views. Raises UserError for anything but a frontal chest radiograph for
    presentation; the message names the file and the reason, and quotes no identifying content.
    """
    with path.open("rb") as file:
        return _radiograph(file, path, laterals=laterals)


def _radiograph(file: IO[bytes], path: Path | str, *, laterals: bool = False) -> DicomRadiograph:
    pydicom = _pydicom()
    try:
        with silent():
            try:
                dataset = pydicom.dcmread(file, specific_tags=_ELEMENTS)
            except pydicom.errors.InvalidDicomError:
                file.seek(0)
                dataset = _without_preamble(file, path)
            return _read(dataset, path, laterals=laterals)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # its message could quote the file
        # Disk errors have a number; pydicom raises an OSError without one if a file ends early.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{path}: truncated or corrupt DICOM file") from None


def _without_preamble(file: IO[bytes], path: Path | str) -> "pydicom.Dataset":
    """Read a file that has no preamble, and perhaps no file meta information."""
    pydicom = _pydicom()
    try:
        dataset = pydicom.dcmread(file, specific_tags=_ELEMENTS, force=True)
    except Exception:
        raise UserError(f"{path}: not a DICOM file") from None
    if not len(dataset):
        raise UserError(f"{path}: not a DICOM file")
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        uid = pydicom.uid
        dataset.file_meta.TransferSyntaxUID = (
            uid.ImplicitVRLittleEndian
            if implicit
            else uid.ExplicitVRLittleEndian
            if little
            else uid.ExplicitVRBigEndian
        )
    return dataset


def _read(dataset: "pydicom.Dataset", path: Path | str, *, laterals: bool) -> DicomRadiograph:
    if "PixelData" not in dataset or not dataset.get("Rows"):
        raise UserError(f"{path}: a DICOM file without an image")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise UserError(f"{path}: {frames} frames; only files with one radiograph are supported")
    if reason := refusal(dataset, laterals=laterals):
        raise UserError(f"{path}: {reason}")
    annotation = _word(dataset, "BurnedInAnnotation")
    if annotation == "YES":
        raise UserError(
            f"{path}: the header states that text is burned into the image, which may identify the "
            "patient"
        )
    pixels = render(dataset, path)
    patient = str(dataset.get("PatientID") or "").strip()
    study = str(dataset.get("StudyInstanceUID") or dataset.get("SOPInstanceUID") or path).strip()
    if patient.upper() in PLACEHOLDERS:
        patient = ""
    return DicomRadiograph(pixels, patient, study, annotation == "NO")


def refusal(dataset: "pydicom.Dataset", *, laterals: bool = False) -> str:
    """Return why a file is not a frontal chest radiograph for presentation; empty if it is.

    Missing or empty elements are no reason to refuse. Conversion and prediction use the same rule.
    """
    modality, part = _word(dataset, "Modality"), _word(dataset, "BodyPartExamined")
    if modality and modality not in RADIOGRAPHY:
        return (
            f"not a radiograph: modality {modality}" if modality.isalpha() else "not a radiograph"
        )
    if part and part not in CHEST_PARTS and "CHEST" not in part and "THORAX" not in part:
        return (
            f"not a chest radiograph: body part {part}"
            if part.isalpha()
            else "not a chest radiograph"
        )
    if _word(dataset, "ViewPosition") in LATERAL_VIEWS and not laterals:
        return "a lateral view (see --laterals of prepare_data.py)"
    if _word(dataset, "PresentationIntentType") == "FOR PROCESSING":
        return "raw detector data (FOR PROCESSING): export the image FOR PRESENTATION"
    return ""


def _word(dataset: "pydicom.Dataset", name: str) -> str:
    return str(dataset.get(name) or "").strip().upper()


def convert(origin: Path, folder: Path, *, laterals: bool = False) -> tuple[Path, int]:
    """Convert a DICOM file, a folder of them, or a .csv list (path, label[, patient][, split]).

    Writes `folder`/images/<patient>_<n>.png and `folder`/catalogue.csv, whole or not at all. The
    labels of a folder are the names of its subfolders, such as NORMAL and PNEUMONIA. Files that are
    left out are logged with the reason. Returns the path of the catalogue, and the number of images
    without a label. Raises UserError if nothing can be converted.
    """
    if folder.exists():
        raise UserError(f"{folder} exists; remove it or choose another --out")
    listed = _files_to_convert(origin)
    _pydicom()
    placeholder = _placeholder([item.path for item in listed])
    # The key is discarded, so that hashes cannot be compared with those of known identities.
    key = secrets.token_bytes(32)
    images_of: Counter[str] = Counter()
    rows: list[list[str]] = []
    reasons: list[str] = []
    with_text: list[str] = []
    with temporary_sibling(folder) as partial:
        if folder.exists():  # written by another process meanwhile
            raise UserError(f"{folder} exists; remove it or choose another --out")
        (partial / "images").mkdir()
        for item in listed:
            try:
                radiograph = read_radiograph(item.path, laterals=laterals)
            except (UserError, OSError) as error:
                reason = str(error)
                if isinstance(error, OSError):
                    reason = f"{item.path}: {error.strerror}"
                reasons.append(reason)
                log.info("  left out: %s", reason)
                continue
            known = radiograph.patient if radiograph.patient != placeholder else ""
            # Without an identity, the study groups the images of one visit.
            identity = (item.patient or known or radiograph.study).encode()
            patient = hashlib.blake2b(identity, key=key, digest_size=8).hexdigest()
            images_of[patient] += 1
            name = f"images/{patient}_{images_of[patient]:02d}.png"
            (partial / name).write_bytes(_png(radiograph.pixels))
            rows.append([name, item.label, patient, item.split])
            if not item.label:
                log.info("  no label: %s, converted to %s", item.path, name)
            if not radiograph.without_text and has_text(radiograph.pixels):
                with_text.append(name)
        if not rows:
            raise UserError(
                reasons[0]
                if len(reasons) == 1
                else f"none of {len(reasons)} DICOM files in {origin} could be converted; the "
                "reasons are listed above"
            )
        write_csv(partial / "catalogue.csv", ["path", "label", "patient", "split"], rows)
        publish(partial, folder)
    log.info("%d of %d DICOM files converted, to %s", len(rows), len(listed), folder)
    for name in with_text:
        log.info("  possible text in the image, inspect it before you share it: %s", folder / name)
    return folder / "catalogue.csv", sum(not row[1] for row in rows)


def _placeholder(paths: list[Path]) -> str:
    """Return and log the PatientID that nearly all files share, or an empty string."""
    pydicom = _pydicom()
    patients, studies = [], set()
    for path in paths:
        try:
            with silent():
                header = pydicom.dcmread(
                    path,
                    specific_tags=["PatientID", "StudyInstanceUID"],
                    stop_before_pixels=True,
                    force=True,
                )
            patients.append(str(header.get("PatientID") or "").strip())
            studies.add(str(header.get("StudyInstanceUID") or path))
        except Exception:  # its message could quote the file; the conversion reports it
            continue
    value = placeholder_patient(patients)
    count = sum(p.upper() in PLACEHOLDERS for p in patients) or patients.count(value)
    if (value and len(studies) > 1) or any(p.upper() in PLACEHOLDERS for p in patients):
        log.info(
            "  %d of %d files have a placeholder as PatientID: their images are grouped by study, "
            "not by patient", count, len(patients),
        )  # fmt: skip
    return value if len(studies) > 1 else ""


def _files_to_convert(origin: Path) -> list[Listed]:
    """Return the DICOM files to convert, with their known labels."""
    if not origin.exists():
        raise UserError(f"--from {origin}: no such file or folder")
    if origin.suffix.lower() == ".csv":
        listed, notes = read_list(origin)
        for note in notes:
            log.info("  note: %s", note)
        return listed
    if origin.is_file():
        return [Listed(str(origin), origin, "", "", "")]
    files = [path for path in visible_files(origin) if is_dicom(path)]
    if not files:
        raise UserError(f"no DICOM file in {origin}")
    rows = [(path, *label_of_folders(path, origin)) for path in files]
    return [Listed(str(path), path, label, "", split) for path, label, split in rows]


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
