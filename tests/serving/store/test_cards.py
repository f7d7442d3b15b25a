"""The model card and its digests: a damaged export is refused, one of an earlier version loads."""

import json
import random
from pathlib import Path

import pytest
import tensorflow as tf

from benchmarks import faults
from cxr_tf.errors import UserError
from cxr_tf.serving import loading
from cxr_tf.serving.store import cards, versions


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A tiny exported model with one variable and one signature."""

    def write(folder: str) -> None:
        module = tf.Module()
        module.scale = tf.Variable(tf.random.stateless_uniform([50], [0, 1]))
        spec = tf.TensorSpec([None, 50], name="x")
        function = tf.function(lambda x: {"y": x * module.scale}, input_signature=[spec])
        tf.saved_model.save(module, folder, signatures={"serving_default": function})

    card = {"kind": "classifier", "classes": ["normal", "pneumonia"]}
    return versions.write_version(tmp_path / "tiny", write, card=card)


def test_flipped_bits_are_reported_in_one_line(version: Path) -> None:
    rng = random.Random(0)
    needed = [version / "saved_model.pb", version / "fingerprint.pb", *version.glob("variables/*")]
    assert len(needed) == 4
    for file in needed:
        content = file.read_bytes()
        for _ in range(5):
            file.write_bytes(faults.flip_bit(content, rng))
            with pytest.raises(UserError, match=rf"is damaged: .*{file.name} differs") as caught:
                loading.load_served(str(version))
            assert "\n" not in str(caught.value)
        if file.name != "saved_model.pb":  # without which a folder is no SavedModel
            file.unlink()
            with pytest.raises(UserError, match=rf"is damaged: .*{file.name} is missing"):
                loading.load_served(str(version))
        file.write_bytes(content)
    loading.load_served(str(version))


def test_files_that_no_graph_needs_may_be_missing(version: Path) -> None:
    (version / "assets.extra" / "tf_serving_warmup_requests").unlink()
    loading.load_served(str(version))


def test_card_without_digests_loads(version: Path) -> None:
    card = json.loads((version / cards.CARD).read_text())
    assert set(card.pop("files")) >= {"saved_model.pb", "variables/variables.index"}
    (version / cards.CARD).write_text(json.dumps(card))
    loading.load_served(str(version))
    # A damaged graph raises errors of many types, and all become one line.
    content = (version / "saved_model.pb").read_bytes()
    (version / "saved_model.pb").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cannot be loaded"):
        loading.load_served(str(version))


def test_damaged_card_is_a_user_error(version: Path) -> None:
    card = json.loads((version / cards.CARD).read_text())
    for damage in ({"kind": 3}, {"classes": "normal"}, {"files": []}):
        (version / cards.CARD).write_text(json.dumps({**card, **damage}))
        with pytest.raises(UserError, match=r"model_card\.json is damaged"):
            loading.load_served(str(version))


def test_damaged_export_of_interrupted_training_is_exported_again(
    version: Path, tmp_path: Path
) -> None:
    def write(folder: str) -> None:
        tf.saved_model.save(tf.Module(), folder)

    card = {"kind": "classifier", "classes": ["normal", "pneumonia"]}
    base = tmp_path / "tiny"
    assert versions.write_version(base, write, card=card, resumed=True) == version
    (version / "saved_model.pb").write_bytes(b"damaged")
    assert versions.write_version(base, write, card=card, resumed=True) == base / "2"
