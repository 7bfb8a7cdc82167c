"""A run becomes targets and pairs: the sample in one statement, the pairs page by page."""

import logging
from uuid import UUID

from pydantic import ValidationError

from steelyard.events import RunExpanded, RunFinished
from steelyard.store import expansion, sessions_expanded
from steelyard.store.database import Database, Tx
from steelyard.store.outbox import Outbox

log = logging.getLogger(__name__)
PAGE = 1000


class Expander:
    """Takes unexpanded runs in turn. Its place in a run is the run's cursor, so any resolver goes on anywhere."""

    def __init__(self, database: Database, page: int = PAGE) -> None:
        self._database, self._page = database, page
        self._served: list[UUID] = []

    async def turn(self, outbox: Outbox[RunExpanded | RunFinished]) -> bool:
        """True while there is more to do."""
        async with self._database.begin() as tx:
            run = await expansion.next_unexpanded(tx, self._served)
            if run is None:
                again, self._served = bool(self._served), []
                return again
            self._served.append(run.run_id)
            try:
                await self._page_of(tx, run, outbox)
            except ValidationError as e:
                log.error("run %s cannot be expanded: %s", run.run_id, e)
                why = f"its filters cannot be read: {e.errors()[0]['msg']}"
                if await expansion.fail_run(tx, run.run_id, why):
                    await outbox.put(tx, RunFinished(run_id=run.run_id, project_id=run.project_id, status="FAILED"))
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
