"""What this judge has under way, written down before it is begun: its successors find it if it dies."""

import asyncio
import logging
from collections.abc import Sequence

from steelyard.runs import Key
from steelyard.store import begun
from steelyard.store.database import Database, reason
from steelyard.store.presence import Presence
from steelyard_judge.lookup import Batched

log = logging.getLogger(__name__)
# How long an end waits for a beginning to be written with.
END_SECONDS = 0.25
Batch = tuple[tuple[Key, ...], bool]


class Marks:
    """Many beginnings and ends in one statement. A crash leaves marks of what had ended: settled pairs do not care."""

    def __init__(self, database: Database, presence: Presence) -> None:
        self._database, self._presence = database, presence
        self._begun: Batched[Batch, bool] = Batched(self._write, most=100)
        self._ended: list[Key] = []
        self._clearing: asyncio.Task[None] | None = None

    async def begin(self, keys: Sequence[Key], alone: bool = False) -> None:
        """Committed when it returns."""
        await self._presence.held()
        await self._begun.get((tuple(keys), alone))

    def end(self, keys: Sequence[Key]) -> None:
        self._ended += keys
        if self._clearing is None:
            self._clearing = asyncio.create_task(self._clear())

    async def _clear(self) -> None:
        try:
            while self._ended:
                await asyncio.sleep(END_SECONDS)
                if self._ended:
                    await self._write([])
        except Exception as e:
            log.warning("marks of ended pairs stay for now: %s", reason(e))
        finally:
            self._clearing = None

    async def _write(self, batches: Sequence[Batch]) -> dict[Batch, bool]:
        starting = [(key, alone) for keys, alone in batches for key in keys]
        ended, self._ended = self._ended, []
        again = {key for key, _ in starting}
        try:
            async with self._database.begin() as tx:
                await begun.mark(tx, self._presence.incarnation, starting, [k for k in ended if k not in again])
        except BaseException:
            self._ended += ended
            raise
        return dict.fromkeys(batches, True)
