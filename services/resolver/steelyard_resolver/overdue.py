"""Jobs without an outcome are sent again, but only once it is certain that none is on its way."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from steelyard.events import RunExpanded, TraceScored
from steelyard.runs import PairState
from steelyard.service import Publish
from steelyard.store import expansion, ledger
from steelyard.store.database import Database
from steelyard.store.outbox import Outbox
from steelyard_resolver.readers import SharedReaders

log = logging.getLogger(__name__)
# Around a loss outcomes go astray that were sent to the new topics: producers that the broker does not know are replaced
# within seconds.
AFTERMATH = timedelta(seconds=60)


@dataclass(frozen=True)
class Checkpoint:
    """At this time the judges had read so far, and results were published so far."""

    at: datetime
    consumed: dict[int, int]
    results: dict[int, int]
    incarnation: UUID

    def void(self, incarnation: UUID, ends: Mapping[int, int]) -> bool:
        """Its places are of topics that are gone, or of a log that has become shorter: nobody will ever read that far."""
        return incarnation != self.incarnation or any(ends.get(p, 0) < end for p, end in self.results.items())


class Overdue:
    """A job the judges' committed offset has passed left its outcome in `scores.trace` first. So: note both places,
    wait until the aggregator has read that far, and what is still unsettled then has lost its outcome."""

    def __init__(self, database: Database, readers: SharedReaders, after_seconds: float) -> None:
        self._database, self._readers, self._after = database, readers, timedelta(seconds=after_seconds)
        self._checkpoint: Checkpoint | None = None
        self._incarnation: UUID | None = None
        self._counted_from: datetime | None = None

    async def release_again(self, outbox: Outbox[RunExpanded]) -> int:
        """A run's end hangs on one message: the ledger knows that it is still owed, so it is sent until it is heard."""
        async with self._database.begin() as tx:
            lost = await expansion.unreleased(tx, 2 * self._after.total_seconds())
            await outbox.put(tx, *(RunExpanded(run_id=run, project_id=project) for run, project in lost))
        return len(lost)

    async def turn(self, publish: Publish[TraceScored]) -> int:
        async with self._database.begin() as tx:
            oldest = await ledger.oldest_dispatch(tx)
        if oldest is None:
            self._checkpoint = None
            return 0
        since, now = oldest
        incarnation = await self._readers.incarnation()
        if self._incarnation not in (None, incarnation):
            self._counted_from = now + AFTERMATH
        self._incarnation = incarnation
        lost = await self._send_lost(now, incarnation)
        if now - since < self._after:
            self._checkpoint = None
            return lost
        ends = await self._readers.score_ends()
        if self._checkpoint is None or self._checkpoint.void(incarnation, ends):
            self._checkpoint = await self._note(now, incarnation)
        if not await self._settled_up_to(self._checkpoint):
            return lost
        checkpoint, self._checkpoint = self._checkpoint, None
        return lost + await self._send_back(checkpoint, publish)

    async def _send_lost(self, now: datetime, incarnation: UUID) -> int:
        """At once: what the broker lost is not on its way. Jobs that were sent after `now` may lie beyond these bounds."""
        bounds = await self._readers.job_bounds()
        async with self._database.begin() as tx:
            lost = await ledger.lost(tx, now, incarnation, bounds)
        if lost:
            log.warning("%d pairs were lost by the broker: sending them again", lost)
        return lost

    async def _note(self, now: datetime, incarnation: UUID) -> Checkpoint:
        """Consumed first, results after: what was consumed by then has its result among them."""
        consumed = await self._readers.consumed_jobs()
        return Checkpoint(now, consumed, await self._readers.score_ends(), incarnation)

    async def _settled_up_to(self, checkpoint: Checkpoint) -> bool:
        read = await self._readers.settled_scores()
        return all(read.get(p, 0) >= end for p, end in checkpoint.results.items())

    async def _send_back(self, checkpoint: Checkpoint, publish: Publish[TraceScored]) -> int:
        async with self._database.begin() as tx:
            before = checkpoint.at - self._after
            back, undeliverable = await ledger.overdue(tx, before, checkpoint.consumed, self._counted_from)
        if back:
            log.warning("%d pairs had no outcome although their jobs were read: sending them again", back)
        await publish(_undeliverable(p) for p in undeliverable)
        return back


def _undeliverable(pair: PairState) -> TraceScored:
    return TraceScored(
        run_id=pair.run_id,
        project_id=pair.project_id,
        target=pair.target,
        trace_id=pair.trace_id,
        metric=pair.metric,
        value=None,
        reason=f"undeliverable: sent {ledger.MOST_REDISPATCHES + 1} times without an outcome",
    )
