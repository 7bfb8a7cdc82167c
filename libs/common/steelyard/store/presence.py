"""A judge's incarnation: a random id, and a session-level advisory lock that lives exactly as long as its process does.

The kernel closes a dead process's connection and Postgres lets go of the lock. A restart of Postgres loses the lock of a
judge that lives: it takes it again at once, and who looks for the dead waits longer than that."""

import asyncio
import logging
from collections.abc import Collection
from contextlib import suppress
from uuid import UUID, uuid4

import asyncpg
from sqlalchemy import text

from steelyard.store.database import CONNECT, UNREACHABLE, Connection, Tx
from steelyard.tasks import ended

log = logging.getLogger(__name__)
RETRY_SECONDS = 0.25
_HOLD = "SELECT pg_advisory_lock(hashtextextended($1::text, 13))"
_LEAVE = "DELETE FROM begun WHERE judge = $1"


class Presence:
    def __init__(self, url: str) -> None:
        self.incarnation: UUID = uuid4()
        self._url = url
        self._held = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._hold())

    async def stop(self) -> None:
        """After the consumers: what they had under way is finished or handed back."""
        if self._task is not None:
            await ended([self._task])

    async def unwell(self) -> str | None:
        return None

    async def held(self) -> None:
        """Nothing is begun by a judge that would look dead."""
        await self._held.wait()

    async def _hold(self) -> None:
        while True:
            try:
                await self._while_connected()
            except UNREACHABLE as e:
                log.debug("presence: %s", type(e).__name__)
            await asyncio.sleep(RETRY_SECONDS)

    async def _while_connected(self) -> None:
        connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
            self._url, connection_class=Connection, **CONNECT
        )
        gone = asyncio.Event()
        connection.add_termination_listener(lambda _: gone.set())
        try:
            await connection.execute(_HOLD, str(self.incarnation))
            self._held.set()
            await gone.wait()
        except asyncio.CancelledError:
            # Before the lock goes: a stop is no death.
            with suppress(Exception):
                await connection.execute(_LEAVE, self.incarnation, timeout=2)
            raise
        finally:
            self._held.clear()
            with suppress(Exception):
                await connection.close(timeout=1)


async def absent(tx: Tx, incarnations: Collection[UUID]) -> set[UUID]:
    """Those whose lock nobody holds. Looked at and not tried: trying would keep its owner from taking it again."""
    return {r.id for r in await tx.execute(_ABSENT, {"ids": sorted(incarnations)})} if incarnations else set()


_ABSENT = text(
    """
    SELECT k.id FROM (
        SELECT id, hashtextextended(id::text, 13) AS lock FROM unnest(CAST(:ids AS uuid[])) AS ids (id)
    ) k
    WHERE NOT EXISTS (
        SELECT 1 FROM pg_locks l WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
            AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND (l.classid::bigint << 32) | l.objid::bigint = k.lock
    )
    """
)
