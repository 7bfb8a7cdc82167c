"""A judge that is killed: who takes its jobs, and when."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import pytest

from addresses import Urls
from eventually import eventually
from steelyard.kafka import Cluster, Readers
from steelyard.store.database import Database, Tx
from steelyard.store.presence import Presence, absent
from steelyard_resolver.evicting import Evictor
from system import System

# Longer than everything here may take: nothing that happens in time happened because of it.
SESSION_SECONDS = 120


@pytest.fixture
async def readers(topics: Cluster) -> AsyncIterator[Readers]:
    made = Readers(topics)
    await made.start()
    yield made
    await made.stop()


@pytest.mark.faults
async def test_the_jobs_of_a_killed_judge_do_not_wait_for_the_end_of_its_session(
    system: System, readers: Readers
) -> None:
    system.services.env = system.services.env | {"KAFKA_SESSION_SECONDS": str(SESSION_SECONDS)}
    await system.start("api-1", "resolver-1", "judge-1", "judge-2", "aggregator-1", "scheduler-1")
    await system.ingest(60)
    run_id = await system.request()
    await system.evaluated(run_id, 5)
    before = await readers.identities("judge")
    await system.kill("judge-1")

    async def evicted() -> bool:
        return len(await readers.identities("judge")) == 1

    await eventually(evicted, "the dead member is out of its group", SESSION_SECONDS - 20)
    assert len(before) == 2 and (await readers.identities("judge")).items() <= before.items()
    run = await system.done(run_id)
    assert (run["evaluated_count"], run["failed_count"]) == (60, 0)
    assert len(await system.rows("SELECT 1 FROM trace_scores")) == 180


class Flaky(Database):
    """A database that is away when a test says so."""

    away = False

    @asynccontextmanager
    async def begin(self, project: UUID | None = None) -> AsyncIterator[Tx]:
        if self.away:
            raise ConnectionRefusedError("away")
        async with super().begin(project) as tx:
            yield tx


class Group:
    """Who is in it, and who was evicted."""

    def __init__(self, *presences: Presence) -> None:
        self.members = {p.incarnation: f"member {n}" for n, p in enumerate(presences)}
        self.evicted: list[str] = []

    async def judges(self) -> dict[UUID, str]:
        return dict(self.members)

    async def evict_judge(self, member: str) -> None:
        self.evicted.append(member)
        self.members = {j: m for j, m in self.members.items() if m != member}


async def test_a_judge_is_evicted_when_its_lock_is_gone_for_a_while_and_not_before(
    database: Database, urls: Urls
) -> None:
    now = [0.0]
    dead, alive, unseen = Presence(urls.worker), Presence(urls.worker), Presence(urls.worker)
    group = Group(dead, alive, unseen)
    evictor = Evictor(database, group, grace_seconds=1.0, clock=lambda: now[0])
    await dead.start()
    await alive.start()

    async def missing() -> set[UUID]:
        async with database.begin() as tx:
            return set(await absent(tx, list(group.members)))

    async def both_there() -> bool:
        return await missing() == {unseen.incarnation}

    async def one_gone() -> bool:
        return await missing() == {dead.incarnation, unseen.incarnation}

    try:
        await eventually(both_there, "both hold their locks")
        assert await evictor.turn() == 0
        await dead.stop()
        await eventually(one_gone, "one lock is gone with its connection")
        assert await evictor.turn() == 0, "it may be taking its lock again"
        now[0] = 1.5
        assert await evictor.turn() == 1
        now[0] = 99.0
        assert await evictor.turn() == 0
        assert group.evicted == ["member 0"], "one that never held a lock, or holds it, was evicted"
    finally:
        await alive.stop()


async def test_while_the_database_is_away_nobody_is_taken_for_dead(database: Database, urls: Urls) -> None:
    now = [0.0]
    judge = Presence(urls.worker)
    flaky = Flaky(urls.worker, pool=2)
    evictor = Evictor(flaky, Group(judge), grace_seconds=1.0, clock=lambda: now[0])
    await judge.start()

    async def there() -> bool:
        async with database.begin() as tx:
            return not await absent(tx, [judge.incarnation])

    await eventually(there, "it holds its lock")
    await evictor.turn()
    await judge.stop()
    flaky.away = True
    with pytest.raises(ConnectionError):
        await evictor.turn()
    flaky.away = False
    now[0] = 99.0
    assert await evictor.turn() == 0
    await flaky.stop()
