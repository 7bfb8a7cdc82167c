"""Sessions of any size are folded once, a page at a time, and nobody waits for it."""

import asyncio
import hashlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from addresses import Urls
from eventually import eventually
from naive_folds import NAIVE, WEIGHTS
from spine import new_project
from steelyard.errors import Later
from steelyard.events import RunExpanded, RunFinished, TraceScored
from steelyard.filters import SessionRunFilters
from steelyard.metrics.sessions import SESSION_METRICS, SIGNALS
from steelyard.providers import RULES
from steelyard.store import runs, sessions, traces
from steelyard.store.database import Database, temporary
from steelyard.store.outbox import Outbox
from steelyard_aggregator.fold import Ended, Folding, Signal
from steelyard_aggregator.folding import Folder
from steelyard_aggregator.handlers import settled_in
from steelyard_resolver.expand import Expander


@dataclass
class Ledger:
    """A project whose runs are settled here, by values that each pair always has."""

    database: Database
    project: UUID

    async def talk(self, session: str, count: int) -> None:
        await self.rows(_TALK, p=self.project, s=session, n=count)

    async def run(self) -> UUID:
        """Of all sessions, expanded."""
        run_id = uuid4()
        async with self.database.begin() as tx:
            found, snapshot = await sessions.matching(tx, self.project, SessionRunFilters())
            run = {
                "id": run_id,
                "project_id": self.project,
                "metric_names": list(SESSION_METRICS),
                "judge_model": RULES,
            }
            await runs.put(tx, run | {"total_targets": found, "snapshot": snapshot, "target_type": runs.SESSIONS})
        expander = Expander(self.database)
        while await expander.turn(Outbox[RunExpanded | RunFinished]()):
            pass
        return run_id

    async def settle(self, run_id: UUID, *session_ids: str) -> list[TraceScored]:
        """All pairs of these sessions, or of all."""
        pairs = await self.rows(
            "SELECT run_id, project_id, target, trace_id, metric FROM pairs WHERE run_id = :r", r=run_id
        )
        results = [_outcome(p) for p in pairs if not session_ids or p["target"] in session_ids]
        for first in range(0, len(results), 2000):
            await self.hear(results[first : first + 2000])
        await self.hear([RunExpanded(run_id=run_id, project_id=self.project)])
        return results

    async def hear(self, results: Sequence[TraceScored | RunExpanded]) -> None:
        async with self.database.begin() as tx:
            await settled_in(tx, results, 5)

    async def run_of(self, run_id: UUID) -> dict[str, Any]:
        return (await self.rows("SELECT * FROM runs WHERE id = :r", r=run_id))[0]

    async def scores(self, run_id: UUID) -> list[dict[str, Any]]:
        return await self.rows(
            "SELECT * FROM session_scores WHERE eval_run_id = :r ORDER BY session_id, name", r=run_id
        )

    async def rows(self, sql: str, **given: Any) -> list[dict[str, Any]]:
        async with self.database.begin() as tx:
            found = await tx.execute(text(sql), given)
            return [dict(r._mapping) for r in found] if found.returns_rows else []

    @asynccontextmanager
    async def locked(self, sql: str, **given: Any) -> AsyncIterator[None]:
        async with self.database.begin() as tx:
            await tx.execute(text(sql), given)
            yield

    async def waiting(self, query: str) -> int | None:
        """The process that waits for a lock with such a statement."""
        found = await self.rows(_WAITING, q=f"%{query}%")
        return found[0]["pid"] if found else None


@pytest.fixture
async def ledger(database: Database, urls: Urls) -> Ledger:
    return Ledger(database, await new_project(urls))


async def folded(folder: Folder) -> None:
    while await folder.turn(Outbox[RunFinished]()):
        pass


