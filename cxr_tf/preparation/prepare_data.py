"""Download, convert, generate or check a data set.

python scripts/prepare_data.py --source kermany
python scripts/prepare_data.py --check data/kermany
"""

import logging
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cxr_tf import figures
from cxr_tf.config import PrepareData, check_numbers
from cxr_tf.data.acquisition.audit import (
    Inspection,
    all_warnings,
    inspect_images,
    log_warnings,
    warnings,
)
from cxr_tf.data.catalog import Catalog, counted
from cxr_tf.data.checks import check, describe, notes
from cxr_tf.data.loading import PHANTOM_COUNT, PHANTOM_SIZE, open_catalog, phantom_folder
from cxr_tf.data.sources import dicom, downloads, phantoms
from cxr_tf.errors import UserError
from cxr_tf.files import expand_user, write_csv
from cxr_tf.preparation.shortcut_audit import audit_inspected, write_audit
from cxr_tf.runs import Run, numbered_names, run_record, start_run, to_run_name

if TYPE_CHECKING:
    import tensorflow as tf

log = logging.getLogger(__name__)


def prepare_data(settings: PrepareData) -> None:
    """Write the data set of `--source`, or check the data set of `--check`.

    Raises UserError, after everything is written, for a problem that would prevent training.
    """
    check_numbers(settings)
    if settings.check:
        _check(settings)
        return
    data = _SOURCES[settings.source](settings)
    if data is None:
        return
    catalog = open_catalog(str(data), seed=settings.seed)
    log.info(describe(catalog))
    quoted = shlex.quote(str(data))
    log.info("Inspect it with --check %s; train on it with --data %s", quoted, quoted)
    check(catalog, task=settings.task)


def _phantom(settings: PrepareData) -> Path:
    size = settings.size or PHANTOM_SIZE
    if not settings.out:
        if (settings.count, size, settings.seed) != (PHANTOM_COUNT, PHANTOM_SIZE, 0):
            raise UserError(
                "phantoms with settings other than those of --data phantom need --out FOLDER"
            )
        return phantom_folder()
    try:
        phantoms.write_phantoms(
            Path(settings.out), count=settings.count, size=size, seed=settings.seed
        )
    except (FileExistsError, ValueError) as error:
        raise UserError(str(error)) from None
    return Path(settings.out)


def _kermany(settings: PrepareData) -> Path:
    target = Path(settings.out or "data/kermany")
    return downloads.prepare(downloads.SOURCES["kermany"], target, origin=settings.from_)


def _pneumoniamnist(settings: PrepareData) -> Path:
    name = f"pneumoniamnist_{settings.size or 224}"
    if name not in downloads.SOURCES:
        raise UserError(f"--size {settings.size}: PneumoniaMNIST has the sizes 28, 64, 128 and 224")
    target = Path(settings.out or f"data/{name}.npz")
    if target.suffix != ".npz":
        raise UserError(f"--out {settings.out}: give a file name that ends in .npz")
    return downloads.prepare(downloads.SOURCES[name], target, origin=settings.from_)


def _dicom(settings: PrepareData) -> Path | None:
    if not settings.from_:
        raise UserError("--source dicom needs --from: a DICOM file, a folder, or a .csv list")
    catalogue, unlabelled = dicom.convert(
        expand_user(settings.from_),
        Path(settings.out or "data/dicom"),
        laterals=settings.laterals,
    )
    if unlabelled:
        images = counted(unlabelled, "image has", "images have")
        log.info("%s no label: fill in the column 'label' of %s", images, catalogue)
    return None if unlabelled else catalogue


_SOURCES: dict[str, Callable[[PrepareData], Path | None]] = {
    "phantom": _phantom,
    "kermany": _kermany,
    "pneumoniamnist": _pneumoniamnist,
    "dicom": _dicom,
}


