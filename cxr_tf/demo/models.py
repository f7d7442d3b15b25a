"""The models of the page: SavedModels on disk, or models on a TF Serving server."""

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr_tf.config import Demo
from cxr_tf.errors import UserError
from cxr_tf.files import expand_user
from cxr_tf.serving import loading
from cxr_tf.serving.prediction import client
from cxr_tf.serving.prediction.client import PredictFn
from cxr_tf.serving.store import warm_up
from cxr_tf.serving.store.model_config import model_versions_by_name

# {kind of a model, as in its card: the flag that selects it}.
KINDS = {"classifier": "classifier", "knn": "neighbors", "autoencoder": "autoencoder"}

# {kind: signature with the heatmap or anomaly map}; nearest neighbours have none.
PICTURES = {"classifier": "occlusion", "autoencoder": "explain"}


@dataclass(frozen=True)
class Model:
    """A loaded model; `predict` and `draw` take the contents of image files.

    draw: the signature with the heatmap or the anomaly map, if the model has one.
    """

    name: str
    card: dict[str, Any]
    predict: PredictFn
    draw: PredictFn | None

    @property
    def threshold(self) -> float | None:
        """The operating point of a two-class classifier; None if unknown, as on a server."""
        return self.card.get("threshold")


@dataclass(frozen=True)
class Models:
    """Names of the models by kind, the initial selection, and a function that loads them."""

    names: dict[str, list[str]]
    first: dict[str, str]
    load: Callable[[str, str], Model]


def find_models(settings: Demo) -> Models:
    """Return the models of a folder or of a server.

    Raises UserError if there is no classifier, or a named model does not exist.
    """
    if settings.server:
        return _served(settings)
    root = expand_user(settings.saved_models)
    if not root.is_dir():
        raise UserError(
            f"no such folder: {settings.saved_models}; train a model first, or give --saved-models"
        )
    cards = {name: _card(root, name) for name in model_versions_by_name(root)}
    names: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for name, card in cards.items():
        if card.get("kind") in names:
            names[card["kind"]].append(name)
    if not names["classifier"]:
        raise UserError(f"no classifier in {root}: train one, or run `make quickstart`")
    first = _first(settings, names, cards)

    @_once
    def load(kind: str, name: str) -> Model:
        served = loading.load_served(str(root / name), engine=settings.engine)
        picture = PICTURES.get(kind)
        has_picture = picture and picture in served.card["signatures"]
        return _ready(
            name,
            served.card,
            served.predictor("serving_default"),
            served.predictor(picture) if picture and has_picture else None,
        )

    return Models(names, first, load)


def _card(root: Path, name: str) -> dict[str, Any]:
    """Return the card of the newest version of a model, or an empty dict if it has none."""
    try:
        return loading.read_card(str(root / name))
    except UserError:
        return {}


def _first(
    settings: Demo, names: dict[str, list[str]], cards: dict[str, dict[str, Any]]
) -> dict[str, str]:
    """Return the initial models: those named by flags, or else models that belong together."""
    first = {}
    for kind, flag in KINDS.items():
        if name := getattr(settings, flag):
            if name not in names[kind]:
                known = ", ".join(names[kind]) or "none"
                raise UserError(
                    f"--{flag} {name}: no model of kind '{kind}' has this name; available: {known}"
                )
            first[kind] = name
    if "classifier" not in first:
        # A study fits nearest neighbours on the classifier that it selected.
        fitted = [cards[name].get("classifier", {}).get("name") for name in names["knn"]]
        chosen = [name for name in fitted if name in names["classifier"]]
        first["classifier"] = (chosen or names["classifier"])[0]
    if "knn" not in first:
        of_classifier = [
            name
            for name in names["knn"]
            if cards[name].get("classifier", {}).get("name") == first["classifier"]
        ]
        first["knn"] = (of_classifier or names["knn"] or [""])[0]
    if "autoencoder" not in first:
        first["autoencoder"] = (names["autoencoder"] or [""])[0]
    return first


def _served(settings: Demo) -> Models:
    """Return the models of a TF Serving server.

    The flags name them, because a server does not list its models.
    """
    first = {kind: getattr(settings, flag) for kind, flag in KINDS.items()}
    if not first["classifier"]:
        raise UserError("--server needs the names of its models: --classifier NAME, and optionally "
                        "--neighbors NAME and --autoencoder NAME")  # fmt: skip

    @_once
    def load(kind: str, name: str) -> Model:
        draw = None
        if kind in PICTURES:
            with contextlib.suppress(UserError):  # there is no such signature
                draw = client.connect(settings.server, name, signature=PICTURES[kind])
        return _ready(name, {}, client.connect(settings.server, name), draw)

    names = {kind: [name] if name else [] for kind, name in first.items()}
    return Models(names, first, load)


def _ready(name: str, card: dict[str, Any], predict: PredictFn, draw: PredictFn | None) -> Model:
    """Return a model after its first prediction, which is slower than the others."""
    example = [warm_up.phantom_file()]
    predict = _one_at_a_time(predict)
    predict(example)
    return Model(name, card, predict, draw and _one_at_a_time(draw))


def _one_at_a_time(predict: PredictFn) -> PredictFn:
    """Return a function that runs one request at a time, because one already uses all cores."""
    lock = threading.Lock()

    def locked(contents: Sequence[bytes]) -> dict[str, np.ndarray]:
        with lock:
            return predict(contents)

    return locked


def _once(load: Callable[[str, str], Model]) -> Callable[[str, str], Model]:
    """Return the function with a cache that loads each model once, even for concurrent users."""
    lock = threading.Lock()
    loaded: dict[tuple[str, str], Model] = {}

    def load_once(kind: str, name: str) -> Model:
        with lock:
            if (kind, name) not in loaded:
                loaded[kind, name] = load(kind, name)
            return loaded[kind, name]

    return load_once
