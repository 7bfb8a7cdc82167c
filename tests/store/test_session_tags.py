"""Tags of sessions: counted rows, so that a trace costs the same however many its session has."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from alembic import command
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from addresses import Infra, Urls
from spine import new_project
from steelyard.store import migrate, sessions, traces
from steelyard.store.database import Database, Tx, driver
from steelyard.store.roles import API, WORKER
from steelyard.store.sessions import SessionFilters
from steelyard.store.traces import Arrival

AT = datetime(2026, 1, 1, tzinfo=UTC)
(MADE,) = (p.name[:4] for p in Path(migrate.__file__).parent.glob("migrations/versions/*_session_tags.py"))
BEFORE = f"{int(MADE) - 1:04}"


@pytest.fixture
async def project(urls: Urls) -> UUID:
    return await new_project(urls)


@pytest.fixture
async def fresh(infra: Infra, urls: Urls) -> AsyncIterator[Urls]:
    """An empty database, of an owner who is no superuser: row-level security is forced upon him too."""
    name = f"steelyard_{uuid4().hex[:12]}"
    superuser = await asyncpg.connect(infra.owner_url)
    await superuser.execute(f"CREATE ROLE {name} LOGIN CREATEROLE PASSWORD '{name}'")
    for role in (API, WORKER):
        await superuser.execute(f"GRANT {role} TO {name} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE")
    await superuser.execute(f"CREATE DATABASE {name} OWNER {name}")
    address = infra.owner_url.rpartition("/")[0].rpartition("@")[2]
    services = (f"{url.rpartition('/')[0]}/{name}" for url in (urls.api, urls.worker))
    yield Urls(f"postgresql://{name}:{name}@{address}/{name}", *services)
    await superuser.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await superuser.execute(f"DROP OWNED BY {name}")
    await superuser.execute(f"DROP ROLE {name}")
    await superuser.close()


async def talk(database: Database, project: UUID, session: str, count: int) -> None:
    """Each trace has a tag of its own and one that all have."""
    async with database.begin(project) as tx:
        await tx.execute(_TALK, {"p": project, "s": session, "n": count})


def trace(session: str, *tags: str, trace_id: UUID | None = None) -> Arrival:
    fields = {"trace_id": trace_id or uuid4(), "name": "t", "started_at": AT.isoformat(), "session_id": session}
    return Arrival(fields | {"tags": list(tags)}, [])


async def new(tx: Tx, project: UUID, session: str) -> None:
    await traces.put_many(tx, project, [trace(session, "all", f"new {uuid4()}")])


async def again(tx: Tx, project: UUID, session: str) -> None:
    """A trace that is there already gets a span, a cost and a tag."""
    (known,) = await sessions.traces_of(tx, project, session, 1, 0)
    span = {"span_id": uuid4(), "name": "s", "started_at": AT.isoformat(), "cost": {"total": 0.5}}
    await traces.add_spans(tx, project, known, [span])
    await traces.retag(tx, project, [known], [f"again {uuid4()}"], [])


@pytest.mark.parametrize("write", [new, again])
async def test_what_a_trace_writes_does_not_grow_with_its_session(
    urls: Urls, project: UUID, write: Callable[..., Awaitable[None]]
) -> None:
    """Counted are pages that were looked at and bytes that this connection wrote to the write-ahead log; the least of
    many, since after a checkpoint a page is written whole."""
    api_database = Database(urls.api, pool=1)
    await talk(api_database, project, "short", 500)
    await talk(api_database, project, "long", 5000)
    wal, pages = dict[str, int](), dict[str, int]()
    for session in ("short", "long"):
        costs = [await cost(api_database, project, partial(write, project=project, session=session)) for _ in range(30)]
        wal[session], pages[session] = (min(column) for column in zip(*costs, strict=True))
    await api_database.stop()
    assert wal["long"] < 1.5 * wal["short"], wal
    assert 0 < pages["long"] < 1.5 * pages["short"], (wal, pages)


async def cost(database: Database, project: UUID, write: Callable[[Tx], Awaitable[None]]) -> tuple[int, int]:
    before = await spent(database)
    async with database.begin(project) as tx:
        await write(tx)
        await tx.execute(text("SELECT pg_stat_force_next_flush()"))
    wal, pages = await spent(database)
    return wal - before[0], pages - before[1]


async def spent(database: Database) -> tuple[int, int]:
    async with database.begin() as tx:
        await tx.execute(text("SELECT pg_stat_force_next_flush()"))
        row = (await tx.execute(_SPENT)).one()
    return int(row.wal), int(row.pages)


async def test_a_session_shows_its_first_200_tags_and_is_found_by_each(api_database: Database, project: UUID) -> None:
    await talk(api_database, project, "s", 250)
    async with api_database.begin(project) as tx:
        await traces.put_many(tx, project, [trace("other", "zz")])
        shown = await sessions.get(tx, project, "s")
        assert shown is not None and shown["tag_count"] == 251
        assert shown["tags"] == sorted(["all", *(f"tag {n}" for n in range(250))])[:200]
        assert await found(tx, project, "tag 99") == ["s"] and "tag 99" not in shown["tags"]
        assert await found(tx, project, "all", "tag 99", "all") == ["s"]
        assert await found(tx, project, "all", "zz") == ["other", "s"] and await found(tx, project, "none") == []


async def found(tx: Tx, project: UUID, *tags: str) -> list[str]:
    rows, total = await sessions.page(tx, project, SessionFilters(tags=tags), "recent", True, 10, 0)
    assert total == len(rows)
    return sorted(r["session_id"] for r in rows)


async def test_sessions_are_found_by_a_tag_in_an_index_of_it(api_database: Database, project: UUID) -> None:
    """Under row-level security, that is as the API asks."""
    for n in range(20):
        await talk(api_database, project, f"s{n}", 1)
    async with api_database.begin(project) as tx:
        await tx.execute(text("SET LOCAL enable_seqscan = off"))
        plan = "\n".join(
            (await tx.execute(text("EXPLAIN SELECT session_id FROM session_tags WHERE project_id = :p AND tag = ANY(:t)"),
                {"p": project, "t": ["tag 0"]})).scalars()
        )  # fmt: skip
    assert "session_tags_tag" in plan and "tag = ANY" in plan and "Filter: (tag" not in plan, plan


async def test_traces_that_enter_leave_and_change_at_the_same_time_are_all_counted(
    api_database: Database, database: Database, project: UUID
) -> None:
    """Writers of the same sessions wait for each other, and never in a circle."""
    ids = [[uuid4() for _ in range(6)] for _ in range(8)]

    async def work(mine: list[UUID], n: int) -> None:
        for turn in range(4):
            names = ("a", "b") if (n + turn) % 2 else ("b", "a")
            arrivals = [trace(names[k % 2], f"t{turn}", f"k{k}", trace_id=i) for k, i in enumerate(mine)]
            retag = partial(traces.retag, project=project, ids=mine, add=["x"], remove=[f"t{turn}"])
            await repeated(api_database, project, partial(traces.put_many, project=project, arrivals=arrivals))
            await repeated(api_database, project, retag)
            await repeated(api_database, project, partial(traces.delete, project=project, ids=mine[:2]))

    await asyncio.gather(*(work(mine, n) for n, mine in enumerate(ids)))
    assert await wrong(database) == []


async def repeated(database: Database, project: UUID, write: Callable[[Tx], Awaitable[Any]]) -> None:
    """As the API does: whom a deadlock met tries again. Moves between sessions lock traces first, in the order of ids."""
    for _ in range(20):
        try:
            async with database.begin(project) as tx:
                await write(tx)
            return
        except DBAPIError as e:
            if getattr(e.orig, "sqlstate", None) != "40P01":
                raise
    raise AssertionError("deadlocks without an end")


async def test_sessions_of_before_are_counted_while_traces_arrive(fresh: Urls) -> None:
    """Between the migration that makes the table and the one that fills it."""
    engine = create_async_engine(driver(fresh.owner), poolclass=NullPool)
    worker, api = Database(fresh.worker, pool=2), Database(fresh.api, pool=2)
    async with engine.connect() as connection:
        await connection.run_sync(_upgrade, BEFORE)
        project = await new_project(fresh)
        for n in range(5):
            await talk(worker, project, f"s{n}", 230)
        await connection.run_sync(_upgrade, MADE)
        async with api.begin(project) as tx:
            assert await found(tx, project, "tag 1") == [], "the fill is still to come"
            await traces.put_many(tx, project, [trace("s1", "late"), trace("s9", "new")])
            await traces.delete(tx, project, await sessions.traces_of(tx, project, "s2", 5, 0))
            (known,) = await sessions.traces_of(tx, project, "s3", 1, 0)
            await traces.retag(tx, project, [known], ["moved"], ["all"])
            await traces.delete_session(tx, project, "s4")
            assert await found(tx, project, "tag 11") == ["s1", "s2", "s3"]
        await connection.run_sync(_upgrade, "head")
    await engine.dispose()
    async with worker.begin() as tx:
        assert [tuple(r) for r in await tx.execute(_WRONG)] == []
        assert await found(tx, project, "tag 11") == ["s0", "s1", "s2", "s3"]
    for database in (worker, api):
        await database.stop()


def _upgrade(connection: Connection, revision: str) -> None:
    command.upgrade(migrate.config(connection), revision)


async def wrong(database: Database) -> list[Any]:
    async with database.begin() as tx:
        return [tuple(r) for r in await tx.execute(_WRONG)]


_TALK = text(
    """
    INSERT INTO traces (trace_id, project_id, name, status, started_at, session_id, tags)
    SELECT gen_random_uuid(), :p, 't', 'COMPLETED', timestamptz '2026-01-01' + n * interval '1 s', :s,
        ARRAY['all', 'tag ' || n]
    FROM generate_series(0, CAST(:n AS int) - 1) AS n
    """
)
# What the session says of itself, or its tags' rows, beside what its traces say.
_WRONG = text(
    """
    WITH seen AS (
            SELECT session_id, tag, count(DISTINCT trace_id)::int AS n FROM traces, unnest(tags) AS tag
            WHERE session_id IS NOT NULL GROUP BY 1, 2
        ), kept AS (SELECT session_id, tag, n FROM session_tags), summed AS (
            SELECT session_id, count(*)::int AS traces, (SELECT count(*)::int FROM seen s WHERE s.session_id = t.session_id) AS tags
            FROM traces t WHERE session_id IS NOT NULL GROUP BY 1
        ), shown AS (SELECT session_id, trace_count, tag_count FROM sessions)
    SELECT session_id, tag, n::text FROM ((TABLE seen EXCEPT TABLE kept) UNION ALL (TABLE kept EXCEPT TABLE seen)) AS a
    UNION ALL
    SELECT session_id, traces::text, tags::text
    FROM ((TABLE summed EXCEPT TABLE shown) UNION ALL (TABLE shown EXCEPT TABLE summed)) AS b (session_id, traces, tags)
    """
)
_SPENT = text(
    """
    SELECT (pg_stat_get_backend_wal(pg_backend_pid())).wal_bytes AS wal,
        (SELECT sum(coalesce(heap_blks_read, 0) + coalesce(heap_blks_hit, 0) + coalesce(idx_blks_read, 0)
            + coalesce(idx_blks_hit, 0)) FROM pg_statio_user_tables) AS pages
    """
)
