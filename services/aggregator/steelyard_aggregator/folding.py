"""Sessions that have counted down are folded, each exactly once: a page of signals at a time, in a transaction that holds
nothing but the sessions' own rows of `folds` until it writes what came of them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from steelyard.bulkhead import everybodys, note
from steelyard.events import RunFinished
from steelyard.metrics.sessions import SESSION_METRICS
from steelyard.store import session_scores, sessions_folded, settling
from steelyard.store.database import Database, Tx, temporary
from steelyard.store.outbox import Outbox
from steelyard.store.sessions_folded import Key, ToFold
from steelyard_aggregator.fold import Ended, Folding, SessionVersion, Signal

# Rows that are handled between two awaits: some milliseconds in which nothing else of this process moves.
PAGE = 1000
# Sessions of up to so many traces are small: as many as have so many together share a transaction.
SMALL, MOST_SESSIONS = 2500, 100


class Folder:
    """Takes small sessions or large ones. There is one of each, so that nobody's small session waits for large ones."""

    def __init__(
        self,
        database: Database,
        large: bool,
        made: Callable[[Ended], Folding] = Folding,
        page: int = PAGE,
        small: int = SMALL,
    ) -> None:
        self._database, self._large, self._made, self._page, self._small = database, large, made, page, small
        self._most = MOST_SESSIONS

    async def turn(self, outbox: Outbox[RunFinished]) -> bool:
        """True while there may be more to do. After a failure sessions go one by one: who cannot be folded is put off
        alone, and the others go on."""
        portion = list[ToFold]()
        try:
            async with self._database.begin() as tx:
                limit = 1 if self._large else self._most
                claimed = await sessions_folded.claim(tx, tuple(SESSION_METRICS), self._large, self._small, limit)
                portion = _of_size(claimed, self._small)
                if not portion:
                    return False
                finished = await self._folded(tx, portion)
                await outbox.put(tx, *(RunFinished(run_id=r, project_id=p, status="COMPLETED") for r, p in finished))
        except Exception as e:
            if not portion or everybodys(e) or temporary(e):
                raise
            await self._failed(portion, e)
            return True
        self._most = min(2 * self._most, MOST_SESSIONS)
        return True

    async def _folded(self, tx: Tx, portion: Sequence[ToFold]) -> list[Any]:
        """The signals were settled and change no more, so they are read without anybody's lock; what can be deleted
        meanwhile, the run and the session, is held only to write."""
        foldings = await self._read(tx, portion)
        versions = await self._versions(tx, list(foldings))
        runs = await settling.hold_runs(tx, list({f.run_id for f in portion}))
        kept = {key: f for key, f in foldings.items() if key[0] in runs}
        there = await sessions_folded.hold(tx, [(f.ended.project_id, f.ended.session_id) for f in kept.values()])
        outcomes, failed = list[tuple[Key, Sequence[str]]](), Counter[Any]()
        for key, folding in sorted(kept.items()):
            # Of a session that was deleted meanwhile nothing is said: nobody could look at it.
            gone = (folding.ended.project_id, folding.ended.session_id) not in there
            rows = [] if gone else folding.rows(versions[key].value())
            await session_scores.put(tx, rows)
            unscored = list(folding.ended.metrics) if gone else [r["name"] for r in rows if r["status"] == "FAILED"]
            failed[key[0]] += len(unscored)
            outcomes.append((key, unscored))
        await sessions_folded.done(tx, outcomes)
        return await settling.count_runs(tx, [], list(kept), failed, [])

    async def _read(self, tx: Tx, portion: Sequence[ToFold]) -> dict[Key, Folding]:
        foldings = {f.key: self._made(_ended(f)) for f in portion}
        async for page in sessions_folded.signals(tx, list(foldings), self._page):
            for key, rows in groupby(page, key=lambda r: (r.run_id, r.target)):
                foldings[key].add([Signal(r.trace_id, r.metric, r.value, r.reason) for r in rows])
        return foldings

    async def _versions(self, tx: Tx, keys: Sequence[Key]) -> Mapping[Key, SessionVersion]:
        versions = {key: SessionVersion() for key in keys}
        async for page in sessions_folded.trace_versions(tx, keys, self._page):
            for key, rows in groupby(page, key=lambda r: (r.run_id, r.target)):
                versions[key].add((r.trace_id, r.trace_version) for r in rows)
        return versions

    async def _failed(self, portion: Sequence[ToFold], error: Exception) -> None:
        self._most = 1
        note("aggregator", "fold_sessions", f"{len(portion)} sessions, the first of run {portion[0].run_id},", error)
        if len(portion) == 1:
            async with self._database.begin() as tx:
                await sessions_folded.put_off(tx, portion[0].key)


def _of_size(claimed: Sequence[ToFold], most: int) -> list[ToFold]:
    """As many as have so many traces together, and one in any case; the others are let go with this transaction."""
    total, portion = 0, list[ToFold]()
    for f in claimed:
        if portion and total + f.size > most:
            break
        portion.append(f)
        total += f.size
    return portion


def _ended(f: ToFold) -> Ended:
    weights = f.filters.get("signal_weights")
    return Ended(f.run_id, f.project_id, f.target, f.size, f.metrics, weights, f.created_at)
