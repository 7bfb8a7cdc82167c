"""What is wrong with one run, or with one chore, stops no other."""

from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import uuid4

import asyncpg
import pytest
from prometheus_client import REGISTRY

from addresses import Urls
from eventually import eventually
from spine import Calls, Spine, new_project, spine
from steelyard.kafka import Cluster
from steelyard.store import once
from steelyard_scheduler.handlers import scheduler


@pytest.fixture
async def system(topics: Cluster, urls: Urls) -> AsyncIterator[Spine]:
    async with spine(topics, urls) as made:
        yield made


async def execute(urls: Urls, statement: str) -> None:
    owner = await asyncpg.connect(urls.owner)
    try:
        await owner.execute(statement)
    finally:
        await owner.close()


def failed(service: str, turn: str, error: str) -> float:
    labels = {"service": service, "turn": turn, "error": error}
    return REGISTRY.get_sample_value("steelyard_turns_failed_total", labels) or 0.0


async def test_a_run_that_cannot_be_dispatched_holds_up_no_other_and_goes_on_when_it_can(
    system: Spine, urls: Urls
) -> None:
    other = replace(system, project=await new_project(urls, "another"))
    await system.ingest(2)
    await other.ingest(3)
    stuck, before = await system.request(["one"]), failed("resolver", "dispatch", "22012")
    await execute(urls, _REFUSES.format(event="UPDATE", when="new.run_id", run=stuck))
    system.start_all(Calls())
    await eventually(lambda: failed("resolver", "dispatch", "22012") > before, "its turn fails, and is counted")
    run = await system.done(await other.request(["one"]))
    assert (run["status"], run["evaluated_count"], run["failed_count"]) == ("COMPLETED", 3, 0)
    await execute(urls, "DROP TRIGGER refuses ON pairs")
    run = await system.done(stuck)
    assert (run["status"], run["evaluated_count"], run["failed_count"]) == ("COMPLETED", 2, 0)


async def test_a_run_whose_rows_somebody_holds_keeps_no_other_runs_results_waiting(system: Spine, urls: Urls) -> None:
    """Results of both are in every partition. The holder is somebody's session, a dump or a deletion that takes its time."""
    other = replace(system, project=await new_project(urls, "another"))
    held = await system.ingest(40)
    await other.ingest(40)
    await execute(urls, f"ALTER ROLE steelyard_worker IN DATABASE {database_of(urls)} SET lock_timeout = '500ms'")
    holder = await asyncpg.connect(urls.owner)
    async with holder.transaction():
        await holder.execute("SELECT 1 FROM traces WHERE trace_id = ANY($1) FOR UPDATE", held)
        stuck, free = await system.request(["one"]), await other.request(["one"])
        calls = Calls()
        system.start_all(calls)
        await eventually(lambda: len(calls.made) == 80, "all pairs are judged")
        run = await system.done(free)
        assert (run["status"], run["evaluated_count"], run["failed_count"]) == ("COMPLETED", 40, 0)
        later = await system.done(await other.request(["two"]))
        assert (later["status"], later["evaluated_count"]) == ("COMPLETED", 40), "what comes later passes too"
        assert (await system.run(stuck))["evaluated_count"] == 0
        assert held_up(system) == 40
    await holder.close()
    run = await system.done(stuck)
    assert (run["status"], run["evaluated_count"], run["failed_count"]) == ("COMPLETED", 40, 0)
    assert len(calls.made) == 120, "nothing was paid for again"
    await eventually(lambda: held_up(system) == 0, "nothing is held up any more")


def held_up(system: Spine) -> float:
    labels = {"service": "aggregator", "topic": system.cluster.topic("scores.trace")}
    return REGISTRY.get_sample_value("steelyard_held_up", labels) or 0.0


def database_of(urls: Urls) -> str:
    return urls.owner.rpartition("/")[2]


async def test_pairs_that_cannot_be_pruned_keep_nothing_else_from_being_tidied(system: Spine, urls: Urls) -> None:
    (trace,) = await system.ingest(1)
    old = await system.request(["one"])
    await system.rows(
        "INSERT INTO pairs (run_id, trace_id, metric, project_id, target, status, outcome) "
        "VALUES (:r, :t, 'one', :p, 't', 'settled', 'SUCCESS') RETURNING 1",
        r=old, t=trace, p=system.project,
    )  # fmt: skip
    await system.rows(
        "UPDATE runs SET status = 'COMPLETED', completed_at = now() - interval '9 years' WHERE id = :r RETURNING 1",
        r=old,
    )
    async with system.database.begin() as tx:
        await once.remember(tx, system.project, "s", str(uuid4()), once.Remembered(b"h", 202, b"{}"))
    await system.rows("UPDATE idempotency_keys SET created_at = now() - interval '25 hours' RETURNING 1")
    await execute(urls, _REFUSES.format(event="DELETE", when="old.run_id", run=old))
    before = failed("scheduler", "tidying", "22012")
    system.start("scheduler", scheduler(system.settings, system.database))

    async def tidied() -> bool:
        return not await system.rows("SELECT 1 FROM idempotency_keys")

    await eventually(tidied, "what can be cleared away is")
    assert failed("scheduler", "tidying", "22012") > before, "and what cannot is counted"


_REFUSES = """
    CREATE FUNCTION refuses() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM 1 / 0; RETURN NULL; END $$;
    CREATE TRIGGER refuses BEFORE {event} ON pairs FOR EACH ROW
        WHEN ({when} = '{run}'::uuid) EXECUTE FUNCTION refuses();
"""
