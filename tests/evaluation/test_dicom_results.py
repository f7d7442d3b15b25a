"""Structured reports and heatmaps for DICOM files: valid, and of the source's patient."""

import csv
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxr_tf.config import Predict
from cxr_tf.errors import UserError
from cxr_tf.evaluation.predict import predict

pydicom = pytest.importorskip("pydicom", reason="no DICOM without requirements-dicom.txt")
pytest.importorskip("highdicom", reason="no reports without requirements-dicom.txt")
pytest.importorskip("dicomweb_client", reason="no PACS without requirements-dicom.txt")

from dicom_phantoms import write_dicom_phantom  # noqa: E402

ORTHANC_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of one study, and one of another patient whose name is Japanese."""
    folder = tmp_path_factory.mktemp("study")
    uid = pydicom.uid.generate_uid()
    write_dicom_phantom(folder / "a.dcm", "bacterial", StudyInstanceUID=uid)
    write_dicom_phantom(folder / "b.dcm", "normal", StudyInstanceUID=uid)
    write_dicom_phantom(
        folder / "c.dcm",
        "viral",
        patient=1,
        SpecificCharacterSet=["", "ISO 2022 IR 87"],
        PatientName="Yamada^Tarou=山田^太郎",
    )
    return folder


@pytest.fixture(scope="module")
def results(small_models: Path, study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("results") / "tiny"
    predict(settings(small_models / "tiny", study, output))
    return output


def settings(model: Path, images: Path | str, output: Path | str, **more: Any) -> Predict:
    return Predict(
        model=str(model), images=(str(images),), output=str(output), format="dicom", **more
    )


def content(item: Any) -> Iterator[tuple[str, Any]]:
    """Return (concept, value) of every content item of a report."""
    concept = item.ConceptNameCodeSequence[0].CodeMeaning
    if item.ValueType == "NUM":
        yield concept, float(item.MeasuredValueSequence[0].NumericValue)
    elif item.ValueType == "CODE":
        yield concept, item.ConceptCodeSequence[0].CodeMeaning
    elif item.ValueType == "TEXT":
        yield concept, item.TextValue
    elif item.ValueType == "IMAGE":
        yield concept, item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    for inside in item.get("ContentSequence", []):
        yield from content(inside)


def test_the_report_states_the_prediction_and_refers_to_image_and_heatmap(
    results: Path, study: Path
) -> None:
    with (results / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    findings = {"normal": "Normal", "bacterial": "Bacterial pneumonia", "viral": "Viral pneumonia"}
    assert [Path(row["path"]).name for row in rows] == ["a.dcm", "b.dcm", "c.dcm"]
    for number, row in enumerate(rows):
        stem = results / f"{number:05d}-{Path(row['path']).stem}"
        report = pydicom.dcmread(f"{stem}-report.dcm")
        heatmap = pydicom.dcmread(f"{stem}-heatmap.dcm")
        source = pydicom.dcmread(row["path"])
        stated = dict(content(report))
        assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
        assert stated["Finding"] == findings[row["label"]]
        for name in findings:
            assert stated[f"Probability of {name}"] == pytest.approx(float(row[name]), abs=1e-5)
        certainty = 100 * float(row[row["label"]])
        assert stated["Certainty of Finding"] == pytest.approx(certainty, abs=1e-3)
        assert (stated["Algorithm Name"], stated["Algorithm Version"]) == ("tiny", "1")
        assert "research use only" in stated["Comment"]
        assert stated["Source of Measurement"] == source.SOPInstanceUID
        assert stated["Best illustration of finding"] == heatmap.SOPInstanceUID
        assert heatmap.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
        # The source's aspect ratio, above a caption.
        assert heatmap.Columns == source.Columns and heatmap.Rows > source.Rows
        drawn = heatmap.pixel_array[: source.Rows].astype(int)
        assert np.abs(drawn[..., 0] - drawn[..., 2]).max() > 20, "there is no colour in it"


def test_results_have_the_patient_of_the_source_but_not_its_staff_and_site(
    results: Path, study: Path
) -> None:
    sources = [pydicom.dcmread(path) for path in sorted(study.iterdir())]
    made = [pydicom.dcmread(path) for path in sorted(results.glob("*.dcm"))]
    assert len(made) == 6
    for number, result in enumerate(made):
        source = sources[number // 2]
        for keyword in ("PatientID", "PatientBirthDate", "StudyInstanceUID", "AccessionNumber"):
            assert result[keyword].value == source[keyword].value
        assert str(result.PatientName) == str(source.PatientName)
        text = str(result)
        assert "Saint Elsewhere" not in text and "Otto" not in text
        assert socket.gethostname() not in text and str(study) not in text
    uids = [result.SOPInstanceUID for result in made + sources]
    assert len(set(uids)) == len(uids)
    # One series of reports and one of heatmaps for each study.
    assert len({result.SeriesInstanceUID for result in made}) == 4
    assert [int(result.InstanceNumber) for result in made] == [1, 1, 2, 2, 1, 1]


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dicom3tools is not installed")
def test_dciodvfy_reports_no_error(
    results: Path, small_models: Path, study: Path, tmp_path
) -> None:
    predict(settings(small_models / "tiny-autoencoder", study / "a.dcm", tmp_path / "anomaly"))
    predict(settings(small_models / "tiny-knn", study / "a.dcm", tmp_path / "knn"))
    files = [*results.glob("*.dcm"), *tmp_path.glob("*/*.dcm")]
    assert len(files) == 6 + 2 + 1  # nearest neighbours have no heatmap
    for file in files:
        done = subprocess.run(["dciodvfy", "-new", file], capture_output=True, text=True)
        lines = done.stderr.splitlines()
        # It knows no private coding schemes, and warns of each such code.
        odd = [line for line in lines if "Error" in line or "Warning" in line]
        assert [line for line in odd if "99CXRTF" not in line] == []


def test_classes_in_any_language_are_written(study: Path, tmp_path: Path) -> None:
    from cxr_tf.evaluation import dicom_results

    source = dicom_results.read_header(study / "c.dcm")
    series = dicom_results.SeriesOfStudies().of(source)
    prediction = {
        "label": "Lungenentzündung",
        "probabilities": {"健康": 0.1, "Lungenentzündung": 0.9},
        **{"is_novel": True, "novelty": 1.5, "prediction_set": [True, True]},
    }
    algorithm = dicom_results.Algorithm("x" * 80, "3", threshold=0.4)
    report = dicom_results.structured_report(source, prediction, algorithm, series)
    report.save_as(tmp_path / "r.dcm", enforce_file_format=True)
    stated = dict(content(pydicom.dcmread(tmp_path / "r.dcm")))
    assert stated["Finding"] == "Lungenentzündung" and stated["Probability of 健康"] == 0.1
    assert stated["Operating point for Lungenentzündung"] == 0.4
    assert (stated["Unlike the training images"], stated["Novelty"]) == ("Yes", 1.5)
    texts = [value for concept, value in content(report) if concept == "Comment"]
    assert texts[1:] == [
        "unlike the training images",
        "cannot distinguish 健康 from Lungenentzündung",
    ]


def test_invalid_inputs_and_outputs_are_refused(
    small_models: Path, study: Path, phantoms: Path, tmp_path: Path
) -> None:
    png = next(phantoms.glob("t*/*/*.png"))
    write_dicom_phantom(tmp_path / "no-uid.dcm", StudyInstanceUID="")
    (tmp_path / "mine").mkdir()
    output = tmp_path / "out"
    for images, target, words in [
        (png, output, "not a DICOM file"),
        (tmp_path / "no-uid.dcm", output, "no StudyInstanceUID"),
        (study, "", "needs --output"),
        (study, "out.csv", "writes a folder"),
        (study, tmp_path / "mine", "exists"),
        ("dicomweb://127.0.0.1:9/x", output, "give dicomweb://"),
        ("dicomweb://127.0.0.1:9/x/studies/1.2", output, "no DICOMweb service"),
        (study, "dicomweb://127.0.0.1:9/x", "no DICOMweb service"),
    ]:
        with pytest.raises(UserError, match=words):
            predict(settings(small_models / "tiny", images, target))
    assert not output.exists() and not list(tmp_path.glob(".*"))


def test_a_certificate_error_is_not_reported_as_a_missing_service() -> None:
    from requests.exceptions import SSLError

    from cxr_tf.data.sources import dicomweb

    with (
        pytest.raises(UserError, match="no secure connection: certificate"),
        dicomweb._errors("dicomwebs://localhost/x"),
    ):
        raise SSLError("certificate verify failed")


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The DICOMweb address of an empty Orthanc on loopback."""
    program = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/bin")
    if not program or not ORTHANC_PLUGIN.exists():
        pytest.skip("orthanc or orthanc-dicomweb is not installed")
    folder = tmp_path_factory.mktemp("orthanc")
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port = opened.getsockname()[1]
    config = {
        **{"StorageDirectory": str(folder), "IndexDirectory": str(folder), "HttpPort": port},
        **{"DicomServerEnabled": False, "RemoteAccessAllowed": False},
        **{"AuthenticationEnabled": True, "RegisteredUsers": {"anna": "secret"}},
        "Plugins": [str(ORTHANC_PLUGIN)],
    }
    (folder / "orthanc.json").write_text(json.dumps(config))
    server = subprocess.Popen(
        [program, folder / "orthanc.json"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"dicomweb://anna:secret@127.0.0.1:{port}/dicom-web"
    finally:
        server.terminate()
        server.wait()


def test_study_is_read_from_a_pacs_and_results_are_stored_there(
    pacs: str, small_models: Path, study: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from cxr_tf.data.sources import dicomweb

    caplog.set_level("INFO")
    dicomweb.store(pacs, sorted(study.iterdir()))
    uid = pydicom.dcmread(study / "a.dcm").StudyInstanceUID
    address = f"{pacs}/studies/{uid}"
    predict(settings(small_models / "tiny", address, pacs))
    assert "secret" not in caplog.text
    # The results are in the study now, and are not mistaken for radiographs.
    predict(settings(small_models / "tiny", address, tmp_path / "again", heatmaps=False))
    assert len(list((tmp_path / "again").glob("*-report.dcm"))) == 2
    table = (tmp_path / "again" / "predictions.csv").read_text()
    assert table.count(f"/studies/{uid}/series/") == 2 and "secret" not in table
    client = dicomweb._client(pacs)
    kinds = [s["00080060"]["Value"][0] for s in client.search_for_series(uid)]
    assert sorted(kinds) == ["CR", "CR", "OT", "SR"]
    with pytest.raises(UserError, match="user name and password"):
        predict(
            settings(small_models / "tiny", address.replace("secret", "wrong"), tmp_path / "no")
        )
    with pytest.raises(UserError, match="no such study, or no radiograph"):
        predict(settings(small_models / "tiny", f"{pacs}/studies/1.2.3", tmp_path / "no"))
