"""Inject faults into the package; the table of results is in docs/reliability.md.

    python -m benchmarks.reliability --trials 200
    python -m benchmarks.reliability --parts files records server       # seconds, no TensorFlow

Parts: files (a kill before every file operation of the jobs that write files), commands (a kill
before every k-th file operation of commands), trainings (kills at random moments, then --resume),
records (JSON with missing or wrong fields), bits (flipped bits in exported models), disk (a full
file system; needs root) and server (wrong responses of a server). After a kill, the job is run
again, and its output must equal that of an undisturbed job; a command must finish, and leave no
temporary files.
"""

import collections
import contextlib
import functools
import io
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tyro

from benchmarks import faults, hostile_server
from benchmarks.faults import DONE, KILLED, ONE_LINE, run
from cxr_tf import files, runs
from cxr_tf.runs.config_json import CONFIG_FIELDS
from cxr_tf.runs.metrics_json import METRICS_FIELDS

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Campaign:
    """Faults to inject, and how often."""

    parts: tuple[str, ...] = (
        "files", "records", "server", "disk", "bits", "commands", "trainings",
    )  # fmt: skip
    trials: int = 100
    """Flipped bits per file."""
    kills: int = 5
    """Kills per training run."""
    every: int = 5
    """Kill commands before their first file operation, and then before every k-th; this is k."""
    seed: int = 0


@dataclass(frozen=True)
class Row:
    """One row of the table: a fault, how often it was tried, and how the attempts ended."""

    fault: str
    tried: int
    outcomes: str
    failed: int


def main(settings: Campaign) -> list[Row]:
    """Run the campaign, print its table, and return the rows."""
    rows = []
    for part in settings.parts:
        for row in PARTS[part](settings):
            rows.append(row)
            print(f"| {row.fault} | {row.tried} | {row.outcomes} | {row.failed} |", flush=True)
    return rows


# ---------------------------------------------------------------------- kills


def write_file() -> None:
    """Overwrite a JSON file."""
    files.write_json(Path("metrics.json"), {"auroc": 0.5})


def write_folder() -> None:
    """Overwrite a folder, as predict.py --overwrite does."""
    with files.temporary_sibling(Path("maps")) as partial:
        (partial / "predictions.csv").write_text("new")
        (partial / "0.png").write_text("new")
        files.replace_folder(partial, Path("maps"))


def write_config() -> None:
    """Write models.config and batching.config after an export."""
    from cxr_tf.serving.store import model_config

    model_config.write_models_config(Path("saved_models"))


def restart_run() -> None:
    """Restart an interrupted run."""
    run = runs.start_run(Path("logs"), {"settings": {}})
    (run.directory / "figures").mkdir()
    (run.directory / "figures" / "new.png").write_text("new")
    run.write_metrics({"test": {"auroc": 0.5}})


def prepare_file(here: Path) -> None:
    """Create the file that the job overwrites."""
    (here / "metrics.json").write_text('{"auroc": 0.1}')


def prepare_folder(here: Path) -> None:
    """Create the folder that the job overwrites."""
    (here / "maps").mkdir()
    (here / "maps" / "predictions.csv").write_text("old")
    (here / "maps" / "old.png").write_text("old")


def prepare_config(here: Path) -> None:
    """Create an exported model."""
    (here / "saved_models" / "lungs" / "1").mkdir(parents=True)
    (here / "saved_models" / "lungs" / "1" / "saved_model.pb").touch()


def prepare_run(here: Path) -> None:
    """Create an interrupted run with a figure."""
    (here / "logs" / "figures").mkdir(parents=True)
    (here / "logs" / "figures" / "old.png").write_text("old")
    (here / "logs" / "config.json").write_text('{"settings": {}}')


FILE_JOBS: dict[str, tuple[Callable[[], None], Callable[[Path], None], str]] = {
    "a JSON file": (write_file, prepare_file, "metrics.json"),
    "a folder that replaces another": (write_folder, prepare_folder, "maps/predictions.csv"),
    "models.config": (write_config, prepare_config, "saved_models/lungs/1/saved_model.pb"),
    "a run that is restarted": (restart_run, prepare_run, "logs"),
}


