"""A run that cannot be expanded ends with its reason, and no other run waits for it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from prometheus_client import REGISTRY
from sqlalchemy import exc

from addresses import Urls
from eventually import eventually
from spine import Spine, new_project, spine
from steelyard.events import RunExpanded, RunFinished
from steelyard.filters import TraceFilters
from steelyard.kafka import Cluster
from steelyard.reasons import reason, sqlstate
from steelyard.service import Service
from steelyard.store.outbox import Outbox
from steelyard_resolver.expand import Expander

SLOW, REFUSED, ODD, UNREADABLE = "slow", "refused", "odd", "unreadable"
OUTBOX = Outbox[RunExpanded | RunFinished]()


@pytest.fixture
async def system(topics: Cluster, urls: Urls) -> AsyncIterator[Spine]:
    async with spine(topics, urls) as made:
        yield made


async def test_runs_that_cannot_be_expanded_fail_and_another_tenants_run_gets_all_its_pairs(
    system: Spine, urls: Urls
) -> None:
    async with owner(urls) as connection:
        await connection.execute(_SLEEPS)
        await connection.execute(f"ALTER ROLE steelyard_worker IN DATABASE {_name(urls)} SET statement_timeout = '2s'")
        await _begin_anew(connection)
    other = replace(system, project=await new_project(urls, "another"))
    await _traces(system, 3)
    await _traces(other, 1000)
    broken = [await _broken(system, name) for name in (SLOW, *[REFUSED, ODD, UNREADABLE] * 8)]
    # An older version accepted this one, and could not expand it.
    many = await system.request(["one"], filters=TraceFilters(tags=tuple(f"tag {n}" for n in range(40_000))))
    good = await other.request(["one", "two", "three"])
    heard, before = _listening(system), _counted("22P02")
    system.start_resolver(backoff=(0.05,))

    await eventually(lambda: _has_pairs(system, good, 3000), "the other tenant's run has all its pairs")
    await eventually(lambda: set(broken) <= {h.run_id for h in heard}, "what cannot be expanded has ended, and is told")
    assert {h.status for h in heard} == {"FAILED"} and len(heard) == 25
    reasons = {r["name"]: r["error_message"] for r in await system.rows("SELECT name, error_message FROM runs")}
    assert (
        reasons[SLOW] == "it could not be expanded: finding what it means took longer than the database allows, 2 times"
    )
    assert reasons[REFUSED] == "it could not be expanded in 2 tries: the database refused it with 22P02"
    assert reasons[ODD] == "it could not be expanded in 2 tries: internal error: ValueError"
    assert "filters" in reasons[UNREADABLE]
    for run in (await system.run(good), await system.run(many)):
        assert run["expanded"] and run["error_message"] is None
    assert _counted("22P02") - before == 16, "each error that ended a turn is counted"


async def test_a_database_that_takes_no_writes_or_is_gone_fails_no_run(system: Spine, urls: Urls) -> None:
    await _traces(system, 10)
    run, expander = await system.request(["one"]), Expander(system.database, backoff=())
    async with owner(urls) as connection:
        await connection.execute(f"ALTER DATABASE {_name(urls)} SET default_transaction_read_only = on")
        await _begin_anew(connection)
        errors = [await _error_of(expander) for _ in range(8)]
        assert errors.count("no server takes writes") >= 3, "refused again and again"
        await connection.execute("SET default_transaction_read_only = off")
        await connection.execute(f"ALTER DATABASE {_name(urls)} RESET default_transaction_read_only")
        await _begin_anew(connection)

    async def expanded() -> bool:
        await _error_of(expander)  # of connections that were lost meanwhile
        return await _has_pairs(system, run, 10)

    await eventually(expanded, "the run is expanded")


async def test_a_run_that_another_resolver_counts_too_fails_no_sooner(system: Spine) -> None:
    await _traces(system, 1)
    run = await _broken(system, REFUSED)
    one, another = (Expander(system.database, backoff=(3600.0, 3600.0)) for _ in range(2))
    for expander in (one, another, one):
        await expander.turn(OUTBOX)
    found = await system.run(run)
    assert (found["status"], found["expansion_failures"]) == ("PENDING", 1), "nobody tries it before its pause is over"


async def test_a_run_that_goes_on_has_its_failures_forgotten(system: Spine) -> None:
    await _traces(system, 2)
    run = await system.request(["one"])
    await system.rows("UPDATE runs SET expansion_failures = 2 RETURNING 1")
    await Expander(system.database, page=1, backoff=(0.0, 0.0)).turn(OUTBOX)
    assert (await system.run(run))["expansion_failures"] == 0


@asynccontextmanager
async def owner(urls: Urls) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(urls.owner)
    try:
        yield connection
    finally:
        await connection.close()


async def _begin_anew(connection: Any) -> None:
    """What the database's defaults are is seen by new connections."""
    await connection.fetch(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )


async def _error_of(expander: Expander) -> str | None:
    try:
        await expander.turn(OUTBOX)
    except exc.DBAPIError as e:
        return sqlstate(e) or reason(e)
    return None


async def _traces(system: Spine, count: int) -> None:
    await system.rows(
        "INSERT INTO traces (trace_id, project_id, name, status, started_at) "
        "SELECT gen_random_uuid(), :p, 't', 'COMPLETED', now() FROM generate_series(1, :n) RETURNING 1",
        p=system.project, n=count,
    )  # fmt: skip


async def _broken(system: Spine, name: str) -> UUID:
    """As an older version may have left it in the table."""
    run = await system.request(["one"])
    changed = {SLOW: "", REFUSED: ", snapshot = 'none'", ODD: ", sampling_rate = 'NaN'",
               UNREADABLE: """, filters = '{"status": "NONSENSE"}'"""}  # fmt: skip
    await system.rows(f"UPDATE runs SET name = :name{changed[name]} WHERE id = :r RETURNING 1", name=name, r=run)
    return run


def _listening(system: Spine) -> Sequence[RunFinished]:
    heard, listener = list[RunFinished](), Service("listener")

    @listener.on
    async def hear(finished: RunFinished) -> None:
        heard.append(finished)

    system.start("listener", listener, relays=False)
    return heard


async def _has_pairs(system: Spine, run: UUID, count: int) -> bool:
    return bool(await system.rows("SELECT 1 FROM pairs WHERE run_id = :r HAVING count(*) = :n", r=run, n=count))


def _counted(error: str) -> float:
    labels = {"service": "resolver", "turn": "expansion", "error": error}
    return REGISTRY.get_sample_value("steelyard_turns_failed_total", labels) or 0.0


def _name(urls: Urls) -> str:
    return urls.owner.rpartition("/")[2]


_SLEEPS = """
    CREATE FUNCTION sleeps() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF (SELECT name FROM runs WHERE id = new.run_id) = 'slow' THEN PERFORM pg_sleep(600); END IF;
        RETURN new;
    END $$;
    CREATE TRIGGER sleeps BEFORE INSERT ON targets FOR EACH ROW EXECUTE FUNCTION sleeps();
"""
