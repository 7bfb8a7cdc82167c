"""The broker as the services use it: publishing with acks, topics made on purpose, and who has read how far."""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    InvalidProducerIdMapping,
    KafkaError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
    UnknownMemberIdError,
    UnknownProducerId,
    for_code,
)
from aiokafka.protocol.group import LeaveGroupRequest
from aiokafka.structs import RecordMetadata

from steelyard import telemetry
from steelyard.errors import Later
from steelyard.events import Event, compacted, dead, topics
from steelyard.incarnations import incarnations
from steelyard.progress import incarnation_of
from steelyard.tasks import ended

LARGEST_DEAD_LETTER = 2 * 1024 * 1024
# What a broker says that forgot a producer, or knows another one by its id.
FORGOTTEN = (OutOfOrderSequenceNumber, UnknownProducerId, InvalidProducerIdMapping, ProducerFenced)
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


class Renewed(KafkaError):  # type: ignore[misc]
    """The producer was forgotten and another one is there: send again."""

    retriable = True


class Publisher:
    """An idempotent producer: everything it returns from has been acknowledged by all replicas in sync."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._producer: Any = None
        self._renewing = asyncio.Lock()  # many sends fail at once, and one new producer is enough
        self._ending: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._producer = await self._started()

    async def renew(self, old: Any = None) -> None:
        """A producer with an id of its own. A broker that lost its data gives the ids away again: messages of one that
        another producer has, too, are taken for repetitions, acknowledged and not written."""
        async with self._renewing:
            if old is not None and self._producer is not old:
                return
            old, self._producer = self._producer, await self._started()
            ending = asyncio.create_task(old.stop())  # sends what it has; waiting for that would hold up the new one
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def _started(self) -> Any:
        producer: Any = AIOKafkaProducer(
            bootstrap_servers=self._cluster.bootstrap,
            acks="all",  # aiokafka's default, 1, loses what the leader had not yet copied
            enable_idempotence=True,  # a retried send is written once, in order
            linger_ms=2,
            max_batch_size=131072,
            max_request_size=LARGEST_DEAD_LETTER + 65536,
            compression_type="zstd",
            request_timeout_ms=20_000,
        )
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        return producer

    async def stop(self) -> None:
        await ended(self._ending)
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
        waiting, producer = [], self._producer
        try:
            for topic, key, value, headers in messages:
                name = self._cluster.topic(topic)
                waiting.append(await producer.send(name, value, key=key, headers=list(headers)))
            return list(await asyncio.gather(*waiting))
        except FORGOTTEN as e:
            await self.renew(producer)
            raise Renewed(
                f"the broker had forgotten the producer ({type(e).__name__}); sending again by a new one"
            ) from e

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
    counts = all_topics(cluster, wanted)
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap)
    await admin.start()
    try:
        there = await incarnations(admin._client, list(counts))
        made = await _create(admin, cluster, {name: n for name, n in counts.items() if name not in there})
        await _visible(admin, counts, seconds)
        return made
    finally:
        await admin.close()


def all_topics(cluster: Cluster, wanted: Mapping[str, int] | None = None) -> dict[str, int]:
    """The partitions of each topic, those of the dead letters too."""
    wanted = topics() if wanted is None else wanted
    return {cluster.topic(t): n for t, n in wanted.items()} | {cluster.topic(dead(t)): 1 for t in wanted}


async def _create(admin: AIOKafkaAdminClient, cluster: Cluster, counts: Mapping[str, int]) -> list[str]:
    if not counts:
        return []
    kept = {cluster.topic(t) for t in compacted()}
    new = [
        NewTopic(name, n, cluster.replication, topic_configs=_config(name, kept, cluster.replication))
        for name, n in counts.items()
    ]
    answer = await admin.create_topics(new)
    made = []
    # Errors of single topics are not raised by the client: they have to be read.
    for name, code, *rest in answer.topic_errors:
        if code == 0:
            made.append(name)
        elif code in (29, 31):  # of the topic, of the cluster
            raise Later(
                f"topic {name} is missing and this user may not make it: run python -m steelyard.topics as one who may"
            )
        elif code != 36:  # already exists
            raise Later(f"topic {name} could not be made: error {code} {rest[0] if rest else ''}")
    return made


def _config(name: str, compacted: Collection[str], replication: int = 1) -> dict[str, str]:
    config = {"min.insync.replicas": str(in_sync(replication))}
    if name in compacted:
        # Only segments that are closed are compacted; whoever starts reads the whole topic.
        return config | {"cleanup.policy": "compact", "segment.ms": str(3_600_000)}
    if name.endswith(".dead"):
        size = str(LARGEST_DEAD_LETTER + 65536)
        return config | {"max.message.bytes": size, "retention.ms": str(30 * 86_400_000)}
    return config | {"retention.ms": str(7 * 86_400_000)}


def in_sync(replication: int) -> int:
    """Replicas that must have a message before it is acknowledged: two, so that the death of one broker loses none, but
    never all, so that it stops nobody either."""
    return max(1, min(2, replication - 1))


async def weakly_kept(cluster: Cluster) -> dict[str, int]:
    """Topics of ours that acknowledge with fewer replicas than they could: made by an earlier version, or by hand."""
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap)
    await admin.start()
    try:
        names = list(await incarnations(admin._client, list(all_topics(cluster))))
        copies = {t["topic"]: len(t["partitions"][0]["replicas"]) for t in await admin.describe_topics(names)}
        answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, n) for n in names])
        kept = {r[3]: dict(entry[:2] for entry in r[4]) for answer in answers for r in answer.resources}
    finally:
        await admin.close()
    wanted = {name: in_sync(n) for name, n in copies.items()}
    return {name: n for name, n in wanted.items() if int(kept[name]["min.insync.replicas"]) < n}


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

    async def identities(self, service: str) -> dict[str, str]:
        """What each member of the service's group calls itself, by the id that the broker gave it."""
        answers = await self._admin.describe_consumer_groups([self._cluster.group(service)])
        return {m[0]: m[1] for answer in answers for group in answer.groups for m in group[5]}

    async def evict(self, service: str, member: str) -> None:
        """Leaves the group in the name of a member that cannot do so any more: the others share its partitions at once."""
        group = self._cluster.group(service)
        coordinator = await self._admin.find_coordinator(group)
        answer = await self._admin._send_request(LeaveGroupRequest(group, member), coordinator)
        if answer.error_code not in (0, UnknownMemberIdError.errno):
            raise for_code(answer.error_code)(f"member {member} of {group} could not be evicted")

    async def committed(self, service: str, topic: str, partitions: int) -> dict[int, int]:
        """What names another incarnation of the topic, or lies beyond the end of its log, is not believed."""
        name = self._cluster.topic(topic)
        commits = await self._admin.list_consumer_group_offsets(self._cluster.group(service))
        current, ends = await self.incarnation(topic), await self.ends(topic, partitions)
        return {
            tp.partition: c.offset
            for tp, c in commits.items()
            if tp.topic == name
            and 0 <= c.offset <= ends.get(tp.partition, -1)
            and incarnation_of(c.metadata) in (None, current)
        }

    async def incarnation(self, topic: str) -> UUID:
        name = self._cluster.topic(topic)
        there = await incarnations(self._admin._client, [name])
        if name not in there:
            raise Later(f"there is no topic {name}")
        return there[name]

    async def ends(self, topic: str, partitions: int) -> dict[int, int]:
        tps = [TopicPartition(self._cluster.topic(topic), p) for p in range(partitions)]
        return {tp.partition: end for tp, end in (await self._ends.end_offsets(tps)).items()}

    async def beginnings(self, topic: str, partitions: int) -> dict[int, int]:
        tps = [TopicPartition(self._cluster.topic(topic), p) for p in range(partitions)]
        return {tp.partition: start for tp, start in (await self._ends.beginning_offsets(tps)).items()}
