"""Whatever happens to messages and to aggregators, each session has one score per metric: the one its signals make."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any
from uuid import UUID

import pytest

from addresses import Infra, Urls
from eventually import eventually
from forkserver import home_of_forks
from session_runs import Chance, assert_folded, request, talk
from spine import Spine, spine
from steelyard.events import Event, TraceDeferred, TraceScored
from steelyard.kafka import Cluster, Publisher
from steelyard.metrics.judging import Score
from steelyard.metrics.sessions import SIGNALS
from steelyard.store import traces
from steelyard_judge.orders import Order
from steelyard_local.processes import Home
from steelyard_local.stack import Services


@pytest.fixture
async def system(topics: Cluster, urls: Urls) -> AsyncIterator[Spine]:
    async with spine(topics, urls, judge_slots=16, redispatch_seconds=600) as made:
        yield made


async def expanded(system: Spine, run_id: UUID) -> None:
    async def written() -> bool:
        (run,) = await system.rows("SELECT expanded FROM runs WHERE id = :r", r=run_id)
        return bool(run["expanded"])

    await eventually(written, "the run is expanded")


async def outcomes(system: Spine, run_id: UUID) -> list[Event]:
    """What judges would say of each pair of the run: a value or none, and of some a deferral that comes too late."""
    chance, made = Chance(failing=10), list[Event]()
    pairs = await system.rows(
        "SELECT run_id, project_id, target, trace_id, metric FROM pairs WHERE run_id = :r", r=run_id
    )
    async with system.database.begin() as tx:
        known = await traces.load(tx, [p["trace_id"] for p in pairs])
    for pair in pairs:
        order = Order(run_id, pair["project_id"], pair["trace_id"], "m", run_id)
        said = await chance(pair["metric"], known[pair["trace_id"]], order)
        value = said.value if isinstance(said, Score) else None
        made.append(TraceScored(**pair, value=value, reason=said.reason, trace_version=1))
        if len(made) % 7 == 0:
            made.append(TraceDeferred(**pair, dispatch_no=77, until=known[pair["trace_id"]].started_at, reason="stale"))
    return made


async def publish(system: Spine, events: Sequence[Event]) -> None:
    publisher = Publisher(system.cluster)
    await publisher.start()
    await publisher.send([(e.topic, e.key(), e.encode(), []) for e in events])
    await publisher.stop()


async def test_every_message_twice_in_any_order_to_two_aggregators_that_come_and_go(system: Spine) -> None:
    """Both settle at once, one leaves and another joins in the middle: partitions move while batches are under way."""
    for n in range(40):
        await talk(system, f"s{n}", 1 + n % 7)
    run_id = await request(system)
    system.start_resolver()
    await expanded(system, run_id)
    events = await outcomes(system, run_id) * 2
    random.Random(7).shuffle(events)
    half = len(events) // 2
    system.start_aggregator("first")
    system.start_aggregator("second")
    await publish(system, events[:half])

    async def under_way() -> bool:
        (run,) = await system.rows("SELECT settled_count FROM runs WHERE id = :r", r=run_id)
        return bool(run["settled_count"] > 100)

    await eventually(under_way, "signals are being settled")
    system.start_aggregator("third")
    stopping = asyncio.create_task(system.stop("first"))
    await publish(system, events[half:])
    await stopping
    run = await system.done(run_id)
    assert (run["status"], run["evaluated_count"], run["left"]) == ("COMPLETED", 40, 0)
    pairs = 4 * sum(1 + n % 7 for n in range(40))
    assert run["settled_count"] == pairs and await assert_folded(system, run_id) == 80
    await publish(system, events[:50])
    again = await request(system, sampling_rate=0.01)
    await publish(system, await _once_expanded(system, again))
    await system.done(again)
    assert await assert_folded(system, run_id) == 80, "what comes after the end changes nothing"


async def _once_expanded(system: Spine, run_id: UUID) -> list[Event]:
    await expanded(system, run_id)
    return await outcomes(system, run_id)


@pytest.fixture
def home() -> Iterator[Home]:
    made = home_of_forks("sessions")
    yield made
    made.close()


@pytest.fixture
def services(infra: Infra, urls: Urls, topics: Cluster, home: Home) -> Services:
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY")} | urls.environment()
    environment |= {"KAFKA_BOOTSTRAP": infra.bootstrap, "TOPIC_PREFIX": topics.prefix, "KAFKA_SESSION_SECONDS": "6"}
    environment |= {"EMBEDDING_MODEL": "local/ngram-hash-v1"}
    return Services(home, environment)


@pytest.mark.faults
async def test_an_aggregator_killed_ten_times_folds_every_session_once(system: Spine, services: Services) -> None:
    """120 sessions of 10 traces; each time it is killed in the middle of settling, and another takes over."""
    for n in range(120):
        await talk(system, f"session {n}", 10)
    run_id = await request(system)
    await asyncio.to_thread(services.start, "resolver-1", "judge-1", "aggregator-1")
    settled = 0

    async def went_on() -> bool:
        (run,) = await system.rows("SELECT settled_count FROM runs WHERE id = :r", r=run_id)
        return bool(run["settled_count"] > settled + 100)

    for kill in range(10):
        await eventually(went_on, f"signals are settled before kill {kill}")
        await asyncio.to_thread(services.kill, "aggregator-1")
        ((settled,),) = [tuple(r.values()) for r in await system.rows("SELECT settled_count FROM runs")]
        assert settled < 120 * 10 * len(SIGNALS), "the run was over before it could be disturbed"
        await asyncio.to_thread(services.start, "aggregator-1")
    run: dict[str, Any] = await system.done(run_id)
    assert (run["status"], run["evaluated_count"], run["failed_count"]) == ("COMPLETED", 120, 0)
    assert (run["left"], run["settled_count"]) == (0, 4800) and await assert_folded(system, run_id) == 240
