"""The broker as the services use it: publishing with acks, topics made on purpose, and who has read how far."""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError
from aiokafka.structs import RecordMetadata

from steelyard import telemetry
from steelyard.errors import Later
from steelyard.events import Event, compacted, dead, topics

LARGEST_DEAD_LETTER = 2 * 1024 * 1024
Headers = Sequence[tuple[str, bytes]]


@dataclass(frozen=True)
class Cluster:
    """Where the broker is, and the prefix that lets several deployments share it."""

    bootstrap: str
    prefix: str = ""
    replication: int = 1

    def topic(self, name: str) -> str:
        return self.prefix + name

    def group(self, service: str) -> str:
        return f"{self.prefix}steelyard-{service}"


class Publisher:
    """An idempotent producer: everything it returns from has been acknowledged by all replicas in sync."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._producer: Any = None

    async def start(self) -> None:
        self._producer = AIOKafkaProducer(
            bootstrap_servers=self._cluster.bootstrap,
            acks="all",  # aiokafka's default, 1, loses what the leader had not yet copied
            enable_idempotence=True,  # a retried send is written once, in order
            linger_ms=2,
            max_batch_size=131072,
            max_request_size=LARGEST_DEAD_LETTER + 65536,
            compression_type="zstd",
            request_timeout_ms=20_000,
        )
        await self._producer.start()

    async def stop(self) -> None:
        if self._producer is not None:
            await self._producer.stop()

    async def unwell(self) -> str | None:
        try:
            async with asyncio.timeout(2):
                await self._producer.client.fetch_all_metadata()
        except (KafkaError, TimeoutError) as e:
            return f"Kafka does not answer: {type(e).__name__}"
        return None

    async def publish(self, events: Iterable[Event]) -> list[RecordMetadata]:
        """All at once, then one wait for all: awaiting each send would pay the linger for every message."""
        headers = telemetry.headers()
        events = list(events)
        for event in events:
            telemetry.published(event)
        return await self.send([(e.topic, e.key(), e.encode(), headers) for e in events])

    async def send(self, messages: Iterable[tuple[str, bytes | None, bytes | None, Headers]]) -> list[RecordMetadata]:
        waiting = []
        for topic, key, value, headers in messages:
            name = self._cluster.topic(topic)
            waiting.append(await self._producer.send(name, value, key=key, headers=list(headers)))
        return list(await asyncio.gather(*waiting))

    async def bury(self, topic: str, record: Any, reason: str, service: str) -> None:
        """The dead letters keep the original bytes and say where they came from and why they died."""
        origin = f"{record.topic}/{record.partition}/{record.offset}"
        headers = [*record.headers, ("x-reason", reason[:2000].encode()), ("x-origin", origin.encode())]
        headers.append(("x-service", service.encode()))
        value = (record.value or b"")[:LARGEST_DEAD_LETTER]
        await self.send([(dead(topic), record.key, value, headers)])
        telemetry.DEAD_LETTERS.labels(service=service, topic=topic).inc()


async def make_topics(cluster: Cluster, wanted: Mapping[str, int] | None = None, seconds: float = 30) -> list[str]:
    """Creates what is missing and says what; refuses a topic that exists with another partition count.

    Keyed topics must never change their partitions: a key would move to another owner.
    """
    wanted = topics() if wanted is None else wanted
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap)
    await admin.start()
    try:
        counts = {cluster.topic(t): n for t, n in wanted.items()} | {cluster.topic(dead(t)): 1 for t in wanted}
        made = await _create(admin, cluster, counts)
        await _visible(admin, counts, seconds)
        return made
    finally:
        await admin.close()


async def _create(admin: AIOKafkaAdminClient, cluster: Cluster, counts: Mapping[str, int]) -> list[str]:
    kept = {cluster.topic(t) for t in compacted()}
    new = [NewTopic(name, n, cluster.replication, topic_configs=_config(name, kept)) for name, n in counts.items()]
    answer = await admin.create_topics(new)
    made = []
    # Errors of single topics are not raised by the client: they have to be read.
    for name, code, *rest in answer.topic_errors:
        if code == 0:
            made.append(name)
        elif code != 36:  # already exists
            raise Later(f"topic {name} could not be made: error {code} {rest[0] if rest else ''}")
    return made


def _config(name: str, compacted: Collection[str]) -> dict[str, str]:
    if name in compacted:
        # Only segments that are closed are compacted; whoever starts reads the whole topic.
        return {"cleanup.policy": "compact", "segment.ms": str(3_600_000)}
    if name.endswith(".dead"):
        return {"max.message.bytes": str(LARGEST_DEAD_LETTER + 65536), "retention.ms": str(30 * 86_400_000)}
    return {"retention.ms": str(7 * 86_400_000)}


async def _visible(admin: AIOKafkaAdminClient, counts: Mapping[str, int], seconds: float) -> None:
    """A topic that was just made has no partitions for a moment; the first send would fail."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        seen = {t["topic"]: len(t["partitions"]) for t in await admin.describe_topics(list(counts))}
        wrong = {name: seen.get(name, 0) for name, n in counts.items() if seen.get(name, 0) not in (0, n)}
        if wrong:
            told = ", ".join(f"{name} has {n} and should have {counts[name]}" for name, n in wrong.items())
            raise Later(f"topics exist with other partition counts: {told}")
        if all(seen.get(name) == n for name, n in counts.items()):
            return
        if asyncio.get_running_loop().time() > deadline:
            raise Later("the topics that were made do not show up")
        await asyncio.sleep(0.05)


class Readers:
    """Who has read how far: the offsets and members of consumer groups, asked of the broker."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._admin: Any = None
        self._ends: Any = None

    async def start(self) -> None:
        self._admin = AIOKafkaAdminClient(bootstrap_servers=self._cluster.bootstrap)
        await self._admin.start()
        self._ends = AIOKafkaConsumer(bootstrap_servers=self._cluster.bootstrap, group_id=None)
        await self._ends.start()

    async def stop(self) -> None:
        if self._admin is not None:
            await self._admin.close()
        if self._ends is not None:
            await self._ends.stop()

    async def members(self, service: str) -> int:
        """Members of the service's group, 0 also while the group rebalances and has none settled."""
        answers = await self._admin.describe_consumer_groups([self._cluster.group(service)])
        return sum(len(group[5]) for answer in answers for group in answer.groups)

    async def committed(self, service: str, topic: str, partitions: int) -> dict[int, int]:
        name = self._cluster.topic(topic)
        found = await self._admin.list_consumer_group_offsets(self._cluster.group(service))
        return {tp.partition: o.offset for tp, o in found.items() if tp.topic == name and tp.partition < partitions}

    async def ends(self, topic: str, partitions: int) -> dict[int, int]:
        tps = [TopicPartition(self._cluster.topic(topic), p) for p in range(partitions)]
        return {tp.partition: end for tp, end in (await self._ends.end_offsets(tps)).items()}

    async def beginnings(self, topic: str, partitions: int) -> dict[int, int]:
        tps = [TopicPartition(self._cluster.topic(topic), p) for p in range(partitions)]
        return {tp.partition: start for tp, start in (await self._ends.beginning_offsets(tps)).items()}