def _check(settings: PrepareData) -> None:
    """Inspect a data set: log the result, and draw it in logs/data/<name>/figures/data.png."""
    catalog = open_catalog(settings.check, seed=settings.seed, task=settings.task)
    log.info(describe(catalog))
    inspection = inspect_images(catalog)
    lines = all_warnings(inspection, settings.task)
    for row, reason in inspection.unreadable.items():
        log.info("  unreadable: %s (%s)", catalog.paths[row], reason)
    log_warnings(lines)
    for s in inspection.shortcuts:
        log.info("  %-10s alone: AUROC %.2f for '%s'", s.measure, s.auroc, s.finding)
    audit = audit_inspected(inspection, settings.task)
    if audit is not None:
        log.info("  %s%s", "warning: " if audit.is_warning else "", audit.summary())

    directory = _page_directory(catalog, Path(settings.logs) / "data")
    # The page shows the current data, so an earlier page is replaced.
    record = run_record("data", directory.name, settings, catalog)
    run = start_run(directory, {**record, "source": _source_of(catalog)})
    write_csv(
        run.directory / "near-duplicates.csv",
        ["path", "label", "split", "other", "other_label", "other_split"],
        [
            [
                *(catalog.radiographs[a].path, catalog.radiographs[a].finding),
                *(catalog.radiographs[a].split, catalog.radiographs[b].path),
                *(catalog.radiographs[b].finding, catalog.radiographs[b].split),
            ]
            for a, b in inspection.near
        ],
    )
    writer = run.writer()
    draw_page(run, inspection, writer)
    if audit is not None:
        write_audit(run, inspection, audit, writer)
    writer.close()
    run.write_metrics(
        {
            "source": _source_of(catalog),
            "images": len(catalog),
            "patients": len(set(catalog.patients)),
            "unreadable": len(inspection.unreadable),
            "near_duplicates": len(inspection.near),
            "warnings": lines,
            **{f"{s.measure}_auroc/{s.finding}": s.auroc for s in inspection.shortcuts},
            "shortcuts": audit.as_dict() if audit is not None else {},
            "fingerprint": catalog.fingerprint(),
        }
    )
    log.info("figure: %s", run.directory / "figures" / "data.png")
    _stop_if_untrainable(catalog, inspection, settings)


def draw_page(run: Run, inspection: Inspection, writer: "tf.summary.SummaryWriter") -> None:
    """Draw the data set on one page: `figures/data.png`, and in TensorBoard."""
    catalog = inspection.catalog
    kind = ", synthetic phantoms" if catalog.is_phantom else ""
    run.write_figure(
        "data",
        figures.data_page(
            [r.finding for r in catalog.radiographs],
            [r.split for r in catalog.radiographs],
            catalog.patients,
            catalog.findings,
            inspection.measures,
            inspection.thumbnails,
            len(catalog) - len({r.digest for r in catalog.radiographs}),
            inspection.near,
            [(s.measure, s.finding, s.auroc, s.suspicious) for s in inspection.shortcuts],
            heading=f"{run.directory.name}: {counted(len(catalog), 'image', 'images')}, "
            f"{counted(len(set(catalog.patients)), 'patient', 'patients')}{kind}",
            remarks=[*notes(catalog), *warnings(inspection)],
        ),
        writer,
    )


def _page_directory(catalog: Catalog, root: Path) -> Path:
    """Return the directory for the page of these data.

    An earlier page of the same source is replaced, even if it is unfinished; a run of a study, or
    of different data, is never replaced. A directory with hidden files only is that of a process
    that was killed before it had recorded its settings.
    """
    source = _source_of(catalog)

    def has_content(directory: Path) -> bool:
        return directory.exists() and any(p.name[0] != "." for p in directory.iterdir())

    def is_page(run: Run) -> bool:
        if run.finished:
            return run.metrics.get("source") == source
        return (run.directory / "config.json").exists() and run.config.get("source") == source

    names = numbered_names(to_run_name(Path(source).stem) or "data")
    return next(
        directory
        for directory in map(root.joinpath, names)
        if not has_content(directory) or is_page(Run(directory))
    )


def _source_of(catalog: Catalog) -> str:
    return str(Path(catalog.source).resolve())


def _stop_if_untrainable(catalog: Catalog, inspection: Inspection, settings: PrepareData) -> None:
    if inspection.unreadable:
        raise UserError(
            f"{counted(len(inspection.unreadable), 'image', 'images')} of {catalog.source} cannot "
            "be read (listed above). Fix or remove such files, or train with --skip-unreadable"
        )
    check(catalog, task=settings.task)