async def test_while_a_large_session_is_folded_its_aggregator_goes_on_after_each_page(ledger: Ledger) -> None:
    """Counted are the rows that are handled in one step of the event loop."""
    await ledger.talk("large", 600)
    run_id = await ledger.run()
    results = await ledger.settle(run_id)
    steps, turns = Counter[int](), 0

    class Counted(Folding):
        def add(self, signals: Sequence[Signal]) -> None:
            steps[turns] += len(signals)
            super().add(signals)

    folding = asyncio.create_task(folded(Folder(ledger.database, large=True, made=Counted, page=100, small=500)))
    while not folding.done():
        turns += 1
        await asyncio.sleep(0)
    await folding
    assert sum(steps.values()) == 2400 and max(steps.values()) == 100
    assert_naive(await ledger.scores(run_id), results)
    run = await ledger.run_of(run_id)
    assert (run["status"], run["left"], run["evaluated_count"], run["failed_count"]) == ("COMPLETED", 0, 1, 0)


async def test_sessions_of_every_size_are_folded_as_their_definition_says(ledger: Ledger) -> None:
    """Small ones share pages and transactions, a session's signals go over the end of a page."""
    for n in range(25):
        await ledger.talk(f"s{n}", 1 + n * 7 % 25)
    run_id = await ledger.run()
    results = await ledger.settle(run_id)
    await folded(Folder(ledger.database, large=True))
    assert await ledger.scores(run_id) == [], "none of them is large"
    await folded(Folder(ledger.database, large=False, page=33))
    assert_naive(await ledger.scores(run_id), results)
    assert (await ledger.run_of(run_id))["status"] == "COMPLETED"
    assert await ledger.rows("SELECT 1 FROM folds") == []


async def test_nobodys_results_wait_for_a_session_that_is_being_folded(ledger: Ledger) -> None:
    await ledger.talk("folding", 3)
    await ledger.talk("other", 3)
    first, second = await ledger.run(), await ledger.run()
    await ledger.settle(first, "folding")
    async with ledger.locked("SELECT 1 FROM sessions WHERE session_id = 'folding' FOR UPDATE"):
        folding = asyncio.create_task(folded(Folder(ledger.database, large=False)))
        await eventually(lambda: ledger.waiting("FROM sessions s"), "the session is being folded")
        await ledger.settle(first, "other")
        await ledger.settle(second, "other")
        assert (await ledger.run_of(first))["settled_count"] == 24 and not folding.done()
        assert (await ledger.run_of(first))["status"] == "RUNNING", "a run waits for its folds"
    await folding
    assert (await ledger.run_of(first))["status"] == "COMPLETED"
    assert len(await ledger.scores(first)) == 4 and len(await ledger.scores(second)) == 2


async def test_a_session_whose_aggregator_dies_while_it_folds_is_folded_once_by_another(ledger: Ledger) -> None:
    await ledger.talk("s", 30)
    run_id = await ledger.run()
    results = await ledger.settle(run_id)
    async with ledger.locked("SELECT 1 FROM sessions FOR UPDATE"):
        first = asyncio.create_task(Folder(ledger.database, large=False).turn(Outbox[RunFinished]()))
        pid = await eventually(lambda: ledger.waiting("FROM sessions s"), "the session is being folded")
        assert not await Folder(ledger.database, large=False).turn(Outbox[RunFinished]()), "another leaves it alone"
        await ledger.rows("SELECT pg_terminate_backend(:p)", p=pid)
        with pytest.raises(Exception) as died:
            await first
        assert temporary(died.value) or isinstance(died.value, Later)
    assert await ledger.scores(run_id) == [] and (await ledger.run_of(run_id))["left"] == 1
    await folded(Folder(ledger.database, large=False))
    assert_naive(await ledger.scores(run_id), results)
    await ledger.hear(results)
    assert await ledger.rows("SELECT 1 FROM folds") == [], "what comes again changes nothing"
    run = await ledger.run_of(run_id)
    assert (run["left"], run["evaluated_count"], run["settled_count"]) == (0, 1, 120)


async def test_of_a_session_that_is_deleted_while_it_is_folded_nothing_is_said(ledger: Ledger) -> None:
    await ledger.talk("lost", 5)
    await ledger.talk("there", 5)
    run_id = await ledger.run()
    await ledger.settle(run_id)
    async with ledger.database.begin() as tx:
        await traces.delete_session(tx, ledger.project, "lost")
        folding = asyncio.create_task(folded(Folder(ledger.database, large=False)))
        await eventually(lambda: ledger.waiting("FROM sessions s"), "the session is being folded")
    await folding
    assert {s["session_id"] for s in await ledger.scores(run_id)} == {"there"}
    run = await ledger.run_of(run_id)
    assert (run["status"], run["left"], run["evaluated_count"], run["failed_count"]) == ("COMPLETED", 0, 2, 2)


