"""Judges that died: what they had under way is counted, so that a pair that kills its judges is found out."""

import logging
import time
from collections.abc import Callable
from uuid import UUID

from steelyard.store import begun
from steelyard.store.database import Database

log = logging.getLogger(__name__)
# A judge that lives takes its lock again within a second of a restart of Postgres.
GRACE_SECONDS = 3.0


class Deaths:
    """A judge is dead when its lock was free at every look for some seconds, by this process's clock. A look that fails
    begins anew: while the database was away nobody could hold a lock."""

    def __init__(
        self, database: Database, grace_seconds: float = GRACE_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database, self._grace, self._clock = database, grace_seconds, clock
        self._missed: dict[UUID, float] = {}

    async def turn(self) -> int:
        """How many pairs were under way at deaths that this look made sure of."""
        missed, self._missed = self._missed, {}
        async with self._database.begin() as tx:
            gone = await begun.gone(tx)
        now = self._clock()
        self._missed = {judge: missed.get(judge, now) for judge in gone}
        return sum([await self._bury(judge) for judge, since in self._missed.items() if now - since >= self._grace])

    async def _bury(self, judge: UUID) -> int:
        async with self._database.begin() as tx:
            pairs = await begun.bury(tx, judge)
        if pairs:
            log.warning("judge %s died with %d pairs under way", judge, pairs)
        return pairs
