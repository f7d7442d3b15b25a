"""DICOM to PNG: rendered as on a workstation, without identifying metadata."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

pydicom = pytest.importorskip("pydicom", reason="reads no DICOM without requirements-dicom.txt")

from pydicom.data import get_testdata_file  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid  # noqa: E402

from cxr_tf.config import PrepareData  # noqa: E402
from cxr_tf.data.loading import open_catalog  # noqa: E402
from cxr_tf.data.sources.dicom import (  # noqa: E402
    convert,
    is_dicom,
    png_bytes,
    read_radiograph,
)
from cxr_tf.data.sources.phantoms import phantom  # noqa: E402
from cxr_tf.errors import UserError  # noqa: E402
from cxr_tf.preparation.prepare_data import prepare_data  # noqa: E402

GRAY = np.round(np.linspace(0, 4095, 32 * 32)).astype(np.uint16).reshape(32, 32)

# Each contains a marker; none of the markers may appear in any output.
SECRETS = {
    "PatientName": "Zebra^Planted",
    "PatientID": "SECRETID4711",
    "PatientBirthDate": "19330123",
    "PatientAddress": "Hidden Lane 9",
    "PatientTelephoneNumbers": "0555123987",
    "PatientMotherBirthName": "Maidenform",
    "OtherPatientIDs": "ALTID0815",
    "OtherPatientNames": "Aliasname^Alsoknown",
    "PatientComments": "cousin of the mayor",
    "MilitaryRank": "Obergefreiter",
    "AccessionNumber": "ACC998877",
    "StudyID": "STUD5566",
    "StudyDate": "20190317",
    "StudyDescription": "chest of Zebra",
    "SeriesDescription": "lateral of Zebra",
    "InstitutionName": "Saint Elsewhere",
    "InstitutionAddress": "Elsewhere Road 1",
    "ReferringPhysicianName": "Quackster^Doctor",
    "PerformingPhysicianName": "Bonesetter^Berta",
    "OperatorsName": "Buttonpusher^Otto",
    "RequestingPhysician": "Questioner^Quentin",
    "StationName": "XRAYROOM7",
    "DeviceSerialNumber": "SERIAL31337",
    "ImageComments": "see Zebra",
    "AdditionalPatientHistory": "bitten by a zebra",
}


def dataset(pixels: np.ndarray = GRAY, bits: int = 12, **elements: Any) -> Dataset:
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = CTImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = generate_uid()
    made.StudyInstanceUID = generate_uid()
    made.Rows, made.Columns = pixels.shape[-2:]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = 8 * pixels.dtype.itemsize
    made.BitsStored, made.HighBit = bits, bits - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    made.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(made, name, value)
    return made


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, pixels: np.ndarray = GRAY, bits: int = 12, **elements: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset(pixels, bits, **elements).save_as(path, enforce_file_format=True)
        return path

    return write


def shown(path: Path) -> np.ndarray:
    return read_radiograph(path).pixels


@pytest.fixture
def as_radiograph(tmp_path: Path) -> Callable[[str], Path]:
    """Copy one of pydicom's test files with the header of a chest radiograph; few are of one."""

    def write(name: str) -> Path:
        dataset = pydicom.dcmread(str(get_testdata_file(name)))
        dataset.Modality, dataset.BodyPartExamined = "DX", "CHEST"
        dataset.save_as(tmp_path / name)
        return tmp_path / name

    return write


def expected(share: np.ndarray) -> np.ndarray:
    return np.round(255 * np.clip(share, 0, 1)).astype(np.uint8)


# ---------------------------------------------------------------------- the picture


def test_without_a_window_the_range_of_the_image_is_shown(write: Callable[..., Path]) -> None:
    np.testing.assert_array_equal(shown(write("a")), expected(GRAY / 4095))
    wide = (GRAY.astype(np.uint16) << 4) + 15
    np.testing.assert_array_equal(shown(write("b", wide, 16)), expected((wide - 15.0) / 65520))
    small = (GRAY >> 4).astype(np.uint8)
    np.testing.assert_array_equal(shown(write("c", small, 8)), small)
    assert shown(write("d", np.full((8, 8), 7, np.uint16))).max() == 0


