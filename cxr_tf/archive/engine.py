"""What engines have in common: they take shard numbers, and report progress.

An engine decides nothing but who computes which shard next. It holds no results, and whatever it
loses, the files say what is left to do.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from cxr_tf.archive.plan import shard_name
from cxr_tf.errors import UserError

# A shard whose workers die so often is left out: a file in it may end every process that opens it.
ATTEMPTS = 5


@dataclass(frozen=True)
class Progress:
    """So many images of a shard are done; `finished` when its file is there."""

    shard: int
    images: int
    finished: bool


@dataclass
class Queue:
    """Numbers of the shards that nobody is working on, and how often their workers died."""

    waiting: list[int]
    deaths: Counter[int] = field(default_factory=Counter)
    given_up: dict[int, str] = field(default_factory=dict)

    @staticmethod
    def of(shards: Sequence[int]) -> "Queue":
        """A queue of these shards, in this order."""
        return Queue(list(reversed(shards)))

    def take(self) -> int | None:
        """The next shard; None where none is waiting."""
        return self.waiting.pop() if self.waiting else None

    def return_(self, shard: int, reason: str) -> None:
        """Gives a shard whose worker died to the next worker that is free."""
        self.deaths[shard] += 1
        if self.deaths[shard] < ATTEMPTS:
            self.waiting.append(shard)
        else:
            self.given_up[shard] = reason

    def check(self) -> None:
        """Raises UserError where shards were given up, at the end."""
        if self.given_up:
            shard, reason = min(self.given_up.items())
            raise UserError(
                f"{len(self.given_up)} shards could not be computed: {shard_name(shard)} ended "
                f"{ATTEMPTS} workers ({reason}). All others are finished; fix or remove its file "
                "that does so, or give workers more memory, and run the same command again"
            )
