"""The wheel works outside the checkout, and the tutorial runs unchanged."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_wheel_trains_in_a_separate_environment(tmp_path: Path) -> None:
    """The dependencies are those of this environment; the package comes from the wheel alone."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(tmp_path),
            ".",
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("cxr_tf-*.whl")
    venv.create(tmp_path / "venv", with_pip=False)
    binaries = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = str(binaries / "python")
    paths = sysconfig.get_paths(vars={"base": str(tmp_path / "venv")})
    site = Path(paths["purelib"])
    # A checkout on the path would count as the installed package.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps",
         "--disable-pip-version-check", str(wheel)],
        check=True,
        env=environment,
    )  # fmt: skip
    # After the wheel on the path, and without the editable checkout that lies there too.
    (site / "zz_dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    work = tmp_path / "work"
    work.mkdir()

    def cxr(*arguments: str) -> str:
        done = subprocess.run(
            [str(binaries / "cxr"), *arguments],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    origin = subprocess.run(
        [python, "-c", "import cxr_tf; print(cxr_tf.__file__)"],
        cwd=work, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(origin.stdout.strip()).is_relative_to(site)
    assert "train-classifier" in cxr("--help")
    cxr("prepare-data", "--source", "phantom", "--count", "40", "--size", "64", "--out", "xrays")
    printed = cxr(
        *("train-classifier", "--data", "xrays", "--backbone", "vgg16", "--weights", "none"),
        *("--image-size", "64", "--epochs", "1", "--batch-size", "16"),
        *("--bootstrap-samples", "20", "--name", "wheel"),
    )
    assert "AUROC" in printed
    assert (work / "logs/classifier/wheel/metrics.json").exists()
    assert (work / "saved_models/wheel/1/saved_model.pb").exists()


def test_tutorial_runs_and_shows_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "notebooks" / "tutorial.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in code), "outputs are not committed"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    pictures = [
        output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 7
