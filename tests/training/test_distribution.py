"""Tests of several workers: TF_CONFIG, exchange, agreement and failures."""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from cxr_tf.errors import UserError
from cxr_tf.training.distribution import PeerError, Workers, read_cluster


@dataclass(frozen=True)
class OneOfThree(Workers):
    """A worker that receives the messages in `peers` from the others, without a network."""

    strategy: Any = None
    index: int = 0
    count: int = 3
    peers: dict[int, bytes] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    sent: list[bytes] = field(default_factory=list)

    def _gather(self, values: np.ndarray) -> np.ndarray:
        """Replace the network."""
        rows = []
        for k in range(self.count):
            text = self.errors.get(k, "").encode() or self.peers.get(k, b"")
            if k == self.index and k not in self.errors:
                rows.append(values)
            elif len(self.sent) % 2 == 0:
                header = np.array([len(text), k in self.errors], np.int64)
                rows.append(header.view(np.float32))
            else:
                padded = np.zeros(4 * len(values), np.uint8)
                padded[: len(text)] = np.frombuffer(text, np.uint8)
                rows.append(padded.view(np.float32))
        self.sent.append(b"")
        return np.stack(rows)


def cluster(index: int, kind: str = "worker", **more: list[str]) -> str:
    tasks = {"worker": ["a:1", "b:1"], **more}
    return json.dumps({"cluster": tasks, "task": {"type": kind, "index": index}})


def test_tf_config_names_the_workers_and_this_one() -> None:
    assert read_cluster("") == ([], 0)
    assert read_cluster(cluster(1)) == (["a:1", "b:1"], 1)
    with_chief = cluster(0, chief=["c:1"])
    assert read_cluster(with_chief) == (["c:1", "a:1", "b:1"], 1)
    assert read_cluster(cluster(0, "chief", chief=["c:1"])) == (["c:1", "a:1", "b:1"], 0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "no attribute 'get'"),
        (cluster(2), "task worker 2 is not a chief or worker of the cluster"),
        (cluster(-1), "task worker -1 is not"),
        (cluster(0, "chief"), "task chief 0 is not"),
        (cluster(0, "ps"), "task ps 0 is not"),
        ('{"cluster": {"worker": ["a:1", "b:1"]}}', "missing key 'type'"),
    ],
)
def test_unusable_tf_config_raises(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=rf"TF_CONFIG does not .*{reason}.*host0:2222"):
        read_cluster(text)


def test_workers_receive_messages_in_order() -> None:
    peers = {1: b"second", 2: b""}
    assert OneOfThree(peers=peers).exchange(b"first") == [b"first", b"second", b""]


def test_gathered_rows_are_bit_identical_and_broadcast_keeps_nan() -> None:
    rows = np.array([[np.nan, -0.0], [1e-45, np.inf]])
    gathered = OneOfThree(peers={1: rows.tobytes(), 2: b""}).gather_rows(rows)
    assert gathered.tobytes() == 2 * rows.tobytes()
    scores = {"loss": float("nan"), "epoch": 3, "auroc": np.float32(0.5)}
    text = json.dumps(scores, default=float).encode()
    received = OneOfThree(index=1, peers={0: text, 2: b""}).broadcast(None)
    assert received["epoch"] == 3 and np.isnan(received["loss"])


def test_parts_are_whole_batches_and_cover_all_rows() -> None:
    parts = [OneOfThree(index=k).part(70, unit=16) for k in range(3)]
    assert [len(p) for p in parts] == [16, 32, 22]
    assert [row for part in parts for row in part] == list(range(70))


def test_different_settings_or_data_raise_on_every_worker() -> None:
    facts = {"--epochs": 8, "data": "abc"}
    same = json.dumps(facts).encode()
    other = json.dumps({**facts, "--epochs": 9}).encode()
    OneOfThree(peers={1: same, 2: same}).agree(facts)
    for index, peers in ((0, {1: same, 2: other}), (1, {0: same, 2: other})):
        with pytest.raises(PeerError, match="worker 2 has --epochs 9, the chief 8"):
            OneOfThree(index=index, peers=peers).agree(facts)


def test_error_of_one_worker_stops_the_others() -> None:
    with pytest.raises(PeerError, match="worker 2 stopped: no such folder"):
        OneOfThree(errors={2: "no such folder"}).exchange(b"")
    worker = OneOfThree(peers={1: b"", 2: b""})
    with pytest.raises(UserError, match="epochs"), worker.failing_together():
        raise UserError("--epochs")
    assert len(worker.sent) == 2  # the header and the text


def test_lost_worker_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"lost.*--resume"), OneOfThree().failing_together(1e6):
        raise tf.errors.UnavailableError(None, None, "Socket closed")
    # A single process has no peers to lose.
    with pytest.raises(tf.errors.UnavailableError), Workers(None).failing_together():
        raise tf.errors.UnavailableError(None, None, "disk")