async def test_a_run_that_is_deleted_while_its_session_is_folded_gets_no_scores(ledger: Ledger) -> None:
    await ledger.talk("s", 5)
    run_id = await ledger.run()
    await ledger.settle(run_id)
    async with ledger.locked("UPDATE runs SET deleted_at = now() WHERE id IN (SELECT id FROM runs FOR UPDATE)"):
        folding = asyncio.create_task(Folder(ledger.database, large=False).turn(Outbox[RunFinished]()))
        await eventually(lambda: ledger.waiting("FROM runs"), "the session is being folded")
    await folding
    assert not await Folder(ledger.database, large=False).turn(Outbox[RunFinished]()), "it is not tried for ever"
    assert await ledger.scores(run_id) == []


async def test_a_session_that_cannot_be_folded_holds_up_no_other(ledger: Ledger) -> None:
    for n in range(9):
        await ledger.talk(f"s{n}", 2)
    run_id = await ledger.run()
    results = await ledger.settle(run_id)

    class Broken(Folding):
        def __init__(self, ended: Ended) -> None:
            if ended.session_id == "s0":
                raise ZeroDivisionError("a bug")
            super().__init__(ended)

    await folded(Folder(ledger.database, large=False, made=Broken))
    assert len(await ledger.scores(run_id)) == 16 and (await ledger.run_of(run_id))["left"] == 1
    await ledger.rows("UPDATE folds SET since = now()")
    await folded(Folder(ledger.database, large=False))
    assert_naive(await ledger.scores(run_id), results)


async def test_a_session_metric_of_a_newer_version_waits_for_a_newer_aggregator(ledger: Ledger) -> None:
    await ledger.talk("s", 2)
    newer, known = await ledger.run(), await ledger.run()
    await ledger.rows("UPDATE runs SET metric_names = '{agent_luck}' WHERE id = :r", r=newer)
    for run_id in (newer, known):
        await ledger.settle(run_id)
    await folded(Folder(ledger.database, large=False))
    assert (await ledger.run_of(known))["status"] == "COMPLETED" and (await ledger.run_of(newer))["left"] == 1


def assert_naive(scores: Sequence[dict[str, Any]], results: Sequence[TraceScored]) -> None:
    """One score per session and metric, each what the whole session's signals make at once."""
    known: dict[str, dict[UUID, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for r in results:
        values = known[r.target][r.trace_id]
        if r.value is not None:
            values[r.metric] = r.value
    assert sorted((s["session_id"], s["name"]) for s in scores) == sorted(
        (t, m) for t in known for m in SESSION_METRICS
    )
    for score in scores:
        of_session = known[score["session_id"]]
        expected, told = NAIVE[score["name"]](list(of_session.values()), WEIGHTS), score["metadata"]
        assert (score["status"] == "FAILED") if expected is None else abs(float(score["value"]) - expected) < 1e-9
        assert told["signals_present"] == sum(map(len, of_session.values()))
        assert told["signals_expected"] == len(SIGNALS) * len(of_session)
        whole = repr(sorted((str(t), 1) for t in of_session)).encode()
        assert score["session_version"] == hashlib.blake2b(whole, digest_size=8).hexdigest()


def _outcome(pair: dict[str, Any]) -> TraceScored:
    """A few have none."""
    chance = Random(f"{pair['trace_id']}{pair['metric']}")
    value = chance.random() if chance.random() < 0.95 else None
    return TraceScored(**pair, value=value, reason=f"luck {chance.randrange(3)}", trace_version=1)


_TALK = """
    INSERT INTO traces (trace_id, project_id, name, status, started_at, session_id)
    SELECT gen_random_uuid(), :p, 'turn', 'COMPLETED', timestamptz '2026-01-01' + n * interval '1 s', :s
    FROM generate_series(1, :n) AS n
"""
_WAITING = """
    SELECT pid FROM pg_stat_activity
    WHERE wait_event_type = 'Lock' AND datname = current_database() AND query LIKE :q AND pid <> pg_backend_pid()
"""
