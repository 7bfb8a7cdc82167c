"""A run becomes targets and pairs: the sample in one statement, the pairs page by page."""

import logging
from uuid import UUID

from pydantic import ValidationError

from steelyard.events import RunExpanded
from steelyard.store import ledger, sessions_expanded
from steelyard.store.database import Database, Tx
from steelyard.store.outbox import Outbox

log = logging.getLogger(__name__)
PAGE = 1000


class Expander:
    """Takes unexpanded runs in turn. Its place in a run is the run's cursor, so any resolver goes on anywhere."""

    def __init__(self, database: Database, page: int = PAGE) -> None:
        self._database, self._page = database, page
        self._served: list[UUID] = []

    async def turn(self, outbox: Outbox[RunExpanded]) -> bool:
        """True while there is more to do."""
        async with self._database.begin() as tx:
            run = await ledger.next_unexpanded(tx, self._served)
            if run is None:
                again, self._served = bool(self._served), []
                return again
            self._served.append(run.run_id)
            try:
                await self._page_of(tx, run, outbox)
            except ValidationError as e:
                log.error("run %s cannot be expanded: %s", run.run_id, e)
                await ledger.fail_run(tx, run.run_id, f"its filters cannot be read: {e.errors()[0]['msg']}")
        return True

    async def _page_of(self, tx: Tx, run: ledger.Unexpanded, outbox: Outbox[RunExpanded]) -> None:
        if not run.targets_written:
            write_targets = sessions_expanded.write_targets if run.of_sessions else ledger.write_targets
            found = await write_targets(tx, run)
            log.info("run %s means %d %s", run.run_id, found, "sessions" if run.of_sessions else "traces")
        write_pairs = sessions_expanded.write_pairs if run.of_sessions else ledger.write_pairs
        if not await write_pairs(tx, run, self._page):
            await ledger.expanded(tx, run.run_id)
            await outbox.put(tx, RunExpanded(run_id=run.run_id, project_id=run.project_id))
