"""The API as a service: for the map, and for what its process does beside answering."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from steelyard.kafka import Cluster, Publisher
from steelyard.reasons import reason
from steelyard.service import Service
from steelyard.store.database import Database
from steelyard.store.outbox import Relay
from steelyard.tasks import ended
from steelyard.topics import Topics
from steelyard_api.runs import announce

log = logging.getLogger(__name__)


def service() -> Service:
    described = Service("api")
    described.writes(announce)
    return described


@asynccontextmanager
async def relaying(cluster: Cluster, database: Database) -> AsyncIterator[None]:
    """Requests never wait for Kafka; the relay does, for as long as it takes."""
    task = asyncio.create_task(_relay(cluster, database))
    try:
        yield
    finally:
        await ended([task])


async def _relay(cluster: Cluster, database: Database) -> None:
    publisher = Publisher(cluster)
    topics = Topics(cluster, publisher.renew)
    await _started(publisher)
    try:
        await _started(topics)
        await Relay(database).run(publisher)
    finally:
        await topics.stop()
        await publisher.stop()


async def _started(part: Publisher | Topics) -> None:
    while True:
        try:
            return await part.start()
        except Exception as e:
            log.warning("api: waiting for Kafka: %s", reason(e))
            await asyncio.sleep(1.0)
