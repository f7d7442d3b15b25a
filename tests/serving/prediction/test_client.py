"""Equal predictions from disk and from a server; overload, bad images, no server."""

import csv
import io
import json
import logging
import runpy
import shutil
import socket
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from fake_serving import Models, Refused, grpc_server, rest_server
from PIL import Image
from small_models import CLASSES

from cxr_tf.config import Predict
from cxr_tf.data import image_files
from cxr_tf.errors import UserError
from cxr_tf.evaluation import predict, prediction_loop, prediction_output
from cxr_tf.serving import open_model
from cxr_tf.serving.prediction import client

SCRIPT = Path(__file__).parents[3] / "scripts" / "predict.py"


@pytest.fixture(scope="module")
def served(small_models: Path):
    """The models that both servers serve, and the addresses of the servers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("no_proxy", "127.0.0.1")
        models = Models(small_models)
        with rest_server(models) as rest, grpc_server(models) as grpc:
            yield models, {"rest": rest, "grpc": grpc}


@pytest.fixture
def models(served) -> Models:
    models, _ = served
    models.before, models.requests = lambda contents: None, []
    return models


@pytest.fixture(params=["rest", "grpc"])
def address(request, served, models) -> str:
    return served[1][request.param]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that the client requests; it does not wait."""
    waited: list[float] = []
    monkeypatch.setattr(client.time, "sleep", waited.append)
    return waited


@pytest.fixture(scope="module")
def images(phantoms: Path) -> list[str]:
    return [str(p) for p in sorted((phantoms / "test").rglob("*.png"))[:5]]


@pytest.fixture(scope="module")
def contents(images: list[str]) -> list[bytes]:
    return [Path(p).read_bytes() for p in images]


@pytest.fixture
def ward(images: list[str], tmp_path: Path) -> list[str]:
    """Readable and unreadable files, mixed."""
    good = Path(images[0]).read_bytes()
    bad = {"cut.png": good[:300], "letter.jpeg": b"dear doctor", "empty.png": b""}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    cut, letter, empty = (str(tmp_path / name) for name in bad)
    return [images[0], cut, images[1], images[2], letter, empty, images[3]]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------------- the same from everywhere


@pytest.mark.parametrize("model", ["tiny", "tiny-knn"])
def test_disk_rest_and_grpc_give_the_same_predictions(
    served, models, small_models: Path, images: list[str], tmp_path: Path, model: str
) -> None:
    for name, where in (
        ("disk", {"model": str(small_models / model)}),
        ("rest", {"model": model, "server": served[1]["rest"]}),
        ("grpc", {"model": model, "server": served[1]["grpc"], "label": "stable"}),
    ):
        predict.predict(
            Predict(images=tuple(images), output=str(tmp_path / f"{name}.csv"), batch_size=2,
                    **where)
        )  # fmt: skip
    disk, rest, grpc = (rows(tmp_path / f"{n}.csv") for n in ("disk", "rest", "grpc"))
    assert list(disk[0])[:5] == ["path", "label", *CLASSES]
    assert ("neighbor_paths" in disk[0]) == (model == "tiny-knn")
    assert [r["path"] for r in disk] == images
    for other in (rest, grpc):
        for mine, theirs in zip(disk, other, strict=True):
            assert list(mine) == list(theirs) and mine["label"] == theirs["label"]
            a, b = ([float(r[c]) for c in CLASSES] for r in (mine, theirs))
            np.testing.assert_allclose(a, b, atol=1e-6)
    if model == "tiny-knn":
        assert [json.loads(r["neighbor_paths"]) for r in disk] == [
            json.loads(r["neighbor_paths"]) for r in grpc
        ]
    # Both servers got three requests, in batches of two; the last image is sent as a pair.
    assert [n for _, n in models.requests] == [2, 2, 2] * 2


