"""A broadcast: every process reads the whole of a small topic by itself, and goes on listening."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import UUID

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from steelyard.errors import Later, Never
from steelyard.events import Event, decode
from steelyard.incarnations import incarnations
from steelyard.kafka import Cluster
from steelyard.positions import LOOK_EVERY, METADATA_MS
from steelyard.tasks import ended
from steelyard.window import FETCH_WAIT_MS

log = logging.getLogger(__name__)


class Following:
    """No group, so nothing is shared and nothing committed: what is heard lives in memory, and is heard again by the next
    process. What cannot be read is left out: it would stop every process, and everyone that follows it."""

    def __init__(
        self, cluster: Cluster, kind: type[Event], heard: Callable[[Any], Any], clock: Callable[[], float] = time.time
    ) -> None:
        self._cluster, self._heard, self._clock, self._caught_up = cluster, heard, clock, False
        self._topic, self._partitions = cluster.topic(kind.topic), kind.partitions
        self._consumer: Any = None
        self._incarnation: UUID | None = None
        self._looked = 0.0
        self.listening: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Up to where the topic ends now: a process that is ready knows what the others know."""
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=self._cluster.bootstrap,
            group_id=None,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=FETCH_WAIT_MS * 5,
            metadata_max_age_ms=METADATA_MS,
        )
        await self._consumer.start()
        try:
            await self._catch_up()
            self._caught_up = True
        except BaseException:
            await self._consumer.stop()
            raise
        self.listening = asyncio.create_task(self._listen())

    async def stop(self) -> None:
        await ended([self.listening])
        await self._consumer.stop()

    async def unwell(self) -> str | None:
        return None

    async def _listen(self) -> None:
        while True:
            await self._next()
            if time.monotonic() - self._looked > LOOK_EVERY:
                await self._look()

    async def _look(self) -> None:
        """A topic that was made anew is read from its beginning, however far the old one was read. (Of a log that only
        shrank, the broker says so itself, and aiokafka begins it again.)"""
        self._looked = time.monotonic()
        with suppress(KafkaError):
            current = (await incarnations(self._consumer._client, [self._topic])).get(self._topic)
            if current and self._incarnation not in (None, current):
                log.warning("%s was made anew: reading it from its beginning", self._topic)
                for tp in self._consumer.assignment():
                    self._consumer.seek(tp, 0)
            self._incarnation = current or self._incarnation

    async def _catch_up(self) -> None:
        # Of this topic alone: what aiokafka's topics() asks for is every topic and partition of the cluster.
        if self._topic not in await incarnations(self._consumer._client, [self._topic]):
            raise Later(f"there is no topic {self._topic} yet: python -m steelyard.topics makes it")
        await self._look()
        assigned = [TopicPartition(self._topic, p) for p in range(self._partitions)]
        self._consumer.assign(assigned)
        ends = await self._consumer.end_offsets(assigned)
        while any([await self._consumer.position(tp) < ends[tp] for tp in assigned]):
            await self._next()

    async def _next(self) -> None:
        for records in (await self._consumer.getmany(timeout_ms=1000, max_records=500)).values():
            for record in records:
                self._hear(record)

    def _hear(self, record: Any) -> None:
        try:
            event: Event = decode(record.value)
        except (Later, Never) as e:
            log.warning("%s at offset %d is not understood: %s", self._topic, record.offset, e)
            return
        try:
            self._heard(event if self._caught_up else event.aged(self._age(record)))
        except Exception:
            log.exception("%s at offset %d", type(event).__name__, record.offset)

    def _age(self, record: Any) -> float:
        """How long ago an old message was sent, by two clocks: where they differ it counts as new, or as over, and whoever it
        closes for finds out in its own time. What is heard as it comes has no age: no clock decides."""
        return float(max(0.0, self._clock() - record.timestamp / 1000))
