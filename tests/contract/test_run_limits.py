"""50 runs a minute for a project and endpoint, over any number of API processes."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text

from addresses import Urls
from contract_helpers import new_trace
from spine import new_project
from steelyard.settings import Settings
from steelyard.store import once
from steelyard.store.database import Database
from steelyard_api.app import api

RUNS = "/evaluations/trace-runs"
RUN = {"metrics": ["coherence"]}


@pytest.fixture
async def replicas(urls: Urls, key: str) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Two API processes' worth of application on one database."""
    databases = [Database(urls.api), Database(urls.api)]
    settings = Settings(api_database_url=urls.api, judge_model=None, judge_base_url=None)
    headers = {"X-API-Key": key, "X-Project-Name": "p"}
    clients = [
        httpx.AsyncClient(transport=httpx.ASGITransport(app=api(settings, d)), base_url="http://api", headers=headers)
        for d in databases
    ]
    yield clients
    for client, database in zip(clients, databases, strict=True):
        await client.aclose()
        await database.stop()


async def test_exactly_fifty_of_many_are_taken_over_two_replicas(replicas: list[httpx.AsyncClient]) -> None:
    await new_trace(replicas[0])
    answers = await asyncio.gather(*(replicas[n % 2].post(RUNS, json=RUN) for n in range(120)))
    refused = [a for a in answers if a.status_code == 429]
    assert [a.status_code for a in answers].count(202) == 50 and len(refused) == 70
    assert all(1 <= int(a.headers["Retry-After"]) <= 60 and "50 a minute" in a.json()["detail"] for a in refused)
    assert (await replicas[0].get(RUNS)).json()["total"] == 50


async def test_each_endpoint_and_each_project_has_its_own_minute(replicas: list[httpx.AsyncClient]) -> None:
    client = replicas[0]
    trace = await new_trace(client)
    await asyncio.gather(*(client.post(RUNS, json=RUN) for _ in range(50)))
    assert (await client.post(RUNS, json=RUN)).status_code == 429
    assert (await client.post(f"{RUNS}/batch", json={**RUN, "trace_ids": [trace]})).status_code == 202
    other = {"X-Project-Name": "other"}
    await client.post("/traces", json={"name": "t", "started_at": "2026-03-01T10:00:00Z"}, headers=other)
    assert (await client.post(RUNS, json=RUN, headers=other)).status_code == 202


async def test_what_was_refused_or_repeated_is_not_counted(
    replicas: list[httpx.AsyncClient], database: Database
) -> None:
    client = replicas[0]
    assert (await client.post(RUNS, json=RUN)).status_code == 400
    await new_trace(client)
    for _ in range(3):
        await client.post(RUNS, json=RUN, headers={"Idempotency-Key": "k"})
    async with database.begin() as tx:
        (times,) = (await tx.execute(text("SELECT cardinality(times) FROM rate_limits"))).scalars().all()
    assert times == 1


async def test_the_minute_slides(api_database: Database, database: Database, urls: Urls) -> None:
    project: UUID = await new_project(urls)

    async def take() -> float | None:
        async with api_database.begin(project) as tx:
            return await once.take(tx, project, "s", most=3)

    assert [await take() for _ in range(3)] == [None, None, None]
    wait = await take()
    assert wait is not None and 58 < wait <= 60
    async with database.begin() as tx:
        moved = "UPDATE rate_limits SET times[1] = times[1] - interval '61 s', times[2] = times[2] - interval '20 s'"
        await tx.execute(text(moved))
    assert await take() is None
    wait = await take()
    assert wait is not None and 38 < wait <= 40
