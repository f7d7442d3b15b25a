"""An exported model that has a model card and no signatures."""

from pathlib import Path

import tensorflow as tf

from cxr_tf.serving import loading
from cxr_tf.serving.store import versions


def export_card(base: Path, **card: object) -> loading.ServedModel:
    """Export an empty module with this card as the next version under `base`, and load it."""

    def write(folder: str) -> None:
        tf.saved_model.save(tf.Module(), folder)

    version = versions.write_version(base, write, card={"image_size": 64, **card})
    return loading.load_served(str(version))
