"""What the ledger reads does not grow with what it is done with, nor with what waits."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy import text

from addresses import Urls
from spine import new_project
from steelyard.store import expansion, ledger, runs, tidying
from steelyard.store.database import Database, Tx
from steelyard_resolver.watermarks import Watermarks


@pytest.fixture
async def project(urls: Urls) -> UUID:
    return await new_project(urls)


@pytest.fixture
async def single(urls: Urls) -> AsyncIterator[Database]:
    """One connection, which is not vacuumed behind: what it reads is what is counted."""
    async with owner(urls) as connection:
        await connection.execute("ALTER TABLE pairs SET (autovacuum_enabled = false)")
    database = Database(urls.worker, pool=1)
    yield database
    await database.stop()


async def test_taking_pairs_under_an_old_snapshot_costs_the_same_after_many_were_settled(
    single: Database, project: UUID, urls: Urls
) -> None:
    run, marks, costs = await owing(single, project, 10_000), Watermarks(grace_seconds=0.0), list[int]()
    async with owner(urls) as dump, dump.transaction(isolation="repeatable_read"):
        await dump.fetch("SELECT count(*) FROM pairs")
        for _ in range(10):
            taken: list[UUID] = []

            async def turn(tx: Tx, taken: list[UUID] = taken) -> None:
                (demand,) = await ledger.demands(tx, 1000, marks.known)
                busy, mark = await ledger.under_way(tx, run, marks.known.get(run), marks.grace_seconds)
                marks.move(run, mark)
                taken += [t.trace_id for t in await ledger.take(tx, run, 800, mark)]
                assert (demand.in_flight, busy, demand.ready, len(taken)) == (0, 0, 1000, 800)

            costs.append(await blocks(single, turn))
            for state in (
                "status = 'dispatched', dispatched_at = clock_timestamp()",
                "status = 'settled', outcome = 'SUCCESS'",
            ):
                await execute(single, f"UPDATE pairs SET {state} WHERE trace_id = ANY(:t)", t=taken)
    # Behind the first two, each finds what the one before it has left dead, and no more.
    assert max(costs[2:]) < 1.3 * costs[2], costs


async def test_what_becomes_owed_in_a_transaction_that_began_long_ago_is_taken(
    database: Database, project: UUID
) -> None:
    run, marks = await owing(database, project, 2), Watermarks()
    async with database.begin() as slow:
        await execute(slow, _PAIRS.replace("1 hour", "0 hours"), run=run, project=project, count=1)
        await take_all(database, run, marks)
        assert len(await take_all(database, run, marks)) == 0
    assert len(await take_all(database, run, marks)) == 1


async def test_a_pair_that_a_watermark_hides_is_looked_for_once_the_run_seems_to_have_none(
    database: Database, project: UUID
) -> None:
    now = 0.0
    run, marks = await owing(database, project, 2), Watermarks(clock=lambda: now)
    for hours, expected in enumerate((2, 1, 0, 2), start=2):
        taken = await take_all(database, run, marks)
        assert len(taken) == expected
        # As a database whose clock was set back would write it.
        await execute(database, "UPDATE pairs SET status = 'settled' WHERE status = 'dispatched'")
        await execute(database, _PAIRS.replace("1 hour", f"{hours} hours"), run=run, project=project, count=1)
        async with database.begin() as tx:
            found = await ledger.demands(tx, 10, marks.known)
        marks.doubt(found)
        now += 31.0


async def test_a_million_pairs_that_wait_are_not_counted_one_by_one(single: Database, project: UUID) -> None:
    async def counted(tx: Tx) -> None:
        assert (await tidying.census(tx))["pairs_owed"] == owed

    costs, owed = list[int](), 0
    for _ in range(3):
        await owing(single, project, 4000)
        owed += 4000
        costs.append(await blocks(single, counted))
    assert max(costs) < 40, costs


async def test_the_census_is_what_counting_would_find(database: Database, project: UUID) -> None:
    await execute(
        database,
        "INSERT INTO traces (trace_id, project_id, name, status, started_at) "
        "SELECT gen_random_uuid(), :p, 't', 'COMPLETED', now() FROM generate_series(1, 7)",
        p=project,
    )
    async with database.begin() as tx:
        snapshot = (await tx.execute(text("SELECT pg_current_snapshot()::text"))).scalar_one()
        await runs.put(tx, _RUN | {"id": uuid4(), "project_id": project, "snapshot": snapshot})
    for _ in range(2):
        async with database.begin() as tx:
            found = await expansion.next_unexpanded(tx)
            assert found is not None
            if not found.targets_written:
                await expansion.write_targets(tx, found)
            await expansion.write_pairs(tx, found, 5)
    await execute(database, "UPDATE pairs SET status = 'dispatched' WHERE metric = 'one'")
    async with database.begin() as tx:
        census = await tidying.census(tx)
    assert (census["pairs_owed"], census["pairs_dispatched"]) == (7, 7)


@pytest.mark.parametrize(
    ("table", "fill", "change"),
    [
        ("runs", "SELECT 1", "settled_count = settled_count + 1"),
        (
            "targets",
            "INSERT INTO targets (run_id, target, project_id) SELECT id, n::text, project_id FROM runs, generate_series(1, 20) n",
            '"left" = "left" + 1',
        ),
        (
            "run_spending",
            "INSERT INTO run_spending (run_id, project_id) SELECT gen_random_uuid(), project_id FROM runs, generate_series(1, 20)",
            "calls = calls + 1",
        ),
        (
            "key_usage",
            "INSERT INTO key_usage SELECT id::text || n, now(), 0 FROM runs, generate_series(1, 20) n",
            "taken = taken + 1",
        ),
    ],
)
async def test_counting_touches_no_index(urls: Urls, project: UUID, table: str, fill: str, change: str) -> None:
    """With room on its page a new version of a row is written beside the old one. One update, so that it needs room that
    nobody has to make first: what is dead goes only once no transaction of any database may see it."""
    database = Database(urls.owner)
    async with database.begin() as tx:
        for _ in range(100):
            await runs.put(tx, _RUN | {"id": uuid4(), "project_id": project})
        await execute(tx, fill)
    async with database.begin() as tx:
        # A connection's counts stay until they are flushed, once a second: what this transaction adds is the difference.
        updates_before, beside_before = (await tx.execute(_UPDATES, {"t": table})).one()
        await tx.execute(text(f"UPDATE {table} SET {change} WHERE abs(hashtext(ctid::text)) % 10 = 0"))
        updates, beside = (await tx.execute(_UPDATES, {"t": table})).one()
    await database.stop()
    # On full pages one in ten has room at the most, on the last page.
    assert updates - updates_before >= 5 and beside - beside_before >= 0.9 * (updates - updates_before)


@asynccontextmanager
async def owner(urls: Urls) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(urls.owner)
    try:
        yield connection
    finally:
        await connection.close()


async def owing(database: Database, project: UUID, count: int) -> UUID:
    """A run whose pairs have waited for an hour."""
    run = uuid4()
    async with database.begin() as tx:
        await runs.put(tx, _RUN | {"id": run, "project_id": project})
        await execute(tx, _PAIRS, run=run, project=project, count=count)
        await execute(tx, "UPDATE runs SET targets_written = true, pairs_written = :n WHERE id = :r", n=count, r=run)
    return run


async def take_all(database: Database, run: UUID, marks: Watermarks) -> list[UUID]:
    async with database.begin() as tx:
        _, mark = await ledger.under_way(tx, run, marks.known.get(run), marks.grace_seconds)
        marks.move(run, mark)
        taken = [t.trace_id for t in await ledger.take(tx, run, 10, mark)]
        await execute(
            tx, "UPDATE pairs SET status = 'dispatched', dispatched_at = now() WHERE trace_id = ANY(:t)", t=taken
        )
    return taken


async def blocks(database: Database, work: Callable[[Tx], Awaitable[None]]) -> int:
    """How many blocks of pairs and of their indexes it reads."""
    before = await _blocks(database)
    async with database.begin() as tx:
        await work(tx)
        await tx.execute(_FLUSH)
    return await _blocks(database) - before


async def _blocks(database: Database) -> int:
    async with database.begin() as tx:
        await tx.execute(_FLUSH)
    async with database.begin() as tx:
        return int((await tx.execute(_BLOCKS)).scalar_one())


async def execute(where: Database | Tx, sql: str, **given: Any) -> None:
    if isinstance(where, Database):
        async with where.begin() as tx:
            await tx.execute(text(sql), given)
    else:
        await where.execute(text(sql), given)


_RUN = {"metric_names": ["one", "two"], "judge_model": "m", "total_targets": 1}
_PAIRS = """
    INSERT INTO pairs (run_id, trace_id, metric, project_id, target, available_at)
    SELECT :run, gen_random_uuid(), 'one', :project, n::text, now() - interval '1 hour'
    FROM generate_series(1, CAST(:count AS int)) n
"""
_UPDATES = text("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables WHERE relname = :t")
_FLUSH = text("SELECT pg_stat_force_next_flush()")
_BLOCKS = text(
    """
    SELECT heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit FROM pg_statio_user_tables WHERE relname = 'pairs'
    """
)
