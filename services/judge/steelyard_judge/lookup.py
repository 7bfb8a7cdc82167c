"""What a judge reads from the database, many questions in one query."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar
from uuid import UUID

from steelyard.metrics.judging import Earlier
from steelyard.store import begun, ledger, loading, signals
from steelyard.store.begun import Prospect
from steelyard.store.database import Database
from steelyard.store.loading import Loaded

K = TypeVar("K")
V = TypeVar("V")
GATHER_SECONDS = 0.004
FRESH_SECONDS = 0.25


class Batched(Generic[K, V]):
    """Questions that arrive within a few milliseconds are asked together: hundreds of jobs begin at once."""

    def __init__(self, ask: Callable[[Sequence[K]], Awaitable[dict[K, V]]], most: int) -> None:
        self._ask, self._most = ask, most
        self._waiting: dict[K, asyncio.Future[V | None]] = {}
        self._turn: asyncio.Task[None] | None = None

    async def get(self, key: K) -> V | None:
        if key not in self._waiting:
            self._waiting[key] = asyncio.get_running_loop().create_future()
            self._turn = self._turn or asyncio.create_task(self._soon())
        # Shielded: one of several who wait for an answer may be cancelled without taking it from the others.
        return await asyncio.shield(self._waiting[key])

    async def _soon(self) -> None:
        await asyncio.sleep(GATHER_SECONDS)
        self._turn = None
        waiting, self._waiting = self._waiting, {}
        keys = list(waiting)
        for some in (keys[i : i + self._most] for i in range(0, len(keys), self._most)):
            try:
                found = await self._ask(some)
            except Exception as e:
                for key in some:
                    waiting[key].set_exception(e)
                    waiting[key].exception()  # retrieved: its waiter may be gone
            else:
                for key in some:
                    waiting[key].set_result(found.get(key))


class Lookup:
    """Which pairs are still wanted, remembered for a moment; and traces, never remembered: they change."""

    def __init__(self, database: Database, judge: UUID) -> None:
        self._database, self._judge = database, judge
        self._prospects: Batched[tuple[UUID, UUID], Prospect] = Batched(self._ask_prospects, most=100)
        # Protects the database and the other jobs' time: a large trace is read in it for seconds.
        self._large = asyncio.Lock()
        self._wanted: Batched[tuple[UUID, UUID], frozenset[str]] = Batched(self._ask_wanted, most=500)
        self._traces: Batched[UUID, Loaded] = Batched(self._ask_traces, most=50)
        self._earlier: Batched[tuple[UUID, UUID], tuple[Earlier, ...]] = Batched(self._ask_earlier, most=50)
        self._known: dict[tuple[UUID, UUID], tuple[float, frozenset[str]]] = {}

    async def wanted(self, run_id: UUID, trace_id: UUID) -> frozenset[str]:
        """Metrics of the trace whose pairs exist, are not settled, and whose run is not stopping."""
        key, now = (run_id, trace_id), time.monotonic()
        if key in self._known and now - self._known[key][0] < FRESH_SECONDS:
            return self._known[key][1]
        found = await self._wanted.get(key) or frozenset()
        self._remember(key, found)
        return found

    def _remember(self, key: tuple[UUID, UUID], metrics: frozenset[str]) -> None:
        if len(self._known) > 5000:
            self._known.clear()
        self._known[key] = (time.monotonic(), metrics)

    async def prospect(self, run_id: UUID, trace_id: UUID) -> Prospect | None:
        """The same, with what the trace would take and what is known of judges that died with its pairs."""
        prospect = await self._prospects.get((run_id, trace_id))
        if prospect is not None:
            self._remember((run_id, trace_id), frozenset(p.metric for p in prospect.pairs))
        return prospect

    async def trace(self, trace_id: UUID, stored: int | None) -> Loaded | None:
        """Whole, or cut where it would take more than a judge needs of it."""
        if not loading.surely_large(stored):
            loaded = await self._traces.get(trace_id)
            if loaded is None or loaded.trace is not None:
                return loaded
        async with self._large, self._database.begin() as tx:
            return await loading.load_cut(tx, trace_id)

    async def earlier(self, run_id: UUID, trace_id: UUID) -> tuple[Earlier, ...]:
        """What came before the trace in its session, as the run was expanded with it."""
        return await self._earlier.get((run_id, trace_id)) or ()

    async def _ask_earlier(self, places: Sequence[tuple[UUID, UUID]]) -> dict[tuple[UUID, UUID], tuple[Earlier, ...]]:
        async with self._database.begin() as tx:
            return await signals.earlier(tx, places)

    async def _ask_wanted(self, keys: Sequence[tuple[UUID, UUID]]) -> dict[tuple[UUID, UUID], frozenset[str]]:
        async with self._database.begin() as tx:
            found = await ledger.wanted(tx, keys)
        by_key: dict[tuple[UUID, UUID], set[str]] = {k: set() for k in keys}
        for run_id, trace_id, metric in found:
            by_key[run_id, trace_id].add(metric)
        return {k: frozenset(metrics) for k, metrics in by_key.items()}

    async def _ask_traces(self, ids: Sequence[UUID]) -> dict[UUID, Loaded]:
        async with self._database.begin() as tx:
            return await loading.load(tx, ids)

    async def _ask_prospects(self, keys: Sequence[tuple[UUID, UUID]]) -> dict[tuple[UUID, UUID], Prospect]:
        async with self._database.begin() as tx:
            return await begun.look(tx, self._judge, keys)
