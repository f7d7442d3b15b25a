"""Render DICOM radiographs to 8 bits by the greyscale pipeline of PS3.3 C.11."""

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cxr_tf.errors import UserError

if TYPE_CHECKING:
    import pydicom

log = logging.getLogger(__name__)

ELEMENTS = (
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "PresentationLUTShape"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
)

_REQUIRED = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation")

# JPEG compression makes the channels of a gray image differ by at most this many levels.
_CHANNEL_TOLERANCE = 6

# Without a window, the full range of the image is shown. If the central 98 % of its pixels fill
# less than half of that range, as with a bright marker, only their range is shown, with a tenth
# added on either side.
_CENTRAL, _FILLED, _EXTENSION = (1, 99), 0.5, 0.1


def render(dataset: "pydicom.Dataset", path: Path | str) -> np.ndarray:
    """Render a data set as a workstation does, uint8 [H, W] with dark air.

    Raises UserError with the reason, which quotes no value of the file.
    """
    from pydicom.pixels import apply_modality_lut

    stored = _stored_values(dataset, path)
    padding = _padding(dataset, stored)
    values = np.asarray(apply_modality_lut(stored, dataset), np.float64)
    image = values[~padding] if not padding.all() else values.ravel()
    shown, low, high = _windowed(dataset, values, image, path)
    share = np.clip((shown - low) / (high - low), 0, 1) if high != low else np.zeros(values.shape)
    # PS3.3 C.8.11.3: INVERSE belongs to MONOCHROME1; with MONOCHROME2 it has the same meaning.
    photometric = dataset.PhotometricInterpretation
    shape = str(dataset.get("PresentationLUTShape") or "").strip().upper()
    if photometric == "MONOCHROME1" or shape == "INVERSE":
        share = 1 - share
    return np.round(255 * np.where(padding, 0, share)).astype(np.uint8)


def _stored_values(dataset: "pydicom.Dataset", path: Path | str) -> np.ndarray:
    """Return the stored pixel values [H, W]; raise UserError if the image is not gray."""
    if missing := [name for name in _REQUIRED if dataset.get(name) is None]:
        raise UserError(f"{path}: a DICOM file without the element {missing[0]}")
    samples = int(dataset.get("SamplesPerPixel") or 1)
    photometric = str(dataset.get("PhotometricInterpretation") or "").strip().upper()
    if not photometric:
        photometric = "MONOCHROME2" if samples == 1 else "RGB"
        log.info("  %s: no PhotometricInterpretation, read as %s", path, photometric)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = samples, photometric
    if samples == 1 and not photometric.startswith("MONOCHROME"):
        raise UserError(f"{path}: a colour image, not a radiograph")
    try:
        stored = dataset.pixel_array
    except Exception as error:
        syntax = dataset.file_meta.TransferSyntaxUID
        if syntax.is_compressed:
            raise UserError(
                f"{path}: its pixels are compressed ({syntax.name}) and cannot be decoded: they "
                "are damaged, or no installed plug-in supports them (see requirements-dicom.txt)"
            ) from None
        length = len(dataset.PixelData) * 8
        if length < dataset.Rows * dataset.Columns * samples * dataset.BitsAllocated:
            raise UserError(f"{path}: truncated: fewer pixels than the header states") from None
        raise UserError(
            f"{path}: its pixels cannot be read ({type(error).__name__}): truncated or corrupt "
            "DICOM file"
        ) from None
    if stored.ndim == 3:
        if int(np.ptp(stored.astype(np.int64), axis=-1).max()) > _CHANNEL_TOLERANCE:
            raise UserError(f"{path}: a colour image, not a radiograph")
        dataset.PhotometricInterpretation = "MONOCHROME2"
        stored = stored[..., 0]
    return stored


def _padding(dataset: "pydicom.Dataset", stored: np.ndarray) -> np.ndarray:
    """Return which pixels are padding (PS3.3 C.7.5.1.1.2), bool [H, W]."""
    limits = [dataset.get(k) for k in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if limits[0] is None:
        return np.zeros(stored.shape, bool)
    numbers = [int(v) for v in limits if v is not None]
    # The value may be written as the unsigned number with the same bits.
    if stored.dtype.kind == "i":
        top = 1 << int(dataset.BitsAllocated)
        numbers = [v - top if v >= top // 2 else v for v in numbers]
    return (stored >= min(numbers)) & (stored <= max(numbers))


def _windowed(
    dataset: "pydicom.Dataset", values: np.ndarray, image: np.ndarray, path: Path | str
) -> tuple[np.ndarray, float, float]:
    """Return values after the VOI LUT or window, and the range to show.

    image: the values of all pixels except padding.
    """
    from pydicom.pixels import apply_windowing

    if dataset.get("VOILUTSequence"):
        table, first = _voi_table(dataset)
        shown = table[np.clip(np.round(values).astype(np.int64) - first, 0, len(table) - 1)]
        return shown, float(table.min()), float(table.max())
    if dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        # An empty element means LINEAR, as does a missing one; pydicom handles only the latter.
        if "VOILUTFunction" in dataset:
            function = str(dataset.VOILUTFunction or "").strip().upper()
            del dataset.VOILUTFunction
            if function:
                dataset.VOILUTFunction = function
        if _possible_window(dataset, image):
            shown = apply_windowing(values, dataset)
            # The values below and above every window give the output range.
            with np.errstate(over="ignore"):
                low, high = apply_windowing(np.array([-1e9, 1e9]), dataset)
            return shown, float(low), float(high)
        log.info("  %s: a window that is invalid or shows nothing of the image is ignored", path)
    low, high = float(image.min()), float(image.max())
    central_low, central_high = (float(v) for v in np.percentile(image, _CENTRAL))
    width = central_high - central_low
    if 0 < width < _FILLED * (high - low):
        low = max(low, central_low - _EXTENSION * width)
        high = min(high, central_high + _EXTENSION * width)
    return values, low, high


def _possible_window(dataset: "pydicom.Dataset", image: np.ndarray) -> bool:
    """Return whether the first window has a valid width, and shows a part of the image's range."""

    def first(value: object) -> float:
        values = value if isinstance(value, list | tuple) or hasattr(value, "__iter__") else [value]
        return float(next(iter(values)))  # type: ignore[call-overload]

    try:
        centre, width = first(dataset.WindowCenter), first(dataset.WindowWidth)
    except (TypeError, ValueError, StopIteration):
        return False
    linear = str(dataset.get("VOILUTFunction") or "LINEAR") == "LINEAR"
    if not (math.isfinite(centre) and math.isfinite(width)) or width < (1 if linear else 1e-6):
        return False
    return bool(image.max() > centre - width / 2 and image.min() < centre + width / 2)


def _voi_table(dataset: "pydicom.Dataset") -> tuple[np.ndarray, int]:
    """Return the first VOI LUT and the value of its first entry.

    Used instead of pydicom's `apply_voi`, which stores the index in the data type of the entries,
    so that it wraps around at 256 in an 8-bit table of 4096 entries.
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
