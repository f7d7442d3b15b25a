"""The files with which TF Serving is started, and the script that starts it."""

import logging
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from cxr_tf.serving.store import model_config

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "scripts" / "serve.sh"


def model(root: Path, name: str, *numbers: int) -> None:
    for number in numbers:
        (root / name / str(number)).mkdir(parents=True)
        (root / name / str(number) / "saved_model.pb").write_bytes(b"")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "saved models"  # a path with a space, as users have them
    model(folder, "lungs", 1, 2)
    model(folder, "knn", 1)
    (folder / "lungs" / ".writing-3").mkdir()
    (folder / "lungs" / "9").mkdir()  # holds no model
    (folder / "notes").mkdir()
    model_config.write_models_config(folder)
    return folder


def written(root: Path) -> dict[str, model_server_config_pb2.ModelConfig]:
    config = model_server_config_pb2.ModelServerConfig()
    text_format.Parse((root / "models.config").read_text(), config)
    return {c.name: c for c in config.model_config_list.config}


def versions(entry: model_server_config_pb2.ModelConfig) -> list[int]:
    return list(entry.model_version_policy.specific.versions)


def test_models_config_lists_all_versions(root: Path) -> None:
    entries = written(root)
    assert {n: versions(e) for n, e in entries.items()} == {"knn": [1], "lungs": [1, 2]}
    for name, entry in entries.items():
        assert (
            entry.base_path == str(root.resolve() / name) and entry.model_platform == "tensorflow"
        )
    assert sorted(p.name for p in root.iterdir() if p.is_file()) == [
        "batching.config",
        "models.config",
    ]
    # TF Serving often runs as another user.
    assert (root / "models.config").stat().st_mode & 0o444 == 0o444


def by_hand(root: Path) -> None:
    """Add a user's entries to models.config: a label, and a model in a different folder."""
    path = root / "models.config"
    text = path.read_text()
    label = 'version_labels { key: "stable" value: 1 }'
    text = text.replace('name: "lungs"', f'name: "lungs"\n    {label}')
    theirs = 'config {\n    name: "theirs"\n    base_path: "/srv/theirs"\n  }'
    path.write_text(text.replace("model_config_list {", f"model_config_list {{\n  {theirs}"))


def test_labels_and_foreign_models_are_kept(root: Path, caplog) -> None:
    by_hand(root)
    model(root, "lungs", 3)
    model_config.write_models_config(root)
    entries = written(root)
    assert versions(entries["lungs"]) == [1, 2, 3]
    assert dict(entries["lungs"].version_labels) == {"stable": 1}
    assert entries["theirs"].base_path == "/srv/theirs"
    # A label is removed with its version, with a note: TF Serving would refuse the file.
    shutil.rmtree(root / "lungs" / "1")
    shutil.rmtree(root / "knn")
    with caplog.at_level(logging.WARNING, "cxr_tf"):
        model_config.write_models_config(root)
    entries = written(root)
    assert set(entries) == {"lungs", "theirs"} and versions(entries["lungs"]) == [2, 3]
    assert not entries["lungs"].version_labels and "'stable' removed" in caplog.text


def test_unparsable_models_config_is_left_unchanged(root: Path, caplog) -> None:
    (root / "models.config").write_text("half a change {")
    with caplog.at_level(logging.WARNING, "cxr_tf"):
        model_config.write_models_config(root)
    assert (root / "models.config").read_text() == "half a change {"
    assert "left unchanged" in caplog.text