def test_embeddings_are_spread_over_columns(
    address: str, images: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "embeddings.csv"
    predict.predict(
        Predict(model="tiny", server=address, signature="embed", images=tuple(images),
                output=str(output))
    )  # fmt: skip
    written = rows(output)
    assert list(written[0])[:2] == ["path", "embedding_0"] and len(written) == len(images)
    first = client.connect(address, "tiny", signature="embed")([Path(images[0]).read_bytes()])
    values = [float(v) for k, v in written[0].items() if k != "path"]
    np.testing.assert_allclose(values, first["embedding"][0], rtol=1e-5)


def test_messages_may_exceed_the_default_limit_of_grpc(address: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1300, 1300)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    files = [stream.getvalue()] * 3
    assert sum(map(len, files)) > 4 * 1024**2
    assert client.connect(address, "tiny")(files)["probabilities"].shape == (3, 3)


@pytest.mark.parametrize(
    "model, signature, columns",
    [
        ("tiny", "occlusion", {"label", "normal", "bacterial", "viral"}),
        ("tiny-autoencoder", "explain", {"score"}),
        ("tiny-autoencoder", "serving_default", {"score", "threshold", "is_anomaly"}),
    ],
)
def test_every_kind_of_model_gives_predictions(
    address: str, images: list[str], tmp_path: Path, model: str, signature: str, columns: set
) -> None:
    drawn = signature != "serving_default"
    output = tmp_path / ("out" if drawn else "out.csv")
    predict.predict(
        Predict(model=model, server=address, signature=signature, images=tuple(images[:2]),
                output=str(output))
    )  # fmt: skip
    written = rows(output / "predictions.csv" if drawn else output)
    assert columns <= set(written[0]) and len(written) == 2
    if drawn:
        names = {p.name for p in output.glob("*.png")}
        assert {f"{k:05d}-{Path(p).stem}.png" for k, p in enumerate(images[:2])} <= names
    else:
        assert {r["is_anomaly"] for r in written} <= {"true", "false"}


# ---------------------------------------------------------------------- bad images


@pytest.mark.parametrize("where", ["disk", "rest", "grpc"])
@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_bad_images_are_marked_and_the_others_predicted(
    served, models, small_models: Path, ward: list[str], tmp_path: Path, where: str, suffix: str
) -> None:
    source = (
        {"model": str(small_models / "tiny")}
        if where == "disk"
        else {"model": "tiny", "server": served[1][where]}
    )
    output = tmp_path / f"out.{suffix}"
    predict.predict(Predict(images=tuple(ward), output=str(output), on_bad_image="nan", **source))
    if suffix == "json":
        written = json.loads(output.read_text())
        recorded = [r["reason"] for r in written]
        probabilities = [list(r["probabilities"].values()) for r in written]
        assert [r["label"] is None for r in written] == [t is not None for t in recorded]
        missing = [all(p is None for p in row) for row in probabilities]
    else:
        written = rows(output)
        recorded = [r["reason"] or None for r in written]
        missing = [all(r[c] == "nan" for c in CLASSES) for r in written]
        assert [r["label"] == "" for r in written] == [t is not None for t in recorded]
    assert [r["path"] for r in written] == ward
    unreadable = "truncated or corrupt image", "neither JPEG nor PNG", "empty"
    assert recorded == [None, unreadable[0], None, None, unreadable[1], unreadable[2], None]
    assert missing == [t is not None for t in recorded]


def test_output_has_all_columns_even_if_all_images_are_bad(
    small_models: Path, ward: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "out.csv"
    missing = str(tmp_path / "locked.png")
    Path(missing).mkdir()  # reading it fails, as a file without permission does
    for bad in ([ward[1]], [ward[1], ward[4]]):
        predictions, reasons = prediction_loop.predict_images(
            Predict(model="", images=(), on_bad_image="nan"),
            open_model.open_signature(Predict(model=str(small_models / "tiny"), images=())),
            [*bad, missing],
            None,
        )
        prediction_output.write_table(output, [*bad, missing], predictions, reasons, True)
        written = rows(output)
        assert list(written[0]) == ["path", "label", *CLASSES, "reason"]
        assert [r["normal"] for r in written] == ["nan"] * (len(bad) + 1)
        assert written[-1]["reason"] == "Is a directory"


@pytest.mark.parametrize("where", ["disk", "rest"])
def test_bad_image_is_an_error_by_default(
    served, models, small_models: Path, ward: list[str], tmp_path: Path, where: str
) -> None:
    source = (
        {"model": str(small_models / "tiny")}
        if where == "disk"
        else {"model": "tiny", "server": served[1][where]}
    )
    output = tmp_path / "out.csv"
    with pytest.raises(UserError, match=r"cut\.png: truncated or corrupt image"):
        predict.predict(Predict(images=tuple(ward), output=str(output), **source))
    assert not output.exists()


def test_bad_images_are_matched_by_position_and_size(contents: list[bytes]) -> None:
    good, bad = contents[0], b"text"
    message = "assertion failed: [image_bytes[{}]: neither JPEG nor PNG ({} bytes); 1 of 9 images]"
    mine = [good, bad, good]
    assert client.bad_images(message.format(1, 4), mine) == {1: "neither JPEG nor PNG"}
    # Two images of another client come before those of this one.
    assert client.bad_images(message.format(3, 4), mine) == {1: "neither JPEG nor PNG"}
    # Another client's bad image, at the position of a good one of this client.
    assert client.bad_images(message.format(0, 77), mine) == {}
    assert isinstance(client.refusal(message.format(0, 77), mine), client.Overloaded)
    assert isinstance(client.refusal("wrong rank", mine), UserError)


def test_bad_image_of_another_client_is_retried(
    models: Models, address: str, contents: list[bytes], pauses: list[float]
) -> None:
    def merged_once(_):
        if len(models.requests) == 1:
            message = "assertion failed: [image_bytes[1]: empty (0 bytes); 1 of 5 images]"
            raise Refused("INVALID_ARGUMENT", message)

    models.before = merged_once
    answer = client.connect(address, "tiny")(contents[:3])
    assert answer["label"].shape == (3,) and len(pauses) == 1


def test_files_of_other_formats_are_reported(
    images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("scan.tif", "scan.webp", "notes"):
        (tmp_path / name).write_bytes(b"another kind")
    shutil.copy(images[0], tmp_path)
    found = image_files.find_images((str(tmp_path),))
    assert [Path(p).name for p in found] == [Path(images[0]).name]
    assert (
        "left out, not JPEG, PNG or DICOM: 1 no suffix, 1 .tif, 1 .webp" in capsys.readouterr().err
    )
    with pytest.raises(UserError, match="empty"):
        image_files.find_images(("",))


# ---------------------------------------------------------------------- overload and no server


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "UNAVAILABLE"])
def test_overloaded_server_is_retried_with_backoff(
    models: Models, address: str, contents: list[bytes], pauses: list[float], code: str
) -> None:
    def busy(_):
        if len(models.requests) <= 3:
            raise Refused(code, "The batch scheduling queue is full")

    models.before = busy
    assert client.connect(address, "tiny")(contents)["label"].shape == (len(contents),)
    assert len(models.requests) == 4
    for pause, least in zip(pauses, (0.5, 1.0, 2.0), strict=True):
        assert least <= pause <= 1.5 * least


def test_metadata_request_is_retried(
    models: Models, address: str, contents: list[bytes], pauses: list[float], monkeypatch
) -> None:
    asked, find = [], models.find

    def busy(*which: str) -> object:
        asked.append(which)
        if len(asked) <= 2:
            raise Refused("UNAVAILABLE", "still loading")
        return find(*which)

    monkeypatch.setattr(models, "find", busy)
    ask = client.connect(address, "tiny")
    assert len(asked) == 3 and len(pauses) == 2
    assert ask(contents)["label"].shape == (len(contents),)


def test_retry_after_header_is_respected(
    models: Models, served, contents: list[bytes], pauses: list[float]
) -> None:
    def busy(_):
        if len(models.requests) == 1:
            raise Refused("UNAVAILABLE", "busy", retry_after="17")

    models.before = busy
    client.connect(served[1]["rest"], "tiny")(contents)
    assert pauses == [17.0]


def test_retries_end_with_an_error_and_no_output(
    models: Models, address: str, images: list[str], pauses: list[float], tmp_path: Path
) -> None:
    def busy(_):
        raise Refused("UNAVAILABLE", "queue is full")

    models.before = busy
    output = tmp_path / "out.csv"
    with pytest.raises(UserError, match=r"gave up after 7 attempts: .*queue is full"):
        predict.predict(
            Predict(model="tiny", server=address, images=tuple(images), output=str(output))
        )
    assert len(pauses) == 6 and list(tmp_path.iterdir()) == []


def test_missing_model_version_or_signature_is_named(address: str) -> None:
    for arguments, message in (
        ({"model": "large"}, "does not serve 'large'"),
        ({"model": "tiny", "version": 9}, "does not serve 'tiny' version 9"),
        ({"model": "tiny", "label": "canary"}, "does not serve 'tiny' label 'canary'"),
        ({"model": "tiny", "signature": "explain"}, "no signature 'explain'; it has embed, "),
        ({"model": "tiny", "signature": "tensor"}, "does not take image files"),
        ({"model": "tiny", "label": "a", "version": 1}, "not both"),
    ):
        with pytest.raises(UserError, match=message):
            client.connect(address, **arguments)
    for url in ("localhost:8501", "ftp://host", "http://", "http://[::1"):
        with pytest.raises(UserError, match="give http://host:8501"):
            client.connect(url, "tiny")


def test_refused_request_reports_the_reason(
    models: Models, address: str, contents: list[bytes]
) -> None:
    for code, message in (("INVALID_ARGUMENT", "rejects the request: odd"), ("INTERNAL", "odd")):

        def refuse(_, code=code):
            raise Refused(code, "odd\nand more")

        models.before = refuse
        with pytest.raises(UserError, match=message) as caught:
            client.connect(address, "tiny")(contents)
        assert "and more" not in str(caught.value)


def test_timeout_gives_one_line(models: Models, address: str, contents: list[bytes]) -> None:
    ask = client.connect(address, "tiny")
    ask(contents[:1])  # the model is loaded by now
    over = threading.Event()
    models.before = lambda _: over.wait(30)
    try:
        with pytest.raises(
            UserError, match=r"did not respond within 0\.3 s: use a longer --timeout"
        ):
            client.connect(address, "tiny", timeout=0.3)(contents[:1])
    finally:
        over.set()


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_unreachable_server_gives_one_line_with_exit_code_2(
    scheme: str, images: list[str], monkeypatch, capsys
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and no server listens
        url = f"{scheme}://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        arguments = ["--server", url, "--model", "tiny", "--images", images[0]]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        monkeypatch.setattr(logging.root, "handlers", [])  # the script sets its own
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(SCRIPT), run_name="__main__")
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(lines) == 1, lines
    assert lines[0].startswith(f"error: no TF Serving server responds at {url} (")
    assert "onnection refused" in lines[0]
