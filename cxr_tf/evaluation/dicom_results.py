"""Results as DICOM: a structured report and a heatmap for one radiograph.

    source = read_header(Path("IM0001"))
    report = structured_report(source, prediction, algorithm, series)
    report.save_as("report.dcm", enforce_file_format=True)

The report follows TID 1500 (PS3.16, Measurement Report). The heatmap is a secondary capture in
colour, which every viewer shows. Both refer to the source image, have new UIDs, and carry the
patient and study of the source and no other identity. Needs highdicom (requirements-dicom.txt).
"""

import hashlib
import re
import warnings
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxr_tf.data.sources.dicom import silent
from cxr_tf.errors import UserError
from cxr_tf.serving.prediction.remarks import remarks

if TYPE_CHECKING:
    import pydicom

NOTICE = "For research use only. Not for diagnosis."
MANUFACTURER = "cxr_tf"

# SNOMED CT codes for the classes of the built-in tasks. Other labels get a code in OWN_SCHEME.
FINDINGS = {
    "normal": ("17621005", "Normal"),
    "pneumonia": ("233604007", "Pneumonia"),
    "bacterial": ("53084003", "Bacterial pneumonia"),
    "viral": ("75570004", "Viral pneumonia"),
    "anomaly": ("263654008", "Abnormal"),
}
OWN_SCHEME = "99CXRTF"

# Numbers of the two series, chosen so that they do not clash with those of a scanner.
REPORT_SERIES, HEATMAP_SERIES = 9100, 9101

# Without these elements, a result cannot refer to the image.
_IDENTIFIERS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")

# Type 2 elements of the Patient and General Study modules: they may be empty, but not absent.
_TYPE_2 = [
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
]

# The outputs of the signatures that are reported as numbers, with their meaning.
_NUMBERS = {
    "score": "Anomaly score",
    "threshold": "Anomaly threshold",
    "percentile": "Percentile among healthy validation images",
    "novelty": "Novelty",
}


@dataclass(frozen=True)
class Algorithm:
    """The model that made a prediction, as the report names it."""

    name: str
    version: str
    threshold: float | None = None


@dataclass
class ResultSeries:
    """The two series, of reports and of heatmaps, that one run adds to a study."""

    report_uid: str
    heatmap_uid: str
    count: int = 0


@dataclass
class SeriesOfStudies:
    """The series of each study, created with the first image of the study."""

    by_study: dict[str, ResultSeries] = field(default_factory=dict)

    def of(self, source: "pydicom.Dataset") -> ResultSeries:
        """Return the series of the study that an image belongs to, with its count raised by one."""
        highdicom()
        from highdicom import UID

        study = str(source.StudyInstanceUID)
        if study not in self.by_study:
            self.by_study[study] = ResultSeries(str(UID()), str(UID()))
        series = self.by_study[study]
        series.count += 1
        return series


