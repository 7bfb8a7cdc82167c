"""An error in one loop of a service is seen, and ends neither that loop nor the service."""

import asyncio

from prometheus_client import REGISTRY

from addresses import Urls
from eventually import eventually
from steelyard.kafka import Cluster
from steelyard.service import Service
from steelyard.settings import Settings


async def test_a_loop_that_fails_is_counted_and_turns_again_and_the_others_go_on(topics: Cluster, urls: Urls) -> None:
    service, stop, turns = Service("looping"), asyncio.Event(), {"broken": 0, "sound": 0}

    @service.loop(every=0.05)
    async def broken() -> bool:
        turns["broken"] += 1
        raise KeyError("a bug")

    @service.loop(every=0.05)
    async def sound() -> bool:
        turns["sound"] += 1
        return False

    settings = Settings(
        worker_database_url=urls.worker, http_port=0, kafka_bootstrap=topics.bootstrap, topic_prefix=topics.prefix
    )
    running = asyncio.create_task(service.run(settings, topics, stop=stop))
    await eventually(lambda: turns["broken"] >= 2 and turns["sound"] >= 2, "both turn, again and again")
    labels = {"service": "looping", "turn": "loop", "error": "KeyError"}
    assert (REGISTRY.get_sample_value("steelyard_turns_failed_total", labels) or 0) >= 1
    stop.set()
    await running
