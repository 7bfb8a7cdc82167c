"""The judge's consumer: hundreds of jobs in flight from a few partitions, commits only over finished work."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError

from steelyard import telemetry
from steelyard.kafka import Cluster
from steelyard.positions import LOOK_EVERY, METADATA_MS, Positions
from steelyard.progress import Progress
from steelyard.tasks import ended, rung

log = logging.getLogger(__name__)
Work = Callable[[Any], Awaitable[None]]
# aiokafka has one fetch under way per broker. A partition that was just drained is not in it: its next records wait
# until that fetch returns, half a second by default, and the window's refill would pay that every time.
FETCH_WAIT_MS = 40


def heartbeat_ms(session_seconds: float) -> int:
    """Members hear of a rebalance by a heartbeat, and those that heard of it stand still until the last one has."""
    return int(min(0.5, session_seconds * 0.3) * 1000)


class Window(ConsumerRebalanceListener):  # type: ignore[misc]
    """`work` returns when the record's outcome is published; until then its offset does not move.

    A killed process repeats what was in flight and what finished since the last commit, nothing else: finished
    offsets beyond the contiguous ones ride along in the commit's metadata.
    """

    def __init__(
        self,
        cluster: Cluster,
        topic: str,
        service: str,
        work: Work,
        *,
        slots: int,
        span: int = 2000,
        commit_seconds: float = 0.3,
        drain_seconds: float = 25.0,
        rebalance_drain_seconds: float = 0.5,
        starve_seconds: float = 5.0,
        session_seconds: float = 10.0,
        max_poll_seconds: float = 300.0,
        puzzling: Callable[[Any], str | None] = lambda record: None,
        client_id: str = "steelyard",
    ) -> None:
        self.slots, self.failure = slots, asyncio.get_running_loop().create_future()
        self._cluster, self._topic, self._service, self._work = cluster, cluster.topic(topic), service, work
        self._span, self._commit_seconds, self._drain_seconds = span, commit_seconds, drain_seconds
        self._rebalance_drain, self._starve_seconds = rebalance_drain_seconds, starve_seconds
        self._session_seconds, self._max_poll_seconds = session_seconds, max_poll_seconds
        self._client_id = client_id
        self._positions, self._puzzling = Positions(cluster, topic, service), puzzling
        self._held: set[TopicPartition] = set()
        self._tasks: dict[asyncio.Task[None], float] = {}
        self._freed = asyncio.Event()
        self._moving = True  # no assignment yet
        self._generation = 0
        self._turn = 0
        self._beat = time.monotonic()
        self._loops: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self._consumer: Any = AIOKafkaConsumer(
            bootstrap_servers=self._cluster.bootstrap,
            group_id=self._cluster.group(self._service),
            client_id=self._client_id,
            enable_auto_commit=False,  # the default commits what is still in flight, and a crash loses it
            auto_offset_reset="earliest",
            fetch_max_wait_ms=FETCH_WAIT_MS,
            max_poll_interval_ms=int(self._max_poll_seconds * 1000),
            session_timeout_ms=int(self._session_seconds * 1000),
            heartbeat_interval_ms=heartbeat_ms(self._session_seconds),
            # The default is the session timeout: a drain longer than that would be answered with a lost partition.
            rebalance_timeout_ms=int((self._rebalance_drain + 20) * 1000),
            metadata_max_age_ms=METADATA_MS,
        )
        try:
            await self._positions.start(lambda: self._consumer)
            self._consumer.subscribe([self._topic], listener=self)
            await self._consumer.start()
        except BaseException:
            # What it began is not left half open: it is begun anew, by another window.
            await self._consumer.stop()
            await self._positions.stop()
            raise
        loops = (self._feed, self._commits, self._watch)
        self._loops = [asyncio.create_task(self._guarded(loop)) for loop in loops]

    async def stop(self) -> None:
        """Take nothing new, let what is in flight finish, hand back what does not, and say how far it came."""
        feed, commits, watch = self._loops
        await ended([feed])
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=self._drain_seconds)
        await ended([commits, watch, *self._tasks])
        with suppress(KafkaError):
            await self._positions.commit()
        await self._consumer.stop()
        await self._positions.stop()

    @property
    def in_flight(self) -> int:
        return len(self._tasks)

    async def unwell(self) -> str | None:
        """Why this consumer is not ready, if it is not."""
        if self._moving:
            return "waiting for an assignment"
        if time.monotonic() - self._beat > 30:
            return "the consume loop has not turned for 30 s"
        return await self._positions.unwell()

    # What the group coordinator tells. While it tells, nothing is taken.

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Every rebalance revokes everything. Jobs that finish within the drain are not paid for twice."""
        self._moving = True
        if self._tasks and self._rebalance_drain:
            await asyncio.wait(list(self._tasks), timeout=self._rebalance_drain)
        with suppress(KafkaError):
            await self._positions.commit()

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Partitions that come back keep their jobs; jobs of lost ones run on: their outcome is as good as any."""
        try:
            await self._positions.assigned(assigned)
        finally:
            self._held.clear()
            self._generation += 1
            self._moving = False
        log.info("%s: %d partitions of %s", self._service, len(assigned), self._topic)

    # Taking jobs.

    async def _feed(self) -> None:
        starving_since: float | None = None
        while True:
            self._beat = time.monotonic()
            if self._moving:
                # What went wrong in the group waits until it is asked for, and the group with it.
                self._consumer._coordinator.check_errors()
                await asyncio.sleep(0.02)
            elif (free := self.slots - len(self._tasks)) > 0:
                if starving_since is not None:
                    starving_since = None
                    self._resume()
                if not await self._round(free):
                    await self._idle()
            else:
                starving_since = starving_since or time.monotonic()
                await self._wait_for_a_slot(time.monotonic() - starving_since > self._starve_seconds)

    async def _round(self, free: int) -> int:
        """A share from each partition in turn: one getmany over all would drain the first one first."""
        partitions = [tp for tp in self._positions.progress if self._may_take(tp)]
        self._turn += 1
        start, taken = self._turn % max(1, len(partitions)), 0
        for tp in partitions[start:] + partitions[:start]:
            if taken >= free or self._moving:
                break
            room = self._span - self._positions.progress[tp].span
            share = min(free - taken, room, max(1, math.ceil(free / len(partitions))))
            taken += await self._take(tp, share)
        return taken

    async def _idle(self) -> None:
        await self._take(None, 1)

    async def _take(self, tp: TopicPartition | None, count: int) -> int:
        """Records that arrive across a rebalance are dropped, and sought again: they may have been fetched after its seek."""
        generation = self._generation
        partitions, patience = ((tp,), 0) if tp else ((), 100)
        try:
            got = await self._consumer.getmany(*partitions, timeout_ms=patience, max_records=count)
        except IllegalStateError:
            return 0
        if self._moving:
            return 0  # the seek at its end delivers them again
        if generation != self._generation:
            self._positions.seek_back(got)
            return 0
        records = [r for batch in got.values() for r in batch]
        for record in records:
            owner = TopicPartition(record.topic, record.partition)
            progress = self._positions.progress[owner]
            if not progress.take(record.offset):
                continue
            if why := self._puzzling(record):
                self._positions.put_off(record, why)
            else:
                task = asyncio.create_task(self._one(record, progress))
                self._tasks[task] = time.monotonic()
                task.add_done_callback(self._ended)
        return len(records)

    async def _one(self, record: Any, progress: Progress) -> None:
        await self._work(record)
        progress.finish(record.offset)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        self._freed.set()
        if not task.cancelled() and (error := task.exception()) and not self.failure.done():
            self.failure.set_exception(error)

    def _may_take(self, tp: TopicPartition) -> bool:
        """A partition that ran far ahead of its oldest job is paused: repeats and memory stay bounded."""
        span = self._positions.progress[tp].span
        if tp in self._held and span <= self._span // 2:
            self._held.discard(tp)
            self._consumer.resume(tp)
        elif tp not in self._held and span >= self._span:
            self._held.add(tp)
            self._consumer.pause(tp)
        return tp not in self._held

    async def _wait_for_a_slot(self, starving: bool) -> None:
        """Buffered records that nobody asks for get a consumer evicted from its group: pausing gives them back."""
        self._freed.clear()
        if starving and not self._moving:
            with suppress(IllegalStateError):
                self._consumer.pause(*self._positions.progress)
                await self._consumer.getmany(timeout_ms=0)
        await rung(self._freed, 1.0)

    def _resume(self) -> None:
        with suppress(IllegalStateError):
            self._consumer.resume(*(tp for tp in self._positions.progress if tp not in self._held))

    # Saying how far it came.

    async def _commits(self) -> None:
        while True:
            await asyncio.sleep(self._commit_seconds)
            self._tell()
            if not self._moving:
                try:
                    await self._positions.commit()
                except KafkaError as e:
                    log.warning("%s: commit failed, the next one says it all: %r", self._service, e)

    async def _watch(self) -> None:
        """What is delivered across a new beginning is dropped, as across a rebalance."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            if not self._moving and (lost := await self._positions.look()):
                self._generation += 1
                self._held -= lost
                self._resume()

    def _tell(self) -> None:
        telemetry.IN_FLIGHT.labels(service=self._service).set(len(self._tasks))
        telemetry.SPAN.labels(service=self._service).set(
            max((p.span for p in self._positions.progress.values()), default=0)
        )
        oldest = min(self._tasks.values(), default=time.monotonic())
        telemetry.OLDEST.labels(service=self._service).set(time.monotonic() - oldest)

    async def _guarded(self, loop: Callable[[], Awaitable[None]]) -> None:
        """A loop that ends by a broker's error turns again; one that ends by a bug stops the service."""
        while True:
            try:
                await loop()
            except KafkaError as e:
                log.warning("%s: %r; going on", self._service, e)
                await asyncio.sleep(0.5)
            except Exception as e:
                if not self.failure.done():
                    self.failure.set_exception(e)
                return