def contents(here: Path) -> dict[str, bytes]:
    """Return the content of all files, without the path of the directory, by relative path."""
    names = sorted(p for p in here.rglob("*") if p.is_file())
    return {str(p.relative_to(here)): p.read_bytes().replace(bytes(here), b"") for p in names}


def kill_in_file_jobs(settings: Campaign) -> Iterator[Row]:
    """Kill each job before every file operation, run it again, and compare."""
    for name, (job, prepare, visible) in FILE_JOBS.items():
        with faults.working_directory() as here:
            prepare(here)
            assert run(job) == DONE
            expected = contents(here)
        tried = failed = 0
        for number in range(1, 1000):
            with faults.working_directory() as here:
                prepare(here)
                ended = run(job, kill_before=number)
                if ended != KILLED:
                    break
                tried += 1
                was_visible = (here / visible).exists()
                again = run(job)
                failed += again != DONE or not was_visible or contents(here) != expected
        assert ended == DONE, ended
        fault = f"kill before each file operation: {name}"
        yield Row(fault, tried, "equal to the undisturbed job", failed)


# ---------------------------------------------------------------------- records


def records_with_wrong_fields(settings: Campaign) -> Iterator[Row]:
    """Remove each field of the records, change its type, or cut the file off; then read it."""
    from cxr_tf.serving.store import cards
    from cxr_tf.study import state

    examples: dict[str, tuple[dict[str, Any], dict[str, Any], Callable[[Any], Any]]] = {
        "config.json": (
            {"job": "knn", "settings": {"seed": 1}, "data_fingerprint": "a", "images": 3},
            CONFIG_FIELDS,
            lambda r: (r["job"] + r["data_fingerprint"], r["settings"]["seed"]),
        ),
        "metrics.json": (
            {"test": {"auroc": 0.5, "ci95": {"auroc": [0.4, 0.6]}}, "model": {"saved_model": "x"}},
            METRICS_FIELDS,
            lambda r: (r["test"]["auroc"] + sum(r["test"]["ci95"]["auroc"]),
                       r["model"]["saved_model"] + ""),
        ),
        "study.json": (
            {"runs": {"a": {"step": "data", "run": "data/x", "seconds": 1.0}}},
            state.STUDY_FIELDS,
            lambda r: [v["run"] + v["step"] + f"{v['seconds']:.1f}" for v in r["runs"].values()],
        ),
        "model_card.json": (
            {"kind": "classifier", "classes": ["a", "b"], "image_size": 64, "files": {"x": "y"}},
            cards.CARD_FIELDS,
            lambda r: (r["kind"] + "".join(r["classes"]), r["image_size"] + 1, r["files"].items()),
        ),
    }  # fmt: skip
    for name, (content, fields, use) in examples.items():
        ended: collections.Counter[str] = collections.Counter()
        with faults.working_directory() as here:
            whole = json.dumps(content)
            texts = [json.dumps(changed) for _, changed in faults.wrong_records(content)]
            job = functools.partial(use_record, here / name, fields, use)
            for text in [*texts, *(whole[:end] for end in range(0, len(whole), 3))]:
                (here / name).write_text(text)
                ended[outcome_of(job)] += 1
        yield _row(f"{name} with a field removed or of another type, or cut off", ended)


def use_record(path: Path, fields: dict[str, Any], use: Callable[[Any], Any]) -> None:
    """Read a record, and use its fields as the package does."""
    use(files.read_json(path, fields))


def _row(fault: str, ended: collections.Counter[str]) -> Row:
    outcomes = ", ".join(f"{count} {name}" for name, count in ended.most_common())
    failed = sum(n for name, n in ended.items() if name not in (DONE, ONE_LINE))
    return Row(fault, sum(ended.values()), outcomes, failed)


# ---------------------------------------------------------------------- server


def predict_from(url: str, images: int = 3, timeout: float = 2.0) -> None:
    """Predict on a hostile server; assert that accepted predictions are correct."""
    from cxr_tf.serving.prediction import client

    with mock.patch.object(client, "FIRST_PAUSE", 0.01):
        predicted = client.connect(url, "model", timeout=timeout)([b"image"] * images)
    assert np.array_equal(predicted["probabilities"], [[0.25, 0.75]] * images)


