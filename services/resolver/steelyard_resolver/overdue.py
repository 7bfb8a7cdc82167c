"""Jobs without an outcome are sent again, but only once it is certain that none is on its way."""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta

from steelyard.events import RunExpanded, TraceScored
from steelyard.runs import PairState
from steelyard.service import Publish
from steelyard.store import expansion, ledger
from steelyard.store.database import Database
from steelyard.store.outbox import Outbox
from steelyard_resolver.readers import SharedReaders

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """At this time the judges had read so far, and results were published so far."""

    at: datetime
    consumed: dict[int, int]
    results: dict[int, int]


class Overdue:
    """A job the judges' committed offset has passed left its outcome in `scores.trace` first. So: note both places,
    wait until the aggregator has read that far, and what is still unsettled then has lost its outcome."""

    def __init__(self, database: Database, readers: SharedReaders, after_seconds: float) -> None:
        self._database, self._readers, self._after = database, readers, timedelta(seconds=after_seconds)
        self._checkpoint: Checkpoint | None = None

    async def release_again(self, outbox: Outbox[RunExpanded]) -> int:
        """A run's end hangs on one message: the ledger knows that it is still owed, so it is sent until it is heard."""
        async with self._database.begin() as tx:
            lost = await expansion.unreleased(tx, 2 * self._after.total_seconds())
            await outbox.put(tx, *(RunExpanded(run_id=run, project_id=project) for run, project in lost))
        return len(lost)

    async def turn(self, publish: Publish[TraceScored]) -> int:
        async with self._database.begin() as tx:
            oldest = await ledger.oldest_dispatch(tx)
        if oldest is None or oldest[1] - oldest[0] < self._after:
            self._checkpoint = None
            return 0
        if self._checkpoint is None:
            self._checkpoint = await self._note(oldest[1])
        if not await self._settled_up_to(self._checkpoint):
            return 0
        checkpoint, self._checkpoint = self._checkpoint, None
        return await self._send_back(checkpoint, publish)

    async def _note(self, now: datetime) -> Checkpoint:
        """Consumed first, results after: what was consumed by then has its result among them."""
        consumed = await self._readers.consumed_jobs()
        return Checkpoint(now, consumed, await self._readers.score_ends())

    async def _settled_up_to(self, checkpoint: Checkpoint) -> bool:
        read = await self._readers.settled_scores()
        return all(read.get(p, 0) >= end for p, end in checkpoint.results.items())

    async def _send_back(self, checkpoint: Checkpoint, publish: Publish[TraceScored]) -> int:
        bounds = await self._readers.job_bounds()
        async with self._database.begin() as tx:
            before = checkpoint.at - self._after
            back, undeliverable = await ledger.overdue(tx, before, checkpoint.consumed, bounds)
        if back:
            log.warning("%d pairs had no outcome although their jobs were read or lost: sending them again", back)
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
