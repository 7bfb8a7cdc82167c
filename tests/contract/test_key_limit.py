"""The limit of a caller's requests: right over several processes, and most requests pay no statement for it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import pytest
from sqlalchemy import event, text
from sqlalchemy.engine import Engine

from addresses import Urls
from steelyard.settings import Settings
from steelyard.store.database import Database
from steelyard.store.usage import Allowance, Lease, Limit, granted, lease
from steelyard_api.app import api

MOST = 30


@asynccontextmanager
async def process(urls: Urls, key: str, most: int) -> AsyncIterator[httpx.AsyncClient]:
    database = Database(urls.api)
    transport = httpx.ASGITransport(app=api(Settings(requests_per_minute=most), database), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://steelyard") as client:
        client.headers.update({"X-API-Key": key, "X-Project-Name": "p"})
        yield client
    await database.stop()


@pytest.fixture
async def long_minute(database: Database, key: str) -> None:
    """The key's minute began a little in the future: it does not end in the middle of a test."""
    async with database.begin() as tx:
        await tx.execute(
            text(
                """
                INSERT INTO key_usage (caller, window_start, taken)
                SELECT 'key:' || id, date_trunc('minute', now()) + interval '1 minute', 0 FROM api_keys
                """
            )
        )


@contextmanager
def statements() -> Iterator[list[str]]:
    """What is sent to the database meanwhile."""
    seen: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)


@pytest.mark.usefixtures("long_minute")
async def test_two_processes_together_never_exceed_the_limit(urls: Urls, key: str) -> None:
    async with process(urls, key, MOST) as one, process(urls, key, MOST) as other:
        asked = [client.get("/evaluations/trace-metrics") for _ in range(MOST) for client in (one, other)]
        answers = await asyncio.gather(*asked)
    statuses = [a.status_code for a in answers]
    assert (statuses.count(200), statuses.count(429)) == (MOST, MOST)
    refused = next(a for a in answers if a.status_code == 429)
    assert 1 <= int(refused.headers["Retry-After"]) <= 120 and "requests a minute" in refused.json()["detail"]


@pytest.mark.usefixtures("long_minute")
async def test_whoever_is_over_the_limit_is_not_counted_on_and_others_are_not_held_up(urls: Urls, key: str) -> None:
    async with process(urls, key, 1) as client:
        assert [(await client.get("/traces")).status_code for _ in range(3)] == [200, 429, 429]
        assert (await client.get("/healthz")).status_code == 200
        with statements() as seen:
            assert (await client.get("/traces")).status_code == 429
        assert not [s for s in seen if "key_usage" in s]


async def test_a_known_project_costs_one_statement_and_no_transaction(urls: Urls, key: str) -> None:
    async with process(urls, key, 60_000) as client:
        await client.get("/evaluations/trace-metrics")
        with statements() as seen:
            assert (await client.get("/evaluations/trace-metrics")).status_code == 200
    assert len(seen) == 1 and "api_keys" in seen[0] and "projects" in seen[0]


async def test_no_limit_asks_nothing(urls: Urls, key: str, database: Database) -> None:
    async with process(urls, key, 0) as client:
        assert (await client.get("/traces")).status_code == 200
    async with database.begin() as tx:
        assert (await tx.execute(text("SELECT count(*) FROM key_usage"))).scalar() == 0


async def test_the_next_minute_begins_anew(api_database: Database, database: Database) -> None:
    now = [1000.0]
    limit = Limit(api_database, 2, lambda: now[0])
    async with database.begin() as tx:
        await tx.execute(text("INSERT INTO key_usage VALUES ('k', now() + interval '50 seconds', 0)"))
    assert [await limit.wait("k") is None for _ in range(3)] == [True, True, False]
    assert await Limit(api_database, 2, lambda: now[0]).wait("k") is not None
    assert await limit.wait("another") is None
    async with database.begin() as tx:
        await tx.execute(text("UPDATE key_usage SET window_start = now() - interval '90 seconds'"))
    assert await limit.wait("k") is not None, "what is known to be spent is not asked for again"
    now[0] += 121
    assert await limit.wait("k") is None


async def test_a_clock_that_was_set_back_does_not_lock_anyone_out(database: Database) -> None:
    async with database.begin() as tx:
        await tx.execute(text("INSERT INTO key_usage VALUES ('k', now() + interval '3 hours', 1000000)"))
        leased = await lease(tx, "k", 5, 10)
    assert leased.granted == 5 and 0 <= leased.seconds <= 60


def test_a_slice_is_cut_where_the_limit_ends() -> None:
    assert [granted(taken, 4, 10) for taken in (4, 8, 12, 16)] == [4, 4, 2, 0]


def test_a_slice_is_used_up_and_does_not_outlive_its_minute() -> None:
    allowance = Allowance()
    assert not allowance.take(0.0)
    allowance.add(Lease(2, 10.0), asked_at=0.0)
    assert allowance.take(1.0) and allowance.wait(1.0) is None
    assert not allowance.take(10.0)
    assert allowance.take(2.0) and not allowance.take(3.0)
    assert allowance.wait(3.0) is None, "a used slice is a reason to ask for the next one"
    allowance.add(Lease(0, 7.0), asked_at=3.0)
    assert allowance.wait(4.0) == 6.0 and allowance.wait(10.0) is None
