"""A judge joins in the middle of a run: partitions move, and what is under way goes on where it is."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from addresses import Urls
from eventually import eventually
from spine import Calls, Spine, spine
from steelyard.kafka import Cluster, Readers


@pytest.fixture
async def system(topics: Cluster, urls: Urls) -> AsyncIterator[Spine]:
    async with spine(topics, urls, judge_slots=60, rebalance_drain_seconds=0.1) as made:
        yield made


async def test_what_one_judge_has_under_way_is_not_asked_again_by_the_one_its_partitions_move_to(
    system: Spine, topics: Cluster
) -> None:
    """The drain is shorter than a call. The second judge has read past the jobs of the first one, and waits for them."""
    first, second = Calls(gate=asyncio.Event()), Calls()
    await system.ingest(30, name="old")
    run_id = await system.request(["one"])
    system.start_resolver()
    system.start_aggregator()
    system.start_judge(first, "judge 1")
    await eventually(lambda: len(first.made) == 30, "the first judge has all of them under way")
    readers = Readers(topics)
    await readers.start()
    system.start_judge(second, "judge 2")

    async def joined() -> bool:
        return await readers.members("judge") == 2

    await eventually(joined, "the second one is in the group")
    later = await system.request(["two"])
    # In partitions that moved these lie behind the jobs that are under way, and some of each are the second judge's.
    await eventually(
        lambda: len(first.made) + len(second.made) == 60 and second.made, "the second one has read past them"
    )
    assert {metric for _, metric in second.made} == {"two"}, "what is under way was asked again"
    assert first.gate is not None
    first.gate.set()
    for run in (await system.done(run_id), await system.done(later)):
        assert (run["status"], run["evaluated_count"], run["failed_count"]) == ("COMPLETED", 30, 0)
    await readers.stop()
