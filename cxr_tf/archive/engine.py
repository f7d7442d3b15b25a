"""The queue and the progress records that all engines share.

An engine only decides which worker computes which shard next. It stores no results: after any
failure, the files on disk determine which shards are missing.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from cxr_tf.archive.plan import shard_name
from cxr_tf.errors import UserError

log = logging.getLogger(__name__)

# Attempts at a shard whose workers die: one of its files may crash every process that opens it.
ATTEMPTS = 5


@dataclass(frozen=True)
class Progress:
    """The number of processed images of a shard, and whether its file is written."""

    shard: int
    images: int
    finished: bool


@dataclass
class Queue:
    """The waiting shards, and the number of workers that have died on each shard.

    attempts: number of workers that die on a shard before it is given up.
    """

    waiting: list[int]
    attempts: int = ATTEMPTS
    deaths: Counter[int] = field(default_factory=Counter)
    given_up: dict[int, str] = field(default_factory=dict)

    @staticmethod
    def of(shards: Sequence[int], attempts: int = ATTEMPTS) -> "Queue":
        """Return a queue of the given shards, in the given order."""
        return Queue(list(reversed(shards)), attempts)

    def take(self) -> int | None:
        """Return the next shard, or None if none is waiting."""
        return self.waiting.pop() if self.waiting else None

    def return_(self, shard: int, reason: str) -> None:
        """Put a shard whose worker died back into the queue, or give it up after all attempts."""
        self.deaths[shard] += 1
        if self.deaths[shard] < self.attempts:
            self.waiting.append(shard)
            outcome = "another one will compute it"
        else:
            self.given_up[shard] = reason
            outcome = f"given up after {self.attempts} attempts"
        log.info("a worker died on %s (%s): %s", shard_name(shard), reason, outcome)

    def check(self) -> None:
        """Raise UserError if shards were given up."""
        if self.given_up:
            count = len(self.given_up)
            shard, reason = min(self.given_up.items())
            raise UserError(
                f"{count} shard{'s' if count > 1 else ''} could not be computed: {self.attempts} "
                f"workers died on {shard_name(shard)} ({reason}). Fix or remove the file that "
                "causes this, or give workers more memory, and run the same command again: it "
                "keeps the finished shards"
            )
