"""A run becomes targets and pairs: the sample in one statement, the pairs page by page."""

import logging
from collections.abc import Sequence
from uuid import UUID

from pydantic import ValidationError

from steelyard.bulkhead import everybodys, kind, note
from steelyard.events import RunExpanded, RunFinished
from steelyard.reasons import sqlstate
from steelyard.store import expansion, sessions_expanded
from steelyard.store.database import Database, Tx, contended
from steelyard.store.outbox import Outbox

log = logging.getLogger(__name__)
PAGE = 1000
# The pauses between a run's failures: what only looks like the run's own trouble is over within them.
BACKOFF_SECONDS = (2.0, 8.0, 30.0, 60.0)


class Expander:
    """Takes unexpanded runs in turn. Its place in a run is the run's cursor, so any resolver goes on anywhere; so are its
    failures, which end the run and keep nobody else from being expanded."""

    def __init__(self, database: Database, page: int = PAGE, backoff: Sequence[float] = BACKOFF_SECONDS) -> None:
        self._database, self._page, self._backoff = database, page, backoff
        self._served: list[UUID] = []

    async def turn(self, outbox: Outbox[RunExpanded | RunFinished]) -> bool:
        """True while there is more to do."""
        run = None
        try:
            async with self._database.begin() as tx:
                run = await expansion.next_unexpanded(tx, self._served)
                if run is None:
                    again, self._served = bool(self._served), []
                    return again
                self._served.append(run.run_id)
                await self._page_of(tx, run, outbox)
        except Exception as e:
            if run is None or everybodys(e):
                raise
            await self._failed(run, e, outbox)
        return True

    async def _page_of(self, tx: Tx, run: expansion.Unexpanded, outbox: Outbox[RunExpanded | RunFinished]) -> None:
        if not run.targets_written:
            write_targets = sessions_expanded.write_targets if run.of_sessions else expansion.write_targets
            found = await write_targets(tx, run)
            log.info("run %s means %d %s", run.run_id, found, "sessions" if run.of_sessions else "traces")
        write_pairs = sessions_expanded.write_pairs if run.of_sessions else expansion.write_pairs
        if not await write_pairs(tx, run, self._page):
            await expansion.expanded(tx, run.run_id)
            await outbox.put(tx, RunExpanded(run_id=run.run_id, project_id=run.project_id))

    async def _failed(
        self, run: expansion.Unexpanded, error: Exception, outbox: Outbox[RunExpanded | RunFinished]
    ) -> None:
        """Counted in a transaction of its own: where that does not work either, the failure was the database's."""
        note("resolver", "expansion", f"run {run.run_id}", error)
        pause = self._backoff[min(run.failures, len(self._backoff) - 1)]
        async with self._database.begin() as tx:
            failures = await expansion.put_off(tx, run, pause, counts=not contended(error))
            for_good = isinstance(error, ValidationError) or (failures or 0) > len(self._backoff)
            if failures is None or not for_good:
                return
            why = why_not(error, failures)
            if await expansion.fail_run(tx, run.run_id, why):
                log.error("run %s cannot be expanded: %s", run.run_id, why)
                await outbox.put(tx, RunFinished(run_id=run.run_id, project_id=run.project_id, status="FAILED"))


def why_not(error: Exception, times: int) -> str:
    """What whoever asked for the run reads: no statement, and no value of it."""
    if isinstance(error, ValidationError):
        return f"its filters cannot be read: {error.errors()[0]['msg']}"
    if sqlstate(error) == "57014":
        return f"it could not be expanded: finding what it means took longer than the database allows, {times} times"
    what = f"the database refused it with {kind(error)}" if sqlstate(error) else f"internal error: {kind(error)}"
    return f"it could not be expanded in {times} tries: {what}"
