"""LISTEN on one connection: a bell rings when another process has something to tell. Polling is the safety net."""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress

import asyncpg

from steelyard.store.database import CONNECT, UNREACHABLE, Connection
from steelyard.tasks import ended

log = logging.getLogger(__name__)


class Bells:
    """Rings everything once after each reconnect: what was told in between would be missed otherwise."""

    def __init__(self, url: str, channels: Mapping[str, asyncio.Event]) -> None:
        self._url, self._channels = url, channels
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._listen())

    async def stop(self) -> None:
        if self._task is not None:
            await ended([self._task])

    async def unwell(self) -> str | None:
        return None

    async def _listen(self) -> None:
        while True:
            try:
                await self._while_connected()
            except UNREACHABLE as e:
                log.debug("bells: %s", e)
            await asyncio.sleep(1.0)

    async def _while_connected(self) -> None:
        connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
            self._url, connection_class=Connection, **CONNECT
        )
        gone = asyncio.Event()
        connection.add_termination_listener(lambda _: gone.set())
        try:
            for channel, bell in self._channels.items():
                await connection.add_listener(channel, lambda *_, bell=bell: bell.set())
                bell.set()
            await gone.wait()
        finally:
            with suppress(Exception):
                await connection.close(timeout=1)