def highdicom() -> Any:
    """Import and return highdicom; raise UserError if it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import highdicom
    except ImportError:
        raise UserError(
            "--format dicom needs highdicom: pip install -r requirements-dicom.txt"
        ) from None
    return highdicom


def read_header(path: Path) -> "pydicom.Dataset":
    """Read all elements of a DICOM file except the pixels, so that a report can refer to it.

    Absent elements that may be empty are added as empty elements. Raises UserError if the file is
    not DICOM, or lacks a UID that the report needs.
    """
    import pydicom

    with silent():
        try:
            source = pydicom.dcmread(path, stop_before_pixels=True)
        except pydicom.errors.InvalidDicomError:
            raise UserError(f"{path}: not a DICOM file") from None
        for keyword in _IDENTIFIERS:
            if not source.get(keyword):
                raise UserError(f"{path}: no {keyword}, so a report cannot refer to this image")
        for keyword in _TYPE_2:
            if keyword not in source:
                setattr(source, keyword, "")
        # Unicode, because names of patients and classes may be in different scripts.
        source.decode()
        source.SpecificCharacterSet = "ISO_IR 192"
        if source.PatientSex not in ("", "M", "F", "O"):
            source.PatientSex = ""
    return source


def structured_report(
    source: "pydicom.Dataset",
    prediction: dict[str, Any],
    algorithm: Algorithm,
    series: ResultSeries,
    heatmap: "pydicom.Dataset | None" = None,
) -> "pydicom.Dataset":
    """Return a Comprehensive SR document with the prediction in one measurement group (TID 1501).

    prediction: the outputs of `serving_default` for this image in plain types: `label` and
    `probabilities` {class: probability}, or `score`, `threshold`, `is_anomaly`; and, where
    present, `novelty`, `is_novel`, `prediction_set`. heatmap: the heatmap's DICOM object.
    """
    hd = highdicom()
    from highdicom import sr
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from pydicom.sr.codedict import codes

    label = prediction.get("label") or ("anomaly" if prediction["is_anomaly"] else "normal")
    probabilities: dict[str, float] = prediction.get("probabilities", {})
    measurements = []
    if label in probabilities:
        # PS3.16 gives certainties in percent (in TID 4006, for example).
        measurements.append(
            _number(codes.DCM.CertaintyOfFinding, 100 * probabilities[label], codes.UCUM.Percent)
        )
    for name, value in probabilities.items():
        concept = _own_code(f"PROB-{name}", f"Probability of {name}")
        measurements.append(_number(concept, value, codes.UCUM.NoUnits))
    if algorithm.threshold is not None and len(probabilities) == 2:
        positive = list(probabilities)[1]
        concept = _own_code("OPERATING-POINT", f"Operating point for {positive}")
        measurements.append(_number(concept, algorithm.threshold, codes.UCUM.NoUnits))
    for name, meaning in _NUMBERS.items():
        if prediction.get(name) is not None:
            unit = codes.UCUM.Percent if name == "percentile" else codes.UCUM.NoUnits
            measurements.append(_number(_own_code(name, meaning), prediction[name], unit))
    evaluations = []
    if "is_novel" in prediction:
        answer = codes.SCT.Yes if prediction["is_novel"] else codes.SCT.No
        concept = _own_code("IS-NOVEL", "Unlike the training images")
        evaluations.append(sr.QualitativeEvaluation(name=concept, value=answer))
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=hd.UID(), identifier=algorithm.name),
        finding_type=_finding(label),
        algorithm_id=sr.AlgorithmIdentification(
            name=algorithm.name,
            version=algorithm.version,
            parameters=[NOTICE],
            manufacturer=MANUFACTURER,
        ),
        measurements=measurements,
        qualitative_evaluations=evaluations or None,
        source_images=[sr.SourceImageForMeasurementGroup.from_source_image(source)],
    )
    contents = group[0].ContentSequence
    for text in [NOTICE, *remarks(prediction)]:
        contents.append(
            sr.TextContentItem(
                name=codes.DCM.Comment,
                value=text,
                relationship_type=sr.RelationshipTypeValues.CONTAINS,
            )
        )
    if heatmap is not None:
        contents.append(
            sr.ImageContentItem(
                name=codes.DCM.BestIllustrationOfFinding,
                referenced_sop_class_uid=heatmap.SOPClassUID,
                referenced_sop_instance_uid=heatmap.SOPInstanceUID,
                relationship_type=sr.RelationshipTypeValues.CONTAINS,
            )
        )
    observer = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=hd.UID(),
            name=algorithm.name[:64],
            manufacturer_name=MANUFACTURER,
            model_name=algorithm.name[:64],
        ),
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=sr.CodedConcept("399208008", "SCT", "Plain chest X-ray"),
        imaging_measurements=[group],
        title=codes.DCM.ImagingMeasurementReport,
        referenced_images=None,
    )
    with silent():
        return sr.ComprehensiveSR(
            evidence=[source] if heatmap is None else [source, heatmap],
            content=content[0],
            series_instance_uid=series.report_uid,
            series_number=REPORT_SERIES,
            sop_instance_uid=hd.UID(),
            instance_number=series.count,
            series_description="AI result, for research use only",
            is_complete=True,
            coding_schemes=[
                CodingSchemeIdentificationItem(
                    designator=OWN_SCHEME, name="Classes and outputs of a cxr_tf model"
                )
            ],
            **_equipment(algorithm),
        )


def heatmap_capture(
    source: "pydicom.Dataset",
    picture: np.ndarray,
    description: str,
    algorithm: Algorithm,
    series: ResultSeries,
) -> "pydicom.Dataset":
    """Return a picture, uint8 [H, W, 3], as a Secondary Capture Image in the source's study."""
    hd = highdicom()
    from highdicom import sc
    from pydicom.dataset import Dataset
    from pydicom.sr.codedict import codes
    from pydicom.uid import ExplicitVRLittleEndian

    with silent():
        capture = sc.SCImage.from_ref_dataset(
            ref_dataset=source,
            pixel_array=np.ascontiguousarray(picture),
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "F"),
            series_instance_uid=series.heatmap_uid,
            series_number=HEATMAP_SERIES,
            sop_instance_uid=hd.UID(),
            instance_number=series.count,
            series_description="AI heatmap, for research use only",
            transfer_syntax_uid=ExplicitVRLittleEndian,
            specific_character_set=source.SpecificCharacterSet,
            **_equipment(algorithm),
        )
    # highdicom requires a value; leave it empty if the source does not state it.
    orientation: Any = source.get("PatientOrientation") or ""
    capture.PatientOrientation = orientation
    capture.BodyPartExamined = "CHEST"
    capture.ConversionType = "WSD"
    capture.DerivationDescription = description
    capture.BurnedInAnnotation = "NO"
    reference = Dataset()
    reference.ReferencedSOPClassUID = source.SOPClassUID
    reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    purpose = Dataset()
    code = codes.DCM.SourceImageForImageProcessingOperation
    purpose.CodeValue, purpose.CodingSchemeDesignator = code.value, code.scheme_designator
    purpose.CodeMeaning = code.meaning
    reference.PurposeOfReferenceCodeSequence = [purpose]
    capture.SourceImageSequence = [reference]
    return capture


def _number(concept: Any, value: float, unit: Any) -> Any:
    from highdicom import sr

    # A decimal string in DICOM has at most 16 characters.
    return sr.Measurement(name=concept, value=float(f"{value:.6g}"), unit=unit)


def _finding(label: str) -> Any:
    from highdicom import sr

    if label in FINDINGS:
        value, meaning = FINDINGS[label]
        return sr.CodedConcept(value, "SCT", meaning)
    return _own_code(label, label)


def _own_code(value: str, meaning: str) -> Any:
    from highdicom import sr

    code = value.upper()
    if not re.fullmatch("[A-Z0-9-]{1,16}", code):  # DICOM allows 16 characters
        code = hashlib.blake2b(code.encode(), digest_size=6).hexdigest().upper()
    return sr.CodedConcept(code, OWN_SCHEME, meaning[:64])


def _equipment(algorithm: Algorithm) -> dict[str, Any]:
    return {
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": algorithm.name[:64],
        "software_versions": (f"cxr_tf {metadata.version('cxr_tf')}", f"model {algorithm.version}"),
        "device_serial_number": "none",
    }
