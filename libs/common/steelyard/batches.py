"""A batch subscriber's place in its topic: what was handled is committed, with the topic's incarnation, and nothing else.

Records of a run whose rows somebody else holds up wait in a bulkhead of their own: unfinished, so that no commit passes them, and
tried again with exponential backoff beside the batches, which go on."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Hashable, Sequence
from typing import Any

from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError

from steelyard.delivery import run_of
from steelyard.events import decode
from steelyard.positions import LOOK_EVERY, Positions
from steelyard.progress import Progress

log = logging.getLogger(__name__)
LONGEST_PAUSE = 10.0
Place = tuple[str, int, int]


class Batches(ConsumerRebalanceListener):  # type: ignore[misc]
    """FastStream fetches and calls; where it goes on after a rebalance, and after the loss of a log, is said here."""

    def __init__(
        self,
        positions: Positions,
        puzzling: Callable[[Any], str | None],
        work: Callable[[Sequence[Any]], Awaitable[Sequence[Any]]],
    ) -> None:
        """`work` returns the records that are held up."""
        self._positions, self._puzzling, self._work = positions, puzzling, work
        self._busy = False
        self._held_up: dict[Hashable, dict[Place, tuple[Any, Progress]]] = {}
        self._holding = asyncio.Event()

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
            elif self._held_up and (run := _run(record)) in self._held_up:
                self._held_up[run][_place(record)] = record, progress
            else:
                fresh.append((record, progress))
        self._busy = True
        try:
            if fresh:
                for record, progress in await self._finished(fresh):
                    self._held_up.setdefault(_run(record), {})[_place(record)] = record, progress
                    self._holding.set()
                self._tell()
        finally:
            self._busy = False
        self._positions.bound()
        await self._commit()

    async def _finished(self, work: Sequence[tuple[Any, Progress]]) -> list[tuple[Any, Progress]]:
        """Returns what could not be."""
        left = {_place(record) for record in await self._work([record for record, _ in work])}
        for record, progress in work:
            if _place(record) not in left:
                progress.finish(record.offset)
        return [(record, progress) for record, progress in work if _place(record) in left]

    async def retry(self) -> None:
        """For ever, each run that is held up once a round. Results that came late find the ledger as they would have in time;
        a record whose partition moved is handled here and by the next owner, which changes nothing."""
        tries = 0
        while True:
            await self._holding.wait()
            await asyncio.sleep(min(LONGEST_PAUSE, 0.5 * 2**tries))
            tries += 1
            for run in list(self._held_up):
                waiting = dict(self._held_up[run])
                log.info("%d records of run %s were held up and are tried again", len(waiting), run)
                left = {_place(record) for record, _ in await self._finished(list(waiting.values()))}
                for place in waiting.keys() - left:
                    del self._held_up[run][place]
                if not self._held_up[run]:
                    del self._held_up[run]
                    tries = 0
                self._tell()
                self._positions.bound()
            if not self._held_up:
                self._holding.clear()

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

    def _tell(self) -> None:
        self._positions.tell_held_up(sum(map(len, self._held_up.values())))

    async def _commit(self) -> None:
        try:
            await self._positions.commit()
        except KafkaError as e:
            log.warning("commit failed, the next one says it all: %r", e)


def _place(record: Any) -> Place:
    return record.topic, record.partition, record.offset


def _run(record: Any) -> Hashable:
    return run_of(decode(record.value))
