"""The page, built with Gradio.

Events run in this order: `receive` reads the files, removes them from the disk and predicts; then
`details` adds the similar cases, the anomaly map and the heatmap, each as soon as it is ready.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from cxr_tf.demo import analysis, html
from cxr_tf.demo.models import Models
from cxr_tf.demo.session import Session, details, read_and_remove
from cxr_tf.demo.session import verdict as verdict_of

# Separate limits, so that the heatmap of one user does not delay the prediction of another.
PREDICTIONS_AT_ONCE, DETAILS_AT_ONCE = 4, 1

# Images of an abandoned tab stay in memory for an hour; files on disk for at most ten minutes.
SESSION_SECONDS, FILE_SECONDS = 3600, 600

HEADING = """# Chest radiograph demo
Research software, not for diagnosis. Images stay on this machine, in memory."""

SET_OPACITY = "(v) => { document.documentElement.style.setProperty('--cxr-opacity', v); }"


def build(models: Models, roots: Sequence[Path] = (Path(),)) -> gr.Blocks:
    """Build the page. roots: folders that relative paths of similar cases are resolved against."""
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
                label="All images; select a row to see its image",
                interactive=False,
                elem_id="table",
            )
            csv_link = gr.HTML(elem_id="csv")
        cases = gr.HTML(elem_id="cases")

        def show(current: Session) -> dict[Any, Any]:
            """Show all results that are available at once; the maps take longer."""
            image = current.image
            if image is None:
                return {session: current}
            model = models.load("classifier", current.classifier)
            point = current.point(model)
            classes = list(image.prediction.get("probabilities", {}))
            waiting = html.COMPUTING if model.draw else html.NO_HEATMAP
            return {
                session: current,
                verdict: verdict_of(models, current),
                views: html.views(image, heat=waiting) if image.content else "",
                cases: "",
                threshold: gr.Slider(
                    value=0.5 if point is None else point,
                    visible=len(classes) == 2,
                    label=f"Operating point for {classes[-1]}" if classes else None,
                ),
                several: gr.Column(visible=len(current.images) > 1),
                **all_images(current),
            }

        def all_images(current: Session) -> dict[Any, Any]:
            header, rows = analysis.table(current.images, current.threshold)
            return {
                table: gr.Dataframe(value=rows, headers=header),
                csv_link: html.download(header, rows),
            }

        shown = [session, verdict, views, cases, threshold, several, table, csv_link]

        def receive(current: Session, paths: list[str] | None, name: str) -> dict[Any, Any]:
            images = read_and_remove([Path(path) for path in paths or []])
            current.predict(models, images, name)
            return {files: None, **show(current)}

        def take_example(current: Session, finding: str, name: str) -> dict[Any, Any]:
            current.predict(models, [analysis.example(finding)], name)
            return show(current)

        def change_classifier(current: Session, name: str) -> dict[Any, Any]:
            if current.images:
                current.predict(models, current.images, name)
            return show(current)

        def select(current: Session, event: gr.SelectData) -> dict[Any, Any]:
            # Select by the number of the image, because the user may have sorted the table.
            current.select(int(event.row_value[0]) - 1)
            return show(current)

        def repeat(current: Session) -> None:
            current.select(current.selected)

        def move(current: Session, value: float) -> dict[Any, Any]:
            current.threshold = value
            return {verdict: verdict_of(models, current), **all_images(current)}

        def follow(current: Session, knn: str, detector: str) -> Iterator[Any]:
            # A generator that yields nothing, as for an unreadable file, would clear its outputs.
            yield gr.skip()
            places = {"verdict": verdict, "views": views, "cases": cases}
            for parts in details(models, current, knn, detector, roots):
                yield {places[name]: part for name, part in parts.items()}

        def then_details(event: Any) -> None:
            event.then(
                follow,
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
        then_details(files.upload(receive, [session, files, classifier], [files, *shown], **first))
        for finding, button in examples.items():
            chosen = gr.State(finding)
            then_details(button.click(take_example, [session, chosen, classifier], shown, **first))
        then_details(classifier.input(change_classifier, [session, classifier], shown, **first))
        then_details(table.select(select, [session], shown, **first))
        then_details(neighbors.input(repeat, [session], api_visibility="private"))
        then_details(autoencoder.input(repeat, [session], api_visibility="private"))
        threshold.input(
            move,
            [session, threshold],
            [verdict, table, csv_link],
            show_progress="hidden",
            trigger_mode="always_last",
            api_visibility="private",
        )
        opacity.input(None, [opacity], js=SET_OPACITY)
    return blocks


def _choice(models: Models, kind: str, label: str) -> gr.Dropdown:
    """Return a dropdown of the models of a kind, hidden if there are none.

    The entry `none` hides that part of the page.
    """
    names = models.names[kind]
    choices = [(name, name) for name in names]
    if kind != "classifier":
        choices.append(("none", ""))
    return gr.Dropdown(
        choices, value=models.first[kind], label=label, visible=bool(names), elem_id=kind
    )