def test_concurrent_export_is_not_lost(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second export finishes after the first has listed the models and before it has written."""
    rename = os.replace

    def late(*names: Path) -> None:
        if not (root / "other").exists():
            model(root, "other", 1)
            model_config.write_models_config(root)
        rename(*names)

    monkeypatch.setattr(os, "replace", late)
    model_config.write_models_config(root)
    assert set(written(root)) == {"knn", "lungs", "other"}


def test_concurrent_exports_leave_a_complete_file(root: Path) -> None:
    def export(number: int) -> None:
        model(root, f"m{number}", 1)
        model_config.write_models_config(root)

    threads = [threading.Thread(target=export, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(written(root)) == {"knn", "lungs", *(f"m{n}" for n in range(8))}
    assert not [p for p in root.iterdir() if p.name.startswith(".")]


def test_batching_config_is_written_once_and_parses(root: Path) -> None:
    path = root / "batching.config"
    # Its definition is not in tensorflow-serving-api: session_bundle_config.proto has these fields.
    file = descriptor_pb2.FileDescriptorProto(
        name="batching.proto", package="t", dependency=[wrappers_pb2.DESCRIPTOR.name]
    )
    message = file.message_type.add(name="BatchingParameters")
    for number, field in enumerate(
        ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads"), 1
    ):
        message.field.add(name=field, number=number, label=1, type=11,
                          type_name=".google.protobuf.Int64Value")  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("t.BatchingParameters"))
    parsed = text_format.Parse(path.read_text(), kind())
    # The requests of predict.py must be accepted.
    assert parsed.max_batch_size.value >= 32 and parsed.num_batch_threads.value >= 1
    assert parsed.HasField("batch_timeout_micros") and parsed.max_enqueued_batches.value > 0
    path.write_text("max_batch_size { value: 7 }")
    model_config.write_models_config(root)
    assert path.read_text() == "max_batch_size { value: 7 }"


# ---------------------------------------------------------------------- scripts/serve.sh


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH with the tools that a script may rely on, but without TF Serving and Docker."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "cmp", "mv", "rm", "sed", "cat"):
        (folder / name).symlink_to(str(shutil.which(name)))
    return folder


def program(tools: Path, name: str, body: str = "") -> None:
    """Write a program that prints its name and arguments, one per line."""
    (tools / name).write_text(f'#!/bin/sh\n{body}\nprintf "%s\\n" {name} "$@"\n')
    (tools / name).chmod(0o755)


def serve(tools: Path, *arguments: object, **environment: str) -> tuple[int, list[str], str]:
    done = subprocess.run(
        [str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={"PATH": str(tools), **environment},
        cwd=tools,
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_serve_uses_the_model_server_on_the_path(tools: Path, root: Path) -> None:
    program(tools, "tensorflow_model_server")
    program(tools, "docker")
    code, out, err = serve(tools, root, "--port", 9000, "--", "--flag=1")
    assert code == 0 and err == ""
    assert out[:3] == ["tensorflow_model_server", "--port=9000", "--rest_api_port=8501"]
    assert f"--model_config_file={root.resolve()}/models.config" in out and out[-1] == "--flag=1"
    # Requests that are merged fail together, so batching is used only on request.
    assert not [line for line in out if "batching" in line]
    _, out, _ = serve(tools, root, "--batching")
    assert "--enable_batching=true" in out
    assert f"--batching_parameters_file={root.resolve()}/batching.config" in out


DAEMON = 'case "$1" in info) exit 0 ;; image) [ "$3" = "$HAVE" ]; exit ;; pull) exit 1 ;; esac'


def test_serve_falls_back_to_docker(tools: Path, root: Path) -> None:
    program(tools, "docker", DAEMON)
    image = "tensorflow/serving:2.21.0"
    code, out, err = serve(tools, root, HAVE=image, DOCKER_FLAGS="--gpus all")
    place = root.resolve()
    assert code == 0 and err == ""
    assert f"type=bind,source={place},target={place},readonly" in out
    assert f"--model_config_file={place}/models.config" in out
    assert out[: out.index("-p")] == ["docker", "run", "--rm", "--init", "--gpus", "all"]
    before = out.index(image) - 2
    assert out[before : before + 2] == ["--entrypoint", "tensorflow_model_server"]
    code, out, err = serve(tools, root, HAVE="tensorflow/serving:latest")
    assert code == 0 and "tensorflow/serving:latest" in out and "using" in err
    code, out, err = serve(tools, root, HAVE="none")
    assert code == 2 and "cannot pull the image" in err.splitlines()[-1]
    code, out, err = serve(tools, root, HAVE="mine", TF_SERVING_IMAGE="mine")
    assert code == 0 and "mine" in out


def test_serve_explains_how_to_install_a_server(tools: Path, root: Path) -> None:
    code, out, err = serve(tools, root)
    assert code == 2 and out == [] and len(err.splitlines()) == 1
    assert "apt-get install tensorflow-model-server" in err and "docs.docker.com" in err
    program(tools, "docker", "exit 1")
    code, _, err = serve(tools, root)
    assert code == 2 and "does not respond" in err and len(err.splitlines()) == 1


def test_serve_reports_wrong_arguments_in_one_line(tools: Path, root: Path, tmp_path: Path) -> None:
    program(tools, "tensorflow_model_server")
    for arguments, message in (
        ([tmp_path / "none"], "no such folder"),
        ([tmp_path], "no models.config: export a model first"),
        ([root, "--port", "x"], "needs a number, not 'x'"),
        ([root, "--rest-port"], "needs a number"),
        ([root, "--model_name=x"], "unknown flag --model_name=x"),
        ([root, root], "one folder"),
    ):
        code, out, err = serve(tools, *arguments)
        assert code == 2 and out == [] and message in err and len(err.splitlines()) == 1


def test_serve_updates_the_paths_of_moved_models(tools: Path, root: Path) -> None:
    by_hand(root)
    moved = root.parent / "elsewhere"
    shutil.copytree(root, moved)
    program(tools, "tensorflow_model_server")
    code, out, err = serve(tools, moved)
    assert code == 0 and f"--model_config_file={moved.resolve()}/models.config" in out
    assert "paths of another folder" in err
    entries = written(moved)
    assert entries["lungs"].base_path == str(moved.resolve() / "lungs")
    assert versions(entries["lungs"]) == [1, 2] and entries["lungs"].version_labels["stable"] == 1
    assert entries["theirs"].base_path == "/srv/theirs"
    assert serve(tools, moved)[2] == ""  # the second time there is nothing to change
    assert sorted(p.name for p in moved.iterdir() if p.is_file()) == [
        "batching.config",
        "models.config",
    ]


@pytest.mark.parametrize("path", ["/srv/other/lungs", "/srv/theirs/", "/srv/prod/lungs/"])
def test_serve_keeps_the_paths_of_foreign_models(tools: Path, root: Path, path: str) -> None:
    """This holds even if a folder of this package has the same name."""
    config = root / "models.config"
    by_hand(root)
    config.write_text(config.read_text().replace("/srv/theirs", path))
    before = config.read_bytes()
    program(tools, "tensorflow_model_server")
    assert serve(tools, root)[::2] == (0, "")
    assert config.read_bytes() == before and path.encode() in before


def test_serving_and_training_use_the_same_tensorflow() -> None:
    """An older TF Serving may lack an op that this TensorFlow puts into the graph."""
    required = re.search(r"^tensorflow>=(\d+\.\d+)", (ROOT / "requirements.txt").read_text(), re.M)
    assert required
    for path in (SCRIPT, ROOT / "docs" / "compose.yaml"):
        found = re.findall(r"(?:version=|serving:)(\d+\.\d+)\.\d+", path.read_text())
        assert set(found) == {required[1]}, path
    assert os.access(SCRIPT, os.X_OK)
