"""Which runs an exhausted quota holds, who may try the model, and what is let go again."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from addresses import Urls
from spine import new_project
from steelyard.store import expansion, ledger, runs
from steelyard.store.database import Database

LATER = datetime(2999, 1, 1, tzinfo=UTC)
NO_QUOTA = ledger.Pause("m", "the quota of m is exhausted", LATER)


@pytest.fixture
async def project(urls: Urls) -> UUID:
    return await new_project(urls)


async def started(database: Database, project: UUID, model: str = "m", **state: Any) -> UUID:
    run = {"id": uuid4(), "project_id": project, "metric_names": ["one"], "judge_model": model, "total_targets": 1}
    async with database.begin() as tx:
        await runs.put(tx, run)
        for column, value in state.items():
            await tx.execute(text(f"UPDATE runs SET {column} = :v WHERE id = :id"), {"v": value, "id": run["id"]})
    return UUID(str(run["id"]))


async def held(database: Database) -> set[UUID]:
    async with database.begin() as tx:
        return {r.id for r in await tx.execute(text("SELECT id FROM runs WHERE paused_why IS NOT NULL"))}


async def pause(database: Database, pause: ledger.Pause, anew: bool = False) -> int:
    async with database.begin() as tx:
        return await ledger.pause(tx, pause, anew)


async def claim(database: Database) -> bool:
    async with database.begin() as tx:
        return await ledger.claim_probe(tx, "m", 5.0)


async def test_only_unfinished_runs_of_the_model_are_held_and_they_go_on_together(
    database: Database, project: UUID
) -> None:
    going = {await started(database, project), await started(database, project, status="RUNNING")}
    await started(database, project, model="another")
    await started(database, project, status="COMPLETED")
    await started(database, project, stopping="budget")
    await started(database, project, deleted_at=LATER)
    assert await pause(database, NO_QUOTA) == 2 and await held(database) == going
    async with database.begin() as tx:
        assert await ledger.unpause(tx, "m") == 2
    assert await held(database) == set()


async def test_a_run_that_is_held_keeps_its_time_unless_a_probe_failed(database: Database, project: UUID) -> None:
    run = await started(database, project)
    await pause(database, NO_QUOTA)
    again = ledger.Pause("m", "still", LATER + timedelta(minutes=15))
    assert await pause(database, again) == 0 and await pause(database, again, anew=True) == 1
    async with database.begin() as tx:
        found = await runs.get(tx, project, run)
    assert found is not None and (found["paused_why"], found["paused_until"]) == ("still", again.until)


async def test_of_many_dispatchers_one_probes_a_model_whose_time_has_come(database: Database, project: UUID) -> None:
    for _ in range(3):
        await started(database, project)
    await pause(database, NO_QUOTA)
    assert not await claim(database), "its time has not come"
    await pause(database, ledger.Pause("m", "no quota", datetime(2026, 1, 1, tzinfo=UTC)), anew=True)
    assert sorted(await asyncio.gather(*(claim(database) for _ in range(5)))) == [False] * 4 + [True]


async def test_a_run_that_is_resumed_is_due_whatever_its_time_was(database: Database, project: UUID) -> None:
    run = await started(database, project)
    async with database.begin() as tx:
        assert not await runs.resume(tx, project, run), "it is not paused"
    await pause(database, NO_QUOTA)
    async with database.begin() as tx:
        assert not await runs.resume(tx, uuid4(), run), "it is not theirs"
        assert await runs.resume(tx, project, run)
    assert await claim(database) and not await claim(database)


async def test_a_probe_is_a_pair_that_was_put_off_and_not_one_that_may_ask_nobody(
    database: Database, project: UUID
) -> None:
    run = await started(database, project)
    async with database.begin() as tx:
        for metric, reason in (
            ("coherence", None),
            ("coherence", "the quota"),
            ("confidence", "the quota"),
            ("a", None),
        ):
            given = {"run": run, "trace": uuid4(), "metric": metric, "project": project, "reason": reason}
            await tx.execute(_PAIR, given)
    async with database.begin() as tx:
        assert [t.metric for t in await ledger.take(tx, run, 1, probe=True)] == ["confidence"]
        assert len(await ledger.take(tx, run, 10)) == 4


async def test_a_run_is_dispatched_while_its_next_page_is_being_written(database: Database, project: UUID) -> None:
    run = await started(database, project)
    async with database.begin() as expanding, database.begin() as dispatching:
        found = await expansion.next_unexpanded(expanding)
        assert found is not None and found.run_id == run
        assert await ledger.lock_run(dispatching, run)
        async with database.begin() as other:
            assert await expansion.next_unexpanded(other) is None, "one at a time expands it"


_PAIR = text(
    """
    INSERT INTO pairs (run_id, trace_id, metric, project_id, target, reason, available_at)
    VALUES (:run, :trace, :metric, :project, 't', :reason, now())
    """
)
