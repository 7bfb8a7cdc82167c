"""`python -m steelyard.topics` makes the topics, and so does each service that misses one; never a message, as a side effect."""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from steelyard.errors import Later
from steelyard.incarnations import incarnations
from steelyard.kafka import Cluster, all_topics, make_topics, weakly_kept
from steelyard.settings import from_environment
from steelyard.tasks import ended

log = logging.getLogger(__name__)
LOOK_EVERY = 1.0


class Topics:
    """Makes what is missing while a process lives, as after the loss of a broker, and says when a topic is another one."""

    def __init__(self, cluster: Cluster, anew: Callable[[], Awaitable[None]]) -> None:
        self._cluster, self._anew = cluster, anew
        self._names = list(all_topics(cluster))
        self._known: dict[str, UUID] = {}
        self._admin: Any = None
        self._missing: str | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await make_topics(self._cluster)
        self._admin = AIOKafkaAdminClient(bootstrap_servers=self._cluster.bootstrap)
        try:
            await self._admin.start()
            self._known = await self._look()
        except BaseException:
            await self._admin.close()
            raise
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        if self._task is not None:
            await ended([self._task])
            await self._admin.close()

    async def unwell(self) -> str | None:
        return self._missing

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                await self._turn()
            except (Later, KafkaError, OSError, TimeoutError) as e:
                if self._missing != str(e):
                    log.warning("topics: %s", e)
                self._missing = str(e)

    async def _turn(self) -> None:
        there = await self._look()
        if len(there) < len(self._names):
            log.warning("topics are missing, making them: %s", ", ".join(sorted(set(self._names) - set(there))))
            await make_topics(self._cluster)
            there = await self._look()
        if any(self._known.get(name) not in (None, incarnation) for name, incarnation in there.items()):
            await self._anew()
        self._known |= there
        self._missing = None

    async def _look(self) -> dict[str, UUID]:
        return await incarnations(self._admin._client, self._names)


def cluster_of_settings() -> Cluster:
    s = from_environment()
    return Cluster(s.kafka_bootstrap, s.topic_prefix, s.kafka_replication)


def main() -> None:
    cluster = cluster_of_settings()
    try:
        made = asyncio.run(make_topics(cluster))
        weak = asyncio.run(weakly_kept(cluster))
    except (Later, OSError) as e:
        sys.exit(f"topics: {e}")
    sys.stdout.write(f"topics: {len(made)} made\n" if made else "topics: all there\n")
    for name, wanted in weak.items():
        sys.stdout.write(
            f"topics: {name} should have min.insync.replicas={wanted}, else the death of one broker may lose what it "
            f"acknowledged: kafka-configs.sh --alter --topic {name} --add-config min.insync.replicas={wanted}\n"
        )


if __name__ == "__main__":
    main()
