"""The first step of a study: inspect the data for counts, duplicates and shortcuts."""

import logging

from cxr_tf.config import PrepareData
from cxr_tf.data import catalog as data_catalog
from cxr_tf.data import checks
from cxr_tf.data import splits as data_splits
from cxr_tf.data.acquisition.audit import inspect_images, warnings
from cxr_tf.preparation.prepare_data import draw_page
from cxr_tf.preparation.shortcut_audit import audit_inspected, write_audit
from cxr_tf.runs import Run, open_run

log = logging.getLogger(__name__)


def inspect_data(settings: PrepareData, catalog: data_catalog.Catalog, name: str) -> Run:
    """Inspect the catalogue and write the results to logs/data/<name>/."""
    inspection = inspect_images(catalog)
    audit = audit_inspected(inspection, settings.task)
    messages = warnings(inspection)
    if audit is not None and audit.is_warning:
        messages.append(audit.summary())
    for line in messages:
        log.info("  warning: %s", line)
    run = open_run(settings.logs, "data", name, settings, catalog)
    rows = catalog.radiographs
    writer = run.writer()
    draw_page(run, inspection, writer)
    if audit is not None:
        write_audit(run, inspection, audit, writer)
    writer.close()
    splits = {split: [r for r in rows if r.split == split] for split in data_catalog.SPLITS}
    run.write_metrics(
        {
            "images": len(catalog),
            "patients": len(set(catalog.patients)),
            "findings": list(catalog.findings),
            "splits": {
                split: {
                    "images": len(subset),
                    "patients": len({r.patient for r in subset}),
                    **{f: sum(r.finding == f for r in subset) for f in catalog.findings},
                }
                for split, subset in splits.items()
            },
            "unreadable": len(inspection.unreadable),
            "identical_copies": len(catalog) - len({r.digest for r in rows}),
            "near_duplicates": len(inspection.near),
            "leaks": len(data_splits.leakage(catalog)),
            "without_patient": catalog.without_patient,
            "notes": checks.notes(catalog),
            "warnings": messages,
            **{f"{s.measure}_auroc/{s.finding}": s.auroc for s in inspection.shortcuts},
            "shortcuts": audit.as_dict() if audit is not None else {},
        }
    )
    return run