def hostile_servers(settings: Campaign) -> Iterator[Row]:
    """Predict on hostile servers; expect a one-line error, or correct results after a retry."""
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
    kinds = {
        "wrong predictions": [(f, "prediction") for f in hostile_server.WRONG_PREDICTIONS],
        "wrong metadata": [(f, "metadata") for f in hostile_server.WRONG_METADATA],
        "broken connections": [
            (f, w) for f in hostile_server.TRANSPORT for w in ("metadata", "prediction")
        ],
    }
    for kind, cases in kinds.items():
        ended: collections.Counter[str] = collections.Counter()
        failed = 0
        for fault, where in cases:
            with hostile_server.hostile_server(fault, where) as url:
                outcome = outcome_of(functools.partial(predict_from, url))
            ended[outcome] += 1
            failed += outcome != (DONE if fault.endswith("once") else ONE_LINE)
        outcomes = ", ".join(f"{count} {name}" for name, count in ended.most_common())
        yield Row(f"server: {kind}", len(cases), outcomes, failed)


def outcome_of(job: Callable[[], Any]) -> str:
    """Run a job that cannot crash this process, and return how it ended."""
    with contextlib.redirect_stderr(io.StringIO()) as messages:
        outcome = faults.EXIT_CODES[faults.exit_code(job)]
    if outcome == faults.TRACEBACK:
        print(messages.getvalue(), file=sys.stderr)
    return outcome


# ---------------------------------------------------------------------- processes of the package


def command(*arguments: object) -> list[str]:
    """Return the command line of a script."""
    return [sys.executable, str(ROOT / "scripts" / str(arguments[0])), *map(str, arguments[1:])]


TRAIN = ("train_classifier.py", "--data", "xrays", "--backbone", "alexnet", "--weights", "none",
         "--image-size", 64, "--epochs", 2, "--batch-size", 16, "--bootstrap-samples", 5,
         "--name", "tiny")  # fmt: skip
AUTOENCODER = ("train_autoencoder.py", "--data", "xrays", "--model", "plain", "--image-size", 64,
               "--epochs", 2, "--batch-size", 16, "--bootstrap-samples", 5,
               "--name", "plain")  # fmt: skip


def write_phantoms(here: Path) -> None:
    """Write 72 small phantoms."""
    code = "from cxr_tf.data.sources.phantoms import write_phantoms as w; from pathlib import Path;"
    code += "w(Path('xrays'), count=72, size=64, seed=3)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=here)


def results(here: Path) -> dict[str, bytes]:
    """Return the files that a seed determines: weights and predictions.

    saved_model.pb is left out: TensorFlow numbers the functions of a process, and a resumed
    training traces different ones before the export.
    """
    patterns = ("**/model.keras", "**/predictions-*.csv", "**/variables.*")
    paths = sorted(p for pattern in patterns for p in here.glob(pattern))
    return {str(p.relative_to(here)): p.read_bytes() for p in paths}


