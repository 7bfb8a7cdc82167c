"""From where on a run's pairs are looked at: below its watermark everything was sent, and need not be read again."""

import math
import time
from collections.abc import Callable, Sequence
from uuid import UUID

from steelyard.store.ledger import Demand, Watermark

# Longer than any transaction that makes pairs owed: pages of an expansion, settlements, what is sent again.
GRACE_SECONDS = 60.0


class Watermarks:
    """In memory: whoever starts looks at everything once. They are hints and decide nothing for ever: of a run that seems to
    have nothing left and is not finished, everything is looked at again, at most once in the time of grace."""

    def __init__(self, grace_seconds: float = GRACE_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self.grace_seconds, self._clock = grace_seconds, clock
        self.known: dict[UUID, Watermark] = {}
        self._doubted: dict[UUID, float] = {}

    def move(self, run: UUID, mark: Watermark) -> None:
        self.known[run] = mark

    def doubt(self, found: Sequence[Demand]) -> None:
        now, there = self._clock(), {d.run_id for d in found}
        self.known = {run: mark for run, mark in self.known.items() if run in there}
        self._doubted = {run: at for run, at in self._doubted.items() if run in there}
        for run in (d.run_id for d in found if not d.ready and not d.in_flight):
            if now - self._doubted.get(run, -math.inf) >= self.grace_seconds:
                self._doubted[run] = now
                self.known.pop(run, None)
