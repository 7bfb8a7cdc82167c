"""Traces that arrive together are written together, and each caller hears of his own."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import text

from addresses import Urls
from contract_helpers import new_trace
from eventually import eventually
from spine import new_project
from steelyard.store import traces
from steelyard.store.database import Database
from steelyard.store.traces import Arrival, Foreign
from steelyard_api.ingest import Ingest

SOMEBODY_WAITS = text(
    """
    SELECT 1 FROM pg_locks JOIN pg_stat_activity a USING (pid)
    WHERE NOT granted AND a.datname = current_database()
    """
)
AT = "2026-03-01T10:00:00+00:00"


def arrival(trace_id: UUID | None = None, **fields: Any) -> Arrival:
    trace = {"trace_id": trace_id or uuid4(), "name": "t", "started_at": AT, **fields}
    return Arrival(trace, [{"span_id": uuid4(), "name": "s", "started_at": AT}])


@pytest.fixture
async def project(urls: Urls) -> UUID:
    return await new_project(urls)


@pytest.fixture
async def ingest(urls: Urls) -> AsyncIterator[Ingest]:
    database = Database(urls.api)
    ingest = Ingest(database, most=200)
    yield ingest
    await ingest.stop()
    await database.stop()


async def transactions(database: Database) -> int:
    """How many wrote traces."""
    async with database.begin() as tx:
        return int((await tx.execute(text("SELECT count(DISTINCT created_xid::text) FROM traces"))).scalar_one())


async def count(database: Database) -> int:
    async with database.begin() as tx:
        return int((await tx.execute(text("SELECT count(*) FROM traces"))).scalar_one())


async def test_what_arrives_at_once_is_written_in_few_transactions(
    ingest: Ingest, project: UUID, database: Database
) -> None:
    await asyncio.gather(*(ingest.put(project, arrival()) for _ in range(150)))
    assert await count(database) == 150
    assert await transactions(database) <= 3


async def test_a_lone_trace_is_committed_when_its_put_returns(
    ingest: Ingest, project: UUID, database: Database
) -> None:
    for n in range(1, 4):
        await ingest.put(project, arrival())
        assert await count(database) == n


async def test_one_bad_row_fails_one_caller(ingest: Ingest, project: UUID, database: Database, urls: Urls) -> None:
    other = await new_project(urls, "another organisation")
    foreign = arrival()
    await ingest.put(other, foreign)
    bad = arrival(input="\x00", status="\ud800")
    sent = [arrival(), foreign, arrival(), bad, arrival()]
    outcomes = await asyncio.gather(*(ingest.put(project, a) for a in sent), return_exceptions=True)
    assert [type(o) for o in outcomes] == [type(None), Foreign, type(None), type(outcomes[3]), type(None)]
    assert isinstance(outcomes[3], Exception)
    assert await count(database) == 4


async def test_the_same_id_twice_in_a_group_is_written_in_the_order_of_arrival(
    ingest: Ingest, project: UUID, database: Database
) -> None:
    one = uuid4()
    first, rest = arrival(), [arrival(one, output=n, tags=[str(n)], metadata={str(n): n}) for n in range(5)]
    await asyncio.gather(*(ingest.put(project, a) for a in (first, *rest)))
    async with database.begin() as tx:
        statement = text("SELECT output, tags, metadata, version, span_count FROM traces WHERE trace_id = :id")
        row = (await tx.execute(statement, {"id": one})).one()
    assert (row.output, row.version, row.span_count) == (4, 5, 5)
    assert sorted(row.tags) == list("01234") and row.metadata == {str(n): n for n in range(5)}


async def test_a_caller_who_hangs_up_takes_nothing_from_the_others(
    ingest: Ingest, project: UUID, database: Database
) -> None:
    callers = [asyncio.ensure_future(ingest.put(project, arrival())) for _ in range(20)]
    await asyncio.sleep(0)
    callers[3].cancel()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert sum(o is None for o in outcomes) == 19
    await ingest.stop()
    assert await count(database) == 20


async def test_projects_do_not_wait_for_each_other_and_do_not_mix(
    ingest: Ingest, project: UUID, database: Database, urls: Urls
) -> None:
    other = await new_project(urls, "another organisation")
    await asyncio.gather(*(ingest.put(p, arrival(name=str(p))) for p in (project, other) * 20))
    async with database.begin() as tx:
        rows = (await tx.execute(text("SELECT project_id, name, count(*) FROM traces GROUP BY 1, 2"))).all()
    assert {(str(r[0]), r[1], r[2]) for r in rows} == {(str(project), str(project), 20), (str(other), str(other), 20)}


async def test_two_who_write_the_same_traces_in_other_orders_both_finish(
    ingest: Ingest, project: UUID, database: Database, urls: Urls
) -> None:
    """Two API processes, sessions and ids crossed: whatever Postgres ends for a deadlock is written one by one."""
    second_database = Database(urls.api)
    second = Ingest(second_database, most=200)
    ids = [uuid4() for _ in range(30)]
    for turn in range(4):
        mine = [arrival(i, session_id=f"s{n % 7}") for n, i in enumerate(ids)]
        theirs = [arrival(i, session_id=f"s{(n + turn) % 7}") for n, i in enumerate(reversed(ids))]
        await asyncio.gather(*(ingest.put(project, a) for a in mine), *(second.put(project, a) for a in theirs))
    await second.stop()
    await second_database.stop()
    async with database.begin() as tx:
        row = (await tx.execute(text("SELECT count(*), sum(version), sum(span_count) FROM traces"))).one()
        sessions = (await tx.execute(text("SELECT sum(trace_count), sum(span_count) FROM sessions"))).one()
    assert tuple(row) == (30, 240, 240) and tuple(sessions) == (30, 240)


async def test_an_api_answers_202_for_each_of_many_at_once(client: httpx.AsyncClient) -> None:
    made = await asyncio.gather(*(new_trace(client) for _ in range(100)))
    assert len(set(made)) == 100
    assert (await client.get("/traces")).json()["total"] == 100


async def test_large_traces_make_small_groups(ingest: Ingest, project: UUID, database: Database) -> None:
    await asyncio.gather(*(ingest.put(project, arrival(), size=3_000_000) for _ in range(12)))
    assert await count(database) == 12 and await transactions(database) >= 5


async def test_a_trace_whose_id_is_just_being_deleted_is_stored_anew(
    client: httpx.AsyncClient, api_database: Database, database: Database
) -> None:
    trace = await new_trace(client, output="old")
    project = UUID((await client.get(f"/traces/{trace}")).json()["project_id"])
    async with api_database.begin(project) as tx:
        await traces.delete(tx, project, [UUID(trace)])
        sending = asyncio.create_task(new_trace(client, trace_id=trace, output="new"))

        async def waits() -> bool:
            async with database.begin() as other:
                return sending.done() or (await other.execute(SOMEBODY_WAITS)).first() is not None

        await eventually(waits, "the sender waits for the deletion")
    assert await sending == trace
    assert (await client.get(f"/traces/{trace}")).json()["output"] == "new"
