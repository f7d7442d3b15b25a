"""Images in, predictions out.

python scripts/predict.py --model saved_models/vgg16-binary --images ward/*.jpeg --output out.csv
"""

import glob
import logging
from pathlib import Path

from cxr_tf import serving
from cxr_tf.data import dicom
from cxr_tf.data.catalog import IMAGE_SUFFIXES, visible_files
from cxr_tf.errors import UserError
from cxr_tf.runs import write_csv, write_json
from cxr_tf.settings import Predict

log = logging.getLogger(__name__)


def predict(settings: Predict) -> None:
    """Prints or writes label and probabilities of each image, in the order given."""
    output = Path(settings.output) if settings.output else None
    if output and output.suffix not in (".csv", ".json"):
        raise UserError(f"--output {output}: give a name that ends in .csv or .json")
    if output and output.exists() and not settings.overwrite:
        raise UserError(f"{output} exists: choose another --output, or --overwrite")
    if output and not output.parent.is_dir():
        raise UserError(f"no such folder: {output.parent}")
    paths = find_images(settings.images)
    served = serving.load_served(settings.model)
    if served.card.get("kind") != "classifier":
        raise UserError(f"{served.folder} is no classifier but: {served.card.get('kind')}")
    probabilities, predicted = serving.predict_files(served, paths, batch_size=settings.batch_size)
    labels = [served.classes[k] for k in predicted]
    header = ["path", "label", *served.classes]
    if output is None:
        width = max(map(len, [*paths, "path"])) + 2
        log.info(f"{'path':<{width}}{'label':<12}" + "".join(f"{c:>12}" for c in served.classes))
        for path, label, row in zip(paths, labels, probabilities, strict=True):
            log.info(f"{path:<{width}}{label:<12}" + "".join(f"{p:>12.4f}" for p in row))
        return
    rows = [
        [path, label, *(f"{p:.8g}" for p in row)]
        for path, label, row in zip(paths, labels, probabilities, strict=True)
    ]
    if output.suffix == ".csv":
        write_csv(output, header, rows)
    else:
        write_json(
            output,
            [
                {
                    "path": path,
                    "label": label,
                    "probabilities": dict(zip(served.classes, row, strict=True)),
                }
                for path, label, row in zip(paths, labels, probabilities.tolist(), strict=True)
            ],
        )
    log.info("%d predictions: %s", len(paths), output)


def find_images(wanted: tuple[str, ...]) -> list[str]:
    """Files, folders (recursively) and glob patterns -> image paths, each once, in that order.

    Raises UserError for one that names nothing.
    """
    found: dict[str, None] = {}
    for item in wanted:
        path = Path(item).expanduser()
        if path.is_dir():
            inside = [
                str(p)
                for p in visible_files(path)
                if p.suffix.lower() in IMAGE_SUFFIXES or dicom.is_dicom(p)
            ]
            if not inside:
                raise UserError(f"no JPEG, PNG or DICOM image in {item}")
        elif path.is_file():
            inside = [str(path)]
        else:
            inside = sorted(p for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
            if not inside:
                raise UserError(f"no such image, folder or pattern: {item}")
        found |= dict.fromkeys(inside)
    return list(found)