def test_monochrome1_is_inverted(write: Callable[..., Path]) -> None:
    negative = write("a", PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(shown(negative), 255 - shown(write("b")))


@pytest.mark.parametrize("rescale", [(1, 0), (2, -1000), (-1, 4095)])
def test_the_window_applies_after_rescaling(
    write: Callable[..., Path], rescale: tuple[int, int]
) -> None:
    slope, intercept = rescale
    path = write(
        "a", RescaleSlope=slope, RescaleIntercept=intercept,
        WindowCenter=[1500, 1], WindowWidth=[1001, 2],
    )  # fmt: skip
    values = slope * GRAY.astype(float) + intercept
    # PS3.3 C.11.2.1.2.1: linear from centre - 0.5 over width - 1.
    np.testing.assert_array_equal(shown(path), expected((values - 1499.5) / 1000 + 0.5))


def test_signed_pixels_and_sigmoid_windows_are_rendered(write: Callable[..., Path]) -> None:
    signed = GRAY.astype(np.int16) - 2048
    window = {"WindowCenter": 0, "WindowWidth": 800}
    path = write("a", signed, VOILUTFunction="SIGMOID", **window)
    np.testing.assert_array_equal(shown(path), expected(1 / (1 + np.exp(-4 * signed / 800))))


@pytest.mark.parametrize(("bits", "stored"), [(8, "<u1"), (8, "<u2"), (12, "<u2")])
def test_a_voi_lut_takes_precedence_over_a_window(
    write: Callable[..., Path], bits: int, stored: str
) -> None:
    top = 2**bits - 1
    table = np.round(top * np.linspace(0, 1, 4000) ** 2).astype(stored)
    item = Dataset()
    item.LUTDescriptor = [4000, 50, bits]
    item.LUTData = table.tobytes()
    path = write("a", VOILUTSequence=[item], WindowCenter=100, WindowWidth=5)
    wanted = table[np.clip(GRAY.astype(int) - 50, 0, 3999)] / top
    np.testing.assert_array_equal(shown(path), expected(wanted))


@pytest.mark.parametrize(
    "name",
    [
        *("MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"),
        *("MR_small_bigendian.dcm", "MR_small_implicit.dcm"),
    ],
)
def test_compression_and_byte_order_do_not_change_pixels(
    name: str, as_radiograph: Callable[[str], Path]
) -> None:
    one, other = (shown(as_radiograph(n)) for n in ("MR_small.dcm", name))
    np.testing.assert_array_equal(one, other)
    assert one.std() > 20


def test_pydicom_test_files_are_read_or_refused_with_the_reason(
    as_radiograph: Callable[[str], Path],
) -> None:
    for name in ("693_J2KI.dcm", "JPEG2000.dcm", "JPEGLSNearLossless_16.dcm"):
        assert shown(as_radiograph(name)).std() > 5
    for path, message in {
        as_radiograph("examples_palette.dcm"): "a colour image",
        as_radiograph("MR_truncated.dcm"): "truncated: ",
        get_testdata_file("rtdose.dcm"): "15 frames",
        get_testdata_file("SC_rgb_jpeg.dcm"): "a colour image",
        get_testdata_file("test-SR.dcm"): "without an image",
        get_testdata_file("rtplan.dcm"): "without an image",
        get_testdata_file("badVR.dcm"): "truncated or corrupt",
        get_testdata_file("no_meta.dcm"): "not a DICOM file",
    }.items():
        with pytest.raises(UserError, match=message):
            read_radiograph(Path(str(path)))


def test_an_empty_voi_lut_function_is_linear(write: Callable[..., Path]) -> None:
    window = {"WindowCenter": 2000, "WindowWidth": 1000}
    linear = shown(write("linear.dcm", **window))
    np.testing.assert_array_equal(shown(write("empty.dcm", VOILUTFunction="", **window)), linear)


def test_a_truncated_file_does_not_stop_the_conversion(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = Dataset()
    item.CodeValue = "1" * 16
    sound = write("ward/NORMAL/a.dcm")
    whole = write("ward/NORMAL/b.dcm", ProcedureCodeSequence=[item] * 3)
    data = whole.read_bytes()
    # A sequence of undefined length, in which the file ends.
    at = data.index(b"\x08\x00\x32\x10SQ\x00\x00") + 8
    cut = tmp_path / "ward/NORMAL/c.dcm"
    cut.write_bytes(data[:at] + b"\xff\xff\xff\xff" + data[at + 4 : at + 30])
    with pytest.raises(UserError, match="truncated or corrupt"):
        read_radiograph(cut)
    opened = Path.open

    def shut(path: Path, *mode: Any, **more: Any) -> Any:
        if path == sound:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *mode, **more)

    monkeypatch.setattr(Path, "open", shut)
    catalogue, _ = convert(tmp_path / "ward", tmp_path / "o")
    assert len(catalogue.read_text().splitlines()) == 2  # the header, and b


def test_a_phantom_survives_the_conversion(write: Callable[..., Path], tmp_path: Path) -> None:
    image = phantom("bacterial", seed=1, patient=1, size=64).image
    path = write("scan", image.astype(np.uint16) * 16, BitsStored=12)
    assert is_dicom(path)
    assert not is_dicom(tmp_path / "none")
    read = np.asarray(Image.open(io.BytesIO(png_bytes(path))))
    assert np.abs(read.astype(float) - 255 * (image / image.max())).max() <= 1 + image.min()
    assert np.corrcoef(read.ravel(), image.ravel())[0, 1] > 0.9999


def test_padding_is_excluded_from_the_range(write: Callable[..., Path]) -> None:
    plain = shown(write("plain"))
    inside = np.ones(GRAY.shape, bool)
    inside[:, :6] = False
    padded = np.where(inside, GRAY, 65535).astype(np.uint16)
    image = shown(write("a", padded, 16, PixelPaddingValue=65535))
    low, high = GRAY[inside].min(), GRAY[inside].max()
    np.testing.assert_array_equal(image, expected((GRAY - float(low)) / (high - low)) * inside)
    assert np.abs(image[inside].astype(int) - plain[inside]).max() <= 2
    signed = np.where(inside, GRAY.astype(int), -2000).astype(np.int16)
    np.testing.assert_array_equal(image, shown(write("b", signed, 16, PixelPaddingValue=-2000)))
    negative = write(
        "c", signed, 16, PixelPaddingValue=-2000, PhotometricInterpretation="MONOCHROME1"
    )
    assert not shown(negative)[~inside].any()


def test_a_bright_marker_does_not_reduce_the_contrast_of_the_image(
    write: Callable[..., Path],
) -> None:
    film = 500 + phantom("normal", seed=1, patient=1, size=128).image.astype(np.uint16)
    marked = film.copy()
    marked[4:12, 4:12] = 4095
    plain, image = shown(write("a", film)), shown(write("b", marked))
    assert image[20:].std() > 0.7 * plain[20:].std()


@pytest.mark.parametrize(
    ("centre", "width"), [(2000, 0), (2000, -5), (2000, "nan"), (100000, 10), ("", "")]
)
def test_an_impossible_window_is_ignored_with_a_note(
    write: Callable[..., Path], caplog: pytest.LogCaptureFixture, centre: Any, width: Any
) -> None:
    with caplog.at_level("INFO"):
        image = shown(write("a", WindowCenter=centre, WindowWidth=width))
    np.testing.assert_array_equal(image, shown(write("b")))
    assert ("invalid or shows nothing of the image is ignored" in caplog.text) == (width != "")


def test_the_presentation_lut_shape_is_honoured(write: Callable[..., Path]) -> None:
    plain, inverse = shown(write("a")), shown(write("b", PresentationLUTShape="INVERSE"))
    np.testing.assert_array_equal(inverse, 255 - plain)
    both = write("c", PresentationLUTShape="INVERSE", PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(shown(both), 255 - plain)


def test_incomplete_headers_can_be_read(write: Callable[..., Path], tmp_path: Path) -> None:
    plain = shown(write("plain"))
    lower = write("lower", PhotometricInterpretation="monochrome2")
    np.testing.assert_array_equal(shown(lower), plain)
    made = dataset()
    del made.PhotometricInterpretation
    made.save_as(tmp_path / "none", enforce_file_format=True)
    np.testing.assert_array_equal(shown(tmp_path / "none"), plain)
    # Neither a preamble nor file meta information.
    made = dataset()
    del made.file_meta
    made.save_as(tmp_path / "bare", implicit_vr=True, little_endian=True)
    assert is_dicom(tmp_path / "bare")
    np.testing.assert_array_equal(shown(tmp_path / "bare"), plain)
    (tmp_path / "text").write_text("neither this nor that" * 20)
    assert not is_dicom(tmp_path / "text")


def test_three_equal_channels_are_read_as_gray(write: Callable[..., Path]) -> None:
    gray = (GRAY >> 4).astype(np.uint8)

    def rgb(pixels: np.ndarray) -> Path:
        made = dataset(gray, 8, SamplesPerPixel=3, PhotometricInterpretation="RGB")
        made.PlanarConfiguration, made.PixelData = 0, pixels.tobytes()
        made.save_as(path := write("a").with_name("rgb"), enforce_file_format=True)
        return path

    equal = np.repeat(gray[..., None], 3, axis=-1)
    np.testing.assert_array_equal(shown(rgb(equal)), shown(write("b", gray, 8)))
    with pytest.raises(UserError, match="a colour image"):
        shown(rgb(equal * np.array([1, 0, 1], np.uint8)))


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"Modality": "CT"}, "not a radiograph: modality CT"),
        ({"BodyPartExamined": "HAND"}, "not a chest radiograph: body part HAND"),
        ({"ViewPosition": "LATERAL"}, "a lateral view"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "raw detector data"),
        ({"BurnedInAnnotation": "YES"}, "text is burned into the image"),
    ],
)
def test_only_frontal_chest_radiographs_are_accepted(
    write: Callable[..., Path], tmp_path: Path, elements: dict[str, Any], message: str
) -> None:
    made = dataset()
    for name, value in elements.items():
        setattr(made, name, value)
    made.save_as(tmp_path / "a", enforce_file_format=True)
    for read in (png_bytes, read_radiograph):
        with pytest.raises(UserError, match=message):
            read(tmp_path / "a")
    usual = {"Modality": "DX", "BodyPartExamined": "CHEST", "ViewPosition": "PA"}
    assert shown(write("b", PresentationIntentType="FOR PRESENTATION", **usual)).any()


