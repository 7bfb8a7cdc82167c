"""Traces that arrive at the same time are written in one transaction: a commit costs more than the rows it carries.

While a project's transaction is on its way, what arrives for it waits, and goes into the next one: no clock, no added
waiting for a lone request, and larger groups the busier it is. A 202 follows the commit."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from steelyard import telemetry
from steelyard.store import traces
from steelyard.store.database import Database, reason, sqlstate, temporary
from steelyard.store.traces import Arrival, Foreign

log = logging.getLogger(__name__)
# Of one transaction: a group of large traces would hold up the small ones behind it, and fill the memory of two processes.
MOST_SPANS = 5_000
MOST_BYTES = 8_000_000


@dataclass
class Waiting:
    arrival: Arrival
    size: int
    done: "asyncio.Future[None]"


class Ingest:
    """One lane for each project: a project's rows are hidden from the others, so a transaction is of one project."""

    def __init__(self, database: Database, most: int) -> None:
        self._database, self._most = database, most
        self._waiting: dict[UUID, list[Waiting]] = {}
        self._lanes: dict[UUID, asyncio.Task[None]] = {}

    async def put(self, project: UUID, arrival: Arrival, size: int = 0) -> None:
        """Returns when it is committed. Raises Foreign for an id that another project has."""
        if self._most == 1:
            await self._alone(project, arrival)
            return
        waiting = Waiting(arrival, size, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(project, []).append(waiting)
        if project not in self._lanes:
            self._lanes[project] = asyncio.create_task(self._drive(project))
        # Shielded by being a future of its own: a caller who hangs up takes nothing from the others in the group.
        await asyncio.shield(waiting.done)

    async def stop(self) -> None:
        """What was accepted for writing is written; nobody is left to hear of it only if the process is killed."""
        while self._lanes:
            await asyncio.wait(list(self._lanes.values()))

    async def _drive(self, project: UUID) -> None:
        try:
            while group := self._next(project):
                await self._write(project, group)
        finally:
            del self._lanes[project]
            if not self._waiting.get(project):
                self._waiting.pop(project, None)

    def _next(self, project: UUID) -> list[Waiting]:
        waiting, group, spans, size = self._waiting[project], list[Waiting](), 0, 0
        for w in waiting[: self._most]:
            spans, size = spans + len(w.arrival.spans), size + w.size
            if group and (spans > MOST_SPANS or size > MOST_BYTES):
                break
            group.append(w)
        self._waiting[project] = waiting[len(group) :]
        return group

    async def _write(self, project: UUID, group: Sequence[Waiting]) -> None:
        telemetry.INGEST_GROUP.observe(len(group))
        try:
            async with self._database.begin(project) as tx:
                foreign = await traces.put_many(tx, project, [w.arrival for w in group])
        except Exception as e:
            await self._failed(project, group, e)
        else:
            for w in group:
                _tell(w, Foreign() if w.arrival.trace_id in foreign else None)

    async def _failed(self, project: UUID, group: Sequence[Waiting], error: Exception) -> None:
        """One bad row fails one caller: the group is written again one by one, unless nothing can be written now."""
        if len(group) == 1 or _unreachable(error):
            for w in group:
                _tell(w, error)
            return
        log.warning("a group of %d traces could not be written together, now one by one: %s", len(group), reason(error))
        for w in group:
            try:
                await self._alone(project, w.arrival)
            except Exception as e:
                _tell(w, e)
            else:
                _tell(w, None)

    async def _alone(self, project: UUID, arrival: Arrival) -> None:
        async with self._database.begin(project) as tx:
            await traces.put(tx, project, arrival.trace, arrival.spans)


def _tell(waiting: Waiting, error: Exception | None) -> None:
    if waiting.done.done():
        return
    if error is None:
        waiting.done.set_result(None)
    else:
        waiting.done.set_exception(error)
        waiting.done.exception()  # retrieved: its caller may have hung up


def _unreachable(error: Exception) -> bool:
    """A deadlock passes too, but it is one row's trouble: one by one it does not come back."""
    return temporary(error) and not (sqlstate(error) or "").startswith("40")
