"""What one member of a group has done of its partitions: what it took, finished and committed, and of which incarnation."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any
from uuid import UUID

from aiokafka import OffsetAndMetadata, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from steelyard import telemetry
from steelyard.events import topics
from steelyard.incarnations import incarnations
from steelyard.kafka import Cluster
from steelyard.progress import Progress, incarnation_of, remembered

log = logging.getLogger(__name__)
LOOK_EVERY = 1.0
LOOK_SECONDS = 5.0
# aiokafka looks for new topics and partitions this often; its default is five minutes, in which a topic that was made
# anew has no reader.
METADATA_MS = 3000
UNFETCHED_SECONDS = 30.0
# How many offsets may lie between the oldest unfinished record and the newest taken one: what a note has room for.
MOST_AHEAD = 20_000
PUZZLED_SECONDS = 60.0


class Positions:
    """Offsets belong to an incarnation of the topic: those of another one, and those beyond the end of a log that
    shrank, are forgotten, and the log is read from its beginning. What is read twice has no effect."""

    def __init__(self, cluster: Cluster, topic: str, service: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.progress: dict[TopicPartition, Progress] = {}
        self._cluster, self._topic, self._service = cluster, cluster.topic(topic), service
        self._count, self._clock = topics()[topic], clock
        self._group = cluster.group(service)
        self._incarnation: UUID | None = None
        self._committed: dict[TopicPartition, tuple[int, str]] = {}
        self._put_off: dict[tuple[TopicPartition, int], tuple[float, str]] = {}
        self._admin: Any = None
        self._its: Callable[[], Any]

    async def start(self, consumer: Callable[[], Any]) -> None:
        """`consumer` gives the one whose positions these are, once there is one."""
        self._its = consumer
        self._admin = AIOKafkaAdminClient(bootstrap_servers=self._cluster.bootstrap)
        await self._admin.start()

    async def stop(self) -> None:
        if self._admin is not None:
            await self._admin.close()

    @property
    def _consumer(self) -> Any:
        return self._its()

    async def assigned(self, partitions: Collection[TopicPartition]) -> None:
        """Partitions that come back keep what is known of them; of the others the last commit says where they are."""
        incarnation, commits = await self._recorded(partitions)
        same = incarnation is None or self._incarnation in (None, incarnation)
        kept = {tp: p for tp, p in self.progress.items() if tp in partitions} if same else {}
        self._incarnation = incarnation or self._incarnation
        self._committed = {tp: c for tp, c in self._committed.items() if tp in kept}
        self._forget(set(self.progress) - set(kept))
        self.progress = kept | {tp: self._taken_over(tp, commits.get(tp)) for tp in partitions if tp not in kept}
        # What was fetched until now is dropped, so all are sought: where nothing is committed, to the beginning.
        for tp, progress in self.progress.items():
            if progress.position is not None or incarnation is not None:
                self._consumer.seek(tp, progress.position or 0)

    def _taken_over(self, tp: TopicPartition, commit: OffsetAndMetadata | None) -> Progress:
        if commit is None or commit.offset < 0:
            return Progress()
        if incarnation_of(commit.metadata) not in (None, self._incarnation):
            log.warning("%s: %s was made anew since the last commit: reading it from its beginning", self._service, tp)
            self._consumer.seek(tp, 0)
            return Progress()
        self._committed[tp] = (commit.offset, commit.metadata)
        return Progress(remembered(commit.offset, commit.metadata), commit.offset)

    async def _recorded(
        self, partitions: Collection[TopicPartition]
    ) -> tuple[UUID | None, dict[TopicPartition, OffsetAndMetadata]]:
        """`consumer.committed()` does not return the metadata, so the admin client is asked."""
        if not partitions:
            return None, {}
        try:
            commits = await self._admin.list_consumer_group_offsets(self._group)
            return await self._current(), {tp: c for tp, c in commits.items() if tp in partitions}
        except KafkaError as e:
            log.warning("%s: commits could not be read (%s): finished work may be repeated", self._service, e)
            return None, {}

    async def _current(self) -> UUID | None:
        return (await incarnations(self._admin._client, [self._topic])).get(self._topic)

    async def look(self) -> set[TopicPartition]:
        """Which partitions begin anew: their topic is another one, or their log ends before what was read of it."""
        read = {tp: p.position for tp, p in self.progress.items() if p.position is not None}
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                if not self.progress:
                    await self._insist()
                if not read:
                    return set()
                current = await self._current()
                ends = await self._consumer.end_offsets(list(read))
        except (KafkaError, TimeoutError):
            return set()
        if current is None:
            return set()
        if self._incarnation not in (None, current):
            lost = set(self.progress)
        else:
            lost = {tp for tp, position in read.items() if ends.get(tp, position) < position}
        self._incarnation = current
        for tp in lost & set(self.progress):
            self._begin_anew(tp)
        return lost

    async def _insist(self) -> None:
        """aiokafka forgets that a topic appeared where it sees that in the middle of a rebalance that knew of none; the
        group is settled then, and nobody reads."""
        owned, settled = await self._owned()
        if settled and not owned and await self._current():
            self._consumer._coordinator.request_rejoin()

    def _begin_anew(self, tp: TopicPartition) -> None:
        """Where the log begins later than at 0, the broker says so and aiokafka goes there."""
        self._forget({tp})
        log.warning("%s: %s lost its log or was made anew: reading it from its beginning", self._service, tp)
        self.progress[tp] = Progress()
        self._committed.pop(tp, None)
        with suppress(IllegalStateError):
            self._consumer.seek(tp, 0)
            self._consumer.resume(tp)

    def seek_back(self, partitions: Collection[TopicPartition]) -> None:
        """To what was taken last; records that were handed out since are delivered again."""
        for tp in set(partitions) & set(self.progress):
            with suppress(IllegalStateError):
                self._consumer.seek(tp, self.progress[tp].position or 0)

    def put_off(self, record: Any, why: str) -> None:
        """A record that this version does not understand stays unfinished: no commit passes it, a later version takes it
        up, and what comes after it in its partition goes on, as far as a note about that has room."""
        tp = TopicPartition(record.topic, record.partition)
        self._put_off[tp, record.offset] = self._clock(), why
        log.warning("%s: %s at offset %d waits for another version: %s", self._service, tp, record.offset, why)
        self._tell()

    def bound(self) -> None:
        """A partition that is as far ahead of an unfinished record as a note has room for waits, and it alone, until the
        record is finished."""
        far = {tp for tp, progress in self.progress.items() if progress.span >= MOST_AHEAD}
        paused = self._consumer.paused()
        with suppress(IllegalStateError):
            self._consumer.pause(*far - paused)
            self._consumer.resume(*(paused & self.progress.keys()) - far)

    def _forget(self, partitions: Collection[TopicPartition]) -> None:
        self._put_off = {(tp, o): put for (tp, o), put in self._put_off.items() if tp not in partitions}
        self._tell()

    def _tell(self) -> None:
        telemetry.PUT_OFF.labels(service=self._service, topic=self._topic).set(len(self._put_off))

    def tell_held_up(self, count: int) -> None:
        telemetry.HELD_UP.labels(service=self._service, topic=self._topic).set(count)

    async def commit(self) -> None:
        fresh: dict[TopicPartition, tuple[int, str]] = {}
        for tp, progress in self.progress.items():
            if (low := progress.watermark) is not None:
                commit = (low, progress.note(self._incarnation))
                if self._committed.get(tp) != commit:
                    fresh[tp] = commit
        if not fresh:
            return
        try:
            await self._consumer.commit({tp: OffsetAndMetadata(*commit) for tp, commit in fresh.items()})
        except (CommitFailedError, IllegalStateError):
            return  # the partitions are on the move; their next owner repeats what is not committed
        self._committed.update({tp: commit for tp, commit in fresh.items() if tp in self.progress})

    async def unwell(self, busy: bool = False) -> str | None:
        """Ready is a service each of whose partitions has an owner, whoever that is, and which really fetches its own. Who
        is busy with a batch fetches the next one later."""
        for (tp, offset), (since, why) in self._put_off.items():
            if self._clock() - since > PUZZLED_SECONDS:
                return f"{tp.topic} {tp.partition} waits at offset {offset} for another version: {why}"
        if orphans := await self._orphans():
            return f"no member of the group reads {self._topic} {', '.join(map(str, sorted(orphans)))}"
        now = time.time()
        for tp in () if busy else self._consumer.assignment() - self._consumer.paused():
            fetched = self._consumer.last_poll_timestamp(tp)
            if fetched is None or now - fetched / 1000 > UNFETCHED_SECONDS:
                return f"{tp.topic} {tp.partition} is not fetched"
        return None

    async def _orphans(self) -> set[int]:
        """Partitions without an owner, all of them while the group rebalances."""
        return set(range(self._count)) - (await self._owned())[0]

    async def _owned(self) -> tuple[set[int], bool]:
        """The partitions that some member has, and whether the group has settled."""
        owned, settled = set[int](), False
        for answer in await self._admin.describe_consumer_groups([self._group]):
            for _, _, state, _, _, members, *_ in answer.groups:
                settled = state == "Stable"
                for _, _, _, _, assignment in members:
                    owned |= _partitions(assignment, self._topic)
        return owned, settled


def _partitions(assignment: bytes, topic: str) -> set[int]:
    if not assignment:
        return set()
    owned = ConsumerProtocolMemberAssignment.decode(assignment).partitions()
    return {tp.partition for tp in owned if tp.topic == topic}
