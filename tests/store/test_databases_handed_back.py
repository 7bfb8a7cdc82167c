"""What a test leaves behind reaches no other test."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from databases import Databases
from spine import new_project


@pytest.fixture
async def own(databases: Databases) -> AsyncIterator[Databases]:
    """A store of databases that other tests have none of."""
    made = Databases(databases.infra, databases.template, databases.schema)
    yield made
    await made.drop_idle()


async def test_a_database_is_handed_back_empty(own: Databases) -> None:
    async with own.one() as first:
        await new_project(first)
        connection = await asyncpg.connect(first.owner)
        await connection.execute("INSERT INTO outbox (topic, key, value) VALUES ('t', 'k', 'v')")
        await connection.close()
    async with own.one() as second:
        assert second == first
        connection = await asyncpg.connect(second.owner)
        for table in ("organizations", "projects", "outbox"):
            assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 0
        await connection.execute("INSERT INTO outbox (topic, key, value) VALUES ('t', 'k', 'v')")
        assert await connection.fetchval("SELECT id FROM outbox") == 1
        await connection.close()


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE traces ADD COLUMN more int",
        "CREATE TABLE more (id int)",
        "DROP INDEX runs_newest",
        "REVOKE SELECT ON traces FROM steelyard_worker",
        "ALTER TABLE traces DISABLE ROW LEVEL SECURITY",
        "DROP POLICY one_project ON traces",
        "ALTER TABLE traces ALTER COLUMN name DROP NOT NULL",
        "ALTER TABLE traces SET (fillfactor = 50)",
        "UPDATE alembic_version SET version_num = '0000'",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = 128', current_database()); END $$",
    ],
)
async def test_a_changed_one_is_not_handed_on(own: Databases, change: str) -> None:
    async with own.one() as changed:
        connection = await asyncpg.connect(changed.owner)
        await connection.execute(change)
        await connection.close()
    assert own.idle == []


async def test_one_that_somebody_is_still_in_is_not_handed_on(own: Databases) -> None:
    own.patience = 1
    async with own.one() as urls:
        left = await asyncpg.connect(urls.worker)
    assert own.idle == []
    left.terminate()
