"""Access to the folder of a study: its runs and its report."""

import json
from html.parser import HTMLParser
from pathlib import Path

from cxr_tf.config import RunStudy


def directory(settings: RunStudy) -> Path:
    return Path(settings.logs) / "study" / settings.name


def runs_of(settings: RunStudy) -> dict[str, str]:
    steps = json.loads((directory(settings) / "metrics.json").read_text())["steps"]
    return {s["name"]: s["run"] for s in steps if "run" in s}


def page_of(settings: RunStudy) -> str:
    return (directory(settings) / "report.html").read_text()


class Page(HTMLParser):
    """The start tags of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data
