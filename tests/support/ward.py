"""A data set with shortcuts and copies, for tests of the audit and of prepare_data.py."""

from pathlib import Path

from PIL import Image

from cxr_tf.data.sources.phantoms import FINDINGS, phantom


def draw_phantoms(count: int = 60) -> list[Image.Image]:
    """Return phantoms, each of a different patient, with all findings in turn."""
    return [
        Image.fromarray(phantom(FINDINGS[n % 3], seed=2, patient=n, size=96).image)
        for n in range(count)
    ]


def write_ward(folder: Path, images: list[Image.Image]) -> Path:
    """Write images, the abnormal ones smaller and wider, two near copies and one exact copy."""
    for number, image in enumerate(images):
        sick = number % 3 != 0
        path = folder / ("PNEUMONIA" if sick else "NORMAL") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Copies of other sizes keep the aspect of their class, as thumbnails do.
        image.resize((110 + number % 7, 70) if sick else (120, 100 + number % 7)).save(path)
    Image.open(folder / "NORMAL/0.png").resize((90, 75)).save(folder / "NORMAL/copy.png")
    Image.open(folder / "NORMAL/3.png").resize((90, 75)).save(folder / "PNEUMONIA/copy.png")
    (folder / "NORMAL/same.png").write_bytes((folder / "NORMAL/6.png").read_bytes())
    return folder
