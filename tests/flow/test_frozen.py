"""A process is stopped (SIGSTOP) in the middle of a transaction: the others go on, and when it wakes up it does no harm."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from addresses import Urls
from eventually import eventually
from steelyard.events import RunExpanded, RunFinished
from steelyard.store.outbox import Outbox
from steelyard_local.client import ready
from steelyard_resolver.expand import Expander
from system import METRICS, System

pytestmark = pytest.mark.faults  # the roles' 15 s pass for real
TRACES = 12
Owner = Any
WAITS = """
CREATE FUNCTION waits() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(99);
    RETURN NEW;
END $$;
CREATE TRIGGER waits BEFORE UPDATE ON pairs FOR EACH ROW WHEN (NEW.status = 'dispatched') EXECUTE FUNCTION waits()
"""


@pytest.fixture
async def owner(urls: Urls) -> AsyncIterator[Owner]:
    connection = await asyncpg.connect(urls.owner)
    yield connection
    await connection.close()


async def test_a_frozen_aggregator_holds_up_no_run(system: System, urls: Urls, owner: Owner) -> None:
    await system.start("api-1", "resolver-1", "aggregator-1")
    await system.ingest(TRACES)
    run = await system.request()
    await eventually(lambda: owner.fetchval("SELECT expanded FROM runs"), "the run is expanded")
    async with frozen_in_a_transaction(
        system, urls, owner, "aggregator-1", "%targets%", "SELECT FROM targets FOR UPDATE"
    ) as pid:
        await system.start("judge-1")
        assert "pairs" in await held(owner, await pid())
        await system.start("aggregator-2")
        await system.done(run)
    await nothing_happened_twice(system, owner, run, "aggregator-1")


async def test_a_frozen_resolver_holds_up_no_run(system: System, urls: Urls, owner: Owner) -> None:
    await system.start("api-1", "judge-1", "aggregator-1")
    await system.ingest(TRACES)
    run = await system.request()
    while await Expander(system.database).turn(Outbox[RunExpanded | RunFinished]()):
        pass
    # Its jobs are sent, and it is about to write that down.
    await owner.execute(WAITS)
    lock = "SELECT pg_advisory_xact_lock(99)"
    async with frozen_in_a_transaction(system, urls, owner, "resolver-1", "%UPDATE pairs%", lock) as pid:
        await system.start("resolver-1")
        assert {"pairs", "advisory"} <= await held(owner, await pid())
        await system.start("resolver-2")
        await system.done(run)
    await nothing_happened_twice(system, owner, run, "resolver-1")


@asynccontextmanager
async def frozen_in_a_transaction(
    system: System, urls: Urls, owner: Owner, name: str, statement: str, lock: str
) -> AsyncIterator[Any]:
    """Somebody's lock makes it wait within a statement; frozen there, its transaction stands open when the lock is gone."""
    blocker = await asyncpg.connect(urls.owner)
    await blocker.execute(f"BEGIN; {lock}")

    async def freeze() -> int:
        waits = "SELECT pid FROM pg_stat_activity WHERE usename = 'steelyard_worker' AND wait_event_type = 'Lock' "
        pid: int = await eventually(
            lambda: owner.fetchval(waits + "AND datname = current_database() AND query LIKE $1", statement),
            f"{name} waits within its transaction",
        )
        os.kill(system.pid(name), signal.SIGSTOP)
        await blocker.close()
        state = "SELECT state = 'idle in transaction' FROM pg_stat_activity WHERE pid = $1"
        await eventually(lambda: owner.fetchval(state, pid), "its transaction stands open")
        return pid

    try:
        yield freeze
        assert is_stopped(system.pid(name)), "it was frozen all the time"
    finally:
        os.kill(system.pid(name), signal.SIGCONT)


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "T"


async def held(owner: Owner, pid: int) -> set[str]:
    """Tables that it has written or locked rows of, and what else it holds."""
    rows = await owner.fetch(
        "SELECT coalesce(relation::regclass::text, locktype) FROM pg_locks WHERE pid = $1 AND granted", pid
    )
    return {row[0] for row in rows}


async def nothing_happened_twice(system: System, owner: Owner, run: str, name: str) -> None:
    await eventually(lambda: ready(system.services.url(name)) is None, f"{name} goes on")
    again = await system.done(await system.request())
    assert (again["evaluated_count"], again["failed_count"]) == (TRACES, 0)
    pairs = TRACES * len(METRICS)
    for row in await owner.fetch('SELECT status, "left", settled_count, evaluated_count, failed_count FROM runs'):
        assert tuple(row) == ("COMPLETED", 0, pairs, TRACES, 0)
    scores = await owner.fetch("SELECT DISTINCT eval_run_id, trace_id, name FROM trace_scores")
    assert len(scores) == await owner.fetchval("SELECT count(*) FROM trace_scores") == 2 * pairs
    # Two questions for the one metric, one for the other, in each run: a job that was sent twice was judged once.
    assert await system.calls() == 2 * TRACES * 3
