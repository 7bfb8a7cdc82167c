"""A broker that lost its data, or a topic that was deleted, costs time: every pair is scored, once, whoever was alive."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Collection, Iterator
from uuid import UUID

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from addresses import Urls
from eventually import eventually
from spine import Calls, Spine, spine
from steelyard.kafka import Cluster
from steelyard_local.kafka import CLUSTER_ID, start_kafka
from steelyard_local.processes import Home

ANOTHER_CLUSTER = "YW5vdGhlci1jbHVzdGVyMQ"
TRACES, METRICS = 60, ["one", "two"]
PAIRS = TRACES * len(METRICS)
SLOTS = 8


class Broker:
    """The test's own: the session's is not to be killed."""

    def __init__(self, home: Home) -> None:
        self.home, self.bootstrap = home, start_kafka(home, prompt_commits=True)

    def kill(self) -> None:
        self.home.kill("kafka")

    def start_without_its_data(self, cluster_id: str) -> None:
        shutil.rmtree(self.home.path / "kafka")
        assert start_kafka(self.home, prompt_commits=True, cluster_id=cluster_id) == self.bootstrap


@pytest.fixture
def broker() -> Iterator[Broker]:
    home = Home.fresh("lost")
    yield Broker(home)
    home.close()


@pytest.fixture
async def system(broker: Broker, urls: Urls) -> AsyncIterator[Spine]:
    async with spine(Cluster(broker.bootstrap), urls, judge_slots=SLOTS, redispatch_seconds=2) as made:
        yield made


@pytest.mark.faults
@pytest.mark.parametrize(
    ("judges", "cluster_id", "restarted"),
    [
        (1, CLUSTER_ID, ()),
        (2, ANOTHER_CLUSTER, ()),
        (1, ANOTHER_CLUSTER, ("resolver", "aggregator")),
        (2, CLUSTER_ID, ("judge 1", "aggregator")),
    ],
)
async def test_a_broker_that_lost_its_data_under_a_run_costs_no_pair_its_score(
    broker: Broker, system: Spine, judges: int, cluster_id: str, restarted: Collection[str]
) -> None:
    calls = Calls(seconds=0.15)
    await start(system, calls, judges)
    run_id = await begun(system)

    at_stake = await dispatched(system)
    await asyncio.to_thread(broker.kill)
    at_stake = max(at_stake, await dispatched(system))
    await asyncio.to_thread(broker.start_without_its_data, cluster_id)
    await restart(system, calls, restarted)
    await scored_once(system, run_id, calls, at_stake)


@pytest.mark.faults
@pytest.mark.parametrize(
    "names", [("jobs.trace",), ("scores.trace",), ("jobs.trace", "scores.trace", "runs.requested")]
)
async def test_topics_that_are_deleted_under_a_run_cost_no_pair_its_score(
    topics: Cluster, urls: Urls, names: Collection[str]
) -> None:
    """Whoever misses them makes them again."""
    async with spine(topics, urls, judge_slots=SLOTS, redispatch_seconds=2) as system:
        calls = Calls(seconds=0.15)
        await start(system, calls, judges=2)
        run_id = await begun(system)
        at_stake = await dispatched(system)
        await delete(topics, names)
        at_stake = max(at_stake, await dispatched(system))
        await scored_once(system, run_id, calls, at_stake)


async def start(system: Spine, calls: Calls, judges: int) -> None:
    system.start_resolver()
    system.start_aggregator()
    for n in range(judges):
        system.start_judge(calls, f"judge {n}")
    await system.ingest(TRACES)


async def begun(system: Spine) -> UUID:
    run_id = await system.request(METRICS)

    async def enough() -> bool:
        return bool((await system.run(run_id))["evaluated_count"] >= 10)

    await eventually(enough, "the run is under way")
    return run_id


async def dispatched(system: Spine) -> int:
    (seen,) = await system.rows("SELECT count(*) AS n FROM pairs WHERE status = 'dispatched'")
    return int(seen["n"])


async def restart(system: Spine, calls: Calls, names: Collection[str]) -> None:
    if names:
        await system.stop(*names)
    for name in names:
        if name.startswith("judge"):
            system.start_judge(calls, name)
        else:
            getattr(system, f"start_{name}")()


async def delete(cluster: Cluster, names: Collection[str]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap)
    await admin.start()
    await admin.delete_topics([cluster.topic(name) for name in names])
    await admin.close()


async def scored_once(system: Spine, run_id: UUID, calls: Calls, at_stake: int, aftermath: int = 0) -> None:
    """`aftermath`: a resolver that was not there when the topics changed may count one outcome that then went astray."""
    run = await system.done(run_id)
    assert (run["status"], run["evaluated_count"], run["failed_count"]) == ("COMPLETED", TRACES, 0)
    scores = await system.rows("SELECT trace_id, name FROM trace_scores")
    assert len(scores) == len({(s["trace_id"], s["name"]) for s in scores}) == PAIRS
    # Nothing but what was under way may have been asked twice, and no loss counts as a failure of the pair.
    assert PAIRS <= len(calls.made) <= PAIRS + at_stake + SLOTS, (len(calls.made), at_stake)
    assert await system.rows("SELECT 1 FROM pairs WHERE redispatches > :most", most=aftermath) == []
    # The system is whole again: another run goes through it.
    other = await system.request(METRICS)
    run = await system.done(other)
    assert (run["evaluated_count"], run["failed_count"]) == (TRACES, 0)
