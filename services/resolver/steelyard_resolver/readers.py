"""What the resolver asks the broker: how many judges are alive, and how far the groups have read."""

import re
import time
from contextlib import suppress
from uuid import UUID, uuid5

from aiokafka.errors import KafkaError

from steelyard.events import TraceJob, TraceScored
from steelyard.kafka import Cluster, Readers

LOOK_EVERY = 2.0
NAMED = re.compile(r"judge-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class SharedReaders:
    """Looked up every few seconds; during a rebalance, when the group looks empty, the last known number holds."""

    def __init__(self, cluster: Cluster, slots_of_a_judge: int) -> None:
        self._readers, self._slots_of_a_judge = Readers(cluster), slots_of_a_judge
        self._judges, self._looked = 1, float("-inf")
        self._incarnation: UUID | None = None
        self._incarnation_at = float("-inf")

    async def start(self) -> None:
        await self._readers.start()

    async def stop(self) -> None:
        await self._readers.stop()

    async def unwell(self) -> str | None:
        return None

    async def slots(self) -> int:
        if time.monotonic() - self._looked > LOOK_EVERY:
            self._looked = time.monotonic()
            with suppress(KafkaError):
                self._judges = await self._readers.members("judge") or self._judges
        return self._judges * self._slots_of_a_judge

    async def judges(self) -> dict[UUID, str]:
        """The members of the judges' group by the incarnation that each names itself after."""
        named = await self._readers.identities("judge")
        return {UUID(name[-36:]): member for member, name in named.items() if NAMED.fullmatch(name)}

    async def evict_judge(self, member: str) -> None:
        await self._readers.evict("judge", member)

    async def incarnation(self) -> UUID:
        """Of a job's whole way, there and back: who lost either topic lost the job or its outcome."""
        jobs = await self._readers.incarnation(TraceJob.topic)
        self._incarnation = uuid5(jobs, (await self._readers.incarnation(TraceScored.topic)).hex)
        self._incarnation_at = time.monotonic()
        return self._incarnation

    async def recent_incarnation(self) -> UUID:
        """One that is over already has its jobs sent once more, and loses none."""
        if self._incarnation is None or time.monotonic() - self._incarnation_at > LOOK_EVERY:
            return await self.incarnation()
        return self._incarnation

    async def consumed_jobs(self) -> dict[int, int]:
        return await self._readers.committed("judge", TraceJob.topic, TraceJob.partitions)

    async def job_bounds(self) -> dict[int, tuple[int, int]]:
        """The first and the end offset of each partition: what lies outside is lost."""
        firsts = await self._readers.beginnings(TraceJob.topic, TraceJob.partitions)
        ends = await self._readers.ends(TraceJob.topic, TraceJob.partitions)
        return {p: (firsts[p], ends[p]) for p in ends}

    async def score_ends(self) -> dict[int, int]:
        return await self._readers.ends(TraceScored.topic, TraceScored.partitions)

    async def settled_scores(self) -> dict[int, int]:
        """What the aggregator has read, or what nobody can read any more."""
        firsts = await self._readers.beginnings(TraceScored.topic, TraceScored.partitions)
        read = await self._readers.committed("aggregator", TraceScored.topic, TraceScored.partitions)
        return {p: max(first, read.get(p, 0)) for p, first in firsts.items()}
