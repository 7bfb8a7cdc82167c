"""What the scheduler clears away, and what it leaves."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from sqlalchemy import text

from addresses import Urls
from eventually import eventually
from spine import Spine, spine
from steelyard.kafka import Cluster
from steelyard.store import once, usage
from steelyard.store.database import Database
from steelyard_scheduler.handlers import scheduler


@pytest.fixture
async def system(topics: Cluster, urls: Urls) -> AsyncIterator[Spine]:
    async with spine(topics, urls) as made:
        yield made


async def test_what_is_over_is_cleared_away_and_the_rest_stays(system: Spine) -> None:
    ids = await system.ingest(1)
    async with system.database.begin() as tx:
        for key in ("old", "new"):
            await once.remember(tx, system.project, "s", key, once.Remembered(b"h", 202, b"{}"))
    for name, hours in (("PENDING", 25), ("PENDING", 23), ("SUCCESS", 100)):
        await system.rows(
            "INSERT INTO trace_scores (id, project_id, trace_id, name, value, status, created_at) "
            "VALUES (:id, :project, :trace, :name, '1', :status, now() - make_interval(hours => :hours)) RETURNING 1",
            id=uuid4(), project=system.project, trace=ids[0], name=f"{name} {hours}", status=name, hours=hours,
        )  # fmt: skip
    await system.rows(
        "UPDATE idempotency_keys SET created_at = now() - interval '25 hours' WHERE key = 'old' RETURNING 1"
    )
    system.start("scheduler", scheduler(system.settings, system.database))

    async def cleared() -> bool:
        scores = await system.rows("SELECT name FROM trace_scores")
        keys = await system.rows("SELECT key FROM idempotency_keys")
        return {r["name"] for r in scores} == {"PENDING 23", "SUCCESS 100"} and [r["key"] for r in keys] == ["new"]

    await eventually(cleared, "what is over is cleared away")


async def test_a_caller_who_is_silent_for_an_hour_is_forgotten(system: Spine, urls: Urls) -> None:
    api = Database(urls.api)
    async with api.single() as tx:
        for caller in ("silent", "busy"):
            await usage.lease(tx, caller, size=1, most=10)
    await api.stop()
    owner = Database(urls.owner)
    async with owner.begin() as tx:
        await tx.execute(text("UPDATE key_usage SET window_start = now() - interval '2 hours' WHERE caller = 'silent'"))
    await owner.stop()
    async with system.database.begin() as tx:
        assert await usage.forget(tx) == 1
    assert [r["caller"] for r in await system.rows("SELECT caller FROM key_usage")] == ["busy"]