# ---------------------------------------------------------------------- the data set


def test_no_identifying_metadata_is_written_or_logged(
    write: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    for number in range(3):
        folder = ("NORMAL", "PNEUMONIA")[number % 2]
        write(f"ward/{folder}/IM{number}", np.roll(GRAY, number), **SECRETS)
    # Files left out are logged, broken ones included.
    write("ward/NORMAL/IM7", ViewPosition="LL", **SECRETS)
    write("ward/NORMAL/IM8", np.stack([GRAY, GRAY]), NumberOfFrames=2, **SECRETS)
    write("ward/NORMAL/IM10", BurnedInAnnotation="YES", **SECRETS)
    broken = write("ward/NORMAL/IM9", **SECRETS)
    broken.write_bytes(broken.read_bytes()[:-700])
    odd = write("ward/NORMAL/IM11", **SECRETS)
    odd.write_bytes(odd.read_bytes().replace(b"19330123", b"SECRETID"))  # an invalid date
    uids = [str(pydicom.dcmread(p, stop_before_pixels=True).StudyInstanceUID) for p in (odd,)]
    settings = PrepareData(source="dicom", from_=str(tmp_path / "ward"), out=str(tmp_path / "o"))
    # One patient cannot fill three splits; the data set is still written.
    with caplog.at_level("DEBUG"), pytest.raises(UserError, match="in the val split") as refused:
        prepare_data(settings)
    written = b"".join(p.read_bytes() for p in (tmp_path / "o").rglob("*") if p.is_file())
    names = " ".join(str(p) for p in (tmp_path / "o").rglob("*"))
    outside = (
        str(refused.value)
        + "".join(capfd.readouterr())
        + caplog.text
        + "".join(str(w.message) for w in recwarn)
    )
    for secret in [*SECRETS.values(), *uids]:
        for part in {secret, *secret.split("^")}:
            assert part.encode() not in written, part
            assert part not in names + outside, part
    assert caplog.text.count("left out") == 4
    assert len(list((tmp_path / "o" / "images").iterdir())) == 4


def test_patients_stay_together_under_a_random_key(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    for number in range(6):
        write(f"ward/{('NORMAL', 'virus')[number % 2]}/{number}.dcm", PatientID=f"P{number // 2}")
    one, other = (convert(tmp_path / "ward", tmp_path / name)[0] for name in "ab")
    of_one, of_other = ([r.patient for r in open_catalog(str(c)).radiographs] for c in (one, other))
    assert sorted(map(of_one.count, of_one)) == [2] * 6
    assert not set(of_one) & set(of_other)


def test_folders_and_lists_give_labels_and_splits(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    write("ward/train/NORMAL/x/1", PatientID="A")
    write("ward/test/Bacterial/2.dcm", GRAY[::-1], PatientID="B")
    (tmp_path / "ward/test/notes.txt").write_text("no image")
    catalogue, unlabelled = convert(tmp_path / "ward", tmp_path / "a")
    rows = open_catalog(str(catalogue), resplit=False).radiographs
    assert unlabelled == 0
    assert {(r.finding, r.split) for r in rows} == {("normal", "train"), ("bacterial", "test")}
    (tmp_path / "list.csv").write_text(
        "path,label,patient\nward/train/NORMAL/x/1,drain,P1\nward/test/Bacterial/2.dcm,none,P1\n"
    )
    catalogue, _ = convert(tmp_path / "list.csv", tmp_path / "b")
    rows = open_catalog(str(catalogue), resplit=False).radiographs
    assert [r.finding for r in rows] == ["drain", "none"]
    assert len({r.patient for r in rows} - {"P1"}) == 1


def test_lateral_views_are_left_out_by_default(write: Callable[..., Path], tmp_path: Path) -> None:
    for view in ("PA", "AP", "LL", "RL", "LLD", ""):
        write(f"ward/NORMAL/{view or 'none'}.dcm", ViewPosition=view, PatientID=view)
    for name, laterals, count in (("a", False, 4), ("b", True, 6)):
        catalogue, _ = convert(tmp_path / "ward", tmp_path / name, laterals=laterals)
        assert len(list(csv.reader(catalogue.open()))) == 1 + count


def test_a_single_file_without_a_label_is_converted(
    write: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        prepare_data(PrepareData(source="dicom", from_=str(write("IM1")), out=str(tmp_path / "o")))
    assert "1 image has no label: fill in the column 'label'" in caplog.text
    image = next((tmp_path / "o/images").iterdir())
    # predict.py decodes the DICOM file and its PNG alike.
    assert image.read_bytes() == png_bytes(tmp_path / "IM1")


def test_a_failed_conversion_leaves_no_files(write: Callable[..., Path], tmp_path: Path) -> None:
    films = np.stack([GRAY, GRAY])
    write("ward/1.dcm", films, NumberOfFrames=2)
    (tmp_path / "bad.dcm").write_bytes(b"text")
    (tmp_path / "none").mkdir()
    for origin, message in (
        ("ward/1.dcm", "2 frames"),
        ("ward", "2 frames"),
        ("bad.dcm", "not a DICOM file"),
        ("none", "no DICOM file in"),
        ("missing", "no such file"),
    ):
        with pytest.raises(UserError, match=message):
            convert(tmp_path / origin, tmp_path / "o")
    assert {p.name for p in tmp_path.iterdir()} == {"ward", "bad.dcm", "none"}
    (tmp_path / "o").mkdir()
    with pytest.raises(UserError, match="exists"):
        convert(tmp_path / "ward", tmp_path / "o")


def test_a_placeholder_patient_id_is_replaced_by_the_study(
    write: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(12):
        pixels = np.roll(GRAY, number)
        path = f"ward/{('NORMAL', 'PNEUMONIA')[number % 2]}/{number}.dcm"
        write(path, pixels, PatientID="ANON1234", StudyInstanceUID=f"1.2.{number // 2 + 1}")
    with caplog.at_level("INFO"):
        catalogue, _ = convert(tmp_path / "ward", tmp_path / "o")
    assert len({r.patient for r in open_catalog(str(catalogue)).radiographs}) == 6
    assert "12 of 12 files have a placeholder as PatientID" in caplog.text
    assert "ANON1234" not in caplog.text


def test_files_with_text_like_marks_are_listed(
    write: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chest = phantom("normal", seed=1, patient=1, size=512).image
    named = Image.fromarray(chest)
    ImageDraw.Draw(named).text((20, 12), "DOE^JANE", fill=255, font=ImageFont.load_default(16))
    write("ward/NORMAL/a.dcm", chest.astype(np.uint16) * 16)
    write("ward/NORMAL/b.dcm", np.asarray(named, np.uint16) * 16)
    write("ward/NORMAL/c.dcm", np.asarray(named, np.uint16) * 16, BurnedInAnnotation="NO")
    with caplog.at_level("INFO"):
        convert(tmp_path / "ward", tmp_path / "o")
    assert caplog.text.count("possible text in the image") == 1
