"""`make migrate` while requests are served: nobody waits for it, and what is there already is left alone."""

import asyncio

import asyncpg
import pytest

from addresses import Urls
from eventually import eventually
from steelyard.store.migrate import migrate
from steelyard.store.roles import SETTINGS, WORKER
from steelyard.store.tables import TENANT_TABLES


async def test_a_migration_of_a_migrated_database_stops_no_request(urls: Urls) -> None:
    """EXCLUSIVE lets nothing pass but ACCESS SHARE, which reading takes: so migrating takes no more than that."""
    owner = await asyncpg.connect(urls.owner)
    async with owner.transaction(), asyncio.timeout(60):
        await owner.execute(f"LOCK TABLE {', '.join(TENANT_TABLES)}, outbox, projects, organizations IN EXCLUSIVE MODE")
        await migrate(urls.owner, urls.api, urls.worker)
    await owner.close()


async def test_requests_pass_a_migration_that_waits_and_it_says_for_whom(urls: Urls) -> None:
    owner, busy, reader = [await asyncpg.connect(u) for u in (urls.owner, urls.worker, urls.worker)]
    await owner.execute("DROP POLICY one_project ON runs")
    said: list[str] = []
    begun = busy.transaction()
    await begun.start()
    await busy.fetch("SELECT id FROM runs")
    migrating = asyncio.create_task(migrate(urls.owner, urls.api, urls.worker, lock_seconds=0.5, say=said.append))
    pid = busy.get_server_pid()
    await eventually(lambda: any(f"waits for process {pid} of steelyard_worker" in s for s in said), "it says for whom")
    async with asyncio.timeout(60):
        await reader.fetch("SELECT id FROM runs")  # behind the migration in the queue, until that gives up
    await eventually(lambda: any("rolled back" in s for s in said), "it gives up its place")
    assert not migrating.done()
    await begun.rollback()
    await migrating
    assert await owner.fetchval("SELECT count(*) FROM pg_policies WHERE tablename = 'runs'") == 2
    for connection in (owner, busy, reader):
        await connection.close()


async def test_what_was_changed_by_hand_is_put_right(urls: Urls) -> None:
    owner = await asyncpg.connect(urls.owner)
    for statement in (
        "DROP POLICY every_project ON pairs",
        "ALTER POLICY one_project ON traces USING (true)",
        "ALTER POLICY one_project ON spans TO steelyard_api, steelyard_worker",
        "ALTER TABLE runs DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE targets NO FORCE ROW LEVEL SECURITY",
        "REVOKE INSERT, DELETE ON traces FROM steelyard_api",
    ):
        await owner.execute(statement)
    before = await state(owner)
    await migrate(urls.owner, urls.api, urls.worker)
    after = await state(owner)
    assert after != before
    assert {(force, secured) for _, secured, force, *_ in after} == {(True, True)}
    assert len({tuple(policies) for *_, policies in after}) == 1
    assert len({tuple(sorted(acl)) for *_, acl, _ in after}) == 1
    await owner.close()


async def state(owner: "asyncpg.Connection[asyncpg.Record]") -> list[tuple[str, bool, bool, list[str], list[str]]]:
    rows = await owner.fetch(
        """
        SELECT relname, relrowsecurity, relforcerowsecurity, relacl::text[], ARRAY(
            SELECT concat_ws(' ', policyname, roles, qual) FROM pg_policies WHERE tablename = relname ORDER BY policyname
        )
        FROM pg_class WHERE relname = ANY ($1::text[]) ORDER BY relname
        """,
        list(TENANT_TABLES),
    )
    return [tuple(row) for row in rows]


async def test_a_password_is_changed_only_where_it_does_not_let_in(urls: Urls) -> None:
    owner = await asyncpg.connect(urls.owner)
    at = "SELECT xmin::text FROM pg_authid WHERE rolname LIKE 'steelyard_%' ORDER BY rolname"
    before = await owner.fetch(at)
    await migrate(urls.owner, urls.api, urls.worker)
    assert await owner.fetch(at) == before
    await owner.close()


@pytest.mark.parametrize("role", SETTINGS)
async def test_the_settings_of_a_role_hold_for_its_sessions(urls: Urls, role: str) -> None:
    connection = await asyncpg.connect(urls.worker if role == WORKER else urls.api)
    for name, value in SETTINGS[role].items():
        assert await connection.fetchval(f"SHOW {name}") == value
    await connection.close()
