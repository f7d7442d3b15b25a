"""The state of one open page."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cxr_tf.demo import analysis, html
from cxr_tf.demo.analysis import Image
from cxr_tf.demo.models import Model, Models


@dataclass
class Session:
    """The images of one page, the selected one, and the operating point that the user has set.

    turn: number of selections so far; results of slower events from earlier turns are discarded.
    """

    images: list[Image] = field(default_factory=list)
    selected: int = 0
    threshold: float | None = None
    classifier: str = ""
    turn: int = 0

    @property
    def image(self) -> Image | None:
        """The selected image."""
        return self.images[self.selected] if self.images else None

    def predict(self, models: Models, images: list[Image], classifier: str) -> None:
        """Predict new images, or the same ones anew, and select the first readable image."""
        analysis.predict(models.load("classifier", classifier), images)
        self.images, self.classifier, self.threshold = images, classifier, None
        self.select(next((k for k, image in enumerate(images) if image.content), 0))

    def select(self, row: int) -> None:
        """Select an image."""
        self.selected = row
        self.turn += 1

    def point(self, model: Model) -> float | None:
        """Return the user's operating point, or else that of the model if it is known."""
        return model.threshold if self.threshold is None else self.threshold


def read_and_remove(paths: Sequence[Path]) -> list[Image]:
    """Read uploaded files into memory, and remove them from the disk, even unreadable ones."""
    images = []
    for number, path in enumerate(paths):
        try:
            if number < analysis.MOST_IMAGES:
                images.append(analysis.read_upload(path, path.name))
            else:
                most = analysis.MOST_IMAGES
                reason = f"not read: more than {most} images at once; use predict.py"
                images.append(Image(path.name, reason=reason))
        finally:
            # Gradio puts each file into a separate folder.
            shutil.rmtree(path.parent, ignore_errors=True)
    return images


def verdict(models: Models, session: Session) -> str:
    """Render the prediction of the selected image with its warnings.

    For each other image without a prediction, the reason follows.
    """
    image = session.image
    if image is None:
        return html.WELCOME
    model = models.load("classifier", session.classifier)
    point = session.point(model)
    warnings = analysis.warnings_of(image, model, point) if image.prediction else []
    others = [other for other in session.images if other.reason and other is not image]
    return html.verdict(image, point, warnings) + "".join(map(html.problem, others))


def details(
    models: Models, session: Session, knn: str, autoencoder: str, roots: Sequence[Path]
) -> Iterator[dict[str, str]]:
    """Yield the similar cases, the anomaly map and the heatmap, each as soon as it is ready.

    Each item is {part of the page: HTML}. The iteration stops once the page shows another image.
    """
    image, turn = session.image, session.turn
    if image is None or not image.content:
        return
    model = models.load("classifier", session.classifier)
    waiting = html.COMPUTING if model.draw else html.NO_HEATMAP
    image.neighbors, image.anomaly, image.anomaly_map = {}, {}, None

    def cases() -> dict[str, str]:
        analysis.find_neighbors(models.load("knn", knn), image)
        pictures = analysis.thumbnails(image.neighbors["neighbor_paths"], roots)
        return {"cases": html.cases(image.neighbors, pictures)}

    def anomaly() -> dict[str, str]:
        analysis.detect_anomaly(models.load("autoencoder", autoencoder), image)
        return {"views": html.views(image, heat=waiting if image.heat is None else "")}

    def heatmap() -> dict[str, str]:
        if image.heat is None:
            analysis.explain(model, image)
        return {"views": html.views(image, heat="" if model.draw else html.NO_HEATMAP)}

    for step in [*([cases] if knn else []), *([anomaly] if autoencoder else []), heatmap]:
        parts = step() if session.turn == turn else {}
        if session.turn != turn:
            return
        yield {**parts, "verdict": verdict(models, session)}
