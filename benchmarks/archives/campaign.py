"""Prepare the fault campaign: images, a model, the command, and the comparison of archives."""

import contextlib
import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"

SHARD_SIZE = 64
FILES = 100


class Campaign:
    """A folder with images, a model, and the digests of the undisturbed archive."""

    def __init__(
        self, work: Path, images: int, kills: int, coordinator_kills: int, stand_in: bool
    ) -> None:
        self.work = work
        self.script = ROOT / "scripts/score_archive.py"
        if stand_in:
            self.script = SUPPORT / "archive_workers.py"
        self.seconds = 2 if stand_in else 40
        """A coordinator is killed within this many seconds after its start."""
        self.images = work / "images"
        self.model = work / "models" / "small"
        self.kills, self.coordinator_kills = kills, coordinator_kills
        if not self.images.exists():
            make_images(self.images, images)
        if not self.model.exists() and not stand_in:
            make_model(self.model)
        self.expected = self.undisturbed(work / "undisturbed", [str(self.images)])

    def undisturbed(self, out: Path, images: list[str]) -> dict[str, str]:
        """Compute an undisturbed archive, and return its digests."""
        finish(self.command(out, images))
        return digests(out)

    def command(self, out: Path | str, images: list[str], *more: str) -> list[str]:
        """Return the command line that scores the images."""
        return [
            *(sys.executable, str(self.script)),
            *("--images", *images, "--model", str(self.model), "--out", str(out)),
            *("--runtime", "tensorflow", "--shard-size", str(SHARD_SIZE)),
            *("--signatures", "serving_default", "embed"),
            *(more or ("--workers", "2")),
        ]

    def check(self, out: Path) -> str:
        """Return the differences from the undisturbed archive in words, or an empty string."""
        actual = digests(out)
        if actual != self.expected:
            different = [k for k in self.expected if actual.get(k) != self.expected[k]]
            more = len(set(actual) - set(self.expected))
            return f"{len(different)} files differ or are missing, {more} are additional"
        return paths_once(out)


def make_images(folder: Path, count: int) -> None:
    """Write a hundred phantoms, two of them unreadable, and links to them: `count` files in all."""
    from PIL import Image

    from cxr_tf.data.sources.phantoms import FINDINGS, phantom

    folder.mkdir(parents=True)
    for k in range(FILES):
        encoded = io.BytesIO()
        image = phantom(FINDINGS[k % 3], seed=1, patient=k, size=128).image
        Image.fromarray(image).save(encoded, format="PNG")
        content = encoded.getvalue()
        (folder / f"{k:06d}.png").write_bytes({7: b"", 8: content[:200]}.get(k, content))
    for k in range(FILES, count):
        os.link(folder / f"{k % FILES:06d}.png", folder / f"{k:06d}.png")


def make_model(folder: Path) -> None:
    """Export a random AlexNet at 64 pixels, in a separate process."""
    code = """
import sys
from pathlib import Path
from random_classifier import random_classifier
from cxr_tf.serving.export import export_classifier
classes = ("normal", "bacterial", "viral")
card = {"kind": "classifier", "task": "three_class", "classes": classes, "image_size": 64,
        "backbone": "alexnet", "threshold": 0.5}
export_classifier(random_classifier("alexnet", 64), Path(sys.argv[1]), classes=classes,
                  threshold=0.5, card=card)
"""
    subprocess.run([sys.executable, "-c", code, str(folder)], env=environment(), check=True)


def environment(**more: str) -> dict[str, str]:
    """Return the environment of the commands, with the package of this checkout."""
    paths = os.pathsep.join([str(ROOT), str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3", **more}


def start(command: list[str], log: Path | None = None) -> subprocess.Popen:
    """Start a command in a new session."""
    output = log.open("ab") if log else subprocess.DEVNULL
    return subprocess.Popen(
        command, env=environment(), stdout=output, stderr=output, start_new_session=True
    )


def finish(command: list[str]) -> None:
    """Run a command to its end; raise RuntimeError with its messages if it fails."""
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-2000:]}")


def workers_of(process: subprocess.Popen) -> list[int]:
    """Return the process ids of a coordinator's workers."""
    workers = []
    with contextlib.suppress(OSError):
        task = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        for child in task.read_text().split():
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{child}/cmdline").read_bytes()
                if b"spawn_main" in command:
                    workers.append(int(child))
    return workers


def digests(out: Path) -> dict[str, str]:
    """Return {file: digest} of an archive, including hidden files, without summary.json."""
    files = [p for p in out.rglob("*") if p.is_file() and p.name != "summary.json"]
    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(files)
    }


def paths_once(out: Path) -> str:
    """Return "" if the shards contain each listed path once and in order, or else a message."""
    import pyarrow.parquet as pq

    scored = [p for f in sorted((out / "shards").iterdir()) for p in read_paths(pq, f)]
    listed = [p for f in sorted((out / "lists").iterdir()) for p in read_paths(pq, f)]
    message = "the shards do not contain each listed path exactly once and in order"
    return "" if scored == listed and len(set(scored)) == len(scored) else message


def read_paths(pq: Any, file: Path) -> list[str]:
    """Return the paths in a Parquet file."""
    return pq.read_table(file, columns=["path"])["path"].to_pylist()


def is_alive(pid: int) -> bool:
    """Return whether a process is running and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
