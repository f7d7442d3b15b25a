"""Data sets that prepare_data.py writes, and the page of a check."""

import json
import os
import shutil
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image
from ward import draw_phantoms, write_ward

from cxr_tf import files
from cxr_tf.config import PrepareData
from cxr_tf.errors import UserError
from cxr_tf.preparation.prepare_data import prepare_data


@pytest.fixture(scope="module")
def drawn() -> list[Image.Image]:
    """60 phantoms, each of a different patient, with all findings."""
    return draw_phantoms()


@pytest.fixture
def data(tmp_path: Path, drawn: list[Image.Image]) -> Path:
    """A data set whose sick images are smaller and wider; with two near copies and one exact."""
    return write_ward(tmp_path / "ward", drawn)


def check(data: Path, tmp_path: Path) -> Path:
    prepare_data(PrepareData(check=str(data), logs=str(tmp_path / "logs")))
    return tmp_path / "logs" / "data" / data.name


def test_check_writes_a_page_a_table_and_warnings(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="cxr_tf"):
        run = check(data, tmp_path)
    config = json.loads((run / "config.json").read_text())
    assert config["job"] == "data" and config["packages"]["tensorflow"][0].isdigit()
    message = caplog.text
    assert "size alone separates" in message
    assert "aspect alone separates 'normal' from the rest with AUROC 1.00 (lower values)" in message
    assert "brightness alone separates" not in message
    assert "2 pairs of images look the same" in message
    assert "1 of these pairs appears under two labels" in message
    assert "1 image is a byte-identical copy" in message
    written = json.loads((run / "metrics.json").read_text())
    assert written["near_duplicates"] == 2
    assert written["aspect_auroc/normal"] > 0.98
    pairs = (run / "near-duplicates.csv").read_text().splitlines()
    assert len(pairs) == 3
    assert Image.open(run / "figures" / "data.png").size > (1000, 800)
    assert len(list(run.glob("events.out.*"))) == 1
    # The next check replaces the page; TensorBoard shows one, not both.
    check(data, tmp_path)
    assert len(list(run.glob("events.out.*"))) == 1


def test_unreadable_files_are_listed_and_raise(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = (data / "NORMAL/9.png").read_bytes()
    (data / "NORMAL/9.png").write_bytes(whole[: len(whole) // 2])
    (data / "NORMAL/12.png").write_text("text")
    with (
        caplog.at_level("INFO", logger="cxr_tf"),
        pytest.raises(UserError, match=r"2 images of .* cannot be read"),
    ):
        check(data, tmp_path)
    assert "9.png (truncated or corrupt image)" in caplog.text
    assert "12.png (neither JPEG nor PNG)" in caplog.text
    assert (tmp_path / "logs/data/ward/figures/data.png").exists()


def test_the_page_of_a_study_or_of_other_data_is_not_replaced(data: Path, tmp_path: Path) -> None:
    run = check(data, tmp_path)
    others = tmp_path / "others" / data.name
    shutil.copytree(data, others)
    (others / "NORMAL/9.png").unlink()
    before = (run / "metrics.json").read_bytes()
    check(others, tmp_path)
    assert (run / "metrics.json").read_bytes() == before
    second = run.with_name(f"{data.name}-2")
    assert json.loads((second / "metrics.json").read_text())["source"] == str(others.resolve())
    # A study's page names no source.
    (run / "metrics.json").write_text('{"splits": {}}')
    check(data, tmp_path)
    assert (run / "metrics.json").read_text() == '{"splits": {}}'
    assert (run.with_name(f"{data.name}-3") / "metrics.json").exists()


def test_check_refuses_what_training_would_refuse(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="task binary needs neither"):
        prepare_data(PrepareData(check=str(data), task="three_class", logs=str(tmp_path / "logs")))


def test_many_labels_fit_on_the_page(tmp_path: Path, drawn: list[Image.Image]) -> None:
    lines = ["path,label"]
    for number, image in enumerate(drawn):
        image.save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,finding number {number % 12}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    prepare_data(
        PrepareData(check=str(tmp_path / "list.csv"), task="labels", logs=str(tmp_path / "logs"))
    )
    assert (tmp_path / "logs/data/list/figures/data.png").exists()


def test_phantoms_are_written_to_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = PrepareData(out="mine", count=40, size=32, seed=3)
    with caplog.at_level("INFO", logger="cxr_tf"):
        prepare_data(settings)
    assert len(list(Path("mine").glob("t*/*/*.png"))) > 30
    assert "synthetic phantoms" in caplog.text
    with pytest.raises(UserError, match="exists"):
        prepare_data(settings)
    with pytest.raises(UserError, match="--out"):
        prepare_data(PrepareData(count=40))
    with pytest.raises(UserError, match="28, 64, 128 and 224"):
        prepare_data(PrepareData(source="pneumoniamnist", size=32))


def test_interrupted_check_is_replaced_by_the_next(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", interrupt)
        with pytest.raises(KeyboardInterrupt):
            check(data, tmp_path)
    run = tmp_path / "logs" / "data" / data.name
    assert (run / "near-duplicates.csv").exists() and not (run / "metrics.json").exists()
    files.release_lock(run)
    dot = Image.new("RGB", (1, 1))  # in place of the figures, which take seconds to draw
    monkeypatch.setattr(Figure, "savefig", lambda _, path, **how: dot.save(path, "png"))
    # Another process works on it: neither waits for the other, nor does it write a second page.
    descriptor = files.lock(run, wait=True)
    if descriptor is not None:
        with pytest.raises(UserError, match="another process is working on"):
            check(data, tmp_path)
        os.close(descriptor)
    check(data, tmp_path)
    assert [p.name for p in run.parent.iterdir()] == [data.name]
    assert (run / "metrics.json").exists()


def test_check_after_a_kill_before_the_settings_were_recorded_leaves_nothing_hidden(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "logs" / "data" / data.name
    run.mkdir(parents=True)
    (run / ".config.json.writing").write_text("{")
    dot = Image.new("RGB", (1, 1))
    monkeypatch.setattr(Figure, "savefig", lambda _, path, **how: dot.save(path, "png"))
    check(data, tmp_path)
    assert [p.name for p in run.parent.iterdir()] == [data.name]
    assert not [p for p in run.rglob(".*")]
