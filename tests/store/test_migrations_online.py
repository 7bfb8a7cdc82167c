"""Each migration from the sixth on is written so that requests go on while it runs."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from alembic import command
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from addresses import Infra
from databases import Databases
from eventually import eventually
from migration_rules import Sent, refusals
from steelyard.store import migrate, online
from steelyard.store.database import HEAD, driver
from steelyard.store.tables import TENANT_TABLES

VERSIONS = Path(migrate.__file__).with_name("migrations") / "versions"
RELEASED = "0005"  # migrations up to here run where nothing is served yet
TABLES = ("runs", "pairs", "traces")


@pytest.fixture
async def engine(infra: Infra, databases: Databases) -> AsyncIterator[AsyncEngine]:
    """Of an empty database; the session's others have made the services' roles."""
    name, server = f"steelyard_{uuid4().hex[:12]}", infra.owner_url.rpartition("/")[0]
    owner = await asyncpg.connect(infra.owner_url)
    await owner.execute(f"CREATE DATABASE {name}")
    engine = create_async_engine(driver(f"{server}/{name}"), poolclass=NullPool)
    yield engine
    await engine.dispose()
    await owner.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await owner.close()


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("CREATE INDEX runs_x ON runs (name)", "builds an index"),
        ("CREATE UNIQUE INDEX runs_x ON runs (name)", "builds an index"),
        ("ALTER TABLE runs ADD COLUMN x INTEGER NOT NULL", "old rows"),
        ("ALTER TABLE runs ADD CONSTRAINT x FOREIGN KEY (parent_run_id) REFERENCES runs (id)", "NOT VALID"),
        ("ALTER TABLE runs ADD CONSTRAINT x CHECK (left >= 0)", "NOT VALID"),
        ("ALTER TABLE runs ADD CONSTRAINT x UNIQUE (name)", "build it first"),
        ("ALTER TABLE runs ALTER COLUMN name SET NOT NULL", "reads all rows"),
        ("ALTER TABLE runs ALTER COLUMN settled_count TYPE BIGINT", "anew"),
        ("ALTER TABLE runs VALIDATE CONSTRAINT x", "reads all rows"),
        ("ALTER TABLE runs SET UNLOGGED", "anew"),
        ("UPDATE runs SET name = ''", "reads or writes rows"),
        ("INSERT INTO heaps SELECT id FROM runs", "reads or writes rows"),
        ("WITH x AS (SELECT id FROM runs) DELETE FROM heaps USING x", "reads or writes rows"),
        ("LOCK TABLE runs IN SHARE MODE", "requests wait for"),
        ("TRUNCATE runs", "requests wait for"),
    ],
)
def test_what_stops_requests_is_refused(statement: str, why: str) -> None:
    (said,) = refusals([Sent(statement, by_itself=False)], TABLES)
    assert why in said


@pytest.mark.parametrize(
    ("statement", "by_itself"),
    [
        ("CREATE INDEX CONCURRENTLY IF NOT EXISTS runs_x ON runs (name)", True),
        ("CREATE INDEX heaps_x ON heaps (name)", False),
        ("ALTER TABLE runs ADD COLUMN x INTEGER", False),
        ("ALTER TABLE runs ADD COLUMN x INTEGER DEFAULT 0 NOT NULL", False),
        ("ALTER TABLE runs ADD COLUMN x INTEGER NOT NULL DEFAULT 0", False),
        ("ALTER TABLE runs ADD CONSTRAINT x CHECK (x >= 0) NOT VALID", False),
        ("ALTER TABLE runs VALIDATE CONSTRAINT x", True),
        ("ALTER TABLE pairs SET (fillfactor = 70)", False),
        ("CREATE TABLE heaps (id uuid PRIMARY KEY, run_id uuid NOT NULL REFERENCES runs (id))", False),
        (
            "CREATE OR REPLACE FUNCTION f() RETURNS trigger AS $$ BEGIN UPDATE runs SET x = 1; END $$ LANGUAGE plpgsql",
            False,
        ),
        ("UPDATE runs SET x = 1 WHERE id IN (SELECT id FROM runs WHERE x IS NULL LIMIT 1000)", True),
        ("INSERT INTO heaps SELECT id FROM runs", True),
    ],
)
def test_what_lets_requests_pass_is_allowed(statement: str, by_itself: bool) -> None:
    assert refusals([Sent(statement, by_itself)], TABLES) == []


def test_the_services_wait_for_the_newest_migration() -> None:
    assert ScriptDirectory(str(VERSIONS.parent)).get_current_head() == HEAD


@pytest.mark.parametrize("revision", sorted(p.name[:4] for p in VERSIONS.glob("0*.py") if p.name[:4] > RELEASED))
async def test_requests_go_on_while_it_migrates(engine: AsyncEngine, revision: str) -> None:
    async with engine.connect() as connection:
        sent, refused = await migrated(engine, connection, revision)
        assert refused == []
        if any(s.by_itself for s in sent):
            # What commits in between may be interrupted there, and is then done again.
            await connection.execute(text("UPDATE alembic_version SET version_num = :v"), {"v": before(revision)})
            await connection.commit()
            await connection.run_sync(upgrade, revision)


async def test_runs_that_were_begun_before_have_their_pairs_counted(engine: AsyncEngine) -> None:
    """And what is over is left as it is."""
    async with engine.connect() as connection:
        await connection.run_sync(upgrade, "0010")
        await connection.execute(text(_HALF_DONE))
        await connection.commit()
        await connection.run_sync(upgrade, "0011")
        rows = await connection.execute(text("SELECT status, pairs_written FROM runs ORDER BY status"))
        assert [tuple(r) for r in rows] == [("COMPLETED", 0), ("PENDING", 0), ("RUNNING", 30)]


@pytest.mark.parametrize(("revision", "why"), [("0002", "written anew: trace_scores"), ("0005", "builds an index")])
async def test_what_older_migrations_did_would_be_found(engine: AsyncEngine, revision: str, why: str) -> None:
    async with engine.connect() as connection:
        _, refused = await migrated(engine, connection, revision)
    assert any(why in r for r in refused)


async def migrated(engine: AsyncEngine, connection: AsyncConnection, revision: str) -> tuple[list[Sent], list[str]]:
    """What a migration sends, and what of it would stop requests."""
    await connection.run_sync(upgrade, before(revision))
    files = await connection.run_sync(tables)
    await connection.rollback()
    with listening(engine) as sent:
        await connection.run_sync(upgrade, revision)
    after = await connection.run_sync(tables)
    await connection.rollback()
    rewritten = [f"written anew: {t}" for t, file in files.items() if after.get(t, file) != file]
    return sent, refusals(sent, files) + rewritten


def before(revision: str) -> str:
    return f"{int(revision) - 1:04}"


def upgrade(connection: Connection, revision: str) -> None:
    command.upgrade(migrate.config(connection), revision)


def tables(connection: Connection) -> dict[str, int]:
    """Each with the file that holds it: a table that is written anew gets another one."""
    rows = connection.execute(
        text("SELECT relname, relfilenode FROM pg_class WHERE relname = ANY (:t)"), {"t": list(ALL)}
    )
    return {r.relname: r.relfilenode for r in rows}


ALL = (*TENANT_TABLES, "organizations", "projects", "api_keys", "outbox", "key_usage")


@contextmanager
def listening(engine: AsyncEngine) -> Iterator[list[Sent]]:
    """What migrations send; what `roles.py` makes beside them is of new tables only."""
    sent: list[Sent] = []

    def hear(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        by_itself = connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT"
        if "alembic_version" not in statement and "pg_catalog" not in statement and "unnest(" not in statement:
            sent.append(Sent(statement, by_itself))

    event.listen(engine.sync_engine, "before_cursor_execute", hear)
    try:
        yield sent
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", hear)


async def test_writers_go_on_while_an_index_is_built(engine: AsyncEngine) -> None:
    async with engine.begin() as tx:
        await tx.execute(text("CREATE TABLE heaps (id int)"))
    async with engine.connect() as old:
        await old.execute(text("INSERT INTO heaps VALUES (1)"))  # the build waits for this transaction
        building = asyncio.create_task(stepped(engine, lambda: online.build_index("heaps_id", "heaps", ["id"])))
        await eventually(lambda: invalid(engine), "the build has begun")
        async with engine.begin() as tx:
            await tx.execute(text("INSERT INTO heaps VALUES (2)"))
        assert not building.done()
        await old.commit()
    await building
    assert not await invalid(engine)


async def test_an_index_whose_build_broke_off_is_built_again(engine: AsyncEngine) -> None:
    def build() -> None:
        online.build_index("heaps_id", "heaps", ["id"], unique=True)

    async with engine.begin() as tx:
        await tx.execute(text("CREATE TABLE heaps (id int)"))
        await tx.execute(text("INSERT INTO heaps VALUES (1), (1)"))
    with pytest.raises(Exception, match="could not create unique index"):
        await stepped(engine, build)
    assert await invalid(engine)
    async with engine.begin() as tx:
        await tx.execute(text("DELETE FROM heaps"))
    await stepped(engine, build)
    assert not await invalid(engine)


async def test_a_backfill_is_written_in_pages(engine: AsyncEngine) -> None:
    async with engine.begin() as tx:
        await tx.execute(text("CREATE TABLE heaps (id int, twice int, xid xid8)"))
        await tx.execute(text("INSERT INTO heaps SELECT n, NULL, NULL FROM generate_series(1, 25) AS n"))
    page = "SELECT id FROM heaps WHERE twice IS NULL LIMIT 10"
    await stepped(
        engine, lambda: online.fill(f"UPDATE heaps SET twice = 2 * id, xid = pg_current_xact_id() WHERE id IN ({page})")
    )
    async with engine.begin() as tx:
        row = (await tx.execute(text("SELECT sum(twice) AS sum, count(DISTINCT xid) AS pages FROM heaps"))).one()
    assert (row.sum, row.pages) == (650, 3)


async def stepped(engine: AsyncEngine, step: Callable[[], None]) -> None:
    """As alembic runs a migration: in a transaction that the step may leave for a while."""

    def run(connection: Connection) -> None:
        context = MigrationContext.configure(connection, opts={"transaction_per_migration": True})
        with Operations.context(context), context.begin_transaction(_per_migration=True):
            step()

    async with engine.connect() as connection:
        await connection.run_sync(run)


async def invalid(engine: AsyncEngine) -> bool:
    async with engine.begin() as tx:
        found = await tx.scalar(text("SELECT count(*) FROM pg_index WHERE NOT indisvalid"))
    return bool(found)


_HALF_DONE = """
    WITH o AS (INSERT INTO organizations (id, name) VALUES (gen_random_uuid(), 'o') RETURNING id),
    p AS (INSERT INTO projects (id, org_id, name) SELECT gen_random_uuid(), id, 'p' FROM o RETURNING id),
    r AS (
        INSERT INTO runs (id, project_id, status, metric_names, judge_model, snapshot)
        SELECT gen_random_uuid(), p.id, status, '{one}', 'm', ''
        FROM p, unnest(ARRAY['COMPLETED', 'PENDING', 'RUNNING']) AS status RETURNING id, project_id, status
    )
    INSERT INTO pairs (run_id, trace_id, metric, project_id, target)
    SELECT id, gen_random_uuid(), 'one', project_id, n::text FROM r, generate_series(1, 30) n WHERE status <> 'PENDING'
"""
