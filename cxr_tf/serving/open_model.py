"""Open the signatures of a model, on disk or on a server."""

from collections.abc import Callable

from cxr_tf.config import Predict
from cxr_tf.errors import UserError
from cxr_tf.serving import loading
from cxr_tf.serving.prediction.client import PredictFn, connect


def open_signature(settings: Predict) -> PredictFn:
    """Return the signature that the settings name, on a server or on disk, as a function."""
    return open_model(settings)(settings.signature)


def open_model(settings: Predict) -> Callable[[str], PredictFn]:
    """Open a model on a server or on disk; return a function from signature names to predictors.

    Raises UserError if there is no such model on disk. The returned function raises it for an
    unknown signature, and if the server has no such model.
    """
    if settings.server:
        if settings.engine != "auto" or settings.engine_precision != "float32":
            raise UserError(
                "--engine and --engine-precision are for a model on disk: leave them out with "
                "--server"
            )
        return lambda signature: connect(
            settings.server,
            settings.model,
            signature=signature,
            version=settings.version,
            label=settings.label,
            timeout=settings.timeout,
        )
    if settings.version is not None or settings.label:
        raise UserError(
            "--version and --label are for --server: with a model on disk, give the version's "
            "folder as --model"
        )
    served = loading.load_served(
        settings.model, engine=settings.engine, precision=settings.engine_precision
    )
    return served.predictor
