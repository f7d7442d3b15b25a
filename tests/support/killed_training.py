"""Kill a training run at a point from which it can be resumed."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from cxr_tf.training.epochs import EpochEnd


@contextlib.contextmanager
def killed_after_an_epoch() -> Iterator[None]:
    """Kill the training run in the block at the end of its first epoch."""
    whole = EpochEnd.on_epoch_end

    def kill(self: EpochEnd, *given: Any) -> None:
        whole(self, *given)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(EpochEnd, "on_epoch_end", kill)
        yield
