"""Clocks of machines differ, by minutes where nobody looks after them: what is put off waits as long as was meant all the same."""

from datetime import timedelta

import pytest

from addresses import Urls
from eventually import eventually
from spine import Calls, Spine, spine
from steelyard.clock import utc_now
from steelyard.errors import Later
from steelyard.kafka import Cluster


@pytest.mark.parametrize("skew", [-120, 3600], ids=["two minutes behind", "an hour ahead"])
async def test_a_judge_whose_clock_is_wrong_puts_off_a_pair_for_as_long_as_it_means(
    topics: Cluster, urls: Urls, skew: int
) -> None:
    async with spine(topics, urls) as system:
        system.start_resolver()
        system.start_aggregator()
        scorer = Calls(answers={"confidence": [Later("the model answers 503", after=1800)]})
        system.start_judge(scorer, clock=lambda: utc_now() + timedelta(seconds=skew))
        await system.ingest(1)
        run = await system.request(["confidence"])
        seconds = await eventually(lambda: waits(system), "the pair waits")
        # What lies between settling and looking is seconds; the clock is wrong by more.
        assert 1800 - 60 < seconds <= 1800
        await system.rows("UPDATE pairs SET available_at = now() RETURNING 1")
        assert (await system.done(run))["failed_count"] == 0


async def waits(system: Spine) -> float | None:
    found = await system.rows(
        "SELECT extract(epoch FROM available_at - now())::float8 AS seconds FROM pairs WHERE status = 'owed' AND attempts = 1"
    )
    return float(found[0]["seconds"]) if found else None
