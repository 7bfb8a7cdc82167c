"""A judge joins in the middle of a run: partitions move, and what is under way goes on where it is."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from addresses import Urls
from eventually import eventually
from spine import Calls, Spine, spine
from steelyard.kafka import Cluster


@pytest.fixture
async def system(topics: Cluster, urls: Urls) -> AsyncIterator[Spine]:
    async with spine(topics, urls, judge_slots=60, rebalance_drain_seconds=0.1) as made:
        yield made


async def test_what_one_judge_has_under_way_is_not_asked_again_by_the_one_its_partitions_move_to(system: Spine) -> None:
    """The drain is shorter than a call. The second judge has read past the jobs of the first one, and waits for them."""
    first, second = Calls(gate=asyncio.Event()), Calls()
    await system.ingest(30, name="old")
    run_id = await system.request(["one"])
    system.start_resolver()
    system.start_aggregator()
    system.start_judge(first, "judge 1")
    await eventually(lambda: len(first.made) == 30, "the first judge has all of them under way")
    system.start_judge(second, "judge 2", elsewhere_seconds=3600)

    async def took_some() -> bool:
        """Of a run that is requested later its jobs lie behind those that are under way."""
        later.append(await system.request(["two"]))
        return bool(second.made)

    later: list[UUID] = []
    await eventually(took_some, "the second one has partitions and has read past what was in them")
    assert {metric for _, metric in second.made} == {"two"}, "what is under way was asked again"
    assert first.gate is not None
    first.gate.set()
    for run in [await system.done(each) for each in (run_id, *later)]:
        assert (run["status"], run["failed_count"]) == ("COMPLETED", 0)
