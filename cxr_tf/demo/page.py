"""The page, with Gradio.

Events run in this order: `receive` reads the files, removes them from the disk and predicts, which
is what the user waits for; `details` follows with similar cases, anomaly map and heatmap, one after
the other as they are ready.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from cxr_tf.demo import analysis, html
from cxr_tf.demo.analysis import Image
from cxr_tf.demo.models import Model, Models

# The heatmap of one user must not delay the prediction of another.
PREDICTIONS_AT_ONCE, DETAILS_AT_ONCE = 4, 1

# A forgotten tab keeps its images in memory for an hour, and no file for longer than ten minutes.
SESSION_SECONDS, FILE_SECONDS = 3600, 600

COMPUTING = "computing ..."
HEADING = """# Chest radiograph demo
Research software, not for diagnosis. Images stay on this machine, in memory."""

SET_OPACITY = "(v) => { document.documentElement.style.setProperty('--cxr-opacity', v); }"


@dataclass
class Session:
    """What one open page knows: its images, which one is shown, and the operating point."""

    images: list[Image] = field(default_factory=list)
    selected: int = 0
    threshold: float | None = None
    classifier: str = ""

    @property
    def image(self) -> Image:
        """The image that is shown."""
        return self.images[self.selected]

    def point(self, model: Model) -> float | None:
        """The operating point: where the user has put it, or the model's own if it is known."""
        return model.threshold if self.threshold is None else self.threshold


