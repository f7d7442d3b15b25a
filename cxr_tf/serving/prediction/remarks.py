"""Remarks on a prediction: phrases that state why it should not be relied on."""

from collections.abc import Mapping
from typing import Any

NOVEL = "unlike the training images"


def remarks(prediction: Mapping[str, Any]) -> list[str]:
    """Return phrases that qualify the prediction for one image; empty if there are none.

    prediction: outputs of one image as plain values: `is_novel`, and `prediction_set` with
    `classes`, or with {class: probability} under `probabilities`; any of them may be missing.
    """
    result = [NOVEL] if prediction.get("is_novel") else []
    inside = prediction.get("prediction_set")
    classes = prediction.get("classes") or prediction.get("probabilities")
    if inside is None or not classes:
        return result
    names = [name for name, is_in in zip(classes, inside, strict=True) if is_in]
    if not names:
        result.append("cannot decide: no class is likely enough")
    elif len(names) == 2:
        result.append(f"cannot distinguish {names[0]} from {names[1]}")
    elif len(names) > 2:
        result.append(f"cannot distinguish between {', '.join(names[:-1])} and {names[-1]}")
    return result
