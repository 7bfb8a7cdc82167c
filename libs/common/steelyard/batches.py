"""A batch subscriber's place in its topic: what was handled is committed, with the topic's incarnation, and nothing else."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError

from steelyard.positions import LOOK_EVERY, Positions

log = logging.getLogger(__name__)


class Batches(ConsumerRebalanceListener):  # type: ignore[misc]
    """FastStream fetches and calls; where it goes on after a rebalance, and after the loss of a log, is said here."""

    def __init__(
        self,
        positions: Positions,
        puzzling: Callable[[Any], str | None],
        work: Callable[[Sequence[Any]], Awaitable[None]],
    ) -> None:
        self._positions, self._puzzling, self._work = positions, puzzling, work
        self._busy = False

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """What is being handled is finished; if its partition moves, the next owner repeats it."""

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        await self._positions.assigned(assigned)

    async def handle(self, records: Sequence[Any]) -> None:
        fresh = []
        for record in records:
            progress = self._positions.progress.get(TopicPartition(record.topic, record.partition))
            if progress is None or not progress.take(record.offset):
                continue  # another one's by now, or handled by an earlier owner
            if why := self._puzzling(record):
                self._positions.put_off(record, why)
            else:
                fresh.append((record, progress))
        self._busy = True
        try:
            if fresh:
                await self._work([record for record, _ in fresh])
        finally:
            self._busy = False
        for record, progress in fresh:
            progress.finish(record.offset)
        self._positions.bound()
        await self._commit()

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            await self._positions.look()
            await self._commit()

    async def unwell(self) -> str | None:
        return await self._positions.unwell(self._busy)

    async def start(self, consumer: Callable[[], Any]) -> None:
        await self._positions.start(consumer)

    async def stop(self) -> None:
        await self._positions.stop()

    async def _commit(self) -> None:
        try:
            await self._positions.commit()
        except KafkaError as e:
            log.warning("commit failed, the next one says it all: %r", e)