def build(models: Models, roots: Sequence[Path] = (Path(),)) -> gr.Blocks:
    """The page as Gradio Blocks. roots: where relative paths of similar cases are looked for."""
    with gr.Blocks(
        title="Chest radiograph demo",
        analytics_enabled=False,
        delete_cache=(FILE_SECONDS, FILE_SECONDS),
    ) as blocks:
        session = gr.State(Session(), time_to_live=SESSION_SECONDS)
        gr.Markdown(HEADING)
        with gr.Row():
            classifier = _choice(models, "classifier", "Classifier")
            neighbors = _choice(models, "knn", "Similar cases")
            autoencoder = _choice(models, "autoencoder", "Anomaly detection")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                files = gr.File(
                    label="JPEG, PNG or DICOM; one or several",
                    file_count="multiple",
                    height=150,
                    elem_id="files",
                )
                with gr.Row():
                    examples = {
                        finding: gr.Button(f"Phantom: {finding}", size="sm", min_width=90)
                        for finding in analysis.EXAMPLES
                    }
                verdict = gr.HTML(html.WELCOME, elem_id="verdict")
                threshold = gr.Slider(
                    0, 1, 0.5, step=0.01, label="Operating point", visible=False, elem_id="point"
                )
            with gr.Column(scale=3, min_width=300):
                opacity = gr.Slider(0, 1, 0.8, step=0.05, label="Opacity of the heatmap",
                                    elem_id="opacity")  # fmt: skip
                views = gr.HTML(elem_id="views")
        with gr.Column(visible=False) as several:
            table = gr.Dataframe(
                label="All images; select a row to see it", interactive=False, elem_id="table"
            )
            csv_link = gr.HTML(elem_id="csv")
        cases = gr.HTML(elem_id="cases")

        def show(current: Session) -> dict[Any, Any]:
            """Everything that is known at once, without pictures that take long."""
            model = models.load("classifier", current.classifier)
            image = current.image
            classes = image.prediction.get("probabilities", {})
            header, rows = analysis.table(current.images, current.threshold)
            drawn = html.views(image, heat=COMPUTING if model.draw else "no heatmap")
            return {
                session: current,
                verdict: _verdict(models, current),
                views: drawn if image.content else "",
                cases: "",
                threshold: gr.Slider(
                    value=next(
                        (p for p in (current.threshold, model.threshold) if p is not None), 0.5
                    ),
                    visible=len(classes) == 2,
                    label=f"Operating point for {list(classes)[-1]}" if classes else None,
                ),
                several: gr.Column(visible=len(current.images) > 1),
                table: gr.Dataframe(value=rows, headers=header),
                csv_link: html.download(header, rows) if len(current.images) > 1 else "",
            }

        shown = [session, verdict, views, cases, threshold, several, table, csv_link]

        def receive(paths: list[str] | None, name: str) -> dict[Any, Any]:
            images = read_and_remove([Path(path) for path in paths or []])
            return {files: None, **show(predicted(images, name))}

        def take_example(finding: str, name: str) -> dict[Any, Any]:
            return show(predicted([analysis.example(finding)], name))

        def change_classifier(current: Session, name: str) -> dict[Any, Any]:
            return show(predicted(current.images, name)) if current.images else {session: current}

        def predicted(images: list[Image], name: str) -> Session:
            analysis.predict(models.load("classifier", name), images)
            first = next((k for k, image in enumerate(images) if image.content), 0)
            return Session(images, first, classifier=name)

        def select(current: Session, event: gr.SelectData) -> dict[Any, Any]:
            # By its number, because the table may be sorted.
            current.selected = int(event.row_value[0]) - 1
            return show(current)

        def move(current: Session, value: float) -> dict[Any, Any]:
            current.threshold = value
            if not current.images:
                return {session: current}
            header, rows = analysis.table(current.images, value)
            return {
                session: current,
                verdict: _verdict(models, current),
                table: gr.Dataframe(value=rows, headers=header),
                csv_link: html.download(header, rows) if len(current.images) > 1 else "",
            }

        def details(current: Session, knn: str, detector: str) -> Iterator[dict[Any, Any]]:
            if not current.images or not current.image.content:
                yield {cases: ""}
                return
            image = current.image
            model = models.load("classifier", current.classifier)
            waiting = COMPUTING if model.draw else "no heatmap"
            image.neighbors, image.anomaly, image.anomaly_map = {}, {}, None
            if knn:
                similar = models.load("knn", knn)
                analysis.find_neighbors(similar, image)
                pictures = analysis.thumbnails(image.neighbors["neighbor_paths"], roots)
                yield {
                    cases: html.cases(image.neighbors, pictures),
                    verdict: _verdict(models, current),
                }
            if detector:
                analysis.detect_anomaly(models.load("autoencoder", detector), image)
                yield {
                    views: html.views(image, heat=waiting if image.heat is None else ""),
                    verdict: _verdict(models, current),
                }
            if model.draw and image.heat is None:
                analysis.explain(model, image)
            yield {views: html.views(image, heat="" if model.draw else "no heatmap")}

        def then_details(event: Any) -> None:
            event.then(
                details,
                [session, neighbors, autoencoder],
                [verdict, views, cases],
                show_progress="hidden",
                concurrency_id="details",
                concurrency_limit=DETAILS_AT_ONCE,
                api_visibility="private",
            )

        first: dict[str, Any] = {
            "show_progress": "minimal",
            "show_progress_on": verdict,
            "concurrency_id": "predictions",
            "concurrency_limit": PREDICTIONS_AT_ONCE,
            "api_visibility": "private",
        }
        then_details(files.upload(receive, [files, classifier], [files, *shown], **first))
        for finding, button in examples.items():
            chosen = gr.State(finding)
            then_details(button.click(take_example, [chosen, classifier], shown, **first))
        then_details(classifier.input(change_classifier, [session, classifier], shown, **first))
        then_details(table.select(select, [session], shown, **first))
        then_details(neighbors.input(lambda: None, api_visibility="private"))
        then_details(autoencoder.input(lambda: None, api_visibility="private"))
        threshold.input(
            move,
            [session, threshold],
            [session, verdict, table, csv_link],
            show_progress="hidden",
            trigger_mode="always_last",
            api_visibility="private",
        )
        opacity.input(None, [opacity], js=SET_OPACITY)
    return blocks


def read_and_remove(paths: Sequence[Path]) -> list[Image]:
    """Reads dropped files into memory and removes them from the disk, whatever is in them."""
    images = []
    for number, path in enumerate(paths):
        try:
            if number < analysis.MOST_IMAGES:
                images.append(analysis.read_upload(path, path.name))
            else:
                reason = f"not read: more than {analysis.MOST_IMAGES} at once; use predict.py"
                images.append(Image(path.name, reason=reason))
        finally:
            # Gradio keeps each in a folder of its own.
            shutil.rmtree(path.parent, ignore_errors=True)
    return images


def _verdict(models: Models, current: Session) -> str:
    model = models.load("classifier", current.classifier)
    image = current.image
    point = current.point(model)
    warnings = analysis.warnings_of(image, model, point) if image.prediction else []
    problems = "".join(
        html.problem(other) for other in current.images if other.reason and other is not image
    )
    return html.verdict(image, point, warnings) + problems


def _choice(models: Models, kind: str, label: str) -> gr.Dropdown:
    """A list of the models of a kind, hidden where there is none; `none` leaves a part out."""
    names = models.names[kind]
    choices = [*names, *([] if kind == "classifier" else [("none", "")])]
    return gr.Dropdown(
        choices, value=models.first[kind], label=label, visible=bool(names), elem_id=kind
    )