def kill_trainings(settings: Campaign) -> Iterator[Row]:
    """Kill training runs at random moments, resume each, and compare the results bit by bit."""
    rng = random.Random(settings.seed)
    for arguments in (TRAIN, AUTOENCODER):
        with faults.working_directory() as here:
            write_phantoms(here)
            started = time.monotonic()
            subprocess.run(command(*arguments), check=True, capture_output=True)
            seconds = time.monotonic() - started
            expected = results(here)
            failed = tried = 0
            for _ in range(settings.kills):
                for folder in ("logs", "saved_models"):
                    shutil.rmtree(here / folder, ignore_errors=True)
                process = subprocess.Popen(
                    command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(rng.uniform(0.1, 0.8) * seconds)
                tried += process.poll() is None
                process.kill()
                process.wait()
                done = subprocess.run(command(*arguments, "--resume"), capture_output=True)
                left = faults.hidden_files(here) + [str(p) for p in here.rglob("*.npz")]
                failed += done.returncode != 0 or bool(left) or results(here) != expected
        yield Row(
            f"kill -9 of {arguments[0]} at random moments, then --resume",
            tried,
            "weights and predictions of the undisturbed run",
            failed,
        )


def kill_commands(settings: Campaign) -> Iterator[Row]:
    """Kill commands before every k-th file operation, and run the same command again."""
    with faults.working_directory() as here:
        write_phantoms(here)
        subprocess.run(command(*TRAIN), check=True, capture_output=True)
        model = "saved_models/tiny"
        commands = {
            "prepare_data.py --check": ("prepare_data", ["--check", "xrays"], "logs/data"),
            "evaluate.py": (
                "evaluate",
                ["--model", model, "--data", "xrays", "--name", "e", "--bootstrap-samples", "5"],
                "logs/evaluate",
            ),
            "predict.py --overwrite": (
                "predict",
                ["--model", model, "--images", "xrays/test/NORMAL", "--signature", "occlusion",
                 "--output", "maps", "--overwrite"],
                "maps",
            ),
        }  # fmt: skip
        for name, (job, flags, output) in commands.items():
            killed = failed = 0
            for number in range(1, 2000, settings.every):
                if job != "predict":  # which overwrites existing output
                    shutil.rmtree(here / output, ignore_errors=True)
                code = (
                    f"import sys; from benchmarks import faults; faults.arm_kill({number});"
                    f"sys.argv = ['x', *{flags!r}]; from cxr_tf import commands;"
                    f"commands.run({job!r})"
                )
                environment = {**os.environ, "PYTHONPATH": str(ROOT)}
                done = subprocess.run(
                    [sys.executable, "-c", code], env=environment, capture_output=True
                )
                if done.returncode == 0:
                    break
                killed += 1
                visible = job != "predict" or number == 1 or (here / "maps").exists()
                again = subprocess.run(command(f"{job}.py", *flags), capture_output=True)
                numbered = list((here / "logs").glob("*/*-2"))
                left = faults.hidden_files(here)
                failed += again.returncode != 0 or not visible or bool(numbered) or bool(left)
                if again.returncode:
                    print(again.stderr.decode()[-500:], file=sys.stderr)
            yield Row(
                f"kill before one file operation in {settings.every}: {name}",
                killed,
                "complete when the command was run again",
                failed,
            )


def flip_bits(settings: Campaign) -> Iterator[Row]:
    """Flip bits in the files of an exported model, and check them as before they are loaded."""
    rng = random.Random(settings.seed)
    with faults.working_directory() as here:
        write_phantoms(here)
        subprocess.run(command(*TRAIN), check=True, capture_output=True)
        version = next((here / "saved_models/tiny").iterdir())

        from cxr_tf.serving.store import cards  # imported once, not in each child

        def load() -> None:
            cards.check_files(version, cards.read_card(version))

        for file in sorted(p for p in version.rglob("*") if p.is_file()):
            content = file.read_bytes()
            ended: collections.Counter[str] = collections.Counter()
            for _ in range(settings.trials):
                file.write_bytes(faults.flip_bit(content, rng))
                ended[run(load)] += 1
            file.write_bytes(content)
            yield _row(f"a flipped bit in {file.relative_to(version)}", ended)


def fill_disk(settings: Campaign) -> Iterator[Row]:
    """Write to file systems of 16 kB to 4 MB until they are full."""
    ended: collections.Counter[str] = collections.Counter()
    left = 0

    def write() -> None:
        runs.start_run(Path("logs"), {"settings": {}})
        for number in range(30):
            arrays = {"x": np.random.default_rng(number).random(20_000)}
            files.write_arrays(Path(f"logs/{number}.npz"), arrays)
            files.write_csv(Path(f"logs/{number}.csv"), ["x"], [[k] for k in range(2000)])
            with files.temporary_sibling(Path(f"logs/f{number}")) as partial:
                (partial / "file").write_bytes(bytes(100_000))
                files.replace_folder(partial, Path(f"logs/f{number}"))

    for size in [*range(16_384, 262_144, 16_384), *range(262_144, 4 << 20, 262_144)]:
        with faults.working_directory() as here, faults.limited_disk(size):
            ended[run(write)] += 1
            left += bool(faults.hidden_files(here))
    row = _row("a full disk (tmpfs of 16 kB to 4 MB)", ended)
    yield Row(row.fault, row.tried, f"{row.outcomes}; no temporary files", row.failed + left)


PARTS: dict[str, Callable[[Campaign], Iterator[Row]]] = {
    "files": kill_in_file_jobs,
    "records": records_with_wrong_fields,
    "server": hostile_servers,
    "disk": fill_disk,
    "bits": flip_bits,
    "commands": kill_commands,
    "trainings": kill_trainings,
}

if __name__ == "__main__":
    sys.exit(any(row.failed for row in main(tyro.cli(Campaign))))
