"""A killed judge is taken out of its group at once: its jobs do not wait until its session has timed out."""

import logging
import time
from collections.abc import Callable
from typing import Protocol
from uuid import UUID

from steelyard.store import presence
from steelyard.store.database import Database

log = logging.getLogger(__name__)
GRACE_SECONDS = 1.0


class Group(Protocol):
    """What there is to know of the judges' group, and to do."""

    async def judges(self) -> dict[UUID, str]: ...

    async def evict_judge(self, member: str) -> None: ...


class Evictor:
    """Dead is who held its lock at an earlier look and at none for a second, by this process's clock: a judge that loses
    its connection takes the lock again within half of that. Who is evicted by mistake joins again, and has lost a
    rebalance. A host that vanishes keeps its connection for a while, and is left to the session's timeout."""

    def __init__(
        self,
        database: Database,
        group: Group,
        grace_seconds: float = GRACE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database, self._group, self._grace, self._clock = database, group, grace_seconds, clock
        # By member: when its lock was seen for the last time.
        self._present: dict[UUID, float] = {}

    async def turn(self) -> int:
        """How many were evicted."""
        members = await self._group.judges()
        try:
            async with self._database.begin() as tx:
                absent = await presence.absent(tx, list(members))
        except Exception:
            # While the database was away nobody could hold a lock.
            self._present.clear()
            raise
        now = self._clock()
        seen = dict.fromkeys(members.keys() - absent, now)
        self._present = {judge: at for judge, at in self._present.items() if judge in members} | seen
        dead = [judge for judge in absent if now - self._present.get(judge, now) > self._grace]
        for judge in dead:
            log.warning("judge %s is gone: its partitions go to the others", judge)
            await self._group.evict_judge(members[judge])
            self._present.pop(judge)
        return len(dead)
