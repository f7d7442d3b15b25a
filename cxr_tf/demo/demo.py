"""Open the demo page in a browser on this machine.

python scripts/demo.py
"""

import logging
import os
import tempfile
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cxr_tf.config import Demo
from cxr_tf.demo import html
from cxr_tf.demo.models import Models, find_models
from cxr_tf.errors import UserError
from cxr_tf.files import expand_user

log = logging.getLogger(__name__)

LARGEST_FILE = "100mb"


def demo(settings: Demo) -> None:
    """Serve the page until Ctrl-C is pressed.

    Raises UserError if Gradio is not installed, the port cannot be used, or there is no model.
    """
    _check_gradio()
    models = find_models(settings)
    for kind, name in models.first.items():
        if name:
            log.info("loading %s", name)
            models.load(kind, name)
    with served(models, settings) as url:
        log.info("the demo is at %s (Ctrl-C stops it)", url)
        if settings.open_browser:
            webbrowser.open(url)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            log.info("stopped")


@contextmanager
def served(models: Models, settings: Demo) -> Iterator[str]:
    """Serve the page on this machine while the block runs; yield its address."""
    _check_gradio()
    with tempfile.TemporaryDirectory(prefix="cxr_tf-demo-") as uploads:
        # Gradio stores uploaded files in this folder until they have been read.
        os.environ["GRADIO_TEMP_DIR"] = uploads
        import gradio as gr

        from cxr_tf.demo.page import build

        page = build(models, roots=(Path(), expand_user(settings.saved_models).parent))
        try:
            page.launch(
                server_name="127.0.0.1",
                server_port=settings.port or _free_port(),
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                ssr_mode=False,
                footer_links=[],
                max_file_size=LARGEST_FILE,
                # The default theme loads its fonts from the internet.
                theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
                css=html.CSS,
            )
        except OSError:
            raise UserError(
                f"port {settings.port} is in use or not permitted: choose another --port, or 0 for "
                "any free one"
            ) from None
        try:
            yield f"http://127.0.0.1:{page.server_port}/"
        finally:
            page.close(verbose=False)


def _free_port() -> int:
    import socket

    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def _check_gradio() -> None:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise UserError("the demo needs Gradio: pip install -r requirements-demo.txt") from None
